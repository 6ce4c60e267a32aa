package relocator_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const wrong = 6 * time.Hour // much longer than anything may wait

// right begins the reign of a leader whose clock is right, after one whose clock was not.
func (w *world) right() {
	w.ahead.Store(0)
	w.leader.end()
	w.hosts()
}

// A clock that goes forward ends no lease early: the host that is cut off counts it by its own. This takes real time, for
// only that is counted by a clock that nobody sets.
func TestALeaseIsNotEndedByAClock(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "stop")
	begun := time.Now()
	fenced := begun.Add(2 * time.Second)
	w.mu.Lock()
	w.fenced = fenced
	w.mu.Unlock()
	w.lost = "h1"
	w.untilHeard(command.LoseHost{Meta: w.meta(), Host: "h1", Reason: "test", FencedBy: fenced})
	w.hosts()
	w.ahead.Store(int64(wrong))
	if now := w.now(); now.Sub(begun) > time.Hour || now.Round(0).Sub(begun.Round(0)) < wrong {
		t.Fatalf("the clock cannot be set in this way any more: it is %s, after %s", now, begun)
	}
	w.settle("a clock went forward", "h1")
	moved := 0
	for a := range w.store.View().LiveAllocations(nil) {
		if len(a.Moves) == 0 {
			continue
		}
		if moved++; a.ReservedAt.Add(-wrong).Before(fenced.Round(0)) {
			t.Errorf("granted again %v before the end of the lease: %+v", fenced.Round(0).Sub(a.ReservedAt.Add(-wrong)), a)
		}
	}
	if moved == 0 {
		t.Error("nothing moved")
	}
}

// The end of a lease that a leader with a wrong clock wrote keeps no organization waiting for hours.
func TestALeaseOfAWrongClockEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "stop")
		w.lost = "h1"
		w.untilHeard(command.LoseHost{Meta: w.meta(), Host: "h1", Reason: "test", FencedBy: time.Now().Add(wrong)})
		w.right()
		w.settle("a lease of a wrong clock", "h1")
	})
}

// Nor does a pause between two tries.
func TestAPauseOfAWrongClockEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "serve")
		w.ahead.Store(int64(wrong))
		fail := func(next int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.failing = map[int]bool{}
			for n := range next {
				w.failing[w.verified+1+n] = true
			}
		}
		fail(20)
		w.lose()
		held := func() bool {
			for a := range w.store.View().LiveAllocations(nil) {
				if a.Move != nil && a.Move.Held == state.HeldByBackOff {
					return true
				}
			}
			return false
		}
		for n := 0; !held(); n++ {
			if n > 1000 {
				t.Fatal("nothing is held back")
			}
			w.hosts()
			time.Sleep(10 * time.Millisecond)
		}
		fail(0)
		w.right()
		w.settle("a pause of a wrong clock", "h1")
	})
}

// Nor is what a silent host was given kept for it for hours.
func TestADeadlineOfAWrongClockEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "serve")
		w.ahead.Store(int64(wrong))
		w.lost = "h1"
		given := map[id.Allocation]bool{} // to the silent host
		for range 6 {
			o, a := id.NewOrganization(), id.NewAllocation()
			w.apply(command.PutOrganization{Meta: w.meta(), Organization: o, Name: "o"})
			w.apply(command.Reserve{Meta: w.meta(), Pool: "default", Items: []command.ReserveItem{{Organization: o, Allocation: a}}})
			if w.store.View().Allocation(nil, a).Host == "h1" {
				given[a] = true
			}
		}
		if len(given) == 0 {
			t.Fatal("the silent host was given nothing")
		}
		w.right()
		for end := time.Now().Add(5 * time.Minute); len(given) > 0; time.Sleep(time.Second) {
			for a := range given {
				if w.store.View().Allocation(nil, a).State != state.AllocationReserved {
					delete(given, a)
				}
			}
			if time.Now().After(end) {
				t.Fatalf("%d are kept for a silent host", len(given))
			}
		}
		w.lost = ""
		w.settle("a deadline of a wrong clock", "")
	})
}
