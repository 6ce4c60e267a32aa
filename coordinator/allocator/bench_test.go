package allocator_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	benchHosts    = 20
	benchGateways = 200 // per host
	benchCallers  = 256
	benchPool     = id.Pool("default")
)

// bench is a coordinator's core on a real log on disk: state, Raft, allocator and the agents' link, without
// HTTP. The hosts are goroutines that take up every grant at once.
type bench struct {
	b        *testing.B
	node     *consensus.Node
	store    *state.Store
	runner   *allocator.Runner
	receiver *agentlink.Receiver
	orgs     []id.Organization
}

// Propose implements the proposer of allocator and agentlink.
func (k *bench) Propose(ctx context.Context, c command.Command) (command.Result, uint64, error) {
	data, err := command.Encode(c)
	if err != nil {
		return command.Result{}, 0, err
	}
	answer, index, err := k.node.Propose(ctx, data)
	if err != nil {
		return command.Result{}, 0, err
	}
	return answer.(command.Result), index, nil
}

func (k *bench) must(c command.Command) {
	if r, _, err := k.Propose(context.Background(), c); err != nil || r.Err != nil {
		k.b.Fatalf("%T: %v %v", c, err, r.Err)
	}
}

func newBench(b *testing.B, serve bool) *bench {
	before := debug.SetGCPercent(400) // as a coordinator with a state of this size has it
	b.Cleanup(func() { debug.SetGCPercent(before) })
	k := &bench{b: b, store: state.New()}
	var err error
	k.node, err = consensus.Open(consensus.Options{
		NodeID: "c1", Dir: b.TempDir(), Listen: "127.0.0.1:0", Bootstrap: true, FSM: fsm.New(k.store, hclog.NewNullLogger()),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	b.Cleanup(func() {
		cancel()
		running.Wait()
		_ = k.node.Close(context.Background())
	})
	link := agentlink.New(agentlink.Options{
		Store: k.store, Proposer: k, Domain: "example.org", Heartbeat: time.Second, Logger: hclog.NewNullLogger(), Now: time.Now,
	})
	k.runner = allocator.New(allocator.Options{
		Store: k.store, Proposer: k, Verifier: link, Logger: hclog.NewNullLogger(), Now: time.Now,
		RetryAfter: func(id.Pool) time.Duration { return time.Second },
	})
	k.receiver = agentlink.NewReceiver(link, k.runner)
	led := make(chan struct{})
	running.Go(func() {
		k.node.RunWhileLeader(ctx, func(ctx context.Context) {
			close(led)
			k.runner.Run(ctx)
		})
	})
	<-led
	now := time.Now()
	meta := command.Meta{At: now, Actor: "bench"}
	k.must(command.PutPool{Meta: meta, Pool: benchPool, Max: benchHosts * benchGateways, MaxInFlight: 1000, Step: 1, Isolation: "serve", ActivationTimeout: time.Hour})
	for i := range benchHosts {
		h := &benchHost{bench: k, id: id.Host(fmt.Sprintf("h%d", i)), wake: make(chan struct{}, 1), serve: serve}
		h.join(meta)
		running.Go(func() { _ = k.receiver.Stream(ctx, h.id, "i", "in-process", h.take) })
		running.Go(func() { h.send(ctx) })
	}
	for range benchHosts * benchGateways {
		k.orgs = append(k.orgs, id.NewOrganization())
	}
	k.each(len(k.orgs), func(i int) { k.must(command.PutOrganization{Meta: meta, Organization: k.orgs[i], Name: "bench"}) })
	return k
}

// each calls fn for 0 … n-1, benchCallers at a time.
func (k *bench) each(n int, fn func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(benchCallers, n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				fn(i)
			}
		})
	}
	wg.Wait()
}

// release ends all allocations and waits until every gateway is ready again.
func (k *bench) release(ids []id.Allocation) {
	k.each(len(ids), func(i int) {
		if err := k.runner.Release(context.Background(), allocator.ReleaseRequest{Allocation: ids[i]}); err != nil {
			k.b.Error(err)
		}
	})
	k.waitReady()
}

func (k *bench) waitReady() {
	for k.store.View().Counts(nil, benchPool).Of(state.GatewayReady) < benchHosts*benchGateways {
		time.Sleep(time.Millisecond)
	}
}

// benchHost is a host that takes up grants and recycles at once.
type benchHost struct {
	*bench
	id    id.Host
	serve bool // take up grants; otherwise they stay reserved
	wake  chan struct{}

	mu      sync.Mutex
	pending api.Observation // guarded by mu
}

// join registers the host and makes its gateways ready.
func (h *benchHost) join(meta command.Meta) {
	report := command.HostReport{Capacity: benchGateways, NginxState: api.NginxServing}
	h.must(command.ObserveHost{Meta: meta, Host: h.id, Instance: "i", Full: true, Report: &report})
	create := command.CreateGateways{Meta: meta, Pool: benchPool}
	observe := command.ObserveHost{Meta: meta, Host: h.id, Instance: "i"}
	for range benchGateways {
		g := id.NewGateway()
		create.Gateways = append(create.Gateways, command.NewGateway{ID: g, Host: h.id})
		observe.Gateways = append(observe.Gateways, command.GatewayReport{Gateway: g, Incarnation: 1, Phase: api.PhaseReady, BootID: "b", PID: 1})
	}
	h.must(create)
	h.must(observe)
}

func (h *benchHost) take(f api.AssignmentFrame) error {
	h.mu.Lock()
	for _, g := range f.Gateways {
		r := api.GatewayReport{GatewayID: g.GatewayID, Incarnation: g.Incarnation, Phase: api.PhaseReady, BootID: "b", PID: 1}
		if g.Grant != nil {
			if !h.serve {
				continue
			}
			now := time.Now()
			for _, s := range []string{api.StepActivate, api.StepRoute, api.StepVerify} {
				h.pending.Steps = append(h.pending.Steps, api.StepReport{
					AllocationID: g.Grant.AllocationID, GatewayID: g.GatewayID, Epoch: g.Grant.Epoch,
					Step: api.Step{Step: s, State: api.StepDone, StartedAt: now, EndedAt: &now},
				})
			}
			r.Phase, r.OrganizationID, r.Epoch = api.PhaseServing, g.Grant.OrganizationID, g.Grant.Epoch
		}
		h.pending.Gateways = append(h.pending.Gateways, r)
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return nil
}

func (h *benchHost) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		}
		h.mu.Lock()
		obs := h.pending
		obs.HostID, obs.Instance = string(h.id), "i"
		h.pending = api.Observation{}
		h.mu.Unlock()
		if len(obs.Gateways) == 0 {
			continue
		}
		if _, err := h.receiver.Observe(ctx, h.id, obs); err != nil && ctx.Err() == nil {
			h.b.Error(err)
		}
	}
}

// BenchmarkDurable measures durable allocate calls of one coordinator with the hosts' part faked out: each
// call returns when the allocation is active, after two synced entries of the log. Releases are not counted.
func BenchmarkDurable(b *testing.B) {
	k := newBench(b, true)
	var took []time.Duration
	var measured time.Duration
	total := max(b.N, 5*len(k.orgs))
	for done := 0; done < total; {
		n := min(len(k.orgs), total-done)
		ids, lat := make([]id.Allocation, n), make([]time.Duration, n)
		began := time.Now()
		k.each(n, func(i int) {
			t0 := time.Now()
			res, err := k.runner.Start(context.Background(), allocator.StartRequest{Organization: k.orgs[i], Pool: benchPool})
			if err != nil {
				b.Error(err)
			}
			lat[i], ids[i] = time.Since(t0), res.Allocation
		})
		measured += time.Since(began)
		took, done = append(took, lat...), done+n
		k.release(ids)
	}
	slices.Sort(took)
	b.ReportMetric(float64(total)/measured.Seconds(), "allocations/s")
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	report(b)
}

// BenchmarkDurableBatch measures batches: one call and one synced entry reserve 4,000 gateways.
func BenchmarkDurableBatch(b *testing.B) {
	k := newBench(b, false)
	var measured time.Duration
	calls := max(b.N, 10)
	for range calls {
		began := time.Now()
		res, err := k.runner.StartBatch(context.Background(), allocator.BatchRequest{Organizations: k.orgs, Pool: benchPool})
		measured += time.Since(began)
		if err != nil {
			b.Fatal(err)
		}
		ids := make([]id.Allocation, len(res))
		for i, r := range res {
			if r.Err != nil {
				b.Fatal(r.Err)
			}
			ids[i] = r.Allocation
		}
		k.release(ids)
	}
	b.ReportMetric(float64(calls*len(k.orgs))/measured.Seconds(), "allocations/s")
	report(b)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// report prints the median of 200 small synced writes, to judge the figures by, instead of ns/op, which
// includes what is not counted.
func report(b *testing.B) {
	b.ReportMetric(0, "ns/op")
	f, err := os.Create(filepath.Join(b.TempDir(), "fsync"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	took := make([]time.Duration, 200)
	for i := range took {
		_, _ = fmt.Fprintln(f, i)
		t0 := time.Now()
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		took[i] = time.Since(t0)
	}
	slices.Sort(took)
	b.ReportMetric(ms(took[100]), "fsync-p50-ms")
}
