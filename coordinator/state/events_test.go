package state_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/state"
)

func emit(s *state.Store, index uint64, n int) {
	write(s, index, func(x *state.Txn) {
		for i := range n {
			x.Emit(state.Event{Type: fmt.Sprintf("test.%d", i+1)})
		}
	})
}

func TestEvents(t *testing.T) {
	s := state.New()
	events, more, truncated := s.Events(state.EventID{}, 10)
	if len(events) != 0 || truncated || s.LastEvent() != (state.EventID{}) {
		t.Fatalf("%v %v", events, truncated)
	}
	write(s, 1, func(*state.Txn) {})
	select {
	case <-more:
		t.Fatal("told of events that do not exist")
	default:
	}
	emit(s, 2, 3)
	<-more
	emit(s, 4, 2)
	for _, c := range []struct {
		after state.EventID
		limit int
		want  string
	}{
		{state.EventID{}, 10, "2.1 2.2 2.3 4.1 4.2"},
		{state.EventID{}, 2, "2.1 2.2"},
		{state.EventID{Index: 2, Seq: 2}, 10, "2.3 4.1 4.2"},
		{state.EventID{Index: 2, Seq: 3}, 1, "4.1"},
		{state.EventID{Index: 3, Seq: 7}, 10, "4.1 4.2"},
		{state.EventID{Index: 4, Seq: 2}, 10, ""},
		{state.EventID{Index: 9}, 10, ""},
	} {
		events, _, truncated := s.Events(c.after, c.limit)
		got := ""
		for i, e := range events {
			if i > 0 {
				got += " "
			}
			got += fmt.Sprintf("%d.%d", e.Index, e.Seq)
			if e.Type != fmt.Sprintf("test.%d", e.Seq) || e.Actor != "test" || !e.At.Equal(start) {
				t.Errorf("%+v", e)
			}
		}
		if got != c.want || truncated {
			t.Errorf("after %v, %d: %q, want %q (truncated: %v)", c.after, c.limit, got, c.want, truncated)
		}
	}
	if got := s.LastEvent(); got != (state.EventID{Index: 4, Seq: 2}) {
		t.Fatal(got)
	}
}

// TestFeedIsBounded: exactly the newest are kept, in memory and in a snapshot.
func TestFeedIsBounded(t *testing.T) {
	s := state.New()
	emit(s, 1, 10)
	for index := uint64(2); index < 8; index++ {
		emit(s, index, state.KeptEvents/6)
	}
	emit(s, 8, 4) // 10 + 65532 + 4 were made
	const dropped = 10
	look := func(s *state.Store) {
		t.Helper()
		events, _, truncated := s.Events(state.EventID{}, state.KeptEvents+10)
		if len(events) != state.KeptEvents || !truncated || events[0].ID() != (state.EventID{Index: 2, Seq: 1}) || events[len(events)-1].ID() != s.LastEvent() {
			t.Fatalf("%d events, truncated: %v, first %v", len(events), truncated, events[0].ID())
		}
		for i := 1; i < len(events); i++ {
			if !events[i-1].ID().Before(events[i].ID()) {
				t.Fatalf("%v comes before %v", events[i-1].ID(), events[i].ID())
			}
		}
		if _, _, truncated := s.Events(state.EventID{Index: 1, Seq: dropped}, 1); truncated {
			t.Fatal("nothing after the last dropped one is missing")
		}
		if _, _, truncated := s.Events(state.EventID{Index: 1, Seq: dropped - 1}, 1); !truncated {
			t.Fatal("a dropped event is not reported")
		}
	}
	look(s)
	var saved bytes.Buffer
	if err := s.Checkpoint().Save(&saved); err != nil {
		t.Fatal(err)
	}
	loaded, err := state.Load(&saved)
	if err != nil {
		t.Fatal(err)
	}
	look(loaded)
	emit(s, 9, 2000)
	emit(loaded, 9, 2000)
	a, _, _ := s.Events(state.EventID{}, state.KeptEvents)
	b, _, _ := loaded.Events(state.EventID{}, state.KeptEvents)
	if !slices.Equal(a, b) {
		t.Fatal("a restored feed goes on in another way")
	}
}

// TestRestoreWakesWatchers: those who wait for events or for the state to change are told.
func TestRestoreWakesWatchers(t *testing.T) {
	s, other := state.New(), state.New()
	emit(s, 1, 1)
	emit(other, 7, 2)
	_, more, _ := s.Events(s.LastEvent(), 1)
	restored := s.Restored()
	s.Replace(other)
	<-more
	<-restored
	if s.LastEvent() != (state.EventID{Index: 7, Seq: 2}) || s.View().Index() != 7 {
		t.Fatal("the old state is still there")
	}
	select {
	case <-s.Restored():
		t.Fatal("the next restore is announced already")
	default:
	}
}

// TestReadersBesideTheWriter is for the race detector.
func TestReadersBesideTheWriter(t *testing.T) {
	s := fixture(t)
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			var after state.EventID
			for {
				v := s.View()
				n, ready := 0, 0
				for g := range v.Gateways(nil) {
					if g.Pool == "a" {
						n++
					}
				}
				for range v.GatewaysOfPoolIn("a", state.GatewayReady) {
					ready++
				}
				if c := v.Counts(nil, "a"); c.Total() != n || c.Of(state.GatewayReady) != ready {
					t.Errorf("%d gateways, %d of them ready; counted: %+v", n, ready, c)
					return
				}
				events, _, _ := s.Events(after, 100)
				for i := range events {
					after = events[i].ID()
				}
				s.Checkpoint()
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for n := range 300 {
		write(s, uint64(2+n), func(x *state.Txn) {
			x.PutGateway(gateway(100+n%20, "h1", "a", []string{"ready", "unhealthy", "failed"}[n%3]), "")
			if n%7 == 0 {
				x.RemoveGateway(x.Gateway(gw(100+n%20)), "")
			}
		})
	}
	close(stop)
	readers.Wait()
	check(t, s)
}
