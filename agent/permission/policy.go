package permission

import (
	"fmt"
	"maps"
	"slices"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Policy is who may do what in one organization, at one version. It is immutable: any number of goroutines
// may ask it. The zero Policy knows nobody.
type Policy struct {
	organization id.Organization
	version      uint64
	members      map[id.User]RoleName // roles of the organization, from the platform
	projects     map[id.Project]bool
	roles        map[RoleName]Role // custom
	grants       map[id.User][]Grant
}

// Grant is a role held by a user somewhere.
type Grant struct {
	Role    RoleName
	Project id.Project // empty: in the whole organization
}

// Membership is what the platform says of an organization.
type Membership struct {
	Members  map[id.User]RoleName // Owner, Admin or Member
	Projects []id.Project
}

// New makes the policy of an organization that has no roles or grants of its own yet.
func New(organization id.Organization, m Membership) (*Policy, error) {
	return (&Policy{organization: organization}).WithMembership(m)
}

// Organization is whose policy this is.
func (p *Policy) Organization() id.Organization { return p.organization }

// Version rises with every edit: whoever caches an answer keeps it for this version only.
func (p *Policy) Version() uint64 { return p.version }

// Resource is what a request is about. Project is empty for what belongs to the organization as a whole.
type Resource struct {
	Organization id.Organization
	Project      id.Project
}

// String names the resource in messages.
func (r Resource) String() string {
	if r.Project == "" {
		return "organization " + string(r.Organization)
	}
	return fmt.Sprintf("project %s of organization %s", r.Project, r.Organization)
}

// Subject is who asks. Limit is what the credential that was shown is good for, whatever the person may do
// otherwise: the scopes of an OAuth token, or Everything for a person's own session. A subject without a
// limit may do nothing, so that a place that forgets to say it fails closed.
type Subject struct {
	User  id.User
	Limit []Pattern
}

// Decision is an answer with its reason, which is for the log and for the caller.
type Decision struct {
	Allowed bool
	Reason  string
}

// Check reports whether the subject may do this to the resource. Everything that is not allowed by a role
// which the subject holds there, within the limit of the credential, is refused.
func (p *Policy) Check(s Subject, wanted Permission, r Resource) Decision {
	as := Pattern(wanted)
	switch {
	case p.organization == "" || r.Organization != p.organization:
		return refused("%s is not served here", r)
	case wanted == Permission{}:
		return refused("nothing was asked for")
	case !p.isMember(s.User):
		return refused("user %s is not a member of organization %s", s.User, p.organization)
	case r.Project != "" && !p.projects[r.Project]:
		return refused("organization %s has no project %s", p.organization, r.Project)
	case !anyCovers(s.Limit, as):
		return refused("the credential of user %s is not good for %s", s.User, wanted)
	}
	for grant := range p.held(s.User, r.Project) {
		if anyCovers(p.role(grant.Role).Patterns, as) {
			return Decision{Allowed: true, Reason: fmt.Sprintf("role %s", grant.Role)}
		}
	}
	return refused("user %s holds no role that allows %s in %s", s.User, wanted, r)
}

func refused(format string, args ...any) Decision {
	return Decision{Reason: fmt.Sprintf(format, args...)}
}

func (p *Policy) isMember(user id.User) bool {
	_, ok := p.members[user]
	return ok
}

// held ranges over what the user holds at a place: his role in the organization, grants for the whole
// organization, and, for a project, those in that project.
func (p *Policy) held(user id.User, project id.Project) func(yield func(Grant) bool) {
	return func(yield func(Grant) bool) {
		if r, ok := p.members[user]; !ok || !yield(Grant{Role: r}) {
			return
		}
		for _, g := range p.grants[user] {
			if (g.Project == "" || g.Project == project) && !yield(g) {
				return
			}
		}
	}
}

func (p *Policy) role(name RoleName) Role {
	if r, ok := systemRoles[name]; ok {
		return r
	}
	return p.roles[name]
}

// holds reports whether the subject himself holds all that the patterns name at the place.
func (p *Policy) holds(s Subject, patterns []Pattern, project id.Project) bool {
	return !slices.ContainsFunc(patterns, func(q Pattern) bool {
		if !anyCovers(s.Limit, q) {
			return true
		}
		for grant := range p.held(s.User, project) {
			if anyCovers(p.role(grant.Role).Patterns, q) {
				return false
			}
		}
		return true
	})
}

// Holds reports whether the subject himself holds all that a pattern names at a place, so that he may hand it on.
func (p *Policy) Holds(s Subject, pattern Pattern, at Resource) bool {
	return at.Organization == p.organization && p.organization != "" && (at.Project == "" || p.projects[at.Project]) && p.holds(s, []Pattern{pattern}, at.Project)
}

// HasProject reports whether the organization has a project.
func (p *Policy) HasProject(project id.Project) bool { return p.projects[project] }

// Roles lists the organization's own roles by name.
func (p *Policy) Roles() []Role {
	var all []Role
	for _, name := range slices.Sorted(maps.Keys(p.roles)) {
		r := p.roles[name]
		r.Patterns = slices.Clone(r.Patterns)
		all = append(all, r)
	}
	return all
}

// Members gives every member's role in the organization.
func (p *Policy) Members() map[id.User]RoleName { return maps.Clone(p.members) }

// Grants lists what a user was granted beside his membership, in a stable order.
func (p *Policy) Grants(user id.User) []Grant { return slices.Clone(p.grants[user]) }
