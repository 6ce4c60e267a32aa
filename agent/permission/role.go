package permission

import (
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// RoleName names a role: 1 to 64 characters of [a-z0-9_-] beginning with a letter. System roles of projects
// have a colon in their name, so no custom role can take it.
type RoleName string

// Level is where a role can be granted.
type Level uint8

// The levels. A role of the organization holds in all its projects; one of a project only there.
const (
	OfOrganization Level = iota + 1
	OfProject
)

// String is the level's name in sections and messages.
func (l Level) String() string {
	switch l {
	case OfOrganization:
		return "organization"
	case OfProject:
		return "project"
	}
	return "no level"
}

func parseLevel(s string) (Level, bool) {
	switch s {
	case "organization":
		return OfOrganization, true
	case "project":
		return OfProject, true
	}
	return 0, false
}

// Role is a named set of permissions that can be granted at one level.
type Role struct {
	Name     RoleName
	Level    Level
	Patterns []Pattern // sorted, without repeats
}

// The system roles. Those of the organization are given by the platform, as membership; those of projects
// are granted inside the organization.
const (
	Owner         RoleName = "owner"
	Admin         RoleName = "admin"
	Member        RoleName = "member"
	ProjectAdmin  RoleName = "project:admin"
	ProjectMember RoleName = "project:member"
)

// systemRoles is what the system roles may do. An admin holds no wildcard over all areas: whatever is
// reserved to owners ("organization:…", "owner:…") is nothing that he could hand to anybody, himself included.
var systemRoles = map[RoleName]Role{
	Owner: role(Owner, OfOrganization, "*:*"),
	Admin: role(Admin, OfOrganization, "organization:read", "member:*", "role:*", "grant:*", "project:*", "room:*",
		"container:*", "client:*", "token:*"),
	Member:        role(Member, OfOrganization, "organization:read", "member:read", "role:read", "project:list"),
	ProjectAdmin:  role(ProjectAdmin, OfProject, "project:*", "grant:*", "room:*", "container:*"),
	ProjectMember: role(ProjectMember, OfProject, "project:read", "room:*", "container:read", "container:access"),
}

// SystemRoles lists the roles that every organization has, by name.
func SystemRoles() []Role {
	var all []Role
	for _, r := range systemRoles {
		r.Patterns = slices.Clone(r.Patterns)
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b Role) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return all
}

func role(name RoleName, level Level, patterns ...string) Role {
	r := Role{Name: name, Level: level}
	for _, s := range patterns {
		p, err := ParsePattern(s)
		if err != nil {
			panic(err)
		}
		r.Patterns = append(r.Patterns, p)
	}
	r.Patterns = normal(r.Patterns)
	return r
}

// maxPatterns bounds what one role can hold.
const maxPatterns = 200

// NewRole checks what a caller sent as a custom role.
func NewRole(name, level string, patterns []string) (Role, error) {
	r := Role{Name: RoleName(name)}
	if len(name) > 64 || !validRoleName(name) {
		return Role{}, fault.Invalid("name", "cannot use %q as a role name: use 1 to 64 characters of [a-z0-9_-] beginning with a letter", fault.Shorten(name))
	}
	if _, taken := systemRoles[r.Name]; taken {
		return Role{}, fault.Invalid("name", "the role %s belongs to the system and cannot be changed: choose another name", name)
	}
	var ok bool
	if r.Level, ok = parseLevel(level); !ok {
		return Role{}, fault.Invalid("level", "cannot use %q as the level of role %s: it is organization or project", fault.Shorten(level), name)
	}
	if len(patterns) == 0 || len(patterns) > maxPatterns {
		return Role{}, fault.Invalid("permissions", "role %s has %d permissions: give 1 to %d", name, len(patterns), maxPatterns)
	}
	for _, s := range patterns {
		p, err := ParsePattern(s)
		if err != nil {
			return Role{}, fault.Invalid("permissions", "%v", err)
		}
		r.Patterns = append(r.Patterns, p)
	}
	r.Patterns = normal(r.Patterns)
	return r, nil
}

// validRoleName allows what validPart allows, at twice the length.
func validRoleName(s string) bool {
	if len(s) <= maxPart {
		return validPart(s)
	}
	return validPart(s[:maxPart]) && validPart("a"+s[maxPart:len(s)-1]) && validPart("a"+s[len(s)-1:])
}

func normal(patterns []Pattern) []Pattern {
	slices.SortFunc(patterns, func(a, b Pattern) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(patterns)
}
