// Package relocator keeps allocations moving that have to leave their host: it hands on what was left behind
// on a lost host, ends the waiting of those that were held back, and empties hosts that are drained. Plan is
// the decision, pure; Relocator is the loop that watches the state, asks Plan and proposes. What happens to one
// allocation is decided by the state machine (fsm) and driven by the allocator.
package relocator

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Proposer puts a command into the Raft log and returns after it was applied here.
type Proposer interface {
	Propose(ctx context.Context, c command.Command) (command.Result, uint64, error)
}

// Options configure a Relocator. All fields are needed.
type Options struct {
	Store    *state.Store
	Proposer Proposer
	// FencedBy is when a host that is cut off since now at the latest has stopped serving pools with isolation
	// stop. It may move on while the host is heard of.
	FencedBy func(id.Host) time.Time
	Logger   hclog.Logger
	Now      func() time.Time
}

// Relocator is the loop of one coordinator while it leads.
type Relocator struct{ opts Options }

// New makes a Relocator.
func New(opts Options) *Relocator { return &Relocator{opts} }

const (
	// idle is how long nothing is looked at, if nothing changes.
	idle = time.Minute
	// retry is how soon a proposal that failed is made again.
	retry = time.Second
	// shortest keeps a deadline that has just passed from spinning the loop.
	shortest = 10 * time.Millisecond
)

// Run acts on every change, and when a time that Plan waits for has come, until ctx ends.
func (r *Relocator) Run(ctx context.Context) {
	for ctx.Err() == nil {
		ws := state.WatchSet{}
		now := r.opts.Now()
		actions, again := Plan(look(r.opts.Store.View(), ws, r.opts.FencedBy), now)
		for _, c := range actions {
			if _, _, err := r.opts.Proposer.Propose(ctx, c); err != nil {
				if ctx.Err() == nil {
					r.opts.Logger.Warn("cannot move allocations now", "error", err)
				}
				again = now.Add(retry)
				break
			}
		}
		if again.IsZero() || again.After(now.Add(idle)) {
			again = now.Add(idle)
		}
		ws.Add(r.opts.Store.Restored())
		waitCtx, cancel := context.WithTimeout(ctx, max(again.Sub(r.opts.Now()), shortest))
		_ = ws.WatchCtx(waitCtx) // its error is the time to look again, or the end
		cancel()
	}
}

// look gathers what Plan needs.
func look(view state.View, ws state.WatchSet, fencedBy func(id.Host) time.Time) View {
	var out View
	for h := range view.Hosts(ws) {
		switch {
		case h.Lost():
		case h.Drain != nil && h.Drain.State != api.DrainDrained:
			out.Draining = append(out.Draining, lookDraining(view, ws, h))
			continue
		default:
			continue
		}
		left := false
		for g := range view.GatewaysOfHost(ws, h.ID) {
			a := view.Allocation(nil, g.Desired.Allocation)
			left = left || a != nil && a.State == state.AllocationActive && a.Gateway == g.ID
		}
		if left {
			out.Lost = append(out.Lost, Lost{Host: h.ID, Reason: h.Reason, FencedBy: fencedBy(h.ID)})
		}
	}
	if len(out.Draining) > 0 {
		out.Elsewhere = lookElsewhere(view, ws)
	}
	for p := range view.Pools(ws) {
		for a := range view.Held(ws, p.Name) {
			held := Held{Allocation: a.ID, Until: a.Move.HeldUntil}
			if a.Move.Held == state.HeldByLease && a.Host != "" {
				// The leader of now knows best: an earlier one may have heard of the host later than it wrote.
				held.Until = later(held.Until, fencedBy(a.Host))
			}
			out.Held = append(out.Held, held)
		}
	}
	return out
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
