package fsm

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// isolationStop is the isolation of pools that a cut-off host must not go on serving.
const isolationStop = "stop"

// loseHost gives a host up. Everything on it that lives is stranded here; what of it can be placed is placed
// at the end of this entry, like everything that became possible with it (applyEntry).
func loseHost(t *state.Txn, c command.LoseHost) command.Result {
	host := t.Host(nil, c.Host)
	if host == nil {
		return refuse(fault.NotFound, "host %s does not exist; `demiurge host list` shows those that do", c.Host)
	}
	if !host.Lost() {
		t.Emit(state.Event{Type: "host.lost", Host: host.ID, Before: host.Status, After: api.HostLost, Reason: c.Reason})
		next := *host
		next.Status, next.StatusAt, next.Reason = api.HostLost, t.Now(), c.Reason
		host = t.PutHost(next)
	}
	stranded := 0
	for _, g := range t.HostGateways(host.ID) {
		loseEnding(t, g.ID)
		after := *g
		after.Observed.Stale = true
		if a := t.Allocation(g.Desired.Allocation); a != nil && a.Has(g.ID) && strandLost(t, a, &after, c.FencedBy) {
			stranded++
		}
		t.PutGateway(after, host.Reason)
	}
	return command.Result{Count: stranded}
}

// loseEnding ends what was being cleaned up on a gateway of a lost host.
func loseEnding(t *state.Txn, gateway id.Gateway) {
	a := t.Ending(gateway)
	switch {
	case a == nil:
	case a.Left != nil:
		next := *a
		next.Left = nil
		t.PutAllocation(next, "")
	case a.State == state.AllocationReleasing:
		endLost(t, a, state.AllocationReleased)
	default:
		endLost(t, a, state.AllocationFailed)
	}
}

// strandLost deals with an allocation one of whose gateways is lost; g is that gateway's record, which is
// stored afterwards. It reports whether the allocation now waits for another gateway.
func strandLost(t *state.Txn, a *state.Allocation, g *state.Gateway, fencedBy time.Time) bool {
	reason := "host " + string(g.Host) + " was lost"
	m := a.Move
	switch {
	case m != nil && m.Stranded:
		return false
	case m != nil && m.Target != nil && m.Target.Gateway == g.ID: // what it has goes on serving it
		*g = ungrant(t, g, 0, reason)
		stay(t, a, state.Failure{Code: fault.HostLost, Message: reason})
		return false
	}
	fenced := isFenced(t, a.Pool)
	next := *a
	if m != nil && m.Target != nil && !fenced {
		*g = ungrant(t, g, 0, reason)
		promote(t, next, reason)
		return false
	}
	if m == nil {
		m = &state.Move{Since: t.Now(), From: a.Grant()}
	}
	stranded := *m
	stranded.Cause, stranded.Reason, stranded.Stranded = state.CauseLost, reason, true
	stranded.Served = a.State == state.AllocationActive || m.Target != nil
	if fenced && !fencedBy.IsZero() {
		stranded.Held, stranded.HeldUntil = state.HeldByLease, fencedBy.UTC()
	}
	target := stranded.Target
	stranded.Target, stranded.TargetWhy = nil, nil
	strand(t, next, stranded, reason)
	if target != nil {
		other := t.Gateway(target.Gateway)
		t.PutGateway(ungrant(t, other, 0, reason), reason)
	}
	return true
}

// promote lets an allocation have its target at once: what it has is gone.
func promote(t *state.Txn, next state.Allocation, reason string) {
	promoted := *next.Move
	next.Hold(*promoted.Target)
	next.Explanation, next.Move = *promoted.TargetWhy, &promoted
	promoted.Target, promoted.TargetWhy, promoted.Cause, promoted.Reason = nil, nil, state.CauseLost, reason
	t.PutAllocation(next, reason)
	placed(t, &next)
}

func isFenced(t *state.Txn, pool id.Pool) bool {
	p := t.Pool(nil, pool)
	return p != nil && p.Isolation == isolationStop
}

// strand puts an allocation into the line of those that need another gateway, behind those that are there.
func strand(t *state.Txn, next state.Allocation, m state.Move, reason string) {
	next.State, next.Move = state.AllocationRelocating, &m
	next.QueueIndex, next.QueueSeq = t.EntryIndex(), t.NextSeq()
	t.PutAllocation(next, reason)
	t.MayServe(next.Pool)
}

// placeStranded gives a stranded allocation its new gateway, and takes the one on the lost host away.
func placeStranded(t *state.Txn, a *state.Allocation, g *state.Gateway, why state.Explanation) {
	before := t.Gateway(a.Gateway)
	next := *a
	m := *a.Move
	m.Stranded, m.Served, m.Held, m.HeldUntil = false, false, "", time.Time{}
	next.Move = &m
	as := state.AllocationRelocating
	if a.ActiveAt.IsZero() {
		as = state.AllocationReserved // it never served: it goes on where it was, with another gateway
		next.Hold(state.Grant{Gateway: g.ID, Host: g.Host, Epoch: id.Epoch(t.EntryIndex())})
		next.Arrive(t.Now(), state.Failure{})
	}
	grantAs(t, next, as, g, why)
	placed(t, t.Allocation(a.ID))
	if before != nil {
		t.PutGateway(ungrant(t, before, 0, m.Reason), m.Reason)
	}
}

// placed tells that a relocating allocation has its new gateway.
func placed(t *state.Txn, a *state.Allocation) {
	reason := ""
	if a.Move != nil {
		reason = a.Move.Reason
	}
	t.Emit(state.Event{
		Type: "allocation.placed", Allocation: a.ID, Organization: a.Organization, Pool: a.Pool,
		Gateway: a.Gateway, Host: a.Host, After: a.Epoch.String(), Reason: reason,
	})
}

// stay ends a relocation where the allocation is.
func stay(t *state.Txn, a *state.Allocation, failure state.Failure) {
	next := *a
	next.State = state.AllocationActive
	next.Arrive(t.Now(), failure)
	t.PutAllocation(next, failure.Message)
}

// recoverStranded gives allocations back to a host that was lost and is not any more: those that have not got another
// gateway meanwhile.
func recoverStranded(t *state.Txn, host *state.Host) {
	for _, g := range t.HostGateways(host.ID) {
		a := strandedOn(t, g)
		if a == nil {
			continue
		}
		next := *a
		if a.Move.Served {
			next.State = state.AllocationActive
			next.Arrive(t.Now(), state.Failure{Code: fault.Superseded, Message: "host " + string(host.ID) + " came back first"})
		} else {
			m := *a.Move
			m.Stranded, m.Held, m.HeldUntil = false, "", time.Time{}
			next.Move, next.Deadline = &m, t.Now().Add(activationOf(a))
			if a.ActiveAt.IsZero() {
				next.State = state.AllocationReserved
				next.Arrive(t.Now(), state.Failure{Code: fault.Superseded, Message: "host " + string(host.ID) + " came back first"})
			}
		}
		t.PutAllocation(next, "host "+string(host.ID)+" came back")
		if next.State == state.AllocationRelocating {
			placed(t, t.Allocation(a.ID))
		}
	}
}

// place lets held allocations have the next gateways.
func place(t *state.Txn, c command.Place) command.Result {
	n := 0
	for _, one := range c.Allocations {
		a := t.Allocation(one)
		if a == nil || a.State != state.AllocationRelocating || !a.Move.Stranded || a.Move.Held == "" {
			continue
		}
		next, m := *a, *a.Move
		m.Held, m.HeldUntil = "", time.Time{}
		next.Move = &m
		t.PutAllocation(next, "")
		t.MayServe(a.Pool)
		n++
	}
	return command.Result{Count: n}
}

const firstBackOff = time.Second

// failMove takes in that the gateway which a relocating allocation was to be served by did not come to it.
func failMove(t *state.Txn, a *state.Allocation, pending state.Grant, failure state.Failure, blame bool) {
	g := t.Gateway(pending.Gateway)
	t.Emit(state.Event{
		Type: "allocation.relocation_failed", Allocation: a.ID, Organization: a.Organization, Pool: a.Pool,
		Gateway: pending.Gateway, Host: pending.Host, Code: failure.Code, Reason: failure.Message,
	})
	if a.Move.Target != nil {
		stay(t, a, failure)
		takeBack(t, g, failure.Message, blame)
		return
	}
	next, m := *a, *a.Move
	m.Attempts++
	m.Failure = failure
	if m.Attempts > 1 { // another gateway at once, the first time
		m.Held = state.HeldByBackOff
		m.HeldUntil = t.Now().Add(min(firstBackOff<<min(m.Attempts-2, 10), state.LongestBackOff))
	}
	m.Stranded, m.Served = true, false
	next.Hold(state.Grant{})
	strand(t, next, m, failure.Message)
	takeBack(t, g, failure.Message, blame)
}

// takeBack ends a grant that was not confirmed.
func takeBack(t *state.Txn, g *state.Gateway, reason string, blame bool) {
	next := ungrant(t, g, 0, reason)
	if blame {
		next.Failures++
	}
	if next.Failures >= tooManyFailures {
		next.Desired.Target = api.TargetGone
	}
	t.PutGateway(next, reason)
}

// confirmMove ends a relocation: the new gateway serves, and the old one, if it still did, is drained.
func confirmMove(t *state.Txn, a *state.Allocation, g *state.Gateway, c *command.Confirm) {
	next, m := *a, *a.Move
	next.State, next.Journal = state.AllocationActive, c.Journal
	if next.ActiveAt.IsZero() {
		next.ActiveAt = t.Now()
	}
	var left *state.Gateway
	if m.Target != nil {
		left = t.Gateway(a.Gateway)
		was := a.Grant()
		next.Left = &was
		next.Hold(*m.Target)
		next.Explanation = *m.TargetWhy
	}
	next.Arrive(t.Now(), state.Failure{})
	t.PutAllocation(next, m.Reason)
	if left != nil {
		leftAlone(t, a.Left)
	}
	served := *g
	served.Observed, served.Failures = seen(t, g, &c.Observed), 0
	t.PutGateway(served, "")
	if left != nil {
		t.PutGateway(ungrant(t, left, m.Drain, m.Reason), m.Reason)
	}
}

// leftAlone lets a gateway that an allocation left before, and no longer waits for, be cleaned up by itself. The
// allocation is stored already.
func leftAlone(t *state.Txn, left *state.Grant) {
	if left == nil {
		return
	}
	if g := t.Gateway(left.Gateway); g != nil {
		t.PutGateway(*g, "")
	}
}

// releaseMoving ends a relocating allocation on request.
func releaseMoving(t *state.Txn, a *state.Allocation, c command.Release) {
	next := *a
	target := a.Move.Target
	next.Arrive(t.Now(), state.Failure{Code: fault.Superseded, Message: "released"})
	next.Left, next.State = nil, state.AllocationReleasing
	g := t.Gateway(a.Gateway)
	if g == nil || t.Host(nil, a.Host).Lost() {
		next.State, next.EndedAt = state.AllocationReleased, t.Now()
	}
	t.PutAllocation(next, c.Reason)
	leftAlone(t, a.Left)
	if g != nil {
		t.PutGateway(ungrant(t, g, c.Drain, c.Reason), c.Reason)
	}
	if target != nil {
		t.PutGateway(ungrant(t, t.Gateway(target.Gateway), 0, c.Reason), c.Reason)
	}
}
