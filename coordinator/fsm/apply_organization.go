package fsm

import (
	"slices"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// owner is the role that an organization must not run out of.
const owner = "owner"

func putOrganization(t *state.Txn, c command.PutOrganization) command.Result {
	old := t.Organization(nil, c.Organization)
	next := state.Organization{ID: c.Organization}
	if old != nil {
		next = *old
	}
	next.Name, next.Members, next.Projects = c.Name, c.Members, c.Projects
	if c.KeepOwner && old != nil && owners(old.Members) > 0 && owners(next.Members) == 0 {
		return refuse(fault.Conflict, "organization %s would have no owner left; name an owner among its members", old.ID)
	}
	return storeOrganization(t, old, next)
}

// storeOrganization puts an organization if it is valid and differs.
func storeOrganization(t *state.Txn, old *state.Organization, next state.Organization) command.Result {
	if next.ID == "" {
		return refuse(fault.InvalidRequest, "an organization needs an id")
	}
	if twice := next.Normalize(); twice != "" {
		return refuse(fault.InvalidRequest, "organization %s: %s is named twice", next.ID, twice)
	}
	result := command.Result{Object: string(next.ID), Existing: old != nil}
	if old == nil {
		t.PutOrganization(next)
		t.Emit(state.Event{Type: "organization.created", Organization: next.ID, After: next.Name})
		return result
	}
	if next.Name == old.Name && slices.Equal(next.Members, old.Members) && slices.Equal(next.Projects, old.Projects) {
		return result
	}
	t.PutOrganization(next)
	t.Emit(state.Event{Type: "organization.changed", Organization: next.ID, Before: old.Name, After: next.Name})
	if a := t.LiveAllocation(next.ID); a != nil {
		tell(t, a, a.Gateway)
		if a.Move != nil && a.Move.Target != nil {
			tell(t, a, a.Move.Target.Gateway)
		}
	}
	return result
}

// tell makes the agent of a gateway hear of its organization again.
func tell(t *state.Txn, a *state.Allocation, gateway id.Gateway) {
	if g := t.Gateway(gateway); g != nil && g.Desired.Allocation == a.ID {
		told := *g
		told.Desired.Index = t.EntryIndex()
		t.PutGateway(told, "")
	}
}

func editOrganization(t *state.Txn, c command.EditOrganization) command.Result {
	old := t.Organization(nil, c.Organization)
	if old == nil {
		return refuse(fault.NotFound, "organization %s does not exist; `demiurge org list` shows those that do", c.Organization)
	}
	next := *old
	if m := c.PutMember; m != nil {
		next.Members = append(without(next.Members, func(o command.Member) bool { return o.User == m.User }), *m)
	}
	if p := c.PutProject; p != nil {
		next.Projects = append(without(next.Projects, func(o command.Project) bool { return o.ID == p.ID }), *p)
	}
	if c.DeleteMember != "" {
		next.Members = without(next.Members, func(o command.Member) bool { return o.User == c.DeleteMember })
		if len(next.Members) == len(old.Members) && c.PutMember == nil {
			return refuse(fault.NotFound, "user %s is no member of organization %s", c.DeleteMember, old.ID)
		}
	}
	if c.DeleteProject != "" {
		next.Projects = without(next.Projects, func(o command.Project) bool { return o.ID == c.DeleteProject })
		if len(next.Projects) == len(old.Projects) && c.PutProject == nil {
			return refuse(fault.NotFound, "project %s is no project of organization %s", c.DeleteProject, old.ID)
		}
	}
	if owners(old.Members) > 0 && owners(next.Members) == 0 {
		return refuse(fault.Conflict, "organization %s would have no owner left; make another member an owner first", old.ID)
	}
	return storeOrganization(t, old, next)
}

// without makes a new slice: that of a stored record is never written.
func without[T any](list []T, drop func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(list), drop)
}

func owners(members []command.Member) int {
	n := 0
	for _, m := range members {
		if m.Role == owner {
			n++
		}
	}
	return n
}

func deleteOrganization(t *state.Txn, c command.DeleteOrganization) command.Result {
	old := t.Organization(nil, c.Organization)
	if old == nil {
		return refuse(fault.NotFound, "organization %s does not exist; `demiurge org list` shows those that do", c.Organization)
	}
	if a := t.LiveAllocation(id.Organization(c.Organization)); a != nil {
		return refuse(fault.OrganizationActive, "organization %s has allocation %s, which is %s; release it first", old.ID, a.ID, a.State)
	}
	t.RemoveOrganization(old)
	t.Emit(state.Event{Type: "organization.deleted", Organization: old.ID, Before: old.Name})
	return command.Result{Count: 1}
}
