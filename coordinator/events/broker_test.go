package events_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/events"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// feed is a store that a state machine fills.
type feed struct {
	t       *testing.T
	store   *state.Store
	machine *fsm.FSM
	index   uint64
}

func newFeed(t *testing.T) *feed {
	store := state.New()
	return &feed{t: t, store: store, machine: fsm.New(store, nil)}
}

// happen records events of the types given, one entry each.
func (f *feed) happen(types ...string) {
	f.t.Helper()
	for _, what := range types {
		f.index++
		data, err := command.Encode(command.RecordEvents{
			Meta:   command.Meta{At: time.Unix(int64(f.index), 0), Actor: "tk-1", Source: "192.0.2.9"},
			Events: []command.Event{{Type: what, Reason: "because", Code: fault.VerifyFailed, Host: "h1"}},
		})
		if err != nil {
			f.t.Fatal(err)
		}
		f.machine.Apply(&raft.Log{Index: f.index, Data: data})
	}
}

// recorder keeps what it is told.
type recorder struct {
	mu    sync.Mutex
	types []string
	log   bytes.Buffer
}

func (r *recorder) observe(e *state.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.types = append(r.types, e.Type)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

func (r *recorder) seen() (types, log string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.types, " "), r.log.String()
}

// run starts a broker and stops it with the test.
func run(t *testing.T, f *feed, after uint64) *recorder {
	t.Helper()
	r := &recorder{}
	b := events.New(events.Options{Store: f.store, Logger: hclog.New(&hclog.LoggerOptions{Output: r, Level: hclog.Info}), Observe: r.observe, After: after})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ended by the clean-up
		defer close(done)
		b.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

func TestEveryEventIsToldOnce(t *testing.T) {
	f := newFeed(t)
	f.happen("old.one", "old.two")
	r := run(t, f, 4) // the log had four entries when the process started: two more are replayed
	f.happen("replayed.one", "replayed.two")
	f.happen("host.lost", "gateway.ready")
	eventually(t, "both events are told", func() bool { types, _ := r.seen(); return strings.Contains(types, "gateway.ready") })
	types, log := r.seen()
	if types != "host.lost gateway.ready" {
		t.Errorf("told of %q", types)
	}
	for _, part := range []string{"type=host.lost", "index=5", "host=h1", "code=verify_failed", "reason=because", "actor=tk-1", "source=192.0.2.9"} {
		if !strings.Contains(log, part) {
			t.Errorf("the log has no %s: %s", part, log)
		}
	}
	if n := strings.Count(log, "\n"); n != 2 {
		t.Errorf("%d lines for two events: %s", n, log)
	}
}

func TestManyEventsKeepTheirOrder(t *testing.T) {
	f := newFeed(t)
	r := run(t, f, 0)
	f.happen("first.one")
	var want []string
	for i := range 2000 {
		want = append(want, "t."+strings.Repeat("x", i%7))
	}
	f.happen(want...)
	eventually(t, "all are told", func() bool { types, _ := r.seen(); return strings.Count(types, " ") == 2000 })
	if types, _ := r.seen(); types != "first.one "+strings.Join(want, " ") {
		t.Error("told in another order")
	}
}

func TestFollow(t *testing.T) {
	f := newFeed(t)
	f.happen("a.1", "a.2", "a.3")
	b := events.New(events.Options{Store: f.store, Logger: hclog.NewNullLogger()})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	enough := errors.New("enough")
	var seen []string
	beats := 0
	err := b.Follow(ctx, state.EventID{Index: 1, Seq: 1}, time.Millisecond, func(batch []state.Event, truncated bool) error {
		if truncated {
			t.Error("nothing was dropped")
		}
		for _, e := range batch {
			seen = append(seen, e.Type)
		}
		if len(batch) == 0 {
			if beats++; beats == 3 {
				f.happen("a.4")
			}
		}
		if len(seen) == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || strings.Join(seen, " ") != "a.2 a.3 a.4" || beats < 3 {
		t.Errorf("%v: saw %v after %d heartbeats", err, seen, beats)
	}
	cancel()
	if err := b.Follow(ctx, state.EventID{}, time.Hour, func([]state.Event, bool) error { return nil }); err != nil {
		t.Errorf("at the end of the context: %v", err)
	}
}

func TestFollowGoesOnAfterARestore(t *testing.T) {
	f := newFeed(t)
	f.happen("a.1")
	b := events.New(events.Options{Store: f.store, Logger: hclog.NewNullLogger()})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	other := newFeed(t)
	other.happen("b.1", "b.2")
	enough := errors.New("enough")
	restored := false
	err := b.Follow(ctx, f.store.LastEvent(), time.Millisecond, func(batch []state.Event, _ bool) error {
		if len(batch) == 0 && !restored {
			restored = true
			f.store.Replace(other.store)
		}
		if len(batch) == 1 && batch[0].Type == "b.2" {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}
