// Package membership is the coordinator's view of who is alive. View keeps what the gossip says of hosts
// and coordinators, with a channel to wait for changes; Judge, a pure function, weighs that against the
// second signal. Neither acts: that is the host monitor's.
package membership

import (
	"context"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Pool is where members and their changes come from.
type Pool interface {
	// Members gives all that are known, this node too.
	Members() []gossip.Member
	// Changes tells what happens to the other members, and is closed when the pool ends.
	Changes() <-chan gossip.Change
}

// Host is a host as the gossip knows its agent. Of its health nothing is here: it says nothing of whether the host lives,
// and a thousand of them tell of it hundreds of times a second.
type Host struct {
	Status  gossip.Status // failed is a suspicion
	Since   time.Time     // of the status
	Flaps   int           // failures with return within gossip.FlapWindow
	Run     string        // differs from start to start of the agent
	Address netip.AddrPort
	Version string
}

// hostOf is what is kept of a host's agent.
func hostOf(m *gossip.Member) Host {
	return Host{Status: m.Status, Since: m.Since, Flaps: m.Flaps, Run: m.Run, Address: m.Address, Version: m.Version}
}

func (h Host) equal(o Host) bool {
	same := h.Since.Equal(o.Since)
	h.Since = o.Since
	return same && h == o
}

// Snapshot is the view at one moment. It is shared and must not be changed.
type Snapshot struct {
	Hosts        map[id.Host]Host
	Coordinators map[string]gossip.Member // by name, this one too
	// Isolated: there are other members, and none of them is alive.
	Isolated bool
	// Unsteady: every host that is there comes and goes. That says more of this coordinator than of them, and what is not
	// placed on one of them could not be placed on another.
	Unsteady bool

	changed chan struct{}
}

// Changed is closed when there is a newer snapshot.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Signals gives the gossip's part of what Judge needs of a host.
func (s *Snapshot) Signals(h id.Host) Signals {
	known := s.Hosts[h]
	out := Signals{Gossip: known.Status, GossipSince: known.Since, Flaps: known.Flaps, Isolated: s.Isolated}
	if s.Unsteady {
		out.Flaps = 0
	}
	return out
}

// Stranger reports whether the pool's member of a host's name is another one than the agent of that host
// says it is, over its own connection. An agent that says nothing of its place has nothing to compare.
func (s *Snapshot) Stranger(h id.Host, own api.HostGossip) bool {
	known, ok := s.Hosts[h]
	return ok && own.Run != "" && (known.Run != own.Run || known.Address.String() != own.Address)
}

// breath is the least time between two snapshots: each is of every member.
const breath = 10 * time.Millisecond

// refresh is how often everything is read anew: the flaps of a host that is quiet now grow old.
const refresh = 5 * time.Second

// View follows the gossip.
type View struct {
	pool Pool

	mu  sync.Mutex
	now *Snapshot // guarded by mu
}

// New makes a View of the members that are known already. Run keeps it up to date.
func New(pool Pool) *View {
	v := &View{pool: pool}
	v.now = take(pool.Members())
	return v
}

// Run follows the pool until ctx ends or the pool does.
func (v *View) Run(ctx context.Context) {
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	changes := v.pool.Changes()
	for {
		select {
		case <-ctx.Done():
			return
		case c, ok := <-changes:
			if !ok {
				return
			}
			if !v.Snapshot().news(&c) {
				continue
			}
		case <-tick.C:
		}
		v.renew()
		if !sleep.For(ctx, breath) {
			return
		}
	}
}

// news reports whether a change is of anything that is kept here.
func (s *Snapshot) news(c *gossip.Change) bool {
	if c.Kind != gossip.Updated || c.Member.Role != gossip.RoleAgent {
		return true
	}
	known, ok := s.Hosts[c.Member.Host]
	return !ok || !known.equal(hostOf(&c.Member))
}

// renew takes a new snapshot, if anything differs. A change only says that there is something to read: what
// the members are now counts, so that no order of changes can leave the view wrong.
func (v *View) renew() {
	next := take(v.pool.Members())
	v.mu.Lock()
	before := v.now
	same := before.equal(next)
	if !same {
		v.now = next
	}
	v.mu.Unlock()
	if !same {
		close(before.changed)
	}
}

// Snapshot gives the view as it is now.
func (v *View) Snapshot() *Snapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.now
}

// take sorts members into a snapshot.
func take(members []gossip.Member) *Snapshot {
	s := &Snapshot{Hosts: map[id.Host]Host{}, Coordinators: map[string]gossip.Member{}, changed: make(chan struct{})}
	others, alive, steady := 0, 0, 0
	for _, m := range members {
		if !m.Self && m.Status != gossip.StatusLeft {
			others++
			if m.Status == gossip.StatusAlive {
				alive++
			}
		}
		if m.Role == gossip.RoleCoordinator {
			s.Coordinators[m.Name] = m
			continue
		}
		s.Hosts[m.Host] = hostOf(&m)
		if m.Status == gossip.StatusAlive && m.Flaps < gossip.FlapLimit {
			steady++
		}
	}
	s.Unsteady = steady == 0
	s.Isolated = others > 1 && alive == 0
	return s
}

// equal reports whether nothing differs.
func (s *Snapshot) equal(o *Snapshot) bool {
	return s.Isolated == o.Isolated && maps.EqualFunc(s.Hosts, o.Hosts, Host.equal) &&
		maps.EqualFunc(s.Coordinators, o.Coordinators, func(a, b gossip.Member) bool {
			return hostOf(&a).equal(hostOf(&b)) && maps.Equal(a.Tags, b.Tags)
		})
}
