package gateway

import (
	"context"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// grant is the organization that this process serves, and the epoch it serves it for. It is never
// changed: an update makes another one.
type grant struct {
	Organization id.Organization
	Allocation   id.Allocation
	Epoch        id.Epoch
	Name         string
	Hostname     string
	Members      []api.Member
	Projects     []api.Project
}

// tenant is which organization the process has. It goes one way: none, active, draining, over.
type tenant struct {
	mu       sync.Mutex
	current  *grant   // nil before activation and when it is over
	draining bool     // current is being taken away: nothing new is let in
	over     id.Epoch // the epoch that was deactivated; not zero: this process takes no organization any more
}

// serving returns the grant that requests are served for, or nil.
func (t *tenant) serving() *grant {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.draining {
		return nil
	}
	return t.current
}

// holding returns the grant even while it drains: what the process still has in it.
func (t *tenant) holding() *grant {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.current
}

// activate takes an organization, or new members and projects of the one that is there.
func (t *tenant) activate(g *grant) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.over != 0 && g.Epoch <= t.over:
		return fault.New(fault.StaleEpoch, "epoch %s is over: this gateway was deactivated at epoch %s", g.Epoch, t.over)
	case t.over != 0:
		return fault.New(fault.Conflict, "this gateway has served an organization (epoch %s): recycle it before it gets another", t.over)
	case t.current == nil:
		t.current = g
		return nil
	case g.Epoch < t.current.Epoch:
		return fault.New(fault.StaleEpoch, "epoch %s is over: this gateway serves epoch %s", g.Epoch, t.current.Epoch)
	case t.draining:
		return fault.New(fault.Conflict, "epoch %s is being deactivated: recycle this gateway before it gets an organization again", t.current.Epoch)
	case g.Organization != t.current.Organization, g.Epoch != t.current.Epoch, g.Allocation != t.current.Allocation:
		return fault.New(fault.Conflict, "this gateway serves organization %s at epoch %s: deactivate and recycle it first", t.current.Organization, t.current.Epoch)
	}
	t.current = g
	return nil
}

// drain closes the door. It reports false when there is nothing to do: this epoch is over already.
func (t *tenant) drain(epoch id.Epoch) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.over != 0 && epoch == t.over:
		return false, nil
	case t.current == nil:
		return false, fault.New(fault.StaleEpoch, "this gateway does not serve epoch %s: it serves none", epoch)
	case epoch != t.current.Epoch:
		return false, fault.New(fault.StaleEpoch, "this gateway does not serve epoch %s: it serves %s", epoch, t.current.Epoch)
	}
	t.draining = true
	return true, nil
}

// forget drops the organization.
func (t *tenant) forget(epoch id.Epoch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current != nil && t.current.Epoch == epoch {
		t.current, t.over = nil, epoch
	}
}

// parseGrant checks every part of an activation. All that is wrong is named at once.
func parseGrant(a api.Activate) (*grant, error) {
	var wrong []fault.Location
	bad := func(where string, err error) {
		if err != nil {
			wrong = append(wrong, fault.Location{Location: "body." + where, Message: err.Error()})
		}
	}
	g := &grant{Epoch: id.Epoch(a.Epoch), Name: a.Name, Hostname: a.Hostname, Members: a.Members, Projects: a.Projects}
	var err error
	g.Organization, err = id.ParseOrganization(a.OrganizationID)
	bad("organization_id", err)
	g.Allocation, err = id.ParseAllocation(a.AllocationID)
	bad("allocation_id", err)
	if a.Epoch == 0 {
		bad("epoch", errEpoch)
	}
	if len(a.Name) > 4*maxName || utf8.RuneCountInString(a.Name) > maxName || strings.ContainsFunc(a.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		bad("name", errName)
	}
	if domain, ok := strings.CutPrefix(a.Hostname, "org-"+string(g.Organization)+"."); !ok {
		bad("hostname", errHostname)
	} else {
		_, err = id.ParseDomain(domain)
		bad("hostname", err)
	}
	for i, m := range a.Members {
		_, err = id.ParseUser(m.UserID)
		bad(element("members", i, "user_id"), err)
		if m.Role != "owner" && m.Role != "admin" && m.Role != "member" {
			bad(element("members", i, "role"), errRole)
		}
	}
	for i, p := range a.Projects {
		_, err = id.ParseProject(p.ProjectID)
		bad(element("projects", i, "project_id"), err)
	}
	if len(a.Sections) > 0 {
		// Taking them and not restoring them would let the next save replace them with nothing.
		bad("sections", errSections)
	}
	if len(wrong) > 0 {
		f := fault.New(fault.InvalidRequest, "the activation cannot be used: correct what errors lists")
		f.Locations = wrong[:min(len(wrong), 20)]
		return nil, f
	}
	return g, nil
}

// deactivate lets open WebSockets go on for at most the time given, closes them, and forgets the
// organization. A caller that goes away leaves the gateway draining; the call can be repeated.
func (g *Gateway) deactivate(ctx context.Context, epoch id.Epoch, drain time.Duration) error {
	todo, err := g.tenant.drain(epoch)
	if err != nil || !todo {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, max(0, drain))
	defer cancel()
	if !g.sockets.empty(wait) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.sockets.closeAll(ctx, "the organization has moved")
	}
	g.tenant.forget(epoch)
	g.log.Info("organization deactivated", "epoch", epoch)
	return nil
}
