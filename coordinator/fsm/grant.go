package fsm

import (
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// defaultActivation is the deadline of allocations of a pool that names none.
const defaultActivation = 10 * time.Second

// tooManyFailures in a row retire a gateway.
const tooManyFailures = 3

// grant gives a ready gateway to an allocation.
func grant(t *state.Txn, a state.Allocation, g *state.Gateway, why state.Explanation) {
	grantAs(t, a, state.AllocationReserved, g, why)
}

// grantAs makes a ready gateway the one that an allocation has. The epoch is the entry's index, so it is higher
// than every one before.
func grantAs(t *state.Txn, a state.Allocation, as state.AllocationState, g *state.Gateway, why state.Explanation) {
	a.State, a.Explanation = as, why
	a.Hold(state.Grant{
		Gateway: g.ID, Host: g.Host, Epoch: id.Epoch(t.EntryIndex()), ReservedAt: t.Now(), Deadline: t.Now().Add(activationOf(&a)),
	})
	t.PutAllocation(a, "")
	t.PutGateway(granted(t, g, &a, a.Epoch), "")
}

// activationOf is how long a gateway has for coming to serve an allocation.
func activationOf(a *state.Allocation) time.Duration {
	if a.ActivationTimeout > 0 {
		return a.ActivationTimeout
	}
	return defaultActivation
}

// granted is a ready gateway with its organization. The record is not stored yet.
func granted(t *state.Txn, g *state.Gateway, a *state.Allocation, epoch id.Epoch) state.Gateway {
	next := *g
	next.Desired.Index = t.EntryIndex()
	next.Desired.Organization, next.Desired.Allocation, next.Desired.Epoch = a.Organization, a.ID, epoch
	next.Desired.Drain, next.Desired.Reason = 0, ""
	return next
}

// serveLine gives out what is ready: first to those who lost their gateway, then to those who wait longest.
func serveLine(t *state.Txn, pool id.Pool) {
	stranded, head := t.FirstStranded(pool), t.Head(pool)
	if stranded == nil && head == nil {
		return
	}
	p := newPlacer(t, pool)
	for ; stranded != nil; stranded = t.FirstStranded(pool) {
		g, why := p.take(ruleMoved)
		if g == nil {
			return
		}
		placeStranded(t, stranded, g, why)
	}
	for ; head != nil; head = t.Head(pool) {
		g, why := p.take(ruleInLine)
		if g == nil {
			return
		}
		grant(t, *head, g, why)
	}
}

// ungrant takes the organization away from a gateway and demands a fresh process, because a gateway that
// has known an organization is never given to another one. The record is not stored yet.
func ungrant(t *state.Txn, g *state.Gateway, drain time.Duration, reason string) state.Gateway {
	next := *g
	next.Desired.Index = t.EntryIndex()
	demandFresh(t, &next)
	next.Desired.Organization, next.Desired.Allocation, next.Desired.Epoch = "", "", 0
	next.Desired.Drain, next.Desired.Reason = drain, reason
	return next
}

// demandFresh asks for a new process, which is of what the pool says now: a changed specification reaches a
// gateway with its next process.
func demandFresh(t *state.Txn, next *state.Gateway) {
	next.Desired.Incarnation, next.Desired.Outrun = max(next.Desired.Incarnation+1, next.Desired.Outrun), 0
	if p := t.Pool(nil, next.Pool); p != nil {
		next.Desired.Release, next.Desired.Limits = p.Release, p.Limits
	}
}

// rollBack ends a reserved allocation that will not become active. Its host is not lost: losing a host
// fails what is reserved on it.
func rollBack(t *state.Txn, a *state.Allocation, failure state.Failure, journal []command.Step, blame bool) {
	ended := *a
	ended.State, ended.Failure, ended.Journal = state.AllocationRollingBack, failure, joined(a.Journal, journal)
	t.PutAllocation(ended, failure.Message)
	takeBack(t, t.Gateway(a.Gateway), failure.Message, blame)
}

// finish takes in that a gateway is clean: it ends the allocation that was waiting for that, or notes that the
// one which has moved away has left nothing.
func finish(t *state.Txn, gateway id.Gateway, undo []command.Step) {
	a := t.Ending(gateway)
	if a == nil {
		return
	}
	ended := *a
	ended.Journal = joined(a.Journal, undo)
	if a.Left != nil {
		ended.Left = nil
		t.PutAllocation(ended, "")
		t.Emit(state.Event{
			Type: "allocation.left", Allocation: a.ID, Organization: a.Organization, Pool: a.Pool,
			Gateway: a.Left.Gateway, Host: a.Left.Host, Before: a.Left.Epoch.String(),
		})
		return
	}
	ended.State, ended.EndedAt = state.AllocationReleased, t.Now()
	if a.State == state.AllocationRollingBack {
		ended.State = state.AllocationRolledBack
	}
	t.PutAllocation(ended, a.Failure.Message)
}

// joined does not write into the backing array of a stored record.
func joined(a, b []command.Step) []command.Step { return append(slices.Clip(a), b...) }

func refuse(code fault.Code, format string, args ...any) command.Result {
	return command.Result{Err: fault.New(code, format, args...)}
}
