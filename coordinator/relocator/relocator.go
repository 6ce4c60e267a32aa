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
	"github.com/demiurge-platform/demiurge/shared/sleep"
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
	// Lease is how long any lease may last from now on.
	Lease  time.Duration
	Logger hclog.Logger
	Now    func() time.Time
}

// Relocator is the loop of one coordinator while it leads.
type Relocator struct {
	opts  Options
	holds map[id.Allocation]hold // of what is held; only Run uses it
}

// hold is how long an allocation is held: the time on record, which is of the clock of the coordinator that led then, and
// the moment that this is here. It is fixed when the record is first seen, and counted by the clock that nobody sets.
type hold struct{ record, moment time.Time }

// New makes a Relocator.
func New(opts Options) *Relocator { return &Relocator{opts: opts} }

const (
	// idle is how long nothing is looked at, if nothing changes.
	idle = time.Minute
	// retry is how soon a proposal that failed is made again.
	retry = time.Second
	// settle is how long changes gather before they are looked at. A drain takes seconds, and the gateways of all hosts
	// change hundreds of times in each.
	settle = 10 * time.Millisecond
	// share is how much longer than a look the pause after it is: one at a host with thousands of gateways takes long.
	share = 4
	// shortest keeps a deadline that has just passed from spinning the loop.
	shortest = 10 * time.Millisecond
)

// Run acts on every change, and when a time that Plan waits for has come, until ctx ends.
func (r *Relocator) Run(ctx context.Context) {
	r.holds = nil // a former reign saw what this one sees now
	for ctx.Err() == nil {
		ws := state.WatchSet{}
		now := r.opts.Now()
		began := time.Now()
		actions, again := Plan(r.look(r.opts.Store.View(), ws, now), now)
		took := time.Since(began)
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
		changed := ws.WatchCtx(waitCtx) == nil // otherwise it is time to look again, or the end
		cancel()
		if changed {
			sleep.For(ctx, max(settle, share*took))
		}
	}
}

// look gathers what Plan needs.
func (r *Relocator) look(view state.View, ws state.WatchSet, now time.Time) View {
	var out View
	holds := map[id.Allocation]hold{}
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
			out.Lost = append(out.Lost, Lost{Host: h.ID, Reason: h.Reason, FencedBy: now.Add(r.opts.FencedBy(h.ID).Sub(now))})
		}
	}
	if len(out.Draining) > 0 {
		out.Elsewhere = lookElsewhere(view, ws)
	}
	for p := range view.Pools(ws) {
		for a := range view.Held(ws, p.Name) {
			h, longest := r.holds[a.ID], state.LongestBackOff
			if a.Move.Held == state.HeldByLease {
				longest = r.opts.Lease
			}
			if !h.record.Equal(a.Move.HeldUntil) {
				h = hold{a.Move.HeldUntil, now.Add(min(a.Move.HeldUntil.Sub(now), longest))}
			}
			holds[a.ID] = h
			held := Held{Allocation: a.ID, Until: h.moment}
			if a.Move.Held == state.HeldByLease && a.Host != "" {
				// The leader of now knows best: an earlier one may have heard of the host later than it wrote.
				held.Until = later(held.Until, r.opts.FencedBy(a.Host))
			}
			out.Held = append(out.Held, held)
		}
	}
	r.holds = holds
	return out
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
