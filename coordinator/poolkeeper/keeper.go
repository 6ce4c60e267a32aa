package poolkeeper

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Proposer puts a command into the Raft log and returns after it was applied here.
type Proposer interface {
	Propose(ctx context.Context, c command.Command) (command.Result, uint64, error)
}

// Options configure a Keeper. All fields are needed.
type Options struct {
	Store    *state.Store
	Proposer Proposer
	Logger   hclog.Logger
	Now      func() time.Time
}

// Keeper keeps every pool at its size while this coordinator leads.
type Keeper struct{ opts Options }

// New makes a Keeper.
func New(opts Options) *Keeper { return &Keeper{opts} }

// retry is how soon a pool is looked at again after a proposal failed, and at the latest in any case.
const (
	retry = time.Second
	idle  = time.Minute
	// settle is how long changes gather before pools are looked at again. Starting a gateway takes far longer,
	// and whoever waits for an entry of the log comes first.
	settle = 10 * time.Millisecond
)

// Run watches pools, gateways and hosts and acts until ctx ends. It reacts to changes, not to a clock.
func (k *Keeper) Run(ctx context.Context) {
	for ctx.Err() == nil {
		ws := state.WatchSet{}
		view := k.opts.Store.View()
		hosts := eligible(view, ws)
		next := k.opts.Now().Add(idle)
		for p := range view.Pools(ws) {
			again, err := k.keep(ctx, look(view, ws, p, hosts))
			if err != nil {
				k.opts.Logger.Warn("cannot keep pool now", "pool", p.Name, "error", err)
				again = k.opts.Now().Add(retry)
			}
			if !again.IsZero() && again.Before(next) {
				next = again
			}
		}
		ws.Add(k.opts.Store.Restored())
		waitCtx, cancel := context.WithTimeout(ctx, max(next.Sub(k.opts.Now()), 10*time.Millisecond))
		changed := ws.WatchCtx(waitCtx) == nil // otherwise it is time to look again, or the end
		cancel()
		if changed {
			sleep.For(ctx, settle)
		}
	}
}

// eligible lists the hosts that may take more gateways. It watches their records; look watches the counts of all of them
// at once, because a watch for each of a thousand hosts costs more than the look.
func eligible(view state.View, ws state.WatchSet) []Host {
	var out []Host
	for h := range view.Hosts(ws) {
		if _, may := h.Eligible(); may {
			out = append(out, Host{ID: h.ID, Gateways: view.HostCounts(nil, h.ID).Total(), Capacity: h.Report.Capacity})
		}
	}
	return out
}

// look gathers what Plan needs to know of a pool.
func look(view state.View, ws state.WatchSet, p *state.Pool, hosts []Host) Pool {
	c := view.Counts(ws, p.Name) // which watches all hosts' counts
	out := Pool{
		Spec: *p, Ready: c.Of(state.GatewayReady), InFlight: c.Of(state.GatewayPending) + c.Of(state.GatewayStarting),
		Recycled: c.Of(state.GatewayRecycling), Total: c.Total() - c.Of(state.GatewayTerminating) - c.Of(state.GatewayLost), Hosts: hosts,
	}
	for range view.Line(ws, p.Name) {
		out.Queued++
	}
	for range view.Stranded(ws, p.Name) {
		out.Queued++
	}
	for range view.Held(ws, p.Name) {
		out.Queued++
	}
	for h := range view.Hosts(ws) {
		if h.Cordoned { // what it has ready is of no use, and what it serves may want to leave
			n := view.CountsOfHost(nil, p.Name, h.ID)
			out.Ready -= n.Of(state.GatewayReady)
			out.InFlight -= n.Of(state.GatewayPending) + n.Of(state.GatewayStarting)
			out.Recycled -= n.Of(state.GatewayRecycling)
			if h.Drain != nil && !h.Lost() {
				out.Queued += min(n.Of(state.GatewayAllocated), leaving)
			}
		}
	}
	if c.Of(state.GatewayFailed) > 0 {
		for g := range view.GatewaysOfPoolIn(p.Name, state.GatewayFailed) {
			if g.Desired.Organization == "" {
				out.Failed, out.LastWords = append(out.Failed, g.ID), g.Observed.Message
			}
		}
	}
	if out.Total > p.Max {
		out.Spare = spare(view, p.Name)
	}
	if p.Breaker.Failures > 0 {
		out.ReadySince = view.ReadySince(p.Name, p.ModifyIndex)
	}
	return out
}

// spare lists the ready gateways of a pool, those of the fullest host first.
func spare(view state.View, pool id.Pool) []id.Gateway {
	var ready []*state.Gateway
	held := map[id.Host]int{}
	for g := range view.GatewaysOfPoolIn(pool, state.GatewayReady) {
		ready = append(ready, g)
		if _, known := held[g.Host]; !known {
			held[g.Host] = view.HostCounts(nil, g.Host).Total()
		}
	}
	slices.SortStableFunc(ready, func(a, b *state.Gateway) int { return held[b.Host] - held[a.Host] })
	out := make([]id.Gateway, len(ready))
	for i, g := range ready {
		out[i] = g.ID
	}
	return out
}

// leaving is how many gateways are kept ready for the organizations of a host that is drained, beyond what the
// pool keeps ready in any case.
const leaving = 4

// keep does what Plan says about one pool.
func (k *Keeper) keep(ctx context.Context, p Pool) (again time.Time, err error) {
	now := k.opts.Now()
	a := Plan(p, now)
	if a.Breaker != p.Spec.Breaker && (p.Spec.Breaker != state.Breaker{} || a.Breaker.Failures > 0) || a.Limited != p.Spec.Limited {
		if err := k.note(ctx, p, a); err != nil {
			return time.Time{}, err
		}
	}
	for _, c := range []command.RetireGateways{
		{Meta: k.meta(), Gateways: a.Retire, Reason: "it did not become healthy"},
		{Meta: k.meta(), Gateways: a.Surplus, Reason: "the pool has more gateways than its maximum"},
	} {
		if len(c.Gateways) == 0 {
			continue
		}
		if _, _, err := k.opts.Proposer.Propose(ctx, c); err != nil {
			return time.Time{}, err
		}
	}
	if len(a.Create) > 0 {
		cmd := command.CreateGateways{Meta: k.meta(), Pool: p.Spec.Name, Reason: a.Reason, BesidesLost: true}
		for _, h := range a.Create {
			cmd.Gateways = append(cmd.Gateways, command.NewGateway{ID: id.NewGateway(), Host: h})
		}
		if _, _, err := k.opts.Proposer.Propose(ctx, cmd); err != nil {
			return time.Time{}, err
		}
	}
	return a.Again, nil
}

func (k *Keeper) note(ctx context.Context, p Pool, a Action) error {
	_, _, err := k.opts.Proposer.Propose(ctx, command.NotePool{
		Meta: k.meta(), Pool: p.Spec.Name, Breaker: a.Breaker.State, Until: a.Breaker.Until,
		Failures: a.Breaker.Failures, Limited: a.Limited, Reason: noteReason(a),
	})
	return err
}

func noteReason(a Action) string {
	if a.Breaker.State != BreakerClosed {
		return a.Breaker.Reason
	}
	return a.Reason
}

func (k *Keeper) meta() command.Meta {
	return command.Meta{At: k.opts.Now(), Actor: "poolkeeper"}
}
