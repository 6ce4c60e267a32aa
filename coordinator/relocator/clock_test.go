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
