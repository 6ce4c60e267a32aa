package membership_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/demiurge-platform/demiurge/coordinator/membership"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// fakePool has the members that it is given.
type fakePool struct {
	mu      sync.Mutex
	members []gossip.Member // guarded by mu
	reads   int             // guarded by mu
	changes chan gossip.Change
}

func (p *fakePool) Members() []gossip.Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reads++
	return append([]gossip.Member(nil), p.members...)
}

func (p *fakePool) Changes() <-chan gossip.Change { return p.changes }

func (p *fakePool) set(members ...gossip.Member) {
	p.mu.Lock()
	p.members = members
	p.mu.Unlock()
	p.changes <- gossip.Change{} // what changed is read anew
}

func agent(name string, s gossip.Status) gossip.Member {
	return gossip.Member{Role: gossip.RoleAgent, Name: name, Host: id.Host(name), Status: s, Since: at(1)}
}

func coordinator(name string, s gossip.Status, self bool) gossip.Member {
	return gossip.Member{Role: gossip.RoleCoordinator, Name: name, Status: s, Since: at(1), Self: self}
}

func TestView(t *testing.T) {
	me := coordinator("c1", gossip.StatusAlive, true)
	p := &fakePool{changes: make(chan gossip.Change)}
	p.members = []gossip.Member{me}
	v := membership.New(p)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { v.Run(ctx); close(ended) }()

	next := func(members ...gossip.Member) *membership.Snapshot {
		t.Helper()
		changed := v.Snapshot().Changed()
		p.set(append([]gossip.Member{me}, members...)...)
		waitClosed(t, changed)
		return v.Snapshot()
	}
	if s := v.Snapshot(); s.Isolated || len(s.Hosts) != 0 || len(s.Coordinators) != 1 {
		t.Errorf("alone: %+v", s)
	}
	failed := agent("h1", gossip.StatusFailed)
	failed.Flaps = 2
	s := next(failed, agent("h2", gossip.StatusAlive), coordinator("c2", gossip.StatusFailed, false))
	if s.Isolated || s.Hosts["h1"].Status != gossip.StatusFailed || s.Coordinators["c2"].Status != gossip.StatusFailed {
		t.Errorf("some: %+v", s)
	}
	if got, want := s.Signals("h1"), (membership.Signals{Gossip: gossip.StatusFailed, GossipSince: at(1), Flaps: 2}); got != want {
		t.Errorf("signals %+v, want %+v", got, want)
	}
	if got := s.Signals("h9"); got != (membership.Signals{}) {
		t.Errorf("signals of an unknown host: %+v", got)
	}
	s = next(failed, agent("h2", gossip.StatusFailed), agent("h3", gossip.StatusLeft))
	if !s.Isolated || !s.Signals("h2").Isolated {
		t.Errorf("all others failed: %+v", s)
	}
	// With one host only there is nobody to tell who is cut off.
	if s = next(failed); s.Isolated {
		t.Errorf("the only other: %+v", s)
	}
	back := agent("h1", gossip.StatusAlive)
	next(back)
	// Nothing new wakes nobody.
	same := v.Snapshot()
	p.set(me, back)
	p.set(me, back) // the first was read when the second is taken
	if v.Snapshot() != same {
		t.Error("there is a new snapshot of the same members")
	}
	cancel()
	<-ended
}

// A host that comes and goes is spared where there is a steadier one. Without one, as on a machine that is busy with other
// things, nothing could be placed anywhere for minutes.
func TestFlapsCountBesideASteadyHost(t *testing.T) {
	flapping := agent("h1", gossip.StatusAlive)
	flapping.Flaps = gossip.FlapLimit
	too := agent("h2", gossip.StatusFailed)
	too.Flaps = gossip.FlapLimit + 1
	for name, c := range map[string]struct {
		others []gossip.Member
		flaps  int
	}{
		"alone":                  {nil, 0},
		"beside a steady one":    {[]gossip.Member{agent("h3", gossip.StatusAlive)}, gossip.FlapLimit},
		"beside one like it":     {[]gossip.Member{too}, 0},
		"beside one that failed": {[]gossip.Member{agent("h3", gossip.StatusFailed)}, 0},
		"beside both":            {[]gossip.Member{too, agent("h3", gossip.StatusAlive)}, gossip.FlapLimit},
	} {
		s := membership.New(&fakePool{members: append(c.others, flapping, coordinator("c1", gossip.StatusAlive, true))}).Snapshot()
		if got := s.Signals("h1").Flaps; got != c.flaps {
			t.Errorf("%s: %d flaps count, want %d", name, got, c.flaps)
		}
	}
}

// A thousand members whose gateways are given out tell of their health hundreds of times a second. Each reading of them all
// takes milliseconds.
func TestHealthIsNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakePool{changes: make(chan gossip.Change), members: []gossip.Member{coordinator("c1", gossip.StatusAlive, true)}}
		for n := range 1000 {
			p.members = append(p.members, agent(fmt.Sprintf("h%d", n), gossip.StatusAlive))
		}
		v := membership.New(p)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { v.Run(ctx) })
		before := v.Snapshot()
		p.mu.Lock()
		all := slices.Clone(p.members[1:])
		p.mu.Unlock()
		for n := range all {
			all[n].Digest.Generation++
			p.changes <- gossip.Change{Kind: gossip.Updated, Member: all[n]}
		}
		synctest.Wait()
		p.mu.Lock()
		reads := p.reads
		p.mu.Unlock()
		if v.Snapshot() != before || reads != 1 {
			t.Errorf("the members were read %d times", reads)
		}
		for what, change := range map[string]func(*gossip.Member){
			"address": func(m *gossip.Member) { m.Address = netip.MustParseAddrPort("192.0.2.7:7402") },
			"run":     func(m *gossip.Member) { m.Run = "another" },
			"version": func(m *gossip.Member) { m.Version = "2" },
			"flaps":   func(m *gossip.Member) { m.Flaps++ },
		} {
			before = v.Snapshot()
			change(&all[7])
			p.mu.Lock()
			p.members = append([]gossip.Member{coordinator("c1", gossip.StatusAlive, true)}, all...)
			p.mu.Unlock()
			p.changes <- gossip.Change{Kind: gossip.Updated, Member: all[7]}
			synctest.Wait()
			if v.Snapshot() == before {
				t.Errorf("another %s is no news", what)
			}
		}
		cancel()
		running.Wait()
	})
}

func waitClosed(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatal("waited in vain for a newer snapshot")
	}
}

// With real members: a host dies, and the view follows; its stream and its ping decide the rest.
func TestViewOfAPool(t *testing.T) {
	key := gossip.NewKey()
	start := func(role gossip.Role, name, ip string, seeds ...string) *gossip.Node {
		t.Helper()
		n, err := gossip.Start(gossip.Options{
			Role: role, Name: name, Cluster: "c", Key: key, Seeds: seeds,
			Bind: netip.AddrPortFrom(netip.MustParseAddr(ip), 0),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := n.Join(ctx); err != nil {
			t.Fatal(err)
		}
		return n
	}
	c := start(gossip.RoleCoordinator, "c1", "127.0.9.1")
	v := membership.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { v.Run(ctx); close(ended) }()
	h1 := start(gossip.RoleAgent, "h1", "127.0.9.2", c.Addr().String())
	start(gossip.RoleAgent, "h2", "127.0.9.3", c.Addr().String())
	until := func(what string, cond func(*membership.Snapshot) bool) *membership.Snapshot {
		t.Helper()
		for limit := time.After(patience); ; {
			s := v.Snapshot()
			if cond(s) {
				return s
			}
			select {
			case <-s.Changed():
			case <-limit:
				t.Fatalf("waited in vain until %s: %+v", what, s)
			}
		}
	}
	until("both hosts are alive", func(s *membership.Snapshot) bool {
		return s.Hosts["h1"].Status == gossip.StatusAlive && s.Hosts["h2"].Status == gossip.StatusAlive
	})
	if err := h1.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	s := until("h1 has failed", func(s *membership.Snapshot) bool { return s.Hosts["h1"].Status == gossip.StatusFailed })
	signals := s.Signals("h1")
	signals.LeadsSince = signals.GossipSince.Add(-time.Minute)
	signals.Heard = signals.GossipSince.Add(-time.Second)
	now := signals.GossipSince.Add(100 * time.Millisecond)
	if got := membership.Judge(signals, now, membership.DefaultThresholds()); got.Status != membership.Lost {
		t.Errorf("without stream and gossip: %+v", got)
	}
	signals.Open = true
	if got := membership.Judge(signals, now, membership.DefaultThresholds()); got.Status != membership.Suspect || !got.Ask {
		t.Errorf("with its stream open: %+v", got)
	}
	cancel()
	<-ended
}
