package check_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

var begun = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const (
	organizations = 12
	gateways      = 8 // fewer, so that some starts are refused
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
}

func newSound(seed uint64, n int) check.Run {
	s := &sound{rng: rand.New(rand.NewPCG(seed, 1)), live: map[string]api.Allocation{}, epoch: 100, step: 3}
	for i := range gateways {
		s.free = append(s.free, fmt.Sprint("gw-", i))
	}
	s.now = -time.Minute
	for range n / 5 { // before the run, so that something lives when it begins
		s.now += time.Millisecond
		s.operation()
	}
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
		s.run.UsedBefore = append(s.run.UsedBefore, check.Usage{Program: node, Goroutines: 100, Files: 30})
		s.run.UsedAfter = append(s.run.UsedAfter, check.Usage{Program: node, Goroutines: 120, Files: 35})
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
	look.Pools = []api.Pool{{Name: "default", Step: s.step, Counts: api.PoolCounts{Ready: len(s.free), Allocated: len(s.live), Total: gateways}}}
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
	end := begun.Add(s.now)
	a.State, a.EndedAt = api.AllocationReleased, &end
	s.ended = append(s.ended, a)
}

// move gives an allocation another gateway, as the cluster does by itself.
func (s *sound) move() {
	for _, organization := range slices.Sorted(maps.Keys(s.live)) {
		a := s.live[organization]
		if len(s.free) == 0 || s.rng.IntN(3) > 0 {
			continue
		}
		s.free = append(s.free, a.GatewayID)
		a.GatewayID, a.Epoch = s.free[0], s.epoch
		s.free = s.free[1:]
		s.live[organization] = a
		return
	}
}

// operation does one thing. Now and then its answer is lost.
func (s *sound) operation() {
	organization := func() string { return fmt.Sprint("org-", s.rng.IntN(organizations)) }
	spread := func() time.Duration { return time.Duration(s.rng.IntN(5000)) * time.Microsecond }
	s.epoch++
	op := check.Operation{ID: len(s.run.Operations), Nodes: []string{"c1"}, Outcome: check.OK, Call: max(0, s.now-spread()), Return: s.now + spread()}
	switch s.rng.IntN(8) {
	case 7:
		s.move()
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
		op.Kind, op.Step = check.SetStep, s.step
	case 6:
		op.Kind, op.Step = check.GetStep, s.step
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

// find is the first operation of a kind that was answered, after the others in skip.
func find(t *testing.T, r *check.Run, kind check.Kind, fits func(*check.Operation) bool) *check.Operation {
	t.Helper()
	for i := range r.Operations {
		if op := &r.Operations[i]; op.Kind == kind && op.Outcome == check.OK && (fits == nil || fits(op)) {
			return op
		}
	}
	t.Fatalf("there is no %s in the run", kind)
	return nil
}

// liveAtEnd is an allocation that lives at the end of the run and was answered in it.
func liveAtEnd(t *testing.T, r *check.Run) *api.Allocation {
	t.Helper()
	for i := range r.After.Allocations {
		a := &r.After.Allocations[i]
		if a.EndedAt == nil && slices.ContainsFunc(r.Operations, func(op check.Operation) bool {
			return op.Outcome == check.OK && op.Kind == check.Start && op.Items[0].Allocation == a.AllocationID
		}) {
			return a
		}
	}
	t.Fatal("nothing lives at the end")
	return nil
}

// planted are the ways in which a cluster could break its promises, and what is to be found.
var planted = []struct {
	name  string
	finds check.Invariant
	plant func(*testing.T, *check.Run)
}{
	{"nobody used it", check.Valid, func(_ *testing.T, r *check.Run) { r.Faults[0].At = time.Hour }},
	{"no fault", check.Valid, func(_ *testing.T, r *check.Run) { r.Faults = nil }},
	{"never quiet", check.Valid, func(_ *testing.T, r *check.Run) { r.After.Quiet = false }},
	{"nobody looked at the state", check.Valid, func(_ *testing.T, r *check.Run) { r.States = nil }},
	{"an agent serves twice", check.Seen, func(_ *testing.T, r *check.Run) { r.Reports = []string{"organization x is served twice"} }},
	{"two allocations of one organization", check.OneLive, func(t *testing.T, r *check.Run) {
		other := *liveAtEnd(t, r)
		other.AllocationID, other.GatewayID = "al-other", "gw-other"
		r.Samples[0].Allocations = append(r.Samples[0].Allocations, *liveAtEnd(t, r), other)
	}},
	{"two allocations on one gateway", check.OneLive, func(t *testing.T, r *check.Run) {
		other := *liveAtEnd(t, r)
		other.AllocationID, other.OrganizationID = "al-other", "org-other"
		r.Samples[0].Allocations = append(r.Samples[0].Allocations, *liveAtEnd(t, r), other)
	}},
	{"a gateway that changes", check.EpochsRise, func(t *testing.T, r *check.Run) { liveAtEnd(t, r).GatewayID = "gw-other" }},
	{"an epoch that falls back", check.EpochsRise, func(t *testing.T, r *check.Run) {
		a := *liveAtEnd(t, r)
		a.Epoch, a.GatewayID = a.Epoch+1000, "gw-other"
		r.Samples[0].Allocations = append(slices.Clone(r.Samples[0].Allocations), a)
	}},
	{"an epoch given twice", check.EpochsRise, func(t *testing.T, r *check.Run) {
		again := *liveAtEnd(t, r)
		again.AllocationID, again.State, again.EndedAt = "al-other", api.AllocationReleased, &begun
		r.Before.Allocations = append(r.Before.Allocations, again)
	}},
	{"an epoch that falls", check.EpochsRise, func(t *testing.T, r *check.Run) {
		var was *check.Operation
		now := find(t, r, check.Start, func(op *check.Operation) bool {
			it := op.Items[0]
			for i := range r.Operations {
				if b := &r.Operations[i]; b.Kind == check.Start && b.Outcome == check.OK && b.Items[0].Organization == it.Organization &&
					b.Items[0].Epoch < it.Epoch && b.Return < op.Call-20*time.Millisecond {
					was = b
					return true
				}
			}
			return false
		})
		rename(r, now.Items[0].Allocation, func(it *check.Item) { it.Epoch = was.Items[0].Epoch - 1 })
	}},
	{"acknowledged and lost", check.ExactlyOnce, func(t *testing.T, r *check.Run) {
		a := liveAtEnd(t, r).AllocationID
		r.After.Allocations = slices.DeleteFunc(r.After.Allocations, func(b api.Allocation) bool { return b.AllocationID == a })
	}},
	{"acknowledged and ended by nobody", check.ExactlyOnce, func(t *testing.T, r *check.Run) {
		a := liveAtEnd(t, r)
		a.State, a.EndedAt = api.AllocationReleased, &begun
	}},
	{"a release that was acknowledged and did not happen", check.ExactlyOnce, func(t *testing.T, r *check.Run) {
		a := find(t, r, check.Release, nil).Items[0].Allocation
		for i := range r.After.Allocations {
			if r.After.Allocations[i].AllocationID == a {
				r.After.Allocations[i].State, r.After.Allocations[i].EndedAt = api.AllocationActive, nil
			}
		}
	}},
	{"a key answered twice", check.ExactlyOnce, func(t *testing.T, r *check.Run) {
		first := *find(t, r, check.Start, nil)
		second := *find(t, r, check.Start, func(op *check.Operation) bool { return op.Items[0].Allocation != first.Items[0].Allocation })
		again := first
		again.Again, again.Items = true, []check.Item{second.Items[0]}
		again.Items[0].Organization = first.Items[0].Organization
		r.Operations = append(r.Operations, again)
	}},
	{"refused, and done all the same", check.NothingLeft, func(t *testing.T, r *check.Run) {
		left := *liveAtEnd(t, r)
		left.AllocationID, left.Epoch, left.State, left.EndedAt = "al-left", 1, api.AllocationReleased, &begun
		for i := range organizations {
			left.OrganizationID = fmt.Sprint("org-", i)
			if !slices.ContainsFunc(r.Operations, func(op check.Operation) bool {
				return op.Outcome == check.Unknown && len(op.Items) > 0 && op.Items[0].Organization == left.OrganizationID
			}) {
				break
			}
		}
		r.After.Allocations = append(r.After.Allocations, left)
	}},
	{"a reservation for ever", check.Deadlines, func(t *testing.T, r *check.Run) { liveAtEnd(t, r).State = api.AllocationReserved }},
	{"a release that does not end", check.Deadlines, func(t *testing.T, r *check.Run) { liveAtEnd(t, r).State = api.AllocationReleasing }},
	{"an old reservation in between", check.Deadlines, func(t *testing.T, r *check.Run) {
		a := *liveAtEnd(t, r)
		a.AllocationID, a.OrganizationID, a.GatewayID, a.State = "al-old", "org-old", "gw-old", api.AllocationActivating
		a.CreatedAt = begun.Add(-time.Hour)
		r.Samples[0].Allocations = append(r.Samples[0].Allocations, a)
	}},
	{"a gateway counted twice", check.Counts, func(_ *testing.T, r *check.Run) { r.After.Pools[0].Counts.Ready++ }},
	{"a gateway that belongs to nobody", check.Counts, func(_ *testing.T, r *check.Run) {
		r.After.Gateways = append(r.After.Gateways, api.Gateway{GatewayID: "gw-x", Pool: "other", State: api.GatewayAllocated, AllocationID: "al-x"})
	}},
	{"an allocation on no gateway", check.Counts, func(t *testing.T, r *check.Run) {
		g := liveAtEnd(t, r).GatewayID
		r.After.Gateways = slices.DeleteFunc(r.After.Gateways, func(o api.Gateway) bool { return o.GatewayID == g })
	}},
	{"coordinators that differ", check.SameState, func(_ *testing.T, r *check.Run) { r.States[2].Hash = "abd" }},
	{"a route that is missing", check.Routes, func(t *testing.T, r *check.Run) {
		*answerOf(t, r, 200) = check.Answer{Host: "h1", Organization: answerOf(t, r, 200).Organization, Status: 503}
	}},
	{"a route of an older epoch", check.Routes, func(t *testing.T, r *check.Run) { answerOf(t, r, 200).Epoch-- }},
	{"a gateway that serves another", check.Routes, func(t *testing.T, r *check.Run) { answerOf(t, r, 200).Served = "org-other" }},
	{"a route that stays", check.Routes, func(t *testing.T, r *check.Run) { answerOf(t, r, 503).Status = 200 }},
	{"a name that is missing", check.Names, func(t *testing.T, r *check.Run) { nameOf(t, r, true).Addresses = nil }},
	{"a name that stays", check.Names, func(t *testing.T, r *check.Run) { nameOf(t, r, false).Addresses = []string{"192.0.2.1"} }},
	{"a silent name server", check.Names, func(t *testing.T, r *check.Run) { nameOf(t, r, true).Error = "timeout" }},
	{"goroutines that stay", check.NoGrowth, func(_ *testing.T, r *check.Run) { r.UsedAfter[1].Goroutines = 5000 }},
	{"files that stay open", check.NoGrowth, func(_ *testing.T, r *check.Run) { r.UsedAfter[1].Files = 500 }},
	{"a stale read", check.Linearizable, func(t *testing.T, r *check.Run) {
		// Somebody who asks long after the release is told of the allocation as if it lived.
		released := find(t, r, check.Release, nil)
		it := released.Items[0]
		it.State = api.AllocationActive
		r.Operations = append(r.Operations, check.Operation{
			ID: -1, Kind: check.Get, Nodes: []string{"c2"}, Call: released.Return + 2*time.Minute, Return: released.Return + 3*time.Minute,
			Outcome: check.OK, Items: []check.Item{it},
		})
	}},
	{"a stale read of a pool", check.Linearizable, func(t *testing.T, r *check.Run) {
		r.Operations = append(r.Operations, check.Operation{
			ID: -1, Kind: check.GetStep, Call: time.Hour, Return: 2 * time.Hour, Outcome: check.OK, Step: 7777,
		})
	}},
	{"a gateway given before it was free", check.Linearizable, func(t *testing.T, r *check.Run) {
		a := liveAtEnd(t, r)
		r.Operations = append(r.Operations, check.Operation{
			ID: -1, Kind: check.Start, Call: time.Hour, Return: 2 * time.Hour, Outcome: check.OK,
			Items: []check.Item{{Organization: "org-other", Allocation: "al-other", Gateway: a.GatewayID, Epoch: a.Epoch + 500, State: api.AllocationActive}},
		})
	}},
	{"refused for what it had", check.Linearizable, func(t *testing.T, r *check.Run) {
		a := liveAtEnd(t, r)
		r.Operations = append(r.Operations, check.Operation{
			ID: -1, Kind: check.Start, Call: time.Hour, Return: 2 * time.Hour, Outcome: check.Refused, Code: string(fault.PoolExhausted),
			Items: []check.Item{{Organization: a.OrganizationID}},
		})
	}},
}

// answerOf is the first answer with this status.
func answerOf(t *testing.T, r *check.Run, status int) *check.Answer {
	t.Helper()
	for i := range r.Answers {
		if r.Answers[i].Status == status {
			return &r.Answers[i]
		}
	}
	t.Fatalf("no host answers %d", status)
	return nil
}

// nameOf is the first name that has an address, or none.
func nameOf(t *testing.T, r *check.Run, there bool) *check.Name {
	t.Helper()
	for i := range r.Names {
		if len(r.Names[i].Addresses) > 0 == there {
			return &r.Names[i]
		}
	}
	t.Fatal("there is no such name")
	return nil
}

// rename changes what all operations and looks say of an allocation.
func rename(r *check.Run, allocation string, change func(*check.Item)) {
	for i := range r.Operations {
		for j := range r.Operations[i].Items {
			if it := &r.Operations[i].Items[j]; it.Allocation == allocation {
				change(it)
			}
		}
	}
	fix := func(all []api.Allocation) {
		for i := range all {
			if a := &all[i]; a.AllocationID == allocation {
				it := check.Item{Epoch: a.Epoch}
				change(&it)
				a.Epoch = it.Epoch
			}
		}
	}
	for i := range r.Samples {
		fix(r.Samples[i].Allocations)
	}
	fix(r.After.Allocations)
}

func TestPlantedViolationsAreFound(t *testing.T) {
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			run := newSound(5, 250)
			p.plant(t, &run)
			found := check.Check(run, limits())
			if len(found) == 0 {
				t.Fatal("nothing was found")
			}
			if !slices.ContainsFunc(found, func(v check.Violation) bool { return v.Invariant == p.finds }) {
				t.Errorf("not found as %q, but as %v", p.finds, found)
			}
			if strings.Contains(found[0].What, "undecided") {
				t.Errorf("no verdict: %s", found[0])
			}
		})
	}
}

// Every invariant is planted against.
func TestEveryInvariantIsPlantedAgainst(t *testing.T) {
	for _, i := range []check.Invariant{
		check.Valid, check.Seen, check.OneLive, check.EpochsRise, check.ExactlyOnce, check.NothingLeft, check.Deadlines,
		check.Counts, check.SameState, check.Routes, check.Names, check.NoGrowth, check.Linearizable,
	} {
		if !slices.ContainsFunc(planted, func(p struct {
			name  string
			finds check.Invariant
			plant func(*testing.T, *check.Run)
		},
		) bool {
			return p.finds == i
		}) {
			t.Errorf("nothing is planted against %q", i)
		}
	}
}
