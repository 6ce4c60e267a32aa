package allocator

import (
	"fmt"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// TestARestoredGrantHasItsGrace: a grant that was not confirmed when the snapshot was made gets more than the usual time
// from the restore on, so that a host which serves it by now comes to say so. A grant of now does not, whatever the clock
// says.
func TestARestoredGrantHasItsGrace(t *testing.T) {
	then := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	now := then.Add(26 * time.Hour)
	for name, c := range map[string]struct {
		reserved, deadline time.Time
		want               time.Duration // from now
	}{
		"of now":                     {now, now.Add(10 * time.Second), 10 * time.Second},
		"restored":                   {then, now.Add(40 * time.Second), 40 * time.Second},
		"the clock went far forward": {now.Add(6 * time.Hour), now.Add(6*time.Hour + 10*time.Second), 10 * time.Second},
	} {
		for _, moving := range []bool{false, true} {
			a := &state.Allocation{State: state.AllocationReserved, ActivationTimeout: 10 * time.Second}
			a.Hold(state.Grant{Gateway: "gw-aaaaaaaaaa", Host: "h1", Epoch: 7, ReservedAt: c.reserved, Deadline: c.deadline})
			if moving {
				target := a.Grant()
				a.State, a.Move = state.AllocationRelocating, &state.Move{Target: &target}
			}
			until, longest := dueAt(a)
			if got := min(until.Sub(now), longest); got != c.want {
				t.Errorf("%s, moving %t: it has %s, want %s", name, moving, got, c.want)
			}
		}
	}
}

// TestEndedAllocationsLeaveTheQueue counts what is kept: allocations with a long time to live end early, again and again.
func TestEndedAllocationsLeaveTheQueue(t *testing.T) {
	store, now := state.New(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := &Runner{opts: Options{Store: store, Now: func() time.Time { return now }}, runs: map[id.Allocation]*run{}, verified: map[id.Allocation]time.Time{}}
	q, index, due := newQueue(), uint64(0), map[id.Allocation]time.Time{}
	put := func(a state.Allocation) {
		x := store.Begin()
		index++
		x.Entry(state.Origin{Index: index, At: now})
		x.PutAllocation(a, "")
		x.Commit()
		r.schedule(q, a.ID)
	}
	for n := range 20 * mostOver {
		a := state.Allocation{
			ID: id.Allocation(fmt.Sprintf("al-%d", n)), Organization: id.Organization(fmt.Sprint(n)), State: state.AllocationActive,
			ExpiresAt: now.Add(time.Duration(n*7919%100000) * time.Hour).Add(time.Hour),
		}
		put(a)
		if n%10 == 0 {
			due[a.ID] = a.ExpiresAt
			continue
		}
		a.State = state.AllocationReleased
		put(a)
		if most := 2*(len(q.seen)+1) + mostOver; len(q.heap) > most { // as it was when the allocation began
			t.Fatalf("%d entries for %d allocations", len(q.heap), len(q.seen))
		}
	}
	if len(q.seen) != len(due) {
		t.Errorf("%d are known, want %d", len(q.seen), len(due))
	}
	var last time.Time
	for len(q.heap) > 0 {
		d := q.pop()
		if d.at.Before(last) {
			t.Fatalf("%s comes after %s", d.at, last)
		}
		last = d.at
		if due[d.allocation].Equal(d.until) {
			delete(due, d.allocation)
		}
	}
	if len(due) != 0 {
		t.Errorf("%d are lost", len(due))
	}
}
