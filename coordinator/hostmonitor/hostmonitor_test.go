package hostmonitor_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/hostmonitor"
	"github.com/demiurge-platform/demiurge/coordinator/membership"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestPlan(t *testing.T) {
	const alive, silent, lost = api.HostAlive, api.HostSilent, api.HostLost
	for _, c := range []struct {
		status string
		found  membership.Status
		want   string
	}{
		{alive, membership.Alive, alive},
		{alive, membership.Suspect, silent},
		{alive, membership.Left, silent},
		{alive, membership.Lost, lost},
		{silent, membership.Alive, alive},
		{silent, membership.Suspect, silent},
		{silent, membership.Left, silent},
		{silent, membership.Lost, lost},
		// Only its own report brings a lost host back.
		{lost, membership.Alive, lost},
		{lost, membership.Suspect, lost},
		{lost, membership.Left, lost},
		{lost, membership.Lost, lost},
	} {
		if got, reason := hostmonitor.Plan(c.status, membership.Verdict{Status: c.found, Reason: "so"}); got != c.want || got != c.status && reason == "" {
			t.Errorf("%s found %s becomes %s (%q), want %s", c.status, c.found, got, reason, c.want)
		}
	}
}

// world is a cluster of one host: the store, the agents' connections and the log.
type world struct {
	store *state.Store
	mu    sync.Mutex
	own   membership.Signals // guarded by mu
	says  api.HostGossip     // guarded by mu
	pool  []gossip.Member    // guarded by mu
	view  *membership.View
	asked int      // guarded by mu
	looks int      // guarded by mu
	moves []string // guarded by mu: statuses that were proposed
	index uint64   // guarded by mu
	// fenced is by when a host that was lost has ended its lease; guarded by mu.
	fenced time.Time
	began  time.Time
	ahead  atomic.Int64 // seconds by which the clock was set forward
}

// clocked is how package time holds a moment with a reading of the clock that nobody sets.
type clocked struct {
	wall uint64 // this bit, the seconds since 1885 and the nanoseconds
	ext  int64  // what the clock reads
	_    *time.Location
}

// now is the clock of a machine, which has the reading that a bubble's time has not.
func (w *world) now() time.Time {
	now := time.Now()
	set := now.Add(time.Duration(w.ahead.Load()) * time.Second)
	*(*clocked)(unsafe.Pointer(&set)) = clocked{
		wall: 1<<63 | uint64(set.Sub(time.Date(1885, 1, 1, 0, 0, 0, 0, time.UTC))/time.Second)<<30 | uint64(set.Nanosecond()),
		ext:  int64(now.Sub(w.began)) + 1,
	}
	return set
}

func (w *world) Members() []gossip.Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pool)
}

func (w *world) Changes() <-chan gossip.Change { return nil }

func (w *world) Signals(id.Host) (membership.Signals, api.HostGossip) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	return w.own, w.says
}

func (w *world) Ask(id.Host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	w.own.Asked = time.Now()
}

// Propose applies a change of the status to the store.
func (w *world) Propose(_ context.Context, c command.Command) (command.Result, uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	status := api.HostLost
	if set, ok := c.(command.SetHostStatus); ok {
		status = set.Status
	} else {
		w.fenced = c.(command.LoseHost).FencedBy
	}
	w.put(status)
	w.moves = append(w.moves, status)
	return command.Result{}, w.index, nil
}

// put stores the host with a status; the caller holds mu.
func (w *world) put(status string) {
	w.index++
	t := w.store.Begin()
	t.Entry(state.Origin{Index: w.index, At: time.Now()})
	next := state.Host{ID: "h1"}
	if had := t.Host(nil, "h1"); had != nil {
		next = *had
	}
	next.Status = status
	t.PutHost(next)
	t.Commit()
}

// change modifies the world.
func (w *world) change(f func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

// until waits, in the bubble's time.
func (w *world) until(t *testing.T, what string, ok func(*world) bool) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		w.mu.Lock()
		done := ok(w)
		w.mu.Unlock()
		if done {
			return time.Since(began)
		}
		if time.Since(began) > 10*time.Minute {
			t.Fatalf("waited in vain until %s; moves: %q", what, w.moves)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// watch runs a monitor in a bubble on a host that is well, until the test ends it.
func watch(t *testing.T, test func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		w := &world{store: state.New(), began: now, own: membership.Signals{Heard: now.Add(time.Second), Open: true}}
		w.pool = []gossip.Member{
			{Role: gossip.RoleCoordinator, Name: "c1", Status: gossip.StatusAlive, Self: true, Since: now},
			{Role: gossip.RoleAgent, Name: "h1", Host: "h1", Status: gossip.StatusAlive, Since: now, Run: "r1"},
			{Role: gossip.RoleAgent, Name: "h2", Host: "h2", Status: gossip.StatusAlive, Since: now, Run: "r2"},
		}
		w.says = api.HostGossip{Joined: true, Run: "r1", Address: w.pool[1].Address.String()}
		w.put(api.HostAlive)
		w.view = membership.New(w)
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { w.view.Run(ctx) })
		running.Go(func() {
			hostmonitor.New(hostmonitor.Options{
				Store: w.store, Proposer: w, Agents: w, Members: w.view.Snapshot, Thresholds: membership.DefaultThresholds(),
				Lease: 8 * time.Second, Logger: hclog.NewNullLogger(), Now: w.now,
			}).Run(ctx)
		})
		time.Sleep(2 * time.Second)
		test(w)
		cancel()
		running.Wait()
	})
}

func (w *world) fail() {
	w.change(func(w *world) { w.pool[1].Status, w.pool[1].Since = gossip.StatusFailed, time.Now() })
}

// The pool's word and an unanswered question: both signals are gone.
func TestAQuestionConfirmsADeath(t *testing.T) {
	watch(t, func(w *world) {
		w.fail()
		w.until(t, "it is lost", func(w *world) bool { return slices.Contains(w.moves, api.HostLost) })
		if want := []string{api.HostSilent, api.HostLost}; !slices.Equal(w.moves, want) || w.asked != 1 {
			t.Errorf("%d questions, and then %q; want one and %q", w.asked, w.moves, want)
		}
		if min := w.own.Heard.Add(8 * time.Second); !w.fenced.After(min) {
			t.Errorf("its lease counts as ended at %v, and it may last until %v", w.fenced, min)
		}
	})
}

// The clock is set between the last word of a host and its loss: its lease lasts as long as the host counts it, and the
// end is written by the clock of now.
func TestTheEndOfALeaseByAClockThatWasSet(t *testing.T) {
	for _, by := range []time.Duration{6 * time.Hour, -6 * time.Hour} {
		watch(t, func(w *world) {
			heard := w.now()
			if step := w.now().Sub(heard); step != 0 {
				t.Fatalf("%v passed in no time", step)
			}
			w.change(func(w *world) { w.own.Heard = heard })
			w.ahead.Store(int64(by / time.Second))
			if now := w.now(); now.Sub(heard) != 0 || now.Round(0).Sub(heard.Round(0)) != by {
				t.Fatalf("the clock cannot be set in this way any more: %v after %v", now, heard)
			}
			w.change(func(w *world) { w.own.Open, w.own.Ended = false, false })
			w.fail()
			w.until(t, "it is lost", func(w *world) bool { return slices.Contains(w.moves, api.HostLost) })
			end := heard.Round(0).Add(by).Add(membership.LeaseSpan(8 * time.Second)) // by the clock of now
			w.change(func(w *world) {
				if got := w.fenced.Round(0); got.Sub(end).Abs() > time.Second {
					t.Errorf("the clock was set by %v: the lease counts as ended at %v, and ends at %v", by, got, end)
				}
			})
		})
	}
}

// A host that answers is silent for the moment of the question, and no longer; it is asked again at a steady
// rate, and a missed question or two do not move it.
func TestAHostThatAnswersStays(t *testing.T) {
	watch(t, func(w *world) {
		w.fail()
		w.until(t, "it is asked", func(w *world) bool { return w.asked == 1 })
		w.change(func(w *world) { w.own.Heard, w.own.Answered = time.Now(), w.own.Asked })
		w.until(t, "it is alive again", func(w *world) bool { return slices.Equal(w.moves, []string{api.HostSilent, api.HostAlive}) })
		w.until(t, "it is asked again", func(w *world) bool { return w.asked == 2 })
		time.Sleep(20 * time.Second) // without an answer
		w.change(func(w *world) {
			if slices.Contains(w.moves, api.HostLost) {
				t.Errorf("it is lost for a missed answer: %q", w.moves)
			}
		})
		w.until(t, "it is lost after all", func(w *world) bool { return slices.Contains(w.moves, api.HostLost) })
	})
}

// Another one under the host's name is dead: that says nothing of the host.
func TestTheDeathOfAStrangerMovesNothing(t *testing.T) {
	watch(t, func(w *world) {
		w.change(func(w *world) { w.pool[1].Run = "forged" })
		for range 6 { // in which the view reads its members anew, and the host says something
			time.Sleep(time.Second)
			w.change(func(w *world) { w.own.Heard, w.own.Answered = time.Now(), w.own.Asked })
		}
		w.fail()
		w.until(t, "it is asked", func(w *world) bool { return w.asked > 0 })
		w.change(func(w *world) {
			w.own.Heard, w.own.Answered = time.Now(), w.own.Asked
			if len(w.moves) > 0 {
				t.Errorf("it was moved to %q", w.moves)
			}
		})
	})
}

// A leader that has heard of nobody yet gives the connections time to come.
func TestANewLeaderWaits(t *testing.T) {
	watch(t, func(w *world) {
		w.change(func(w *world) { w.own = membership.Signals{Heard: time.Now().Add(-time.Hour)} }) // an earlier reign's
		w.fail()
		took := w.until(t, "it is lost", func(w *world) bool { return slices.Contains(w.moves, api.HostLost) })
		if took > 7*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// looked is how often the host is looked at in two seconds.
func looked(w *world) int {
	w.change(func(w *world) { w.looks = 0 })
	time.Sleep(2 * time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.looks
}

// A thousand hosts that are well cost a look each twice a second; one that is in doubt is looked at ten times, so that
// nothing is found of it later than it has to be.
func TestDoubtfulHostsAreLookedAtMoreOften(t *testing.T) {
	watch(t, func(w *world) {
		w.change(func(w *world) { w.own.Heard = time.Now() })
		if got := looked(w); got < 3 || got > 5 {
			t.Errorf("%d looks in two seconds at a host that is well, want four", got)
		}
		w.change(func(w *world) { w.own.Open, w.own.Heard = false, time.Now() })
		time.Sleep(600 * time.Millisecond) // in which it is noticed
		if got := looked(w); got < 18 || got > 22 {
			t.Errorf("%d looks in two seconds at a host without a stream, want twenty", got)
		}
		took := 2600*time.Millisecond + w.until(t, "it is silent", func(w *world) bool { return len(w.moves) > 0 })
		if after := membership.DefaultThresholds().SilentAfter; took < after || took > after+200*time.Millisecond {
			t.Errorf("it is silent after %v without a stream, want %v", took, after)
		}
		w.change(func(w *world) { w.own.Open, w.own.Heard = true, time.Now() })
		w.until(t, "it is alive again", func(w *world) bool { return slices.Equal(w.moves, []string{api.HostSilent, api.HostAlive}) })
		time.Sleep(time.Second)
		if got := looked(w); got < 3 || got > 5 {
			t.Errorf("%d looks in two seconds at a host that is well again, want four", got)
		}
	})
}
