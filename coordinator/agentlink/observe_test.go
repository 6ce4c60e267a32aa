package agentlink_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const patience = 30 * time.Second

// kit is the core of a coordinator without a log: what is proposed is applied at once, unless its type is held.
type kit struct {
	deposed  error // why it leads no longer
	t        *testing.T
	store    *state.Store
	machine  *fsm.FSM
	runner   *allocator.Runner
	receiver *agentlink.Receiver
	depose   func() // ends the allocator's Run

	mu    sync.Mutex // guards index, and is held while an entry is applied
	index uint64
	held  map[command.Type]chan struct{} // not changed while something is proposed
}

// Propose implements the proposer of allocator and agentlink.
func (k *kit) Propose(ctx context.Context, c command.Command) (command.Result, uint64, error) {
	if gate := k.held[c.Type()]; gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return command.Result{}, 0, ctx.Err()
		}
	}
	data, err := command.Encode(c)
	if err != nil {
		return command.Result{}, 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.index++
	return k.machine.Apply(&raft.Log{Index: k.index, Type: raft.LogCommand, Data: data}).(command.Result), k.index, nil
}

func (k *kit) must(c command.Command) command.Result {
	k.t.Helper()
	r, _, err := k.Propose(k.t.Context(), c)
	if err != nil || r.Err != nil {
		k.t.Fatalf("%T: %v %v", c, err, r.Err)
	}
	return r
}

const (
	host    = id.Host("h1")
	gateway = id.Gateway("gw-aaaaaaaaaa")
	org     = id.Organization("6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11")
)

// newKit has one gateway that is reserved for an organization, and an allocator that runs. Confirmations and
// failures wait for the gates that it returns.
func newKit(t *testing.T) (k *kit, rec *state.Allocation, confirm, fail chan struct{}) {
	k = &kit{t: t, store: state.New(), held: map[command.Type]chan struct{}{}}
	k.machine = fsm.New(k.store, nil)
	link := agentlink.New(agentlink.Options{
		Store: k.store, Proposer: k, Domain: "example.org", Heartbeat: time.Second, Logger: hclog.NewNullLogger(), Now: time.Now,
		VerifyLeader: func(context.Context) error { return k.deposed },
	})
	runs := make(chan struct{}) // closed when Run asks for the time, which it does first
	var once sync.Once
	k.runner = allocator.New(allocator.Options{
		Store: k.store, Proposer: k, Verifier: link, Logger: hclog.NewNullLogger(),
		Now:        func() time.Time { once.Do(func() { close(runs) }); return time.Now() },
		RetryAfter: func(id.Pool) time.Duration { return time.Second },
	})
	k.receiver = agentlink.NewReceiver(link, k.runner)
	meta := command.Meta{At: time.Now(), Actor: "test"}
	k.must(command.PutPool{Meta: meta, Pool: "default", Max: 1, MaxInFlight: 1, Step: 1, Isolation: "serve", ActivationTimeout: time.Hour})
	k.must(command.ObserveHost{Meta: meta, Host: host, Instance: "i", Full: true, Report: &command.HostReport{Capacity: 1, NginxState: api.NginxServing}})
	k.must(command.CreateGateways{Meta: meta, Pool: "default", Gateways: []command.NewGateway{{ID: gateway, Host: host}}})
	k.must(command.ObserveHost{Meta: meta, Host: host, Instance: "i", Gateways: []command.GatewayReport{{Gateway: gateway, Incarnation: 1, Phase: api.PhaseReady, BootID: "b", PID: 1}}})
	k.must(command.PutOrganization{Meta: meta, Organization: org, Name: "test"})
	granted := k.must(command.Reserve{Meta: meta, Pool: "default", Items: []command.ReserveItem{{Organization: org, Allocation: id.NewAllocation()}}})
	rec = k.store.View().Allocation(nil, granted.Reserved[0].Allocation)
	confirm, fail = make(chan struct{}), make(chan struct{})
	k.held[command.Confirm{}.Type()], k.held[command.Fail{}.Type()] = confirm, fail

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { k.runner.Run(ctx) })
	await(t, "the allocator to run", runs)
	k.depose = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(k.depose)
	return k, rec, confirm, fail
}

// observation is what the agent says of the gateway in a phase, with the steps of its grant.
func observation(rec *state.Allocation, phase string, failed bool) api.Observation {
	now := time.Now()
	s := api.Step{Step: api.StepVerify, State: api.StepDone, StartedAt: now, EndedAt: &now}
	g := api.GatewayReport{GatewayID: string(gateway), Incarnation: 1, Phase: phase, BootID: "b", PID: 1, OrganizationID: string(org), Epoch: uint64(rec.Epoch)}
	if failed {
		s.State, s.Code, s.Error = api.StepFailed, "verify_failed", "no answer"
		g.OrganizationID, g.Epoch = "", 0
	}
	return api.Observation{
		HostID: string(host), Instance: "i", Gateways: []api.GatewayReport{g},
		Steps: []api.StepReport{{AllocationID: string(rec.ID), GatewayID: string(gateway), Epoch: uint64(rec.Epoch), Step: s}},
	}
}

// observe starts an observation; the channel is closed when it is answered.
func (k *kit) observe(obs api.Observation) <-chan struct{} {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if _, err := k.receiver.Observe(context.Background(), host, obs); err != nil {
			k.t.Error(err)
		}
	}()
	return answered
}

func await(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("waited %s for %s", patience, what)
	}
}

// confirmedThen waits until the allocation is confirmed and the gateway's latest report is of a phase.
func (k *kit) confirmedThen(rec *state.Allocation, phase string) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), patience)
	defer cancel()
	for {
		ws := state.WatchSet{}
		view := k.store.View()
		a, g := view.Allocation(ws, rec.ID), view.Gateway(ws, gateway)
		if a.State == state.AllocationActive && g.Observed.Phase == phase {
			return
		}
		if ws.WatchCtx(ctx) != nil {
			k.t.Fatalf("the allocation is %s and the gateway %s, want active and %s", a.State, g.Observed.Phase, phase)
		}
	}
}

// The agent's next report must not wait until a confirmation is on the disk; but what it then says of the same
// gateway is not overtaken by it.
func TestAnObservationIsAnsweredBeforeTheConfirmationAndNotOvertakenByIt(t *testing.T) {
	k, rec, confirm, _ := newKit(t)
	await(t, "the answer to the report that it is served", k.observe(observation(rec, api.PhaseServing, false)))
	if a := k.store.View().Allocation(nil, rec.ID); a.State != state.AllocationReserved {
		t.Fatalf("the allocation is %s although its confirmation is held", a.State)
	}
	await(t, "the answer to the same report", k.observe(observation(rec, api.PhaseServing, false)))
	later := k.observe(observation(rec, api.PhaseUnhealthy, false))
	close(confirm)
	await(t, "the answer to the later report", later)
	k.confirmedThen(rec, api.PhaseUnhealthy)
}

// A failure is told once: it is answered when it is in the log.
func TestAFailureIsAnsweredWhenItIsInTheLog(t *testing.T) {
	k, rec, _, fail := newKit(t)
	answered := k.observe(observation(rec, api.PhaseUnhealthy, true))
	close(fail)
	await(t, "the answer", answered)
	if a := k.store.View().Allocation(nil, rec.ID); a.State == state.AllocationReserved {
		t.Fatal("it was answered before the failure was in the log")
	}
}

// A host may be silent although it reports, as when it comes and goes. If each report made it alive and the monitor silent
// again, nothing would be in the log but that.
func TestReportsLeaveASilentHostToTheMonitor(t *testing.T) {
	k, rec, _, _ := newKit(t)
	k.must(command.SetHostStatus{Meta: command.Meta{At: time.Now(), Actor: "test"}, Host: host, Status: api.HostSilent, Reason: "test"})
	await(t, "the answer", k.observe(observation(rec, api.PhaseUnhealthy, false)))
	view := k.store.View()
	if g := view.Gateway(nil, gateway); g.Observed.Phase != api.PhaseUnhealthy {
		t.Errorf("the report was not taken in: %+v", g.Observed)
	}
	if h := view.Host(nil, host); h.Status != api.HostSilent {
		t.Errorf("the host is %s: %s", h.Status, h.Reason)
	}
}

// The end of the reign ends a confirmation that is on its way, and the next report leads to it again.
func TestAConfirmationThatIsLostIsMadeAgain(t *testing.T) {
	k, rec, confirm, _ := newKit(t)
	await(t, "the answer", k.observe(observation(rec, api.PhaseServing, false)))
	k.depose()
	if a := k.store.View().Allocation(nil, rec.ID); a.State != state.AllocationReserved {
		t.Fatalf("the allocation is %s although its confirmation is held", a.State)
	}
	close(confirm)
	await(t, "the second answer", k.observe(observation(rec, api.PhaseServing, false)))
	k.confirmedThen(rec, api.PhaseServing)
}

// sink is a snapshot in memory.
type sink struct{ bytes.Buffer }

func (*sink) ID() string    { return "memory" }
func (*sink) Close() error  { return nil }
func (*sink) Cancel() error { return nil }

// goBack saves the state and restores it, as an operator does.
func (k *kit) goBack() {
	k.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	snapshot, err := k.machine.Snapshot()
	if err != nil {
		k.t.Fatal(err)
	}
	var saved, converted sink
	keep := func(string, *state.Trust) (*state.Trust, error) { return nil, nil }
	if err := errors.Join(snapshot.Persist(&saved), fsm.Convert(&saved, &converted, time.Now(), keep), k.machine.Restore(io.NopCloser(&converted))); err != nil {
		k.t.Fatal(err)
	}
	k.index += 1 << 32
}

// A host that has begun a gateway anew more often than a restored state demanded knows a later state. While a state that
// was not restored is behind its hosts, nothing is done.
func TestAHostThatIsAheadOfTheStateHasItsGatewaysBegunAnew(t *testing.T) {
	k, rec, _, _ := newKit(t)
	ahead := observation(rec, api.PhaseServing, false)
	ahead.Gateways[0].Incarnation, ahead.Gateways[0].Epoch, ahead.Steps = 7, 1000, nil
	k.deposed = errors.New("another one leads")
	await(t, "the answer", k.observe(ahead))
	if e := k.receiver.Ahead("h1"); e != 0 {
		t.Errorf("one that leads no longer takes the host for ahead, at epoch %d", e)
	}
	k.deposed = nil
	await(t, "the answer", k.observe(ahead))
	if e := k.receiver.Ahead("h1"); e != 1000 {
		t.Errorf("the host is ahead with epoch %d", e)
	}
	if g := k.store.View().Gateway(nil, gateway); g.Desired.Incarnation != 1 || g.Desired.Allocation != rec.ID {
		t.Fatalf("%+v", g)
	}
	k.goBack()
	if e := k.receiver.Ahead("h1"); e != 0 {
		t.Errorf("a host is ahead of a state that was restored, at epoch %d", e)
	}
	before := k.store.LastEvent()
	for range 2 {
		await(t, "the answer", k.observe(ahead))
		g, a := k.store.View().Gateway(nil, gateway), k.store.View().Allocation(nil, rec.ID)
		if g.Desired.Incarnation <= 7 || g.Desired.Allocation != "" || g.State != state.GatewayRecycling {
			t.Fatalf("%+v", g)
		}
		if a.State != state.AllocationRelocating || !a.Move.Stranded {
			t.Fatalf("%+v", a)
		}
	}
	events, _, _ := k.store.Events(before, 1000)
	for _, e := range events {
		if e.Type == "gateway.fenced" {
			t.Errorf("%+v", e)
		}
	}
}
