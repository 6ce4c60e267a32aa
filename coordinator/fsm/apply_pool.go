package fsm

import (
	"fmt"
	"strconv"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

const breakerClosed = "closed"

func putPool(t *state.Txn, c command.PutPool) command.Result {
	old := t.Pool(nil, c.Pool)
	switch {
	case c.Pool == "" || c.MinReady < 0 || c.Step < 0 || c.Max < 0 || c.MaxInFlight < 0 || c.ActivationTimeout < 0:
		return refuse(fault.InvalidRequest, "pool %q needs a name, and numbers that are not negative", c.Pool)
	case old != nil && old.Deleting:
		return refuse(fault.Conflict, "pool %s is being deleted; wait until it is gone", c.Pool)
	}
	next := state.Pool{Name: c.Pool, Breaker: state.Breaker{State: breakerClosed}}
	if old != nil {
		next = *old
	}
	next.MinReady, next.Step, next.Max, next.MaxInFlight = c.MinReady, c.Step, c.Max, c.MaxInFlight
	next.Release, next.Limits, next.Isolation = c.Release, c.Limits, c.Isolation
	next.ActivationTimeout = c.ActivationTimeout
	if old == nil {
		t.PutPool(next)
		t.Emit(state.Event{Type: "pool.created", Pool: c.Pool, After: summary(&next)})
	} else if next != *old {
		t.PutPool(next)
		t.Emit(state.Event{Type: "pool.changed", Pool: c.Pool, Before: summary(old), After: summary(&next)})
	}
	return command.Result{Object: string(c.Pool), Existing: old != nil}
}

func summary(p *state.Pool) string {
	return fmt.Sprintf("min_ready %d, step %d, max %d, max_in_flight %d, release %q, isolation %s",
		p.MinReady, p.Step, p.Max, p.MaxInFlight, p.Release, p.Isolation)
}

func deletePool(t *state.Txn, c command.DeletePool) command.Result {
	pool := t.Pool(nil, c.Pool)
	if pool == nil {
		return refuse(fault.NotFound, "pool %q does not exist; `demiurge pool list` shows those that do", c.Pool)
	}
	if pool.Deleting {
		return command.Result{}
	}
	if a := t.Head(pool.Name); a != nil {
		return refuse(fault.OrganizationActive, "organization %s waits for a gateway of pool %s; release allocation %s first", a.Organization, pool.Name, a.ID)
	}
	for a := range t.LiveAllocations(nil) {
		if a.Pool == pool.Name && a.State == state.AllocationRelocating {
			return refuse(fault.OrganizationActive, "organization %s moves to another gateway of pool %s; release allocation %s first", a.Organization, pool.Name, a.ID)
		}
	}
	gateways := t.PoolGateways(pool.Name)
	for _, g := range gateways {
		if g.Desired.Allocation != "" {
			return refuse(fault.OrganizationActive, "pool %s serves organization %s; release its allocations first", pool.Name, g.Desired.Organization)
		}
	}
	next := *pool
	next.Deleting = true
	pool = t.PutPool(next)
	for _, g := range gateways {
		if g.Desired.Target != api.TargetGone {
			retire(t, g, "its pool is being deleted")
		}
	}
	if len(gateways) == 0 {
		removePool(t, pool)
	}
	return command.Result{Count: len(gateways)}
}

func removePool(t *state.Txn, pool *state.Pool) {
	t.RemovePool(pool)
	t.Emit(state.Event{Type: "pool.deleted", Pool: pool.Name, Before: summary(pool)})
}

func notePool(t *state.Txn, c command.NotePool) command.Result {
	pool := t.Pool(nil, c.Pool)
	if pool == nil {
		return refuse(fault.NotFound, "pool %q does not exist; `demiurge pool list` shows those that do", c.Pool)
	}
	next := *pool
	next.Breaker = state.Breaker{State: c.Breaker, Until: c.Until.UTC(), Failures: c.Failures, Reason: c.Reason}
	if c.Breaker == pool.Breaker.State && c.Failures == pool.Breaker.Failures && c.Until.Equal(pool.Breaker.Until) {
		next.Breaker = pool.Breaker // the reason alone is no change
	}
	next.Limited = c.Limited
	if next == *pool {
		return command.Result{}
	}
	t.PutPool(next)
	if c.Breaker != pool.Breaker.State {
		t.Emit(state.Event{Type: "pool.breaker", Pool: pool.Name, Before: pool.Breaker.State, After: c.Breaker, Reason: c.Reason})
	}
	if c.Limited != pool.Limited {
		t.Emit(state.Event{Type: "pool.limited", Pool: pool.Name, Before: pool.Limited, After: c.Limited, Reason: c.Reason})
	}
	return command.Result{Count: 1}
}

func number(n int) string { return strconv.Itoa(n) }
