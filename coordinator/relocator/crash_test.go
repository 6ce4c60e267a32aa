package relocator_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/relocator"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// world is a state machine with its log, one leader after another, and hosts that do what they are told.
type world struct {
	t     *testing.T
	store *state.Store
	fsm   *fsm.FSM

	mu       sync.Mutex
	index    uint64
	proposed int          // since crashAt was set; guarded by mu
	crashAt  int          // the leader dies at this proposal; 0: never
	after    bool         // after it was applied, and before anybody heard of that
	failing  map[int]bool // verifications, counted, that fail; guarded by mu
	verified int          // guarded by mu
	lost     id.Host      // a host that is heard of no more
	fenced   time.Time    // what the leader of now knows of the end of leases; guarded by mu
	ahead    atomic.Int64 // by how much the leader's clock is
	leader   *leader      // changed by the goroutine of the test only
	labels   []string     // of the proposals, in order; guarded by mu
}

// leader is one reign.
type leader struct {
	w        *world
	ctx      context.Context
	end      context.CancelFunc
	runner   *allocator.Runner
	receiver *agentlink.Receiver
	loops    sync.WaitGroup
}

func newWorld(t *testing.T, isolation string) *world {
	store := state.New()
	w := &world{t: t, store: store, fsm: fsm.New(store, nil), failing: map[int]bool{}}
	w.reign()
	t.Cleanup(func() { w.leader.stop() })
	for _, h := range []id.Host{"h1", "h2", "h3"} {
		w.apply(command.ObserveHost{
			Meta: w.meta(), Host: h, Instance: "i", Report: &command.HostReport{Address: "192.0.2.1", Capacity: 50, NginxState: api.NginxServing},
		})
	}
	w.apply(command.PutPool{Meta: w.meta(), Pool: "default", MinReady: 1, Step: 1, Max: 60, MaxInFlight: 60, Isolation: isolation, ActivationTimeout: time.Minute})
	for i := range 12 {
		h := []id.Host{"h1", "h2", "h3"}[i/4]
		w.apply(command.CreateGateways{Meta: w.meta(), Pool: "default", Gateways: []command.NewGateway{{ID: id.NewGateway(), Host: h}}})
	}
	w.hosts()
	for range 6 {
		o := id.NewOrganization()
		w.apply(command.PutOrganization{Meta: w.meta(), Organization: o, Name: "o"})
		w.apply(command.Reserve{Meta: w.meta(), Pool: "default", Items: []command.ReserveItem{{Organization: o, Allocation: id.NewAllocation()}}})
	}
	w.settle("at the beginning", "")
	return w
}

func (w *world) meta() command.Meta { return command.Meta{At: w.now(), Actor: "test"} }

// now is the clock of whoever leads. Setting it leaves the time that passes as it is, but in a bubble, where time has
// no monotonic reading.
func (w *world) now() time.Time {
	now, ahead := time.Now(), time.Duration(w.ahead.Load())
	if now == now.Round(0) {
		return now.Add(ahead)
	}
	word := (*uint64)(unsafe.Pointer(&now)) // with the seconds of the wall clock above 30 bits
	*word += uint64(ahead/time.Second) << 30
	return now
}

// reign begins the next leader.
func (w *world) reign() {
	l := &leader{w: w}
	l.ctx, l.end = context.WithCancel(context.Background())
	log := hclog.NewNullLogger()
	link := agentlink.New(agentlink.Options{Store: w.store, Proposer: l, Domain: "example.org", Heartbeat: time.Second, Logger: log, Now: w.now})
	l.runner = allocator.New(allocator.Options{
		Store: w.store, Proposer: l, Verifier: link, Logger: log, Now: w.now, RetryAfter: func(id.Pool) time.Duration { return time.Second },
	})
	l.receiver = agentlink.NewReceiver(link, l.runner)
	moves := relocator.New(relocator.Options{
		Store: w.store, Proposer: l, Lease: 9 * time.Second, Logger: log, Now: w.now, FencedBy: func(id.Host) time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.fenced
		},
	})
	l.loops.Go(func() { l.runner.Run(l.ctx) })
	l.loops.Go(func() { moves.Run(l.ctx) })
	w.leader = l
}

func (l *leader) stop() {
	l.end()
	l.loops.Wait()
}

// apply puts a command into the log, whoever leads.
func (w *world) apply(c command.Command) command.Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.applyLocked(c)
}

func (w *world) applyLocked(c command.Command) command.Result {
	data, err := command.Encode(c)
	if err != nil {
		w.t.Error(err)
	}
	w.index++
	r := w.fsm.Apply(&raft.Log{Index: w.index, Type: raft.LogCommand, Data: data}).(command.Result)
	if err := w.store.Check(); err != nil {
		w.t.Errorf("after entry %d, %#v: %v", w.index, c, err)
	}
	return r
}

// Propose applies a command, unless the leader dies at it.
func (l *leader) Propose(_ context.Context, c command.Command) (command.Result, uint64, error) {
	w := l.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.ctx.Err() != nil {
		return command.Result{}, 0, consensus.ErrUnknown
	}
	w.proposed++
	w.labels = append(w.labels, fmt.Sprintf("%T", c))
	dies := w.proposed == w.crashAt
	if dies && !w.after {
		l.end()
		return command.Result{}, 0, consensus.ErrUnknown
	}
	r := w.applyLocked(c)
	if dies {
		l.end()
		return command.Result{}, 0, consensus.ErrUnknown
	}
	return r, w.index, nil
}

// hosts lets every host that is heard of report all that it was told to do, as done; and begins the next reign when
// the leader has died.
func (w *world) hosts() {
	for _, h := range []id.Host{"h1", "h2", "h3"} {
		if w.leader.ctx.Err() != nil {
			w.leader.stop()
			w.reign()
		}
		if h == w.lost {
			continue
		}
		obs := api.Observation{HostID: string(h), Instance: "i", Full: true}
		for g := range w.store.View().GatewaysOfHost(nil, h) {
			if g.Desired.Target == api.TargetGone {
				continue
			}
			r := api.GatewayReport{GatewayID: string(g.ID), Incarnation: g.Desired.Incarnation, Phase: api.PhaseReady, BootID: fmt.Sprint("b", g.Desired.Incarnation)}
			if g.Desired.Allocation != "" {
				obs.Steps = append(obs.Steps, w.steps(g)...)
				if last := obs.Steps[len(obs.Steps)-1].Step; last.State == api.StepDone {
					r.Phase, r.OrganizationID, r.Epoch = api.PhaseServing, string(g.Desired.Organization), uint64(g.Desired.Epoch)
				}
			}
			obs.Gateways = append(obs.Gateways, r)
		}
		if _, err := w.leader.receiver.Observe(context.Background(), h, obs); err != nil && w.leader.ctx.Err() == nil {
			w.t.Errorf("host %s: %v", h, err)
		}
	}
}

// steps are those of a grant; some verifications of what is pending fail.
func (w *world) steps(g *state.Gateway) []api.StepReport {
	now := time.Now()
	a := w.store.View().Allocation(nil, g.Desired.Allocation)
	to, pending := a.Pending()
	failed := false
	if pending && to.Gateway == g.ID {
		w.mu.Lock()
		w.verified++
		failed = w.failing[w.verified]
		w.mu.Unlock()
	}
	var out []api.StepReport
	for _, name := range []string{api.StepActivate, api.StepRoute, api.StepVerify} {
		s := api.Step{Step: name, State: api.StepDone, StartedAt: now, EndedAt: &now}
		if failed && name == api.StepVerify {
			s.State, s.Code, s.Error = api.StepFailed, string(fault.VerifyFailed), "made to fail"
		}
		out = append(out, api.StepReport{AllocationID: string(a.ID), GatewayID: string(g.ID), Epoch: uint64(g.Desired.Epoch), Step: s})
	}
	return out
}

// settle lets the hosts report until every allocation is active on a host that has a place, and nothing is left of
// where it was.
func (w *world) settle(what string, left id.Host) {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Minute); ; {
		w.hosts()
		v := w.store.View()
		open := ""
		for a := range v.LiveAllocations(nil) {
			if a.State != state.AllocationActive || a.Host == left || a.Left != nil {
				open = fmt.Sprintf("%+v, move %+v", a, a.Move)
			}
		}
		if h := v.Host(nil, "h1"); h.Drain != nil && h.Drain.State != api.DrainDrained {
			open = fmt.Sprintf("%+v", h.Drain)
		}
		if open == "" {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s: it does not settle: %s", what, open)
		}
		time.Sleep(100 * time.Millisecond) // of virtual time
	}
}

// scenario is something that a leader may die in. It asks again until it is heard, as those who ask do.
type scenario struct {
	isolation string
	failing   []int   // verifications that fail, counted
	left      id.Host // where nothing is in the end
	do        func(*world)
}

var scenarios = map[string]scenario{
	"lost host":                         {"serve", nil, "h1", (*world).lose},
	"lost host, gateways that fail":     {"serve", []int{1, 2, 4}, "h1", (*world).lose},
	"lost host of a fenced pool":        {"stop", nil, "h1", (*world).lose},
	"drain":                             {"serve", nil, "h1", (*world).drain},
	"drain, gateways that fail":         {"serve", []int{1, 2}, "h1", (*world).drain},
	"migration":                         {"serve", nil, "", (*world).migrate},
	"migration to a gateway that fails": {"serve", []int{1}, "", (*world).migrate},
}

func (w *world) lose() {
	w.lost = "h1"
	w.untilHeard(command.LoseHost{Meta: w.meta(), Host: "h1", Reason: "test", FencedBy: time.Now().Add(9 * time.Second)})
}

func (w *world) drain() { w.untilHeard(command.DrainHost{Meta: w.meta(), Host: "h1"}) }

func (w *world) untilHeard(c command.Command) {
	for {
		if _, _, err := w.leader.Propose(w.leader.ctx, c); err == nil {
			return
		}
		w.hosts()
	}
}

func (w *world) migrate() {
	var a *state.Allocation
	for a = range w.store.View().LiveAllocations(nil) {
		break
	}
	for {
		l, done := w.leader, make(chan error, 1)
		go func() { // waited for below
			done <- l.runner.Migrate(l.ctx, allocator.MigrateRequest{Allocation: a.ID, Key: "k", Digest: "d"})
		}()
		var err error
		for waiting := true; waiting; {
			select {
			case err = <-done:
				waiting = false
			case <-time.After(100 * time.Millisecond):
				w.hosts()
			}
		}
		if l.ctx.Err() != nil {
			w.hosts() // and the next leader
			continue  // with the same key
		}
		now := w.store.View().Allocation(nil, a.ID)
		if moved := now.Epoch > a.Epoch; moved != (err == nil) || moved != (now.Host != a.Host) {
			w.t.Errorf("the caller was told %v, and it was %+v and is %+v", err, a, now)
		}
		return
	}
}

// What the leader of now knows of a lease counts, when an earlier one wrote an earlier end of it into the log.
func TestALaterEndOfALeaseCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "stop")
		w.mu.Lock()
		w.fenced = time.Now().Add(30 * time.Second)
		fenced := w.fenced
		w.mu.Unlock()
		w.lose() // with an end in 9 s
		w.settle("a host of a fenced pool was lost", "h1")
		moved := 0
		for a := range w.store.View().LiveAllocations(nil) {
			if len(a.Moves) == 0 {
				continue
			}
			if moved++; a.ReservedAt.Before(fenced) {
				t.Errorf("granted again %v before the end of the lease: %+v", fenced.Sub(a.ReservedAt), a)
			}
		}
		if moved == 0 {
			t.Error("nothing moved")
		}
	})
}

// TestLeaderDiesAtEveryStep kills the leader before and after each entry of the log that a relocation, a drain or
// a migration makes. Whatever it was at, the next leader brings every organization to one gateway, and no state in
// between had two.
func TestLeaderDiesAtEveryStep(t *testing.T) {
	for name, s := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run := func(at int, after bool) (labels []string) {
				synctest.Test(t, func(t *testing.T) { labels = die(t, s, at, after) })
				return labels
			}
			labels := run(0, false)
			t.Logf("%d entries: %v", len(labels), labels)
			for at, label := range labels {
				if label == "command.ObserveHost" {
					continue // an agent's word, which it repeats
				}
				run(at+1, false)
				run(at+1, true)
			}
		})
	}
}

// die runs a scenario in which the leader dies at a proposal, and lists what was proposed.
func die(t *testing.T, s scenario, at int, after bool) []string {
	w := newWorld(t, s.isolation)
	before := map[id.Allocation]state.Allocation{}
	for a := range w.store.View().LiveAllocations(nil) {
		if a.State != state.AllocationActive {
			t.Fatalf("%+v", a)
		}
		before[a.ID] = *a
	}
	w.mu.Lock()
	w.proposed, w.labels, w.crashAt, w.after, w.verified = 0, nil, at, after, 0
	for _, n := range s.failing {
		w.failing[n] = true
	}
	w.mu.Unlock()
	s.do(w)
	w.settle(fmt.Sprintf("killed at %d, after %v", at, after), s.left)
	n := 0
	for a := range w.store.View().LiveAllocations(nil) {
		if was := before[a.ID]; (a.Gateway == was.Gateway) != (a.Epoch == was.Epoch) || a.Epoch < was.Epoch {
			t.Errorf("%+v was %+v", a, was)
		}
		n++
	}
	if n != len(before) {
		t.Errorf("%d allocations of %d are left", n, len(before))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.labels
}
