package agentlink_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// log keeps what was proposed and applies nothing.
type log struct {
	mu       sync.Mutex
	proposed []command.ObserveHost  // guarded by mu
	told     []command.RecordEvents // guarded by mu
	gate     chan struct{}          // what an agent reports waits for it, if there is one; guarded by mu
}

func (l *log) Propose(_ context.Context, c command.Command) (command.Result, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if events, ok := c.(command.RecordEvents); ok {
		l.told = append(l.told, events)
		return command.Result{}, 0, nil
	}
	l.proposed = append(l.proposed, c.(command.ObserveHost))
	if gate := l.gate; gate != nil {
		l.mu.Unlock()
		<-gate
		l.mu.Lock()
	}
	return command.Result{}, 0, nil
}

func (l *log) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.proposed)
}

func (l *log) Report(context.Context, id.Host, []allocator.Progress) {}

func (l *log) Settled(context.Context, id.Allocation) {}

// links is a link with a store that tests write.
type links struct {
	t        *testing.T
	store    *state.Store
	log      *log
	link     *agentlink.Link
	receiver *agentlink.Receiver
	index    uint64
	alive    atomic.Bool // the gossip takes h1 for alive
}

func newLinks(t *testing.T) *links {
	k := &links{t: t, store: state.New(), log: &log{}}
	k.link = agentlink.New(agentlink.Options{
		Store: k.store, Proposer: k.log, Domain: "example.org", Heartbeat: 10 * time.Millisecond, Lease: 8 * time.Second,
		Logger: hclog.NewNullLogger(), Now: time.Now, Alive: func(h id.Host) bool { return h == "h1" && k.alive.Load() },
	})
	k.receiver = agentlink.NewReceiver(k.link, k.log)
	k.write(func(t *state.Txn) {
		t.PutPool(state.Pool{Name: "default", Isolation: "serve"})
		t.PutHost(state.Host{ID: "h1", Status: api.HostAlive, Instance: "i1"})
		t.PutGateway(state.Gateway{ID: "gw-aaaaaaaaaa", Pool: "default", Host: "h1", Desired: state.GatewayDesired{Index: 1, Target: api.TargetRun, Incarnation: 1}}, "")
	})
	return k
}

func (k *links) write(f func(*state.Txn)) {
	k.index++
	t := k.store.Begin()
	t.Entry(state.Origin{Index: k.index, At: time.Now()})
	f(t)
	t.Commit()
}

// stream opens the host's stream and returns its frames; end closes it from the agent's side.
func (k *links) stream() (frames <-chan api.AssignmentFrame, end func()) {
	return k.streamBy(k.receiver.Stream)
}

// streamBy is stream through one of the receiver's ways.
func (k *links) streamBy(hold func(context.Context, id.Host, string, string, func(api.AssignmentFrame) error) error) (frames <-chan api.AssignmentFrame, end func()) {
	out := make(chan api.AssignmentFrame)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- hold(ctx, "h1", "i1", "192.0.2.1", func(f api.AssignmentFrame) error {
			select {
			case out <- f:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	return out, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			k.t.Error(err)
		}
	})
}

// next waits for a frame that is wanted.
func (k *links) next(frames <-chan api.AssignmentFrame, what string, wanted func(api.AssignmentFrame) bool) api.AssignmentFrame {
	k.t.Helper()
	for limit := time.After(time.Minute); ; {
		select {
		case f := <-frames:
			if wanted(f) {
				return f
			}
		case <-limit:
			k.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (k *links) observe(o api.Observation) error {
	o.HostID, o.Instance = "h1", "i1"
	_, err := k.receiver.Observe(context.Background(), "h1", o)
	return err
}

func full(f api.AssignmentFrame) bool { return f.Full }

// A pool that must not be served when cut off tells its gateways a lease, and so does one that becomes such.
func TestLeasesAreTold(t *testing.T) {
	k := newLinks(t)
	frames, end := k.stream()
	defer end()
	if f := k.next(frames, "the first frame", full); len(f.Gateways) != 1 || f.Gateways[0].Lease != 0 {
		t.Errorf("a pool that is served for ever: %+v", f.Gateways)
	}
	k.write(func(t *state.Txn) { t.PutPool(state.Pool{Name: "default", Isolation: "stop"}) })
	if f := k.next(frames, "another full frame", full); len(f.Gateways) != 1 || f.Gateways[0].Lease != api.Duration(8*time.Second) {
		t.Errorf("a pool that is to stop: %+v", f.Gateways)
	}
	k.write(func(t *state.Txn) { t.PutPool(state.Pool{Name: "default", Isolation: "stop", Max: 7}) })
	k.write(func(t *state.Txn) { t.PutPool(state.Pool{Name: "default", Isolation: "serve"}) })
	if f := k.next(frames, "another full frame", full); len(f.Gateways) != 1 || f.Gateways[0].Lease != 0 {
		t.Errorf("a pool that is served for ever again: %+v", f.Gateways)
	}
}

// Idle frames say how far the state is, though nothing of it concerns the host: an agent whose lease had
// ended waits for that before it serves again.
func TestIdleFramesFollowTheState(t *testing.T) {
	k := newLinks(t)
	frames, end := k.stream()
	defer end()
	k.next(frames, "the first frame", full)
	k.write(func(t *state.Txn) { t.PutHost(state.Host{ID: "h2", Status: api.HostAlive}) })
	k.next(frames, "the new index", func(f api.AssignmentFrame) bool { return !f.Full && f.Index == k.index })
}

// An agent learns how to enter the gossip with its first frame, and whenever that changes.
// Three of four empty frames of a relayed stream are left out. What an agent with a lease may wait for is not.
func TestRelayedStreamsAreMostlySilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newLinks(t)
		frames, end := k.streamBy(k.receiver.RelayedStream)
		defer end()
		k.next(frames, "the first frame", full)
		count := func() (n int, last uint64) {
			for limit := time.After(400 * time.Millisecond); ; { // forty intervals
				select {
				case f := <-frames:
					n, last = n+1, f.Index
				case <-limit:
					return n, last
				}
			}
		}
		if n, _ := count(); n < 9 || n > 11 {
			t.Errorf("%d empty frames in forty intervals, want ten", n)
		}
		k.write(func(t *state.Txn) { t.PutHost(state.Host{ID: "h2", Status: api.HostAlive, Instance: "i2"}) })
		if n, index := count(); n < 9 || n > 11 || index != k.index {
			t.Errorf("%d empty frames in forty intervals, the last of index %d; want ten and %d", n, index, k.index)
		}
		k.write(func(t *state.Txn) { t.PutPool(state.Pool{Name: "default", Isolation: "stop"}) })
		k.next(frames, "all of it with leases", full)
		for range 5 {
			k.write(func(t *state.Txn) { t.PutHost(state.Host{ID: "h2", Status: api.HostAlive, Instance: "i2"}) })
			began := time.Now()
			if f := k.next(frames, "the next index", func(f api.AssignmentFrame) bool { return f.Index == k.index }); time.Since(began) > 10*time.Millisecond {
				t.Errorf("index %d came after %v, want one interval", f.Index, time.Since(began))
			}
		}
	})
}

func TestTheGossipIsTold(t *testing.T) {
	k := newLinks(t)
	first := api.GossipAccess{Addresses: []string{"192.0.2.1:7402"}, Keys: []string{"a"}}
	k.link.SetAccess(first, "CA")
	frames, end := k.stream()
	defer end()
	told := func(f api.AssignmentFrame) bool { return f.Gossip != nil }
	same := func(f api.AssignmentFrame, want api.GossipAccess) bool {
		return slices.Equal(f.Gossip.Addresses, want.Addresses) && slices.Equal(f.Gossip.Keys, want.Keys)
	}
	if f := k.next(frames, "the gossip", told); !f.Full || !same(f, first) || f.CA != "CA" {
		t.Errorf("the first frame says %+v", f)
	}
	k.link.SetAccess(first, "CA") // nothing new
	next := api.GossipAccess{Addresses: []string{"192.0.2.1:7402"}, Keys: []string{"b", "a"}}
	k.link.SetAccess(next, "CA")
	if f := k.next(frames, "the new keys", told); f.Full || !same(f, next) || f.CA != "" {
		t.Errorf("then %+v", f)
	}
	k.link.SetAccess(next, "next CA, CA")
	if f := k.next(frames, "the new CA", told); f.Full || f.CA != "next CA, CA" {
		t.Errorf("at last %+v", f)
	}
}

func TestQuestionsAndAnswers(t *testing.T) {
	k := newLinks(t)
	if c := k.link.Contact("h1"); c != (agentlink.Contact{}) {
		t.Errorf("of an agent that never came: %+v", c)
	}
	frames, end := k.stream()
	defer end()
	k.next(frames, "the first frame", full)
	opened := k.link.Contact("h1")
	if !opened.Open || opened.Ended || opened.Heard.IsZero() || !opened.Asked.IsZero() {
		t.Errorf("an open stream: %+v", opened)
	}
	k.link.Ask("h1")
	k.next(frames, "the question", func(f api.AssignmentFrame) bool { return f.Ask })
	if c := k.link.Contact("h1"); c.Asked.IsZero() || !c.Answered.IsZero() {
		t.Errorf("asked: %+v", c)
	}
	own := api.HostGossip{Joined: true, Address: "192.0.2.9:7402", Run: "r1"}
	if err := k.observe(api.Observation{Host: &api.HostReport{Gossip: own}}); err != nil {
		t.Fatal(err)
	}
	if c := k.link.Contact("h1"); c.Answered != c.Asked || c.Heard.Before(c.Asked) || c.Gossip != own || c.Farewell {
		t.Errorf("answered: %+v", c)
	}
	end()
	if c := k.link.Contact("h1"); c.Open || !c.Ended || c.Gossip != own {
		t.Errorf("the agent's end closed the stream: %+v", c)
	}
}

// A farewell holds until the agent says anything else.
func TestFarewell(t *testing.T) {
	k := newLinks(t)
	said := func() bool { return k.link.Contact("h1").Farewell }
	for i, leaving := range []bool{true, false, true} {
		if err := k.observe(api.Observation{Leaving: leaving}); err != nil {
			t.Fatal(err)
		}
		if said() != leaving {
			t.Errorf("word %d: it says farewell: %t", i, said())
		}
	}
	frames, end := k.stream()
	defer end()
	k.next(frames, "the first frame", full)
	if said() {
		t.Error("it is back, and still says farewell")
	}
}

// What says nothing new costs no entry in the log; that a silent host speaks is the host monitor's to judge,
// and what a lost one says is looked at.
func TestWhatIsNewGoesIntoTheLog(t *testing.T) {
	k := newLinks(t)
	for _, c := range []struct {
		status string
		want   int
	}{{api.HostAlive, 0}, {api.HostSilent, 0}, {api.HostLost, 1}} {
		k.write(func(t *state.Txn) { t.PutHost(state.Host{ID: "h1", Status: c.status, Instance: "i1"}) })
		before := k.log.count()
		if err := k.observe(api.Observation{}); err != nil {
			t.Fatal(err)
		}
		if got := k.log.count() - before; got != c.want {
			t.Errorf("a host that is %s: %d entries, want %d", c.status, got, c.want)
		}
	}
	if err := k.observe(api.Observation{Host: &api.HostReport{Address: "192.0.2.1"}}); err != nil || k.log.count() != 2 {
		t.Errorf("a new address: %d entries, %v", k.log.count(), err)
	}
	if err := k.observe(api.Observation{Host: &api.HostReport{Gossip: api.HostGossip{Joined: true}}, Gateways: []api.GatewayReport{{GatewayID: "x"}}}); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("a malformed report: %v", err)
	}
}
