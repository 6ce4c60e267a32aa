package state

import (
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Organization is a tenant as the platform told it.
type Organization struct {
	ID          id.Organization   `json:"id,omitzero"`
	Name        string            `json:"name,omitzero"`
	Members     []command.Member  `json:"members,omitzero"`  // sorted by user
	Projects    []command.Project `json:"projects,omitzero"` // sorted by id
	CreatedAt   time.Time         `json:"created_at,omitzero"`
	UpdatedAt   time.Time         `json:"updated_at,omitzero"`
	CreateIndex uint64            `json:"create_index,omitzero"`
	ModifyIndex uint64            `json:"modify_index,omitzero"`
}

func organizationTable() table {
	return table{
		kind: 4,
		save: func(v View, put func(any) error) error { return saveTree(v.trees.organizations.all(nil, ""), put) },
		restore: restoreTree("organizations", func(t *Txn, o *Organization, _ interner) error {
			if o.ID == "" {
				return errNoKey
			}
			t.trees.organizations.put(string(o.ID), o)
			return nil
		}),
	}
}

// Organization gives an organization; nil when it is unknown.
func (v View) Organization(ws WatchSet, organization id.Organization) *Organization {
	return v.trees.organizations.get(ws, string(organization))
}

// Organizations ranges over all organizations by id.
func (v View) Organizations(ws WatchSet) iter.Seq[*Organization] {
	return v.OrganizationsAfter(ws, "")
}

// OrganizationsAfter is Organizations for those after one.
func (v View) OrganizationsAfter(ws WatchSet, after id.Organization) iter.Seq[*Organization] {
	return v.trees.organizations.after(ws, string(after))
}

// PutOrganization stores an organization.
func (t *Txn) PutOrganization(next Organization) *Organization {
	o := &next
	o.ModifyIndex = t.about.Index
	if o.CreateIndex == 0 {
		o.CreatedAt, o.CreateIndex = t.at, t.about.Index
	}
	o.UpdatedAt = t.at
	t.trees.organizations.put(string(o.ID), o)
	return o
}

// RemoveOrganization forgets an organization.
func (t *Txn) RemoveOrganization(o *Organization) { t.trees.organizations.remove(string(o.ID)) }

func compareMembers(a, b command.Member) int { return strings.Compare(string(a.User), string(b.User)) }

func compareProjects(a, b command.Project) int { return strings.Compare(string(a.ID), string(b.ID)) }

// Normalize sorts members and projects and names an id that stands there twice; "" when there is none.
func (o *Organization) Normalize() (twice string) {
	o.Members, o.Projects = slices.Clone(o.Members), slices.Clone(o.Projects)
	slices.SortFunc(o.Members, compareMembers)
	slices.SortFunc(o.Projects, compareProjects)
	for i := 1; i < len(o.Members); i++ {
		if o.Members[i].User == o.Members[i-1].User {
			return "user " + string(o.Members[i].User)
		}
	}
	for i := 1; i < len(o.Projects); i++ {
		if o.Projects[i].ID == o.Projects[i-1].ID {
			return "project " + string(o.Projects[i].ID)
		}
	}
	return ""
}
