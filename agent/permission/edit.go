package permission

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Bounds of what one organization can keep, so that no organization fills its host's memory.
const (
	MaxRoles         = 200
	MaxGrants        = 20_000
	maxGrantsPerUser = 500
)

var (
	writeRoles  = MustParse("role:write")
	writeGrants = MustParse("grant:write")
)

// WithMembership takes over what the platform says. Grants of people and in projects that are gone go with
// them: somebody who is removed and comes back begins with nothing.
func (p *Policy) WithMembership(m Membership) (*Policy, error) {
	for user, r := range m.Members {
		if r != Owner && r != Admin && r != Member {
			return nil, fmt.Errorf("cannot take over the members of organization %s: user %s has the role %q; roles of members are owner, admin and member",
				p.organization, user, fault.Shorten(string(r)))
		}
	}
	next := p.edited()
	next.members = maps.Clone(m.Members)
	next.projects = make(map[id.Project]bool, len(m.Projects))
	for _, project := range m.Projects {
		next.projects[project] = true
	}
	next.grants = make(map[id.User][]Grant, len(p.grants))
	for user, grants := range p.grants {
		if !next.isMember(user) {
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(grants), func(g Grant) bool { return g.Project != "" && !next.projects[g.Project] })
		if len(kept) > 0 {
			next.grants[user] = kept
		}
	}
	return next, nil
}

// PutRole makes or changes one of the organization's own roles. The actor must be allowed "role:write" and
// must himself hold, in the whole organization, all that the role held before and will hold: changing a
// role changes what others may do.
func (p *Policy) PutRole(actor Subject, r Role) (*Policy, error) {
	if err := p.mayEditRole(actor, r); err != nil {
		return nil, err
	}
	before, exists := p.roles[r.Name]
	switch {
	case exists && before.Level != r.Level:
		return nil, fault.New(fault.Conflict, "role %s is a role of the %s: delete it first to make it one of the %s", r.Name, before.Level, r.Level)
	case !exists && len(p.roles) >= MaxRoles:
		return nil, fault.New(fault.TooLarge, "organization %s has %d roles, which is the most: delete one that is not used", p.organization, len(p.roles))
	}
	if exists {
		if err := p.mayEditRole(actor, before); err != nil {
			return nil, err
		}
	}
	next := p.edited()
	next.roles = clone(p.roles)
	r.Patterns = normal(slices.Clone(r.Patterns))
	next.roles[r.Name] = r
	return next, nil
}

// DeleteRole forgets a role that nobody holds.
func (p *Policy) DeleteRole(actor Subject, name RoleName) (*Policy, error) {
	r, ok := p.roles[name]
	if !ok {
		if _, system := systemRoles[name]; system {
			return nil, fault.New(fault.Forbidden, "the role %s belongs to the system and cannot be deleted", name)
		}
		return nil, fault.New(fault.NotFound, "organization %s has no role %s", p.organization, fault.Shorten(string(name)))
	}
	if err := p.mayEditRole(actor, r); err != nil {
		return nil, err
	}
	holders := 0
	for _, grants := range p.grants {
		if slices.ContainsFunc(grants, func(g Grant) bool { return g.Role == name }) {
			holders++
		}
	}
	if holders > 0 {
		return nil, fault.New(fault.Conflict, "role %s is held by %d users: revoke it from them first", name, holders)
	}
	next := p.edited()
	next.roles = clone(p.roles)
	delete(next.roles, name)
	return next, nil
}

func (p *Policy) mayEditRole(actor Subject, r Role) error {
	here := Resource{Organization: p.organization}
	if d := p.Check(actor, writeRoles, here); !d.Allowed {
		return fault.New(fault.Forbidden, "cannot change role %s: %s", r.Name, d.Reason)
	}
	if !p.holds(actor, r.Patterns, "") {
		return fault.New(fault.Forbidden, "cannot change role %s: it allows more than user %s may do in the whole organization", r.Name, actor.User)
	}
	return nil
}

// Grant gives a user a role at a place. The actor must be allowed "grant:write" there and must hold all that
// the role allows there. What the user holds already is no error.
func (p *Policy) Grant(actor Subject, user id.User, g Grant) (*Policy, error) {
	if err := p.mayGrant(actor, user, g); err != nil {
		return nil, err
	}
	if slices.Contains(p.grants[user], g) {
		return p, nil
	}
	if all := p.countGrants(); all >= MaxGrants || len(p.grants[user]) >= maxGrantsPerUser {
		return nil, fault.New(fault.TooLarge, "cannot grant role %s: organization %s has %d grants (at most %d), user %s has %d (at most %d); use a role of the organization or revoke some",
			g.Role, p.organization, all, MaxGrants, user, len(p.grants[user]), maxGrantsPerUser)
	}
	next := p.edited()
	next.grants = clone(p.grants)
	next.grants[user] = sorted(append(slices.Clone(p.grants[user]), g))
	return next, nil
}

// Revoke takes a role from a user at a place, under the same conditions as Grant.
func (p *Policy) Revoke(actor Subject, user id.User, g Grant) (*Policy, error) {
	if err := p.mayGrant(actor, user, g); err != nil {
		return nil, err
	}
	at := slices.Index(p.grants[user], g)
	if at < 0 {
		return nil, fault.New(fault.NotFound, "user %s does not hold role %s in %s", user, g.Role, Resource{p.organization, g.Project})
	}
	next := p.edited()
	next.grants = clone(p.grants)
	next.grants[user] = slices.Delete(slices.Clone(p.grants[user]), at, at+1)
	if len(next.grants[user]) == 0 {
		delete(next.grants, user)
	}
	return next, nil
}

func (p *Policy) mayGrant(actor Subject, user id.User, g Grant) error {
	place := Resource{p.organization, g.Project}
	if d := p.Check(actor, writeGrants, place); !d.Allowed {
		return fault.New(fault.Forbidden, "cannot grant or revoke role %s: %s", fault.Shorten(string(g.Role)), d.Reason)
	}
	r := p.role(g.Role)
	switch {
	case r.Name == "":
		return fault.New(fault.NotFound, "organization %s has no role %s", p.organization, fault.Shorten(string(g.Role)))
	case g.Role == Owner || g.Role == Admin || g.Role == Member:
		return fault.New(fault.Forbidden, "the role %s comes with membership, which the platform keeps: change it there", g.Role)
	case (r.Level == OfProject) != (g.Project != ""):
		return fault.New(fault.InvalidRequest, "role %s is a role of the %s and cannot be granted in %s", g.Role, r.Level, place)
	case !p.isMember(user):
		return fault.New(fault.Conflict, "user %s is not a member of organization %s: add the user on the platform first", user, p.organization)
	case !p.holds(actor, r.Patterns, g.Project):
		return fault.New(fault.Forbidden, "cannot grant or revoke role %s: it allows more than user %s may do in %s", g.Role, actor.User, place)
	}
	return nil
}

func (p *Policy) countGrants() int {
	n := 0
	for _, grants := range p.grants {
		n += len(grants)
	}
	return n
}

// edited is a copy that shares all maps; whoever changes one replaces it.
func (p *Policy) edited() *Policy {
	next := *p
	next.version++
	return &next
}

func clone[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return make(map[K]V)
	}
	return maps.Clone(m)
}

func sorted(grants []Grant) []Grant {
	slices.SortFunc(grants, func(a, b Grant) int {
		if c := strings.Compare(string(a.Project), string(b.Project)); c != 0 {
			return c
		}
		return strings.Compare(string(a.Role), string(b.Role))
	})
	return grants
}
