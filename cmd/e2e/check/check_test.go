package check_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

var begun = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const (
	organizations = 12
	gateways      = 9 // fewer, so that some starts are refused
)

// sound is a pool that keeps its promises, used by many clients at once: each operation takes effect
// somewhere between its call and its return.
type sound struct {
	rng    *rand.Rand
	run    check.Run
	live   map[string]api.Allocation // by organization
	free   []string
	epoch  uint64
	ended  []api.Allocation
	now    time.Duration // of the effect
	nextID int
	step   int
	moving map[string]target // by organization
}

// target is the gateway that an allocation moves to. It serves later than it is granted.
type target struct {
	gateway string
	epoch   uint64
	since   time.Duration
}

func newSound(seed uint64, n int) check.Run {
	s := &sound{rng: rand.New(rand.NewPCG(seed, 1)), live: map[string]api.Allocation{}, epoch: 100, step: 3, moving: map[string]target{}}
	for i := range gateways {
		s.free = append(s.free, fmt.Sprint("gw-", i))
	}
	s.now = -time.Minute
	for range n / 5 { // before the run, so that something lives when it begins
		s.now += time.Millisecond
		s.operation()
	}
	s.arrive(true)
	s.now = 0
	s.run = check.Run{Seed: seed, Begun: begun, Before: s.look(true)}
	for range n {
		s.now += time.Millisecond
		s.operation()
		if s.rng.IntN(20) == 0 {
			s.run.Samples = append(s.run.Samples, s.look(false))
		}
	}
	s.run.Faults = []check.Fault{{Name: "nothing", At: s.now / 2}}
	s.arrive(true)
	s.now += time.Minute
	s.run.After = s.look(true)
	for _, node := range []string{"c1", "c2", "c3"} {
		s.run.States = append(s.run.States, check.NodeState{Node: node, Index: s.epoch, Hash: "abc"})
		for i := range organizations {
			name := check.Name{Node: node, Organization: fmt.Sprint("org-", i)}
			if _, ok := s.live[name.Organization]; ok {
				name.Addresses = []string{"192.0.2.1"}
			}
			s.run.Names = append(s.run.Names, name)
		}
		s.run.UsedBefore = append(s.run.UsedBefore, check.Usage{Program: node, Kind: "coordinator", Goroutines: 100, Files: 30, Stored: 50})
		s.run.UsedAfter = append(s.run.UsedAfter, check.Usage{Program: node, Kind: "coordinator", Goroutines: 120, Files: 35, Stored: 70})
	}
	for _, host := range []string{"h1", "h2"} {
		for i := range organizations {
			got := check.Answer{Host: host, Organization: fmt.Sprint("org-", i), Status: 503}
			if a, ok := s.live[got.Organization]; ok && host == a.HostID {
				got.Status, got.Gateway, got.Epoch, got.Served = 200, a.GatewayID, a.Epoch, a.OrganizationID
			}
			s.run.Answers = append(s.run.Answers, got)
		}
	}
	return s.run
}

func (s *sound) look(quiet bool) check.Snapshot {
	look := check.Snapshot{
		At: s.now, Time: begun.Add(s.now), Quiet: quiet, Index: s.epoch, Allocations: slices.Clone(s.ended),
		Hosts: []api.Host{{HostID: "h1", Address: "192.0.2.1"}},
	}
	serving := map[string]api.Allocation{}
	for _, organization := range slices.Sorted(maps.Keys(s.live)) {
		a := s.live[organization]
		look.Allocations = append(look.Allocations, a)
		serving[a.GatewayID] = a
	}
	for i := range gateways {
		g := api.Gateway{GatewayID: fmt.Sprint("gw-", i), Pool: "default", State: api.GatewayReady}
		if a, ok := serving[g.GatewayID]; ok {
			g.State, g.AllocationID = api.GatewayAllocated, a.AllocationID
		}
		look.Gateways = append(look.Gateways, g)
	}
	look.Pools = []api.Pool{{Name: "default", Step: s.step, Counts: api.PoolCounts{Ready: len(s.free) + len(s.moving), Allocated: len(s.live), Total: gateways}}}
	return look
}

// start gives an organization what it has or gets.
func (s *sound) start(organization string) check.Item {
	a, ok := s.live[organization]
	if !ok {
		if len(s.free) == 0 {
			return check.Item{Organization: organization, Code: string(fault.PoolExhausted)}
		}
		s.nextID++
		a = api.Allocation{
			AllocationID: fmt.Sprint("al-", s.nextID), OrganizationID: organization, GatewayID: s.free[0], HostID: "h1", Epoch: s.epoch,
			State: api.AllocationActive, CreatedAt: begun.Add(s.now),
		}
		s.free = s.free[1:]
		s.live[organization] = a
	}
	return check.Item{Organization: organization, Allocation: a.AllocationID, Gateway: a.GatewayID, Epoch: a.Epoch, State: a.State}
}

func (s *sound) release(a api.Allocation) {
	delete(s.live, a.OrganizationID)
	s.free = append(s.free, a.GatewayID)
	if to, ok := s.moving[a.OrganizationID]; ok {
		s.free = append(s.free, to.gateway)
		delete(s.moving, a.OrganizationID)
	}
	end := begun.Add(s.now)
	a.State, a.EndedAt = api.AllocationReleased, &end
	s.ended = append(s.ended, a)
}

// move grants some allocations other gateways with one epoch, as the cluster does by itself or when it is asked to.
func (s *sound) move() {
	for _, organization := range slices.Sorted(maps.Keys(s.live)) {
		if _, ok := s.moving[organization]; ok || len(s.free) == 0 || s.rng.IntN(3) > 0 {
			continue
		}
		s.moving[organization] = target{s.free[0], s.epoch, s.now}
		s.free = s.free[1:]
	}
}

// moveAtOnce gives what was started just now other gateways before anybody has seen the first ones, all with one epoch.
func (s *sound) moveAtOnce(items []check.Item) {
	began := s.epoch
	s.epoch++
	for i := range items {
		it := &items[i]
		a, ok := s.live[it.Organization]
		if !ok || it.Allocation != a.AllocationID || a.Epoch != began || a.CreatedAt != begun.Add(s.now) || len(s.free) == 0 {
			continue
		}
		s.free = append(s.free, a.GatewayID)
		a.GatewayID, a.Epoch, a.Moves = s.free[0], s.epoch, []api.Moved{{ToHost: "h1", ToGateway: s.free[0], Epoch: s.epoch}}
		s.free = s.free[1:]
		s.live[it.Organization] = a
		it.Gateway, it.Epoch = a.GatewayID, a.Epoch
	}
}

// arrive lets some of those that move, or all, be served by their new gateways. Some were asked to move.
func (s *sound) arrive(all bool) {
	for _, organization := range slices.Sorted(maps.Keys(s.moving)) {
		if !all && s.rng.IntN(3) > 0 {
			continue
		}
		a, to := s.live[organization], s.moving[organization]
		delete(s.moving, organization)
		s.free = append(s.free, a.GatewayID)
		a.GatewayID, a.Epoch = to.gateway, to.epoch
		s.live[organization] = a
		if s.rng.IntN(2) == 0 {
			s.run.Operations = append(s.run.Operations, check.Operation{
				ID: len(s.run.Operations), Kind: check.Migrate, Nodes: []string{"c1"}, Outcome: check.OK, Call: max(0, to.since), Return: s.now + 1,
				Items: []check.Item{{Organization: organization, Allocation: a.AllocationID, Gateway: a.GatewayID, Epoch: a.Epoch, State: a.State}},
			})
		}
	}
}

// operation does one thing. Now and then its answer is lost.
func (s *sound) operation() {
	organization := func() string { return fmt.Sprint("org-", s.rng.IntN(organizations)) }
	spread := func() time.Duration { return time.Duration(s.rng.IntN(5000)) * time.Microsecond }
	s.epoch++
	op := check.Operation{ID: len(s.run.Operations), Nodes: []string{"c1"}, Outcome: check.OK, Call: max(0, s.now-spread()), Return: s.now + spread()}
	switch s.rng.IntN(9) {
	case 7:
		s.move()
		return
	case 8:
		s.arrive(false)
		return
	case 0, 1:
		op.Kind, op.Key = check.Start, fmt.Sprint("key-", op.ID)
		it := s.start(organization())
		op.Items = []check.Item{it}
		if it.Code != "" {
			op.Outcome, op.Code = check.Refused, it.Code
		}
	case 2:
		op.Kind, op.Key = check.Batch, fmt.Sprint("key-", op.ID)
		a, b := organization(), organization()
		op.Items = []check.Item{s.start(a)}
		if a != b {
			op.Items = append(op.Items, s.start(b))
		}
	case 3:
		for i := range organizations {
			a, ok := s.live[fmt.Sprint("org-", (i+op.ID)%organizations)]
			if !ok {
				continue
			}
			op.Kind = check.Release
			op.Items = []check.Item{{Organization: a.OrganizationID, Allocation: a.AllocationID, Gateway: a.GatewayID, Epoch: a.Epoch, State: api.AllocationReleased}}
			// Nobody releases what he does not know of yet.
			for _, other := range s.run.Operations {
				for _, it := range other.Items {
					if it.Allocation == a.AllocationID && other.Kind != check.Release {
						op.Call = max(op.Call, min(other.Return, s.now))
					}
				}
			}
			s.release(a)
			break
		}
		if op.Kind == "" {
			return
		}
	case 4:
		op.Kind = check.Get
		it := check.Item{Organization: organization()}
		if a, ok := s.live[it.Organization]; ok {
			it = s.start(a.OrganizationID)
		}
		op.Items = []check.Item{it}
	case 5:
		s.step++
		op.Kind, op.Step, op.Index = check.SetStep, s.step, s.epoch
	case 6:
		op.Kind, op.Step = check.GetStep, s.step
	}
	if s.rng.IntN(8) == 0 {
		s.moveAtOnce(op.Items)
	}
	if s.rng.IntN(80) == 0 && op.Outcome == check.OK {
		op.Outcome = check.Unknown
		for i, it := range op.Items {
			op.Items[i] = check.Item{Organization: it.Organization}
			if op.Kind == check.Release {
				op.Items[i] = it
			}
		}
	}
	s.run.Operations = append(s.run.Operations, op)
}

func limits() check.Limits {
	l := check.DefaultLimits()
	l.Search = 30 * time.Second
	return l
}

func TestSoundRunsAreSound(t *testing.T) {
	for seed := range uint64(10) {
		run := newSound(seed, 250)
		for _, v := range check.Check(run, limits()) {
			t.Errorf("seed %d: %s", seed, v)
		}
	}
}

// A host is lost just after two allocations began there: nobody saw where, and both have the epoch of the move.
func TestMovedBeforeAnybodySaw(t *testing.T) {
	run := check.Run{
		Begun: begun, Faults: []check.Fault{{Name: "a host is lost", At: time.Second}}, States: []check.NodeState{{Node: "c1", Index: 12, Hash: "a"}},
		Before: check.Snapshot{Time: begun, Quiet: true}, After: check.Snapshot{Time: begun.Add(time.Minute), Quiet: true},
	}
	for i := range 2 {
		it := check.Item{
			Organization: fmt.Sprint("org-", i), Allocation: fmt.Sprint("al-", i), Gateway: fmt.Sprint("gw-", i), Epoch: 12, State: api.AllocationActive,
		}
		run.Operations = append(run.Operations, check.Operation{
			ID: i, Kind: check.Start, Key: it.Organization, Outcome: check.OK, Call: time.Duration(i), Return: time.Second, Items: []check.Item{it},
		})
		run.After.Allocations = append(run.After.Allocations, api.Allocation{
			OrganizationID: it.Organization, AllocationID: it.Allocation, GatewayID: it.Gateway, Epoch: it.Epoch, State: it.State,
			CreatedAt: begun.Add(time.Duration(i) + 1), Moves: []api.Moved{{FromGateway: "gw-lost", ToGateway: it.Gateway, Epoch: it.Epoch}},
		})
		run.After.Gateways = append(run.After.Gateways, api.Gateway{GatewayID: it.Gateway, AllocationID: it.Allocation, State: api.GatewayAllocated})
	}
	l := limits()
	l.Rate = 0
	for _, v := range check.Check(run, l) {
		t.Error(v)
	}
}

// A batch that is tried again finds what another start began and a migration moved after its first try, and begins the
// rest with a later epoch: it did not begin what it found.
func TestBatchFoundWhatOthersBegan(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	item := func(name, gateway string, epoch uint64) check.Item {
		return check.Item{Organization: "org-" + name, Allocation: "al-" + name, Gateway: gateway, Epoch: epoch, State: api.AllocationActive}
	}
	began, movedTo, between, rest := item("a", "gw-1", 20), item("a", "gw-2", 30), item("b", "gw-3", 35), item("c", "gw-4", 40)
	run := check.Run{
		Begun: begun, Faults: []check.Fault{{Name: "no leader for a while", At: ms(50)}}, States: []check.NodeState{{Node: "c1", Index: 40, Hash: "a"}},
		Before: check.Snapshot{Time: begun, Quiet: true}, After: check.Snapshot{Time: begun.Add(time.Minute), Quiet: true},
		Operations: []check.Operation{
			{Kind: check.Batch, Call: ms(100), Return: ms(600), Items: []check.Item{movedTo, rest}},
			{Kind: check.Start, Call: ms(200), Return: ms(220), Items: []check.Item{began}},
			{Kind: check.Migrate, Call: ms(300), Return: ms(320), Items: []check.Item{movedTo}},
			{Kind: check.Start, Call: ms(400), Return: ms(420), Items: []check.Item{between}},
		},
	}
	for i := range run.Operations {
		run.Operations[i].ID, run.Operations[i].Key, run.Operations[i].Outcome = i, fmt.Sprint("key-", i), check.OK
	}
	for at, it := range map[int]check.Item{210: movedTo, 410: between, 550: rest} {
		run.After.Allocations = append(run.After.Allocations, api.Allocation{
			OrganizationID: it.Organization, AllocationID: it.Allocation, GatewayID: it.Gateway, Epoch: it.Epoch, State: it.State, CreatedAt: begun.Add(ms(at)),
		})
		run.After.Gateways = append(run.After.Gateways, api.Gateway{GatewayID: it.Gateway, AllocationID: it.Allocation, State: api.GatewayAllocated})
	}
	l := limits()
	l.Rate = 0
	for _, v := range check.Check(run, l) {
		t.Error(v)
	}
	run.Operations[0].Nodes = []string{"c1", "c2"}
	for _, v := range check.Check(run, l) {
		t.Errorf("tried twice: %s", v)
	}
	run.Operations[0].Nodes, run.Operations[0].Return = nil, ms(300) // then it cannot have begun the rest
	if len(check.Check(run, l)) == 0 {
		t.Error("an allocation that was made after its batch had returned is not seen")
	}
}

// The first try of a batch begins one allocation and is refused another; the second begins that, with a later epoch, while
// others began theirs in between.
func TestBatchBeganInTwoTries(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	run := check.Run{
		Begun: begun, Faults: []check.Fault{{Name: "no leader for a while", At: ms(50)}}, States: []check.NodeState{{Node: "c1", Index: 40, Hash: "a"}},
		Before: check.Snapshot{Time: begun, Quiet: true}, After: check.Snapshot{Time: begun.Add(time.Minute), Quiet: true},
		Operations: []check.Operation{
			{Kind: check.Batch, Nodes: []string{"c1", "c2"}, Call: ms(100), Return: ms(600)}, {Kind: check.Start, Call: ms(200), Return: ms(220)},
		},
	}
	for i, at := range []int{110, 550, 210} {
		it := check.Item{
			Organization: fmt.Sprint("org-", i), Allocation: fmt.Sprint("al-", i), Gateway: fmt.Sprint("gw-", i), Epoch: uint64(at), State: api.AllocationActive,
		}
		op := &run.Operations[i/2]
		op.ID, op.Key, op.Outcome, op.Items = i/2, fmt.Sprint("key-", i/2), check.OK, append(op.Items, it)
		run.After.Allocations = append(run.After.Allocations, api.Allocation{
			OrganizationID: it.Organization, AllocationID: it.Allocation, GatewayID: it.Gateway, Epoch: it.Epoch, State: it.State, CreatedAt: begun.Add(ms(at)),
		})
		run.After.Gateways = append(run.After.Gateways, api.Gateway{GatewayID: it.Gateway, AllocationID: it.Allocation, State: api.GatewayAllocated})
	}
	l := limits()
	l.Rate = 0
	for _, v := range check.Check(run, l) {
		t.Error(v)
	}
	run.Operations[0].Nodes = run.Operations[0].Nodes[:1]
	if len(check.Check(run, l)) == 0 {
		t.Error("a batch that was tried once and began two allocations at two times is not seen")
	}
}
