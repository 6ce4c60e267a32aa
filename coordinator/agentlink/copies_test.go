package agentlink_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// agentRun is one run of the agent of h1. It answers questions while it is not mute.
type agentRun struct {
	k                 *links
	instance, address string
	mute              atomic.Bool
	frames            atomic.Int64
	ended             chan error // why its stream ended
	cancel            context.CancelFunc
}

// open opens a stream and returns when it has a frame, or with the reason why it has none.
func (k *links) open(instance, address string, mute bool) (*agentRun, error) {
	ctx, cancel := context.WithCancel(context.Background())
	a := &agentRun{k: k, instance: instance, address: address, ended: make(chan error, 1), cancel: cancel}
	a.mute.Store(mute)
	first := make(chan struct{}, 1)
	go func() {
		a.ended <- k.receiver.Stream(ctx, "h1", instance, address, func(f api.AssignmentFrame) error {
			if a.frames.Add(1) == 1 {
				first <- struct{}{}
			}
			if f.Ask && !a.mute.Load() {
				go func() { _ = a.report(api.Observation{}) }()
			}
			return nil
		})
	}()
	select {
	case <-first:
		return a, nil
	case err := <-a.ended:
		cancel()
		return nil, err
	}
}

func (a *agentRun) report(o api.Observation) error {
	o.HostID, o.Instance = "h1", a.instance
	_, err := a.k.receiver.Observe(context.Background(), "h1", o)
	return err
}

// closes ends the stream from the agent's side, as the end of its process does.
func (a *agentRun) closes() {
	a.cancel()
	if err := <-a.ended; err != nil {
		a.k.t.Errorf("the stream of %s ended: %v", a.instance, err)
	}
}

// mustOpen is open of a run that has to get its place within a time.
func (k *links) mustOpen(instance, address string, within time.Duration) *agentRun {
	k.t.Helper()
	began := time.Now()
	a, err := k.open(instance, address, false)
	if err != nil {
		k.t.Fatalf("%s is refused: %v", instance, err)
	}
	if took := time.Since(began); took > within {
		k.t.Errorf("%s got its place after %v, want %v at most", instance, took, within)
	}
	return a
}

// refused opens a stream that must not be had.
func (k *links) refused(instance, address string) error {
	k.t.Helper()
	a, err := k.open(instance, address, false)
	if err == nil {
		a.closes()
		k.t.Fatalf("%s got a place that is taken", instance)
	}
	if !fault.Is(err, fault.Conflict) {
		k.t.Fatalf("%s is refused with %v, want conflict", instance, err)
	}
	return err
}

func TestACopyDoesNotTakeThePlaceOfALivingAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newLinks(t)
		first := k.mustOpen("i1", "192.0.2.1", 0)
		for range 4 {
			err := k.refused("copy", "192.0.2.2")
			for _, want := range []string{"host h1", "192.0.2.1", "run i1", "run copy", "Stop one", "demiurge host join-token"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the refusal does not say %q: %v", want, err)
				}
			}
			if _, err := k.receiver.Observe(t.Context(), "h1", api.Observation{
				HostID: "h1", Instance: "copy", Leaving: true, Host: &api.HostReport{Address: "192.0.2.2"},
			}); !fault.Is(err, fault.Conflict) {
				t.Errorf("a report of the copy: %v", err)
			}
			time.Sleep(time.Second)
		}
		if c := k.link.Contact("h1"); k.log.count() != 0 || c.Farewell || !c.Open {
			t.Errorf("the copy was believed: %d entries, %+v", k.log.count(), c)
		}
		one, other := k.link.Copied("h1")
		if one != "192.0.2.1 (run i1)" || other != "192.0.2.2 (run copy)" {
			t.Errorf("it is told that %q stays and %q is refused", one, other)
		}
		if len(k.log.told) != 1 {
			t.Fatalf("%d entries tell of the copy, want 1: %+v", len(k.log.told), k.log.told)
		}
		if e := k.log.told[0].Events[0]; e.Type != "host.copied" || e.Host != "h1" || !strings.Contains(e.Reason, one) || !strings.Contains(e.Reason, other) {
			t.Errorf("the event is %+v", e)
		}
		if err := first.report(api.Observation{}); err != nil || len(first.ended) > 0 {
			t.Errorf("a report of the first agent, which still has its stream: %v", err)
		}

		// The first agent restarts. The copy does not get in between.
		first.closes()
		time.Sleep(time.Second)
		_ = k.refused("copy", "192.0.2.2")
		again := k.mustOpen("i2", "192.0.2.1", 0)
		_ = k.refused("copy", "192.0.2.2")

		// It is stopped for good: now the copy is the only one.
		again.closes()
		time.Sleep(10 * time.Second)
		only := k.mustOpen("copy", "192.0.2.2", 0)
		defer only.closes()
		if one, other := k.link.Copied("h1"); other != "" {
			t.Errorf("it is alone, and still told: %q, %q", one, other)
		}
		if err := only.report(api.Observation{}); err != nil {
			t.Error(err)
		}
	})
}

// A copy that has stopped trying is not told of any more, and its return is news.
func TestACopyIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newLinks(t)
		first := k.mustOpen("i1", "192.0.2.1", 0)
		defer first.closes()
		for i := range 2 {
			for range 3 {
				_ = k.refused("copy", "192.0.2.2")
				time.Sleep(time.Second)
			}
			if _, other := k.link.Copied("h1"); other == "" || len(k.log.told) != i+1 {
				t.Errorf("%q is told, with %d events", other, len(k.log.told))
			}
			time.Sleep(15 * time.Second)
			if _, other := k.link.Copied("h1"); other != "" {
				t.Errorf("it is gone, and told: %q", other)
			}
		}
	})
}

// After an ordinary restart the old stream has ended, ends now, or is half open. None of that is a copy.
func TestTheNextRunOfAnAgent(t *testing.T) {
	for name, c := range map[string]struct {
		ends time.Duration // of the first stream, after the second one is asked for; negative: before
		want time.Duration
	}{
		"its end has closed":         {-1, 0},
		"its end closes":             {300 * time.Millisecond, 300 * time.Millisecond},
		"its machine lost its power": {time.Hour, 1500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newLinks(t)
				first, err := k.open("i1", "192.0.2.1", true)
				if err != nil {
					t.Fatal(err)
				}
				if c.ends < 0 {
					first.closes()
				} else {
					defer time.AfterFunc(c.ends, first.cancel).Stop()
				}
				reported := make(chan error, 1)
				go func() {
					_, err := k.receiver.Observe(context.Background(), "h1", api.Observation{HostID: "h1", Instance: "i2"})
					reported <- err
				}()
				time.Sleep(100 * time.Millisecond) // and is taken in while its stream still waits: that is no word of the other one
				second := k.mustOpen("i2", "192.0.2.1", c.want)
				defer second.closes()
				if err := <-reported; err != nil {
					t.Errorf("its report: %v", err)
				}
				if one, other := k.link.Copied("h1"); other != "" || len(k.log.told) > 0 {
					t.Errorf("a restart is taken for a copy: %q, %q", one, other)
				}
				if c.ends >= 0 {
					if err := <-first.ended; err != nil {
						t.Errorf("the first stream ended: %v", err)
					}
				}
				// The same run dials again, as agents do that ask another coordinator: nobody is asked.
				third := k.mustOpen("i2", "192.0.2.1", 0)
				defer third.closes()
			})
		})
	}
}

// One that is refused once, by the last word of the run before, is no copy yet: it tries again and is in.
func TestOneRefusalIsNoCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newLinks(t)
		first := k.mustOpen("i1", "192.0.2.1", 0)
		_ = k.refused("i2", "192.0.2.1")
		first.closes()
		second := k.mustOpen("i2", "192.0.2.1", 0)
		defer second.closes()
		if _, other := k.link.Copied("h1"); other != "" || len(k.log.told) > 0 {
			t.Errorf("it is told of %q", other)
		}
	})
}

// An agent whose report waits for a slow disk here cannot answer, and lives.
func TestAnAgentThatIsKeptWaitingLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newLinks(t)
		first, err := k.open("i1", "192.0.2.1", true)
		if err != nil {
			t.Fatal(err)
		}
		defer first.closes()
		k.log.gate = make(chan struct{})
		taken := make(chan error, 1)
		go func() { taken <- first.report(api.Observation{Host: &api.HostReport{Address: "192.0.2.1"}}) }()
		synctest.Wait()
		_ = k.refused("copy", "192.0.2.2")
		close(k.log.gate)
		if err := <-taken; err != nil {
			t.Error(err)
		}
	})
}

// Who gives up waiting for the answer of another run takes nobody's place.
func TestWhoGivesUpTakesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newLinks(t)
		first, err := k.open("i1", "192.0.2.1", true)
		if err != nil {
			t.Fatal(err)
		}
		defer first.closes()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = k.receiver.Stream(ctx, "h1", "i2", "192.0.2.1", func(api.AssignmentFrame) error { return errors.New("it got a frame") })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it gave up: %v", err)
		}
		before := first.frames.Load()
		time.Sleep(time.Second)
		if first.frames.Load() == before || len(first.ended) > 0 {
			t.Error("the first stream has ended")
		}
	})
}

// A new leader does not know who holds a host. The run that reported last is let in first, if the host is alive; a copy
// may be faster.
func TestANewLeaderExpectsTheRunBefore(t *testing.T) {
	for name, c := range map[string]struct {
		dead  bool          // by the gossip
		since time.Duration // that it leads
		waits time.Duration
	}{
		"the host lives":             {waits: 1500 * time.Millisecond},
		"it is not in the gossip":    {dead: true},
		"it has led for a while now": {since: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newLinks(t)
				k.alive.Store(!c.dead)
				k.link.Leads()
				time.Sleep(c.since)
				began := time.Now()
				next := k.mustOpen("i2", "192.0.2.1", c.waits) // i1, of the state, does not come
				defer next.closes()
				if took := time.Since(began); took != c.waits {
					t.Errorf("it waited for %v, want %v", took, c.waits)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		k := newLinks(t)
		k.alive.Store(true)
		before := k.mustOpen("i1", "192.0.2.1", 0)
		before.closes() // this one led before, and another one in between
		time.Sleep(time.Minute)
		k.link.Leads()
		result := make(chan error, 2)
		go func() {
			_, err := k.receiver.Observe(context.Background(), "h1", api.Observation{HostID: "h1", Instance: "copy"})
			result <- err
		}()
		go func() {
			_, err := k.open("copy", "192.0.2.2", false)
			result <- err
		}()
		time.Sleep(200 * time.Millisecond)
		first := k.mustOpen("i1", "192.0.2.1", 0)
		defer first.closes()
		for range 2 {
			if err := <-result; !fault.Is(err, fault.Conflict) {
				t.Errorf("the copy was faster, and is answered %v", err)
			}
		}
	})
}
