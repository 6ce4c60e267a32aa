// Package hostmonitor acts on what is found of hosts: alive, silent or lost. The finding itself is
// membership.Judge, pure; Monitor is the loop that collects its two signals, asks the question, and
// proposes.
package hostmonitor

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/membership"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Proposer puts a command into the Raft log and returns after it was applied here.
type Proposer interface {
	Propose(ctx context.Context, c command.Command) (command.Result, uint64, error)
}

// Agents is the own connections of this coordinator to the agents.
type Agents interface {
	// Signals gives what is known of a host over its own connection: Heard, Open, Ended, Asked, Answered and
	// Farewell; and what its agent says of its own place in the gossip, zero: nothing.
	Signals(id.Host) (membership.Signals, api.HostGossip)
	// Ask has the agent answer at once.
	Ask(id.Host)
}

// Options configure a Monitor. All fields are needed.
type Options struct {
	Store      *state.Store
	Proposer   Proposer
	Agents     Agents
	Members    func() *membership.Snapshot
	Thresholds membership.Thresholds
	Lease      time.Duration // how long a host that is cut off serves pools with isolation stop
	Logger     hclog.Logger
	Now        func() time.Time
}

// Monitor watches the hosts while this coordinator leads.
type Monitor struct{ opts Options }

// New makes a Monitor.
func New(opts Options) *Monitor { return &Monitor{opts} }

const (
	// look is how often hosts are looked at of which something is in doubt.
	look = 100 * time.Millisecond
	// round is how many looks there are between two at every host, if the gossip says nothing new. Nearly all hosts are
	// well, and what their own connections tell of them can wait for half a second: a stream that has ended is nothing
	// to act upon for much longer.
	round = 5
	// breath is the least time between two looks.
	breath = 20 * time.Millisecond
)

// Run looks at all hosts at a steady rate and when the gossip has news, and more often at those that are not plainly
// well, until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	began := m.opts.Now()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var doubtful []id.Host
	var changed <-chan struct{}
	for n := 0; ; n++ {
		members := m.opts.Members()
		if n == round || members.Changed() != changed {
			n, changed = 0, members.Changed()
			doubtful = m.all(ctx, members, began)
		} else {
			doubtful = m.again(ctx, doubtful, members, began)
		}
		if !sleep.For(ctx, breath) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
		}
	}
}

// all looks at every host and returns those that are not plainly well.
func (m *Monitor) all(ctx context.Context, members *membership.Snapshot, began time.Time) (doubtful []id.Host) {
	for h := range m.opts.Store.View().Hosts(nil) {
		if !m.judge(ctx, h, members, began) {
			doubtful = append(doubtful, h.ID)
		}
	}
	return doubtful
}

// again looks at hosts that were not plainly well and returns those that still are not.
func (m *Monitor) again(ctx context.Context, hosts []id.Host, members *membership.Snapshot, began time.Time) (doubtful []id.Host) {
	for _, h := range hosts {
		if rec := m.opts.Store.View().Host(nil, h); rec != nil && !m.judge(ctx, rec, members, began) {
			doubtful = append(doubtful, h)
		}
	}
	return doubtful
}

// judge acts on what is found of a host, and reports whether it is plainly well: its stream is open, and there is
// neither a question to it nor a change of its status.
func (m *Monitor) judge(ctx context.Context, h *state.Host, members *membership.Snapshot, began time.Time) (well bool) {
	s, place := m.opts.Agents.Signals(h.ID)
	pool := members.Signals(h.ID)
	s.Gossip, s.GossipSince, s.Flaps, s.Isolated = pool.Gossip, pool.GossipSince, pool.Flaps, pool.Isolated
	s.Stranger, s.LeadsSince = members.Stranger(h.ID, place), began
	now := m.opts.Now()
	v := membership.Judge(s, now, m.opts.Thresholds)
	if v.Ask {
		m.opts.Agents.Ask(h.ID)
	}
	next, reason := Plan(h.Status, v)
	if next == h.Status {
		return v.Status == membership.Alive && s.Open && !v.Ask && !s.Heard.Before(s.Asked)
	}
	meta := command.Meta{At: now, Actor: "hostmonitor"}
	var c command.Command = command.SetHostStatus{Meta: meta, Host: h.ID, Status: next, Reason: reason}
	if next == api.HostLost { // and everything on it goes elsewhere with the same entry
		left := membership.LeaseEnd(s, m.opts.Lease).Sub(now) // of the lease: the clock may have been set since the host was heard of
		c = command.LoseHost{Meta: meta, Host: h.ID, Reason: reason, FencedBy: now.Add(left)}
	}
	if _, _, err := m.opts.Proposer.Propose(ctx, c); err != nil && ctx.Err() == nil {
		m.opts.Logger.Warn("cannot record the status of a host now", "host", h.ID, "status", next, "error", err)
	}
	return false
}

// Plan is the status a host should have. One that is lost comes back by reporting, because what it reports
// has to be looked at first.
func Plan(status string, v membership.Verdict) (next, reason string) {
	switch v.Status {
	case membership.Lost:
		return api.HostLost, v.Reason
	case membership.Suspect, membership.Left:
		if status == api.HostAlive {
			return api.HostSilent, v.Reason
		}
	case membership.Alive:
		if status == api.HostSilent {
			return api.HostAlive, "it answers again"
		}
	}
	return status, ""
}
