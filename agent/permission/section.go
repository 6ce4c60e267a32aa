package permission

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// section is the stored form of what is the organization's own: its roles and grants. Members and projects
// are not in it; they come from the coordinator with every assignment.
type section struct {
	Format  int           `json:"format"`
	Version uint64        `json:"version"`
	Roles   []storedRole  `json:"roles"`
	Grants  []storedGrant `json:"grants"`
}

type storedRole struct {
	Name        string   `json:"name"`
	Level       string   `json:"level"`
	Permissions []string `json:"permissions"`
}

type storedGrant struct {
	User    string `json:"user_id"`
	Role    string `json:"role"`
	Project string `json:"project_id,omitempty"`
}

const sectionFormat = 1

// Section writes the organization's roles and grants. Equal policies give equal bytes.
func (p *Policy) Section() []byte {
	s := section{Format: sectionFormat, Version: p.version, Roles: []storedRole{}, Grants: []storedGrant{}}
	for _, r := range p.Roles() {
		stored := storedRole{Name: string(r.Name), Level: r.Level.String()}
		for _, pattern := range r.Patterns {
			stored.Permissions = append(stored.Permissions, pattern.String())
		}
		s.Roles = append(s.Roles, stored)
	}
	for _, user := range slices.Sorted(maps.Keys(p.grants)) {
		for _, g := range p.grants[user] {
			s.Grants = append(s.Grants, storedGrant{User: string(user), Role: string(g.Role), Project: string(g.Project)})
		}
	}
	body, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return body
}

// Restore reads a section into a policy with the present membership. Grants of people who left since and in
// projects that are gone are dropped; anything else that does not fit is an error, and nothing is restored.
func Restore(organization id.Organization, m Membership, stored []byte) (*Policy, error) {
	p := &Policy{organization: organization, roles: map[RoleName]Role{}, grants: map[id.User][]Grant{}}
	s, err := decodeSection(stored)
	if err != nil {
		return nil, fmt.Errorf("cannot read the permissions of organization %s: %w", organization, err)
	}
	p.version = s.Version
	for _, stored := range s.Roles {
		r, err := NewRole(stored.Name, stored.Level, stored.Permissions)
		if err != nil {
			return nil, fmt.Errorf("cannot restore the permissions of organization %s: %w", organization, err)
		}
		if _, twice := p.roles[r.Name]; twice {
			return nil, fmt.Errorf("cannot restore the permissions of organization %s: role %s stands there twice", organization, r.Name)
		}
		p.roles[r.Name] = r
	}
	for _, stored := range s.Grants {
		if err := p.restoreGrant(stored); err != nil {
			return nil, fmt.Errorf("cannot restore the permissions of organization %s: %w", organization, err)
		}
	}
	for user := range p.grants {
		p.grants[user] = sorted(p.grants[user])
	}
	return p.WithMembership(m)
}

func (p *Policy) restoreGrant(stored storedGrant) error {
	user, err := id.ParseUser(stored.User)
	if err != nil {
		return err
	}
	g := Grant{Role: RoleName(stored.Role)}
	if stored.Project != "" {
		if g.Project, err = id.ParseProject(stored.Project); err != nil {
			return err
		}
	}
	r := p.role(g.Role)
	if r.Name == "" || r.Name == Owner || r.Name == Admin || r.Name == Member || (r.Level == OfProject) != (g.Project != "") {
		return fmt.Errorf("user %s cannot hold role %q in %s", user, fault.Shorten(stored.Role), Resource{p.organization, g.Project})
	}
	if slices.Contains(p.grants[user], g) {
		return fmt.Errorf("user %s holds role %s in %s twice", user, g.Role, Resource{p.organization, g.Project})
	}
	p.grants[user] = append(p.grants[user], g)
	return nil
}

func decodeSection(stored []byte) (section, error) {
	var s section
	d := json.NewDecoder(bytes.NewReader(stored))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, err
	}
	if _, err := d.Token(); err != io.EOF {
		return s, fmt.Errorf("there is something after the end")
	}
	switch {
	case s.Format != sectionFormat:
		return s, fmt.Errorf("its format is %d and this version reads %d: run a version that knows it", s.Format, sectionFormat)
	case len(s.Roles) > MaxRoles:
		return s, fmt.Errorf("it has %d roles; %d are the most", len(s.Roles), MaxRoles)
	case len(s.Grants) > MaxGrants:
		return s, fmt.Errorf("it has %d grants; %d are the most", len(s.Grants), MaxGrants)
	}
	return s, nil
}
