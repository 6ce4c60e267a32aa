package fsm

import (
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// relocating is one Relocate while it is applied.
type relocating struct {
	t       *state.Txn
	c       command.Relocate
	placers map[id.Pool]*placer
}

func relocate(t *state.Txn, c command.Relocate) command.Result {
	r := relocating{t: t, c: c, placers: map[id.Pool]*placer{}}
	result := command.Result{Reserved: make([]command.ReserveOutcome, len(c.Items))}
	if q := t.Request(c.Key); q != nil {
		if q.Kind != state.KindMove || q.Digest != c.Digest {
			result.Err = fault.New(fault.Conflict, "this idempotency key was used for another request; use a new key")
			return result
		}
		for i, a := range q.Objects[:min(len(q.Objects), len(c.Items))] {
			result.Reserved[i] = command.ReserveOutcome{Allocation: id.Allocation(a), Existing: true}
		}
		return result
	}
	objects, begun := make([]string, len(c.Items)), false
	for i, item := range c.Items {
		out := r.item(item)
		result.Reserved[i] = out
		if out.Err == nil {
			objects[i], begun = string(out.Allocation), true
		}
	}
	if c.Key != "" && begun {
		t.PutRequest(state.Request{Key: c.Key, Digest: c.Digest, Kind: state.KindMove, Objects: objects, At: t.Now()})
	}
	return result
}

func (r *relocating) item(item command.RelocateItem) command.ReserveOutcome {
	a := r.t.Allocation(item.Allocation)
	switch {
	case a == nil:
		return refused(fault.NotFound, 0, "allocation %s does not exist", item.Allocation)
	case item.Epoch != 0 && a.Epoch != item.Epoch:
		return refused(fault.StaleEpoch, 0, "allocation %s has epoch %d, not %d", a.ID, a.Epoch, item.Epoch)
	case a.State == state.AllocationRelocating:
		return refused(fault.Conflict, retryAfter, "allocation %s is being moved already; `demiurge alloc steps %s` shows how far it is", a.ID, a.ID)
	case a.State != state.AllocationActive:
		return refused(fault.Conflict, 0, "allocation %s is %s; only an active one can be moved", a.ID, a.State)
	}
	if err := r.destination(a); err != nil {
		return command.ReserveOutcome{Err: err}
	}
	p := r.placers[a.Pool]
	if p == nil {
		p = newPlacer(r.t, a.Pool)
		r.placers[a.Pool] = p
	}
	g, why := p.takeFor(ruleMove, a.Host, r.c.To)
	if g == nil && !r.c.Force {
		return command.ReserveOutcome{Err: r.none(p, a)}
	}
	m := state.Move{Cause: r.c.Cause, Reason: r.c.Reason, Since: r.t.Now(), From: a.Grant(), Drain: r.c.Drain}
	if g == nil {
		r.force(a, m)
	} else {
		r.begin(a, m, g, why)
	}
	return command.ReserveOutcome{Allocation: a.ID}
}

// destination refuses a host that was asked for and cannot be it.
func (r *relocating) destination(a *state.Allocation) *fault.Error {
	if r.c.To == "" {
		return nil
	}
	h := r.t.Host(nil, r.c.To)
	if h == nil {
		return fault.New(fault.NotFound, "host %s does not exist; `demiurge host list` shows those that do", r.c.To)
	}
	if h.ID == a.Host {
		return fault.New(fault.Conflict, "allocation %s is on host %s already", a.ID, h.ID)
	}
	if why, eligible := h.Eligible(); !eligible {
		return fault.New(fault.NoEligibleHost, "allocation %s cannot be moved to host %s: %s", a.ID, h.ID, why)
	}
	return nil
}

// none is why there is no gateway to move to.
func (r *relocating) none(p *placer, a *state.Allocation) *fault.Error {
	var err *fault.Error
	switch {
	case r.c.To != "":
		err = fault.New(fault.PoolExhausted, "pool %s has no ready gateway on host %s; try again later, or name no host", a.Pool, r.c.To)
	case !p.eligibleBut(a.Host):
		err = fault.New(fault.NoEligibleHost, "there is no other host that may take allocation %s from host %s; add one, or uncordon one", a.ID, a.Host)
	default:
		err = fault.New(fault.PoolExhausted, "pool %s has no ready gateway on another host than %s; try again later, or raise the pool's maximum", a.Pool, a.Host)
	}
	err.RetryAfter = retryAfter
	return err
}

// begin gives the allocation its target. What it has goes on serving it.
func (r *relocating) begin(a *state.Allocation, m state.Move, g *state.Gateway, why state.Explanation) {
	t := r.t
	m.Target = &state.Grant{
		Gateway: g.ID, Host: g.Host, Epoch: id.Epoch(t.EntryIndex()), ReservedAt: t.Now(), Deadline: t.Now().Add(activationOf(a)),
	}
	m.TargetWhy = &why
	next := *a
	next.State, next.Move = state.AllocationRelocating, &m
	t.PutAllocation(next, r.c.Reason)
	t.PutGateway(granted(t, g, a, m.Target.Epoch), r.c.Reason)
}

// force takes the allocation off its gateway though there is no other one.
func (r *relocating) force(a *state.Allocation, m state.Move) {
	t := r.t
	m.Stranded = true
	next := *a
	was := a.Grant()
	next.Left = &was
	next.Hold(state.Grant{})
	strand(t, next, m, r.c.Reason)
	leftAlone(t, a.Left)
	t.PutGateway(ungrant(t, t.Gateway(a.Gateway), r.c.Drain, r.c.Reason), r.c.Reason)
}
