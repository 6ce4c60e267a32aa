package fsm

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// retryAfter is the hint of refusals that pass by themselves.
const retryAfter = time.Second

// reserving is one Reserve while it is applied.
type reserving struct {
	t        *state.Txn
	c        command.Reserve
	pool     *state.Pool // nil: unknown or being deleted
	placer   *placer
	waiting  bool     // somebody stands in line
	answered []string // by item, when the key was answered before
}

func reserve(t *state.Txn, c command.Reserve) command.Result {
	r := reserving{t: t, c: c}
	result := command.Result{Reserved: make([]command.ReserveOutcome, len(c.Items))}
	if q := t.Request(c.Key); q != nil {
		if q.Kind != state.KindAllocation || q.Digest != c.Digest {
			result.Err = fault.New(fault.Conflict, "this idempotency key was used for another request; use a new key")
			for i := range result.Reserved {
				result.Reserved[i].Err = result.Err
			}
			return result
		}
		r.answered = q.Objects
	}
	if p := t.Pool(nil, c.Pool); p != nil && !p.Deleting {
		r.pool, r.placer, r.waiting = p, newPlacer(t, p.Name), t.Head(p.Name) != nil
	}
	for i, item := range c.Items {
		out := r.item(i, item)
		if out.Err != nil {
			t.Emit(state.Event{
				Type: "allocation.refused", Code: out.Err.Code, Reason: out.Err.Message,
				Organization: item.Organization, Pool: c.Pool,
			})
		}
		result.Reserved[i] = out
	}
	r.remember(result.Reserved)
	return result
}

// remember keeps what the key was answered with. Refused items are not kept: a later try may succeed.
func (r *reserving) remember(outcomes []command.ReserveOutcome) {
	if r.c.Key == "" {
		return
	}
	objects, answered := make([]string, len(outcomes)), false
	for i, out := range outcomes {
		objects[i] = string(out.Allocation)
		answered = answered || out.Err == nil
	}
	if answered {
		r.t.PutRequest(state.Request{
			Key: r.c.Key, Digest: r.c.Digest, Kind: state.KindAllocation, Objects: objects, At: r.t.Now(),
		})
	}
}

func (r *reserving) item(i int, item command.ReserveItem) command.ReserveOutcome {
	t := r.t
	if i < len(r.answered) && r.answered[i] != "" {
		a := id.Allocation(r.answered[i])
		found := t.Allocation(a)
		return command.ReserveOutcome{
			Allocation: a, Existing: true, Queued: found != nil && found.State == state.AllocationQueued,
		}
	}
	if r.c.PoolNamed && r.pool == nil { // whatever the organization has
		return r.noPool()
	}
	org := t.Organization(nil, item.Organization)
	if org == nil {
		return refused(fault.NotFound, 0, "organization %s does not exist; create it first", item.Organization)
	}
	if live := t.LiveAllocation(org.ID); live != nil {
		if live.State.Ending() {
			return refused(fault.Conflict, retryAfter, "organization %s is being released by allocation %s; try again in a moment", org.ID, live.ID)
		}
		return command.ReserveOutcome{Allocation: live.ID, Existing: true, Queued: live.State == state.AllocationQueued}
	}
	if r.pool == nil {
		return r.noPool()
	}
	if item.Allocation == "" || t.Allocation(item.Allocation) != nil {
		return refused(fault.Conflict, 0, "the allocation id %q is taken; use a new one", item.Allocation)
	}
	return r.give(org, item.Allocation)
}

func (r *reserving) noPool() command.ReserveOutcome {
	return refused(fault.NotFound, 0, "pool %q does not exist; create it first, or name another", r.c.Pool)
}

func (r *reserving) give(org *state.Organization, allocation id.Allocation) command.ReserveOutcome {
	t, c := r.t, &r.c
	a := state.Allocation{
		ID: allocation, Organization: org.ID, Pool: r.pool.Name, ActivationTimeout: r.pool.ActivationTimeout,
		TTL: c.TTL, Metadata: c.Metadata,
	}
	if !r.waiting {
		if g, why := r.placer.take(ruleAtOnce); g != nil {
			a.Warm = true
			grant(t, a, g, why)
			return command.ReserveOutcome{Allocation: allocation}
		}
	}
	if c.QueueUntil.After(t.Now()) {
		r.waiting = true
		a.State, a.QueueUntil, a.QueueIndex, a.QueueSeq = state.AllocationQueued, c.QueueUntil.UTC(), t.EntryIndex(), t.NextSeq()
		t.PutAllocation(a, "")
		return command.ReserveOutcome{Allocation: allocation, Queued: true}
	}
	if n := r.placer.elsewhere(); n > 0 {
		return refused(fault.NoEligibleHost, retryAfter,
			"pool %s has %d ready gateways, but none on a host that may be used now; look at the hosts' states", r.pool.Name, n)
	}
	return refused(fault.PoolExhausted, retryAfter,
		"pool %s has no ready gateway; try again later, wait in line, or raise the pool's maximum", r.pool.Name)
}

func refused(code fault.Code, after time.Duration, format string, args ...any) command.ReserveOutcome {
	err := fault.New(code, format, args...)
	err.RetryAfter = after
	return command.ReserveOutcome{Err: err}
}

func confirm(t *state.Txn, c command.Confirm) command.Result {
	a := t.Allocation(c.Allocation)
	if a == nil {
		return refuse(fault.NotFound, "allocation %s does not exist", c.Allocation)
	}
	grant, pending := a.Pending()
	if !pending {
		grant = a.Grant()
	}
	switch {
	case grant.Epoch != c.Epoch:
		return refuse(fault.StaleEpoch, "allocation %s has epoch %d, not %d", a.ID, grant.Epoch, c.Epoch)
	case a.State == state.AllocationActive:
		return command.Result{Object: string(a.ID)}
	case !pending:
		return refuse(fault.Superseded, "allocation %s is %s already", a.ID, a.State)
	}
	g := t.Gateway(grant.Gateway)
	if r := &c.Observed; r.Gateway != g.ID || r.Incarnation != g.Desired.Incarnation || r.Epoch != grant.Epoch {
		return refuse(fault.StaleEpoch, "the report of gateway %q, incarnation %d, epoch %d is not about allocation %s on gateway %s, incarnation %d, epoch %d",
			r.Gateway, r.Incarnation, r.Epoch, a.ID, g.ID, g.Desired.Incarnation, grant.Epoch)
	}
	if c.Observed.Phase != api.PhaseServing {
		return refuse(fault.VerifyFailed, "gateway %s is %s and does not serve allocation %s", g.ID, c.Observed.Phase, a.ID)
	}
	if a.State == state.AllocationRelocating {
		confirmMove(t, a, g, &c)
		return command.Result{Object: string(a.ID)}
	}
	active := *a
	active.State, active.ActiveAt, active.Timings = state.AllocationActive, t.Now(), c.Timings
	active.Journal = joined(a.Journal, c.Journal)
	if a.TTL > 0 {
		active.ExpiresAt = t.Now().Add(a.TTL)
	}
	t.PutAllocation(active, "")
	next := *g
	next.Observed, next.Failures = seen(t, g, &c.Observed), 0
	t.PutGateway(next, "")
	return command.Result{Object: string(a.ID)}
}

func fail(t *state.Txn, c command.Fail) command.Result {
	a := t.Allocation(c.Allocation)
	failure := state.Failure{Code: c.Code, Message: c.Message}
	switch {
	case a == nil:
		return refuse(fault.NotFound, "allocation %s does not exist", c.Allocation)
	case a.State == state.AllocationQueued:
		ended := *a
		ended.State, ended.EndedAt, ended.Failure, ended.Journal = state.AllocationFailed, t.Now(), failure, joined(a.Journal, c.Journal)
		t.PutAllocation(ended, c.Message)
	default:
		return failPending(t, a, failure, c)
	}
	return command.Result{Object: string(a.ID)}
}

func failPending(t *state.Txn, a *state.Allocation, failure state.Failure, c command.Fail) command.Result {
	grant, pending := a.Pending()
	switch {
	case !pending:
		return refuse(fault.Superseded, "allocation %s is %s already", a.ID, a.State)
	case grant.Epoch != c.Epoch:
		return refuse(fault.StaleEpoch, "allocation %s has epoch %d, not %d", a.ID, grant.Epoch, c.Epoch)
	case a.State == state.AllocationRelocating:
		failMove(t, a, grant, failure, c.BlameGateway)
	default:
		rollBack(t, a, failure, c.Journal, c.BlameGateway)
	}
	return command.Result{Object: string(a.ID)}
}

func release(t *state.Txn, c command.Release) command.Result {
	a := t.Allocation(c.Allocation)
	if a == nil {
		return refuse(fault.NotFound, "allocation %s does not exist", c.Allocation)
	}
	ended := *a
	switch a.State {
	case state.AllocationQueued:
		ended.State, ended.EndedAt = state.AllocationReleased, t.Now()
		t.PutAllocation(ended, c.Reason)
	case state.AllocationReserved:
		rollBack(t, a, state.Failure{Code: fault.Superseded, Message: "released before it was active"}, nil, false)
	case state.AllocationRelocating:
		releaseMoving(t, a, c)
	case state.AllocationActive:
		ended.Left, ended.State = nil, state.AllocationReleasing
		if t.Host(nil, a.Host).Lost() {
			ended.State, ended.EndedAt = state.AllocationReleased, t.Now()
		}
		t.PutAllocation(ended, c.Reason)
		leftAlone(t, a.Left)
		t.PutGateway(ungrant(t, t.Gateway(a.Gateway), c.Drain, c.Reason), c.Reason)
	}
	return command.Result{Object: string(a.ID)}
}
