// Package permission answers one question: may this subject do this to that? It is pure: a Policy is one
// organization's members, roles and grants at one version, it never changes, and every edit makes a new
// one. Whoever serves an organization keeps the newest policy and asks Check.
//
// Who belongs to the organization, and as what, comes from the coordinator (Membership). Custom roles and
// grants inside projects are the organization's own and are kept in its section "permissions" (Section).
//
// What is not allowed by a role is refused. The zero value of every type here allows nothing.
package permission

import (
	"fmt"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// Permission is one thing that can be allowed, written "area:action", as in "container:create". The zero
// Permission is never allowed.
type Permission struct{ area, action string }

// Pattern is a permission in which either part may be the wildcard "*", as in "container:*", "*:read" or
// "*:*". The zero Pattern covers nothing.
type Pattern struct{ area, action string }

// maxPart bounds each half of a permission: 32 characters of [a-z0-9_-], beginning with a letter.
const maxPart = 32

const wildcard = "*"

// Parse reads a permission without wildcards.
func Parse(s string) (Permission, error) {
	area, action, ok := strings.Cut(s, ":")
	if !ok || !validPart(area) || !validPart(action) {
		return Permission{}, fmt.Errorf("cannot use %q as a permission: write area:action, each 1 to %d characters of [a-z0-9_-] beginning with a letter",
			fault.Shorten(s), maxPart)
	}
	return Permission{area, action}, nil
}

// MustParse is Parse for permissions that stand in the program's own tables. It panics on a wrong one.
func MustParse(s string) Permission {
	p, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return p
}

// ParsePattern reads a permission whose parts may be "*".
func ParsePattern(s string) (Pattern, error) {
	area, action, ok := strings.Cut(s, ":")
	if !ok || area != wildcard && !validPart(area) || action != wildcard && !validPart(action) {
		return Pattern{}, fmt.Errorf("cannot use %q as a permission pattern: write area:action, each \"*\" or 1 to %d characters of [a-z0-9_-] beginning with a letter",
			fault.Shorten(s), maxPart)
	}
	return Pattern{area, action}, nil
}

// String writes the permission as Parse reads it.
func (p Permission) String() string { return p.area + ":" + p.action }

// String writes the pattern as ParsePattern reads it.
func (p Pattern) String() string { return p.area + ":" + p.action }

// Everything is the pattern "*:*".
func Everything() Pattern { return Pattern{wildcard, wildcard} }

// covers reports whether whoever holds p holds all that q names.
func (p Pattern) covers(q Pattern) bool {
	return q.area != "" && (p.area == wildcard || p.area == q.area) &&
		q.action != "" && (p.action == wildcard || p.action == q.action)
}

// anyCovers reports whether one of the patterns covers q. Several narrow patterns never add up to a wildcard:
// an action that is invented tomorrow is in the wildcard and not in them.
func anyCovers(patterns []Pattern, q Pattern) bool {
	for _, p := range patterns {
		if p.covers(q) {
			return true
		}
	}
	return false
}

func validPart(s string) bool {
	if s == "" || len(s) > maxPart || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
