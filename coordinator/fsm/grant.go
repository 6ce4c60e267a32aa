package fsm

import (
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// defaultActivation is the deadline of allocations of a pool that names none.
const defaultActivation = 10 * time.Second

// tooManyFailures in a row retire a gateway.
const tooManyFailures = 3

// grant gives a ready gateway to an allocation. The epoch is the entry's index, so it is higher than every
// one before.
func grant(t *state.Txn, a state.Allocation, g *state.Gateway, why state.Explanation) {
	a.State = state.AllocationReserved
	a.Gateway, a.Host = g.ID, g.Host
	a.Epoch = id.Epoch(t.EntryIndex())
	a.ReservedAt = t.Now()
	timeout := a.ActivationTimeout
	if timeout <= 0 {
		timeout = defaultActivation
	}
	a.Deadline = t.Now().Add(timeout)
	a.Explanation = why
	t.PutAllocation(a, "")

	next := *g
	next.Desired.Index = t.EntryIndex()
	next.Desired.Organization, next.Desired.Allocation, next.Desired.Epoch = a.Organization, a.ID, a.Epoch
	next.Desired.Drain, next.Desired.Reason = 0, ""
	t.PutGateway(next, "")
}

// serveLine gives out what is ready to those who wait longest.
func serveLine(t *state.Txn, pool id.Pool) {
	head := t.Head(pool)
	if head == nil {
		return
	}
	p := newPlacer(t, pool)
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
	next.Desired.Incarnation++
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
	g := ungrant(t, t.Gateway(a.Gateway), 0, failure.Message)
	if blame {
		g.Failures++
	}
	if g.Failures >= tooManyFailures {
		g.Desired.Target = api.TargetGone
	}
	t.PutGateway(g, failure.Message)
}

// finish ends the allocation that was waiting for a gateway's clean-up, if there is one.
func finish(t *state.Txn, gateway id.Gateway, undo []command.Step) {
	a := t.Ending(gateway)
	if a == nil {
		return
	}
	ended := *a
	ended.State, ended.EndedAt, ended.Journal = state.AllocationReleased, t.Now(), joined(a.Journal, undo)
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
