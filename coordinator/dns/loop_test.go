package dns

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// shelf is a provider in memory that can be made to fail.
type shelf struct {
	mu    sync.Mutex
	zone  map[string]Record
	fail  func(call, name string) error // nil: nothing fails
	lists []time.Time
	slow  time.Duration // how long a look takes
	calls int           // of Ensure and Remove
}

func (s *shelf) enter(call, name string) error {
	if s.fail == nil {
		return nil
	}
	return s.fail(call, name)
}

func (s *shelf) Ensure(_ context.Context, r Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if err := s.enter("ensure", r.Name); err != nil {
		return err
	}
	carryOut(s.zone, Action{Verb: Make, Record: r})
	return nil
}

func (s *shelf) Remove(_ context.Context, name string, upTo id.Epoch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if err := s.enter("remove", name); err != nil {
		return err
	}
	carryOut(s.zone, Action{Verb: Remove, Record: Record{Name: name}, UpTo: upTo})
	return nil
}

func (s *shelf) List(ctx context.Context) ([]Record, error) {
	s.mu.Lock()
	slow := s.slow
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(slow):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists = append(s.lists, time.Now())
	if err := s.enter("list", ""); err != nil {
		return nil, err
	}
	return values(s.zone), nil
}

func (s *shelf) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// wishes is what the state wants, with its notification.
type wishes struct {
	mu      sync.Mutex
	wanted  []Wanted
	changed chan struct{}
	current func() error // nil: it leads
}

// leads is Current.
func (w *wishes) leads(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current == nil {
		return nil
	}
	return w.current()
}

func (w *wishes) get() ([]Wanted, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wanted, w.changed
}

func (w *wishes) set(wanted ...Wanted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.wanted, w.changed = wanted, make(chan struct{})
}

// inLoop runs a story with a loop in virtual time: its interval is a minute, it settles for five seconds.
func inLoop(t *testing.T, limit int, story func(s *shelf, w *wishes, l *Loop)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{zone: map[string]Record{}}
		w := &wishes{changed: make(chan struct{})}
		l := NewLoop(LoopOptions{Provider: s, Domain: testDomain, Wanted: w.get, Current: w.leads, Logger: hclog.NewNullLogger(), Now: time.Now, Limit: limit})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { // waited for below
			defer close(done)
			l.Run(ctx)
		}()
		synctest.Wait()
		story(s, w, l)
		cancel()
		<-done
	})
}

func TestLoopFollowsChanges(t *testing.T) {
	inLoop(t, 0, func(s *shelf, w *wishes, l *Loop) {
		time.Sleep(30 * time.Second) // it has looked and rests
		w.set(want(orgA, "192.0.2.1", 7))
		synctest.Wait()
		s.do(func() {
			if r := s.zone[orgA]; !same(r, rec(orgA, "192.0.2.1", 7)) || len(s.lists) != 2 {
				t.Errorf("after a change: %v, %d looks", r, len(s.lists))
			}
		})
		for i := range 10 { // many changes at once are one look
			w.set(want(orgA, fmt.Sprintf("192.0.2.%d", i+2), id.Epoch(i+8)))
		}
		synctest.Wait()
		time.Sleep(10 * time.Second)
		s.do(func() {
			if r := s.zone[orgA]; !same(r, rec(orgA, "192.0.2.11", 17)) || len(s.lists) != 3 {
				t.Errorf("after many changes: %v, %d looks", r, len(s.lists))
			}
		})
		w.set()
		time.Sleep(10 * time.Second)
		s.do(func() {
			if len(s.zone) != 0 {
				t.Errorf("left over: %v", s.zone)
			}
		})
		if st := l.Status(); st.Err != nil || st.Made != 2 || st.Removed != 1 || st.LastSuccess.IsZero() {
			t.Errorf("status %+v", st)
		}
	})
}

// PowerDNS gives a zone of 100,000 organizations in ten seconds, and can do little else in them, while allocations come and
// go all the time.
func TestLoopReadsALargeZoneSeldom(t *testing.T) {
	inLoop(t, 0, func(s *shelf, w *wishes, _ *Loop) {
		s.do(func() { s.slow = 10 * time.Second })
		time.Sleep(time.Minute) // the next look begins
		before := 0
		s.do(func() { before = len(s.lists) })
		for i := range 600 {
			w.set(want(orgA, fmt.Sprintf("192.0.2.%d", i%250), id.Epoch(i+1)))
			time.Sleep(time.Second)
		}
		s.do(func() {
			if looks := len(s.lists) - before; looks < 5 || looks > 7 {
				t.Errorf("%d looks of 10 s within 10 min", looks)
			}
		})
		s.do(func() { s.slow = 0 })
		time.Sleep(3 * time.Minute)
		s.do(func() {
			if r := s.zone[orgA]; r.Epoch != 600 {
				t.Errorf("in the end: %v", r)
			}
		})
	})
}

// So many records are missing, as after a loss of the zone, that a hundred at a time would take days.
func TestLoopRepairsMoreOfALargeZone(t *testing.T) {
	inLoop(t, 0, func(s *shelf, w *wishes, _ *Loop) {
		s.do(func() { s.slow = 10 * time.Second })
		var all []Wanted
		for i := range 20_000 {
			all = append(all, want(fmt.Sprintf("org-00000000-0000-4000-8000-%012d.%s", i, testDomain), "192.0.2.1", 7))
		}
		w.set(all...)
		time.Sleep(25 * time.Minute)
		s.do(func() {
			made := 0
			for _, r := range s.zone {
				if !strings.HasPrefix(r.Name, "*.") {
					made++
				}
			}
			if made != len(all) {
				t.Errorf("%d of %d are there", made, len(all))
			}
		})
	})
}

func TestLoopRepairsDriftAtItsInterval(t *testing.T) {
	inLoop(t, 0, func(s *shelf, w *wishes, _ *Loop) {
		w.set(want(orgA, "192.0.2.1", 7))
		time.Sleep(6 * time.Second)
		s.do(func() {
			s.zone[orgA] = rec(orgA, "192.0.2.66", 7)
			s.zone["www."+testDomain] = rec("www."+testDomain, "192.0.2.80", 0)
		})
		time.Sleep(time.Minute)
		s.do(func() {
			if r := s.zone[orgA]; !same(r, rec(orgA, "192.0.2.1", 7)) {
				t.Errorf("not repaired: %v", r)
			}
			if _, there := s.zone["www."+testDomain]; !there {
				t.Error("a name that is nobody's organization was removed")
			}
		})
	})
}

func TestLoopGoesOnWhereOneLookWasNotEnough(t *testing.T) {
	inLoop(t, 2, func(s *shelf, w *wishes, l *Loop) {
		s.do(func() {
			for range 5 {
				for _, r := range both(id.Hostname(id.NewOrganization(), testDomain), "192.0.2.1", 3) {
					s.zone[r.Name] = r
				}
			}
		})
		w.set()
		time.Sleep(5*time.Second + time.Millisecond)
		if st := l.Status(); st.Removed != 2 {
			t.Errorf("removed %d in one look, the limit is 2", st.Removed)
		}
		time.Sleep(10 * time.Second)
		if st := l.Status(); st.Removed != 5 {
			t.Errorf("removed %d of 5", st.Removed)
		}
	})
}

func TestLoopBacksOff(t *testing.T) {
	for kind, wantCalls := range map[Kind]int{Temporary: 1, Refused: maxRefusals, Lying: maxRefusals} {
		t.Run(string(kind), func(t *testing.T) {
			inLoop(t, 0, func(s *shelf, w *wishes, l *Loop) {
				s.do(func() {
					s.fail = func(call, _ string) error {
						if call == "list" {
							return nil
						}
						return failed(&Error{Kind: kind}, "cannot do it: mend it")
					}
				})
				var wanted []Wanted
				for range 10 {
					wanted = append(wanted, want(id.Hostname(id.NewOrganization(), testDomain), "192.0.2.1", 7))
				}
				w.set(wanted...)
				time.Sleep(5*time.Second + time.Millisecond)
				s.do(func() {
					if s.calls != wantCalls {
						t.Errorf("%d calls in one look, want %d", s.calls, wantCalls)
					}
				})
				if st := l.Status(); KindOf(st.Err) != kind || fault.CodeOf(st.Err) != fault.DNSFailed {
					t.Errorf("status %+v", st)
				}
				time.Sleep(10 * time.Minute)
				s.do(func() {
					// Two looks before, then after 1, 2, 4, 8, 16, 32 seconds, and each minute.
					if n := len(s.lists); n != 16 {
						t.Errorf("%d looks in ten minutes of failure", n)
					}
					s.fail = nil
				})
				time.Sleep(time.Minute)
				if st := l.Status(); st.Err != nil || st.Made != 10 {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

func TestLoopTakesALaterGrantForNoFailure(t *testing.T) {
	inLoop(t, 0, func(s *shelf, w *wishes, l *Loop) {
		s.do(func() {
			s.fail = func(call, _ string) error {
				if call == "ensure" {
					return fault.New(fault.Superseded, "there is a later one")
				}
				return nil
			}
		})
		w.set(want(orgA, "192.0.2.1", 7))
		time.Sleep(6 * time.Second)
		if st := l.Status(); st.Err != nil || st.Made != 0 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestLoopEndsWhereNothingIsKept(t *testing.T) {
	for _, name := range []string{ProviderNone, ProviderEmbedded} {
		p, err := New(Options{Config: Config{Provider: name}, Domain: testDomain, Logger: hclog.NewNullLogger()})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(p.Ensure(t.Context(), rec(orgA, "192.0.2.1", 7)), p.Remove(t.Context(), orgA, 7)); err != nil {
			t.Error(err)
		}
		NewLoop(LoopOptions{Provider: p, Domain: testDomain, Logger: hclog.NewNullLogger(), Now: time.Now, Wanted: func() ([]Wanted, <-chan struct{}) {
			t.Errorf("%s was held against the state", name)
			return nil, nil
		}}).Run(t.Context())
	}
	if _, err := New(Options{Config: Config{Provider: "route66"}}); err == nil {
		t.Error("an unknown provider was made")
	}
}

// After an older state was restored there are records of grants that it never had. They follow the state, and those of
// grants that were made since stay.
func TestLoopFollowsARestoredState(t *testing.T) {
	inLoop(t, 100, func(s *shelf, w *wishes, l *Loop) {
		s.do(func() {
			for _, r := range both(orgA, "192.0.2.9", 50) {
				s.zone[r.Name] = r
			}
		})
		w.set(want(orgA, "192.0.2.1", 7))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		s.do(func() {
			if got := s.zone[orgA]; !same(got, rec(orgA, "192.0.2.1", 7)) || got.Epoch != 7 {
				t.Errorf("the record of a grant that was lost with a restore is still there: %+v", got)
			}
		})
		if err := l.Status().Err; err != nil {
			t.Error(err)
		}
	})
}

// To one that leads no longer the records of later grants look like those of before a restore.
func TestLoopOfAFormerLeaderReplacesNoLaterRecord(t *testing.T) {
	later := both(orgA, "192.0.2.9", 50)
	for name, current := range map[string]func(w *wishes) error{
		"it knows that it does not lead": func(*wishes) error { return errors.New("another one leads") },
		"it hears of the grant in time": func(w *wishes) error { // called with the lock held
			w.wanted = []Wanted{want(orgA, "192.0.2.9", 50)}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			inLoop(t, 100, func(s *shelf, w *wishes, _ *Loop) {
				s.do(func() {
					for _, r := range later {
						s.zone[r.Name] = r
					}
				})
				w.mu.Lock()
				w.current = func() error { return current(w) }
				w.mu.Unlock()
				w.set(want(orgA, "192.0.2.1", 7))
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				s.do(func() {
					if got := s.zone[orgA]; !same(got, later[0]) || s.calls != 0 {
						t.Errorf("the record of a later grant was touched: %+v, %d calls", got, s.calls)
					}
				})
			})
		})
	}
}
