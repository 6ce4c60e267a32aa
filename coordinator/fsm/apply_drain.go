package fsm

import (
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// drainHost cordons a host and notes that it is to be emptied. What is done about that is decided by the
// leader, a few allocations at a time.
func drainHost(t *state.Txn, c command.DrainHost) command.Result {
	host := t.Host(nil, c.Host)
	switch {
	case host == nil:
		return refuse(fault.NotFound, "host %s does not exist; `demiurge host list` shows those that do", c.Host)
	case host.Lost():
		return refuse(fault.HostLost, "host %s is lost, and what it served moves to other hosts already; delete it if it will not come back", c.Host)
	}
	drain := state.Drain{Since: t.Now(), Actor: c.Actor}
	if host.Drain != nil && host.Drain.State != api.DrainDrained {
		drain = *host.Drain
	} else {
		for _, g := range t.HostGateways(host.ID) {
			if g.Desired.Allocation != "" {
				drain.Total++
			}
		}
	}
	drain.State, drain.Reason = api.DrainDraining, ""
	drain.Deadline, drain.Drain, drain.Force = c.Deadline.UTC(), c.Drain, c.Force
	next := *host
	next.Cordoned, next.Drain = true, &drain
	if !host.Cordoned {
		t.Emit(state.Event{Type: "host.cordoned", Host: host.ID, Before: "schedulable", After: "cordoned"})
	}
	t.Emit(state.Event{Type: "host.draining", Host: host.ID, After: number(drain.Total)})
	t.PutHost(next)
	return command.Result{Count: drain.Total}
}

func noteDrain(t *state.Txn, c command.NoteDrain) command.Result {
	host := t.Host(nil, c.Host)
	switch {
	case host == nil:
		return refuse(fault.NotFound, "host %s does not exist; `demiurge host list` shows those that do", c.Host)
	case c.State != api.DrainDraining && c.State != api.DrainOverdue && c.State != api.DrainDrained:
		return refuse(fault.InvalidRequest, "a drain cannot be %q; use draining, overdue or drained", c.State)
	case host.Drain == nil || host.Drain.State == api.DrainDrained:
		return refuse(fault.Superseded, "host %s is not being drained", c.Host)
	case host.Drain.State == c.State && host.Drain.Reason == c.Reason:
		return command.Result{}
	}
	drain := *host.Drain
	if drain.State != c.State {
		t.Emit(state.Event{Type: drainEvent(c.State), Host: host.ID, Before: drain.State, After: c.State, Reason: c.Reason})
	}
	drain.State, drain.Reason = c.State, c.Reason
	if c.State == api.DrainDrained {
		drain.EndedAt = t.Now()
	}
	next := *host
	next.Drain = &drain
	t.PutHost(next)
	return command.Result{Count: 1}
}

// drainEvent is the event of a drain that comes to a state.
func drainEvent(s string) string {
	switch s {
	case api.DrainDrained:
		return "host.drained"
	case api.DrainOverdue:
		return "host.drain_overdue"
	}
	return "host.draining"
}
