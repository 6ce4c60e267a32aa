package allocator

import (
	"context"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// releasePatience is how long a release waits for the recycling beyond the drain it was given.
const releasePatience = 30 * time.Second

// ReleaseRequest ends an allocation.
type ReleaseRequest struct {
	Actor, Source string
	Allocation    id.Allocation
	Drain         time.Duration // how long open connections may go on
	Reason        string
}

// Release ends an allocation and returns when its route is gone and its gateway was recycled. Releasing
// what is ending waits for it; what has ended is done already. Faults: not_found, no_leader, and
// activation_timeout when the recycling takes too long; the release itself then goes on.
func (r *Runner) Release(ctx context.Context, req ReleaseRequest) error {
	rec := r.opts.Store.View().Allocation(nil, req.Allocation)
	if rec == nil {
		return fault.New(fault.NotFound, "allocation %s is not known; `demiurge alloc list` shows those that are", req.Allocation)
	}
	result, _, err := r.opts.Proposer.Propose(ctx, command.Release{
		Meta: r.meta(req.Actor, req.Source), Allocation: req.Allocation, Drain: req.Drain, Reason: req.Reason,
	})
	if err != nil {
		return err
	}
	if result.Err != nil {
		return result.Err
	}
	r.forget(req.Allocation)
	defer r.ended(ctx, req.Allocation)()
	waitCtx, cancel := context.WithTimeout(ctx, req.Drain+releasePatience)
	defer cancel()
	ended, err := r.watch(waitCtx, req.Allocation, func(a *state.Allocation) bool { return a == nil || !a.State.Live() })
	if err == nil && ended != nil && ended.Gateway != "" {
		err = r.awaitRecycled(waitCtx, ended)
	}
	if err != nil {
		if err := stopped(ctx, req.Allocation); err != nil {
			return err
		}
		return fault.Wrap(fault.ActivationTimeout, err, "allocation %s is being released, but its gateway was not recycled in time; the release goes on, `demiurge alloc steps %s` shows it", req.Allocation, req.Allocation)
	}
	return nil
}

// awaitRecycled waits until the gateway of an ended allocation has left its recycling. One that fails,
// is quarantined or disappears will not come back by itself, and one that serves again has long been.
func (r *Runner) awaitRecycled(ctx context.Context, ended *state.Allocation) error {
	for {
		ws := state.WatchSet{}
		g := r.opts.Store.View().Gateway(ws, ended.Gateway)
		if g == nil || g.State != state.GatewayDraining && g.State != state.GatewayRecycling {
			return nil
		}
		ws.Add(r.opts.Store.Restored())
		if err := changed(ctx, ws); err != nil {
			return err
		}
	}
}
