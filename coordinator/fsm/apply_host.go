package fsm

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func setHostStatus(t *state.Txn, c command.SetHostStatus) command.Result {
	host := t.Host(nil, c.Host)
	switch {
	case host == nil:
		return refuse(fault.NotFound, "host %s does not exist; `demiurge host list` shows those that do", c.Host)
	case c.Status != api.HostAlive && c.Status != api.HostSilent && c.Status != api.HostLost:
		return refuse(fault.InvalidRequest, "a host cannot be %q; use alive, silent or lost", c.Status)
	case c.Status == host.Status:
		return command.Result{}
	}
	t.Emit(state.Event{Type: "host." + c.Status, Host: host.ID, Before: host.Status, After: c.Status, Reason: c.Reason})
	next := *host
	next.Status, next.StatusAt, next.Reason = c.Status, t.Now(), c.Reason
	if c.Status == api.HostLost {
		lose(t, next)
	} else {
		replaceHost(t, host, next)
	}
	return command.Result{Count: 1}
}

// lose gives a host up as logs of older versions do: what was not active yet fails, what was ending is over,
// and active allocations keep their gateway until a LoseHost brings them elsewhere.
func lose(t *state.Txn, next state.Host) {
	host := t.PutHost(next)
	for _, g := range t.HostGateways(host.ID) {
		after := *g
		a := t.Allocation(g.Desired.Allocation)
		switch {
		case a != nil && a.State == state.AllocationReserved:
			endLost(t, a, state.AllocationFailed)
			after = ungrant(t, g, 0, "its host was lost")
		case a != nil && a.State == state.AllocationRelocating && a.Has(g.ID):
			strandLost(t, a, &after, time.Time{})
		}
		loseEnding(t, g.ID)
		after.Observed.Stale = true
		t.PutGateway(after, host.Reason)
	}
}

func endLost(t *state.Txn, a *state.Allocation, as state.AllocationState) {
	ended := *a
	ended.State, ended.EndedAt = as, t.Now()
	if as == state.AllocationFailed && a.Failure.Code == "" {
		ended.Failure = state.Failure{Code: fault.HostLost, Message: "host " + string(a.Host) + " was lost"}
	}
	t.PutAllocation(ended, "host "+string(a.Host)+" was lost")
}

func setHostSchedulable(t *state.Txn, c command.SetHostSchedulable) command.Result {
	host := t.Host(nil, c.Host)
	if host == nil {
		return refuse(fault.NotFound, "host %s does not exist; `demiurge host list` shows those that do", c.Host)
	}
	if host.Cordoned == !c.Schedulable {
		return command.Result{}
	}
	e := state.Event{Type: "host.cordoned", Host: host.ID, Before: "schedulable", After: "cordoned"}
	if c.Schedulable {
		e = state.Event{Type: "host.uncordoned", Host: host.ID, Before: "cordoned", After: "schedulable"}
	}
	t.Emit(e)
	next := *host
	next.Cordoned, next.Drain = !c.Schedulable, nil
	replaceHost(t, host, next)
	return command.Result{Count: 1}
}

func deleteHost(t *state.Txn, c command.DeleteHost) command.Result {
	host := t.Host(nil, c.Host)
	if host == nil {
		return refuse(fault.NotFound, "host %s does not exist; `demiurge host list` shows those that do", c.Host)
	}
	gateways := t.HostGateways(host.ID)
	for _, g := range gateways {
		if g.Desired.Allocation != "" && strandedOn(t, g) == nil {
			return refuse(fault.OrganizationActive, "host %s serves organization %s; release its allocations first, or drain the host", host.ID, g.Desired.Organization)
		}
	}
	for _, g := range gateways {
		if a := strandedOn(t, g); a != nil { // it goes on waiting, and will not get this one back
			next := *a
			next.Hold(state.Grant{})
			t.PutAllocation(next, "")
		}
		finish(t, g.ID, nil)
		removeGateway(t, g, "its host was deleted")
	}
	if e := t.Enrolment(nil, roleAgent, string(host.ID)); e != nil {
		expel(t, e, "its host was deleted")
	}
	t.RemoveHost(host)
	t.Emit(state.Event{Type: "host.deleted", Host: host.ID, Before: host.Status})
	return command.Result{Count: len(gateways)}
}

// strandedOn is the allocation that waits for another gateway than this one, which it still has; nil when there
// is none.
func strandedOn(t *state.Txn, g *state.Gateway) *state.Allocation {
	a := t.Allocation(g.Desired.Allocation)
	if a == nil || a.State != state.AllocationRelocating || !a.Move.Stranded || a.Gateway != g.ID {
		return nil
	}
	return a
}
