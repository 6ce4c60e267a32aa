// Package hostmonitor decides whether hosts are alive, silent or lost. Plan is the decision, pure; Monitor
// is the loop that asks it and proposes.
package hostmonitor

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

// Liveness tells when a host's agent was last heard of by this coordinator, and whether it is connected.
type Liveness interface {
	Seen(id.Host) (at time.Time, connected bool)
}

// Options configure a Monitor. All fields are needed.
type Options struct {
	Store       *state.Store
	Proposer    Proposer
	Liveness    Liveness
	SilentAfter time.Duration // without connection: no new allocations there
	LostAfter   time.Duration // without connection: its gateways are given up
	Logger      hclog.Logger
	Now         func() time.Time
}

// Monitor watches the agents' connections while this coordinator leads.
type Monitor struct{ opts Options }

// New makes a Monitor.
func New(opts Options) *Monitor { return &Monitor{opts} }

// look is how often hosts are looked at.
const look = 250 * time.Millisecond

// Run looks at all hosts at a steady rate until ctx ends. A new leader gives every host the whole
// patience again, because it has heard of none.
func (m *Monitor) Run(ctx context.Context) {
	began := m.opts.Now()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for h := range m.opts.Store.View().Hosts(nil) {
			seen, connected := m.opts.Liveness.Seen(h.ID)
			if seen.Before(began) {
				seen = began
			}
			status, reason := m.Plan(h.Status, m.opts.Now().Sub(seen), connected)
			if status == h.Status {
				continue
			}
			if _, _, err := m.opts.Proposer.Propose(ctx, command.SetHostStatus{
				Meta: command.Meta{At: m.opts.Now(), Actor: "hostmonitor"}, Host: h.ID, Status: status, Reason: reason,
			}); err != nil {
				m.opts.Logger.Warn("cannot record the status of a host now", "host", h.ID, "status", status, "error", err)
			}
		}
	}
}

// Plan is the status a host should have. It only ever gets worse here: a host comes back by reporting,
// because what it reports has to be looked at first.
func (m *Monitor) Plan(status string, silence time.Duration, connected bool) (next, reason string) {
	switch {
	case connected:
		return status, ""
	case silence >= m.opts.LostAfter:
		return api.HostLost, "its agent has not been heard of for " + m.opts.LostAfter.String()
	case silence >= m.opts.SilentAfter && status == api.HostAlive:
		return api.HostSilent, "its agent has not been heard of for " + m.opts.SilentAfter.String()
	}
	return status, ""
}
