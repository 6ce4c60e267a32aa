package check_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

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
					b.Items[0].Allocation != it.Allocation && b.Return < op.Call-20*time.Millisecond && slices.ContainsFunc(r.After.Allocations, func(a api.Allocation) bool {
					return a.AllocationID == it.Allocation && a.CreatedAt.After(begun.Add(b.Return)) && a.Epoch == it.Epoch
				}) {
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
	{"a start on a cordoned host", check.Cordoned, func(t *testing.T, r *check.Run) {
		a := liveAtEnd(t, r)
		r.Operations = append(r.Operations,
			check.Operation{ID: -1, Kind: check.Drain, Host: a.HostID, Outcome: check.OK, Index: a.Epoch - 1},
			check.Operation{ID: -2, Kind: check.Uncordon, Host: a.HostID, Outcome: check.Unknown, Index: a.Epoch})
	}},
	{"a move to a cordoned host", check.Cordoned, func(t *testing.T, r *check.Run) {
		a := liveAtEnd(t, r)
		a.Moves = append(a.Moves, api.Moved{ToHost: "h2", Epoch: 77})
		r.Operations = append(r.Operations,
			check.Operation{ID: -1, Kind: check.Cordon, Host: "h2", Outcome: check.OK, Index: 76},
			check.Operation{ID: -2, Kind: check.Uncordon, Host: "h2", Outcome: check.OK, Index: 77})
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
	{"files that stay on disk", check.NoGrowth, func(_ *testing.T, r *check.Run) { r.UsedAfter[1].Stored = 500 }},
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
	{"a read of the old gateway after a migration", check.Linearizable, func(t *testing.T, r *check.Run) {
		var was check.Item
		done := find(t, r, check.Migrate, func(op *check.Operation) bool {
			return slices.ContainsFunc(r.Operations, func(o check.Operation) bool {
				if o.Kind != check.Get || o.Outcome != check.OK || o.Items[0].Allocation != op.Items[0].Allocation || o.Items[0].Epoch >= op.Items[0].Epoch {
					return false
				}
				was = o.Items[0]
				return true
			})
		})
		r.Operations = append(r.Operations, check.Operation{
			ID: -1, Kind: check.Get, Nodes: []string{"c2"}, Call: done.Return + 1, Return: done.Return + 2, Outcome: check.OK, Items: []check.Item{was},
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
		check.Valid, check.Seen, check.OneLive, check.EpochsRise, check.ExactlyOnce, check.NothingLeft, check.Cordoned, check.Deadlines,
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
