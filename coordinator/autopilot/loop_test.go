package autopilot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/shared/outputtest"
	"github.com/hashicorp/go-hclog"
)

// world is a cluster of which the gossip says one thing while another is so.
type world struct {
	mu    sync.Mutex // guards all
	peers []Peer
	seen  []Candidate
	there map[string]string // the address at which a coordinator proves who it is
}

func (w *world) Empty() bool                         { return false }
func (w *world) Found(context.Context, []Peer) error { return errors.New("there is a cluster") }

func (w *world) Peers() []Peer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.peers)
}

func (w *world) Seen() ([]Candidate, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen), nil
}

func (w *world) put(p Peer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peers = append(slices.DeleteFunc(w.peers, func(o Peer) bool { return o.ID == p.ID }), p)
	return nil
}

func (w *world) AddNonvoter(_ context.Context, id, address string) error {
	return w.put(Peer{ID: id, Address: address})
}

func (w *world) AddVoter(_ context.Context, id, address string) error {
	return w.put(Peer{ID: id, Address: address, Voter: true})
}

func (w *world) RemovePeer(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peers = slices.DeleteFunc(w.peers, func(o Peer) bool { return o.ID == id })
	return nil
}

func (w *world) meet(_ context.Context, id, address string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.there[id] != address {
		return errors.New("there is nobody")
	}
	return nil
}

// TestTheGossipIsNoMoreThanAHint: one that is said to have left and answers stays, one that is said to have another
// address keeps its own, and of many that are said to be there only the one that is becomes a member.
func TestTheGossipIsNoMoreThanAHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{there: map[string]string{}}
		for _, id := range []string{"c1", "c2", "c3"} {
			w.peers = append(w.peers, Peer{ID: id, Address: id + ":7401", Voter: true})
			w.seen = append(w.seen, Candidate{ID: id, Address: id + ":7401", Alive: true, Since: time.Now(), Fit: true})
			w.there[id] = id + ":7401"
		}
		before := slices.Clone(w.peers)
		w.seen[1].Address = "somewhere:7401"
		w.seen[2].Alive, w.seen[2].Left = false, true
		for i := range 3 * meetMost {
			w.seen = append(w.seen, Candidate{ID: fmt.Sprint("x", i), Address: fmt.Sprint("x:", i), Alive: true, Since: time.Now(), Fit: true})
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			RunPilot(ctx, Options{
				Self: Candidate{ID: "c1", Address: "c1:7401"}, Node: w, Gossip: w, Meet: w.meet,
				Rules: Rules{Settle: 2 * time.Second, DeadAfter: time.Minute, MinVoters: 3}, Logger: hclog.NewNullLogger(), Now: time.Now,
			})
		}()
		pass := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		pass(time.Hour)
		if now := w.Peers(); !slices.Equal(now, before) {
			t.Fatalf("the coordinators are %+v", now)
		}
		w.mu.Lock()
		w.seen = append(w.seen, Candidate{ID: "c4", Address: "c4:7401", Alive: true, Since: time.Now(), Fit: true})
		w.there["c4"] = "c4:7401"
		w.mu.Unlock()
		pass(time.Minute)
		if now := w.Peers(); !slices.Equal(now, append(before, Peer{ID: "c4", Address: "c4:7401", Voter: true})) {
			t.Fatalf("the coordinators are %+v", now)
		}
		w.mu.Lock()
		delete(w.there, "c3")
		w.mu.Unlock()
		pass(time.Minute)
		if now := w.Peers(); slices.ContainsFunc(now, func(p Peer) bool { return p.ID == "c3" }) || len(now) != 3 {
			t.Fatalf("the coordinators are %+v", now)
		}
		cancel()
		<-done
	})
}

// none never was in a cluster.
type none struct{ *world }

func (none) Empty() bool { return true }

func TestForWhomTheBeginningWaitsIsSaidAtTheStartAtAChangeAndNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out outputtest.Output
		said := func() int { return strings.Count(out.String(), "no cluster begins yet") }
		w := &world{}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			RunFormer(ctx, Options{
				Self: Candidate{ID: "c1", Address: "c1:7401", Expect: 3}, Node: none{w}, Gossip: w, Now: time.Now,
				Logger: hclog.New(&hclog.LoggerOptions{Output: &out}),
			})
		}()
		synctest.Wait()
		if said() != 1 || !strings.Contains(out.String(), "2 of 3 coordinators are missing; there are: c1;") {
			t.Errorf("at the start: %s", out.String())
		}
		w.mu.Lock()
		w.seen = []Candidate{{ID: "c2", Alive: true, Expect: 3, Empty: true}}
		w.mu.Unlock()
		time.Sleep(look)
		synctest.Wait()
		if said() != 2 || !strings.Contains(out.String(), "1 of 3 coordinators are missing; there are: c1, c2;") {
			t.Errorf("when another one is there: %s", out.String())
		}
		time.Sleep(10 * again)
		synctest.Wait()
		if n := said(); n < 11 || n > 12 {
			t.Errorf("said %d times within ten minutes", n)
		}
		cancel()
		<-done
	})
}
