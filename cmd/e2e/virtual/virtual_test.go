package virtual_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	lasts   = 40 * time.Second // of virtual time, under load and faults
	clients = 6
	seeds   = 2
)

// furnish makes hosts, a pool and organizations, and waits for a full pool.
func (w *world) furnish() {
	for h := range hosts {
		w.agents = append(w.agents, coordtest.NewAgent(w.t, w, fmt.Sprint("h", h), gateways, coordtest.Script{}))
	}
	meta := func() command.Meta { return command.Meta{At: time.Now().UTC(), Actor: "tk-test", Source: "192.0.2.1"} }
	w.do(func() command.Command {
		return command.PutPool{
			Meta: meta(), Pool: pool, MinReady: gateways, Step: gateways, Max: gateways, MaxInFlight: gateways, Isolation: "serve", ActivationTimeout: 10 * time.Second,
		}
	})
	for range callers {
		org := id.NewOrganization()
		w.orgs = append(w.orgs, org)
		w.do(func() command.Command {
			return command.PutOrganization{Meta: meta(), Organization: org, Name: "caller"}
		})
	}
}

// do has a command applied, however often that takes.
func (w *world) do(c func() command.Command) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := w.asLeader(ctx, 0, func(ctx context.Context, m *member) error {
			r, _, err := proposer{m.node}.Propose(ctx, c())
			if err == nil && r.Err != nil {
				err = r.Err
			}
			return err
		})
		cancel()
		if err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// clerk asks for things, one after the other, and notes what came of it.
func (w *world) clerk(ctx context.Context, rng *rand.Rand, number int) []check.Operation {
	var out []check.Operation
	for ctx.Err() == nil {
		time.Sleep(time.Duration(50+rng.IntN(200)) * time.Millisecond)
		op := check.Operation{ID: len(out)*clients + number, Outcome: check.Unknown, Call: time.Since(w.begun)}
		org := w.orgs[rng.IntN(len(w.orgs))]
		op.Items = []check.Item{{Organization: string(org)}}
		switch n := rng.IntN(10); {
		case n < 4:
			op.Kind, op.Key = check.Start, id.Secret()[:20]
		case n < 6:
			live := w.last(out, org)
			if live == nil {
				continue
			}
			op.Kind, op.Items = check.Release, []check.Item{*live}
		default:
			op.Kind = check.Get
		}
		w.settle(&op, rng.IntN(size))
		op.Return = time.Since(w.begun)
		out = append(out, op)
	}
	return out
}

// last is the allocation of an organization that a clerk saw last, unless he released it.
func (w *world) last(ops []check.Operation, org id.Organization) *check.Item {
	for _, op := range slices.Backward(ops) {
		if op.Items[0].Organization == string(org) && op.Outcome == check.OK && op.Items[0].Allocation != "" {
			if op.Kind == check.Release {
				return nil
			}
			it := op.Items[0]
			return &it
		}
	}
	return nil
}

// settle asks until there is an answer, or long enough.
func (w *world) settle(op *check.Operation, at int) {
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); at++ {
		if op.Kind == check.Get {
			op.Call = time.Since(w.begun)
		}
		op.Nodes = append(op.Nodes, name(at%size))
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		err := w.asLeader(ctx, at%size, func(ctx context.Context, m *member) error { return ask(ctx, m, op) })
		cancel()
		if err == nil {
			op.Outcome = check.OK
			return
		}
		var f *fault.Error
		if errors.As(err, &f) && f.Code != fault.NoLeader && f.Code != fault.Internal {
			op.Outcome, op.Code = check.Refused, string(f.Code)
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// ask does an operation once, through a coordinator that takes itself for the leader.
func ask(ctx context.Context, m *member, op *check.Operation) error {
	org := id.Organization(op.Items[0].Organization)
	switch op.Kind {
	case check.Start:
		got, err := m.runner.Start(ctx, allocator.StartRequest{Actor: "tk-test", Organization: org, Pool: pool, Key: op.Key, Digest: string(org)})
		if err != nil {
			return err
		}
		if a := m.store.View().Allocation(nil, got.Allocation); a != nil {
			op.Items = []check.Item{itemOf(a)}
			return nil
		}
		return fault.New(fault.Internal, "the state has no record of %s", got.Allocation)
	case check.Release:
		return m.runner.Release(ctx, allocator.ReleaseRequest{Actor: "tk-test", Allocation: id.Allocation(op.Items[0].Allocation)})
	}
	if err := m.node.VerifyLeader(ctx); err != nil {
		return err
	}
	if err := m.node.Barrier(ctx); err != nil {
		return err
	}
	op.Items = []check.Item{{Organization: string(org)}}
	if a := m.store.View().LiveAllocation(nil, org); a != nil {
		op.Items = []check.Item{itemOf(a)}
	}
	return nil
}

func itemOf(a *state.Allocation) check.Item {
	return check.Item{
		Organization: string(a.Organization), Allocation: string(a.ID), Gateway: string(a.Gateway), Epoch: uint64(a.Epoch), State: string(a.State),
	}
}

// trouble makes one kind of trouble for a while and ends it.
func (w *world) trouble(rng *rand.Rand) string {
	victim := rng.IntN(size)
	for i := range size { // half of the time it is the leader
		if m := w.member(i); m != nil && m.node.IsLeader() && rng.IntN(2) == 0 {
			victim = i
		}
	}
	pause := time.Duration(500+rng.IntN(4000)) * time.Millisecond
	what := "cut off"
	switch rng.IntN(6) {
	case 0:
		w.wire(func(from, to int) bool { return from != victim && to != victim })
		time.Sleep(pause)
	case 1:
		what = "cannot send"
		w.wire(func(from, _ int) bool { return from != victim })
		time.Sleep(pause)
	case 2:
		what = "cannot be reached"
		w.wire(func(_, to int) bool { return to != victim })
		time.Sleep(pause)
	case 3:
		what = "is down"
		w.stop(victim)
		time.Sleep(pause)
		w.start(victim)
	case 4:
		what = "has a slow disk"
		w.delay(victim, 300*time.Millisecond)
		time.Sleep(pause)
		w.delay(victim, 0)
	case 5:
		what = "crashes and starts, with an agent"
		host := rng.IntN(hosts)
		w.agents[host].Stop()
		w.stop(victim)
		w.start(victim)
		time.Sleep(pause / 4)
		w.agents[host] = coordtest.NewAgent(w.t, w, fmt.Sprint("h", host), gateways, coordtest.Script{})
	}
	w.wire(func(int, int) bool { return true })
	return name(victim) + " " + what
}

func (w *world) delay(i int, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow[i] = d
}

// look reads everything from the leader once nothing is on its way.
func (w *world) look(quiet bool) check.Snapshot {
	for {
		var s check.Snapshot
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := w.asLeader(ctx, 0, func(ctx context.Context, m *member) error {
			if err := m.node.Barrier(ctx); err != nil {
				return err
			}
			v := m.store.View()
			s = check.Snapshot{At: time.Since(w.begun), Time: time.Now(), Quiet: quiet, Index: v.Index()}
			return read(v, quiet, &s)
		})
		cancel()
		if err == nil {
			return s
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var errBusy = errors.New("something is on its way")

func read(v state.View, quiet bool, s *check.Snapshot) error {
	for a := range v.Allocations(nil) {
		one := api.Allocation{
			AllocationID: string(a.ID), OrganizationID: string(a.Organization), GatewayID: string(a.Gateway), HostID: string(a.Host),
			Epoch: uint64(a.Epoch), State: string(a.State), CreatedAt: a.CreatedAt,
		}
		if !a.EndedAt.IsZero() {
			one.EndedAt = &a.EndedAt
		} else if quiet && one.State != api.AllocationActive {
			return errBusy
		}
		if a.Failure.Code != "" {
			one.Failure = &api.Failure{Code: string(a.Failure.Code), Message: a.Failure.Message}
		}
		s.Allocations = append(s.Allocations, one)
	}
	counts := api.PoolCounts{}
	for g := range v.Gateways(nil) {
		one := api.Gateway{GatewayID: string(g.ID), Pool: string(g.Pool), State: string(g.State), AllocationID: string(g.Desired.Allocation)}
		switch one.State {
		case api.GatewayReady:
			counts.Ready++
		case api.GatewayAllocated:
			counts.Allocated++
		default:
			if quiet {
				return errBusy
			}
		}
		s.Gateways = append(s.Gateways, one)
	}
	if quiet && counts.Ready+counts.Allocated < gateways {
		return errBusy
	}
	s.Pools = []api.Pool{{Name: string(pool), Counts: counts}}
	return nil
}

// states waits until all coordinators have applied the same, and returns the digests.
func (w *world) states() []check.NodeState {
	for {
		var out []check.NodeState
		for i := range size {
			at := w.member(i).store.Checkpoint()
			out = append(out, check.NodeState{Node: name(i), Index: at.View.Index(), Hash: at.Hash()})
		}
		if !slices.ContainsFunc(out, func(s check.NodeState) bool { return s.Index != out[0].Index }) {
			return out
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Coordinators that are killed, cut off and slowed under load keep their promises, for most of a minute of virtual time in
// each of several seeds.
func TestPromisesAreKeptInVirtualTime(t *testing.T) {
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { once(t, seed) })
		})
	}
}

func once(t *testing.T, seed uint64) {
	w := newWorld(t)
	w.furnish()
	r := check.Run{Seed: seed, Before: w.look(true)}
	w.begun = time.Now()
	r.Begun = w.begun
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	clerks := make([][]check.Operation, clients)
	for i := range clients {
		work.Go(func() { clerks[i] = w.clerk(ctx, rand.New(rand.NewPCG(seed, uint64(10+i))), i) })
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	time.Sleep(5 * time.Second)
	for time.Since(w.begun) < lasts {
		fault := check.Fault{At: time.Since(w.begun)}
		fault.Name = w.trouble(rng)
		r.Faults = append(r.Faults, fault)
		time.Sleep(time.Duration(500+rng.IntN(2000)) * time.Millisecond)
		r.Samples = append(r.Samples, w.look(false))
	}
	cancel()
	work.Wait()
	r.Operations = slices.Concat(clerks...)
	r.After = w.look(true)
	r.States = w.states()
	for _, a := range w.agents {
		a.Stop()
		r.Reports = append(r.Reports, a.Violations()...)
	}
	for i := range size {
		w.stop(i)
	}
	limits := check.DefaultLimits()
	limits.Rate = 5
	limits.Search = 20 * time.Second
	found := check.Check(r, limits)
	if len(found) > 0 {
		var faults []string
		for _, f := range r.Faults {
			faults = append(faults, fmt.Sprintf("%s at %s", f.Name, f.At.Round(time.Millisecond)))
		}
		t.Errorf("seed %d; %s", seed, strings.Join(faults, ", "))
	}
	for _, v := range found {
		t.Error(v)
	}
	t.Logf("%d operations, %d faults in %s of virtual time", len(r.Operations), len(r.Faults), time.Since(w.begun))
}
