package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// memory is a store in memory.
type memory struct{ *raft.InmemStore }

func (memory) IsMonotonic() bool { return true }
func (memory) Close() error      { return nil }

// Get answers like a real store: an unknown key is empty, not an error.
func (m memory) Get(key []byte) ([]byte, error) {
	v, err := m.InmemStore.Get(key)
	if err != nil {
		return nil, nil
	}
	return v, nil
}

func newMemory() memory { return memory{raft.NewInmemStore()} }

// TestWatchdogCountsLooks: a process that was stopped (its clock went on) has used up one look only.
func TestWatchdogCountsLooks(t *testing.T) {
	t.Parallel()
	g := newGuard(newMemory(), time.Second, func(string) {})
	inside, finish, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() { // received from below
		done <- g.do("raft.test", "a write", func() error { close(inside); <-finish; return nil })
	}()
	<-inside
	for i := range watchSlices {
		if what := g.stalled(); what != "" {
			t.Fatalf("%s counts as stalled after %d looks", what, i+1)
		}
	}
	if g.stalled() != "a write" {
		t.Fatal("a stalled write is not seen")
	}
	g.fence("test")
	close(finish)
	if err := <-done; !errors.Is(err, errFenced) {
		t.Errorf("a write that finished behind the fence: %v", err)
	}
	if g.stalled() != "" {
		t.Error("a finished write counts as stalled")
	}
	if err := g.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, errFenced) {
		t.Errorf("a write behind the fence: %v", err)
	}
}

func TestFenceFallsOnce(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var reasons []string
	g := newGuard(newMemory(), time.Second, func(r string) {
		mu.Lock()
		defer mu.Unlock()
		reasons = append(reasons, r)
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { g.fence("test") })
	}
	wg.Wait()
	if len(reasons) != 1 {
		t.Errorf("the fence fell %d times", len(reasons))
	}
}

func TestEntriesAreChecked(t *testing.T) {
	t.Parallel()
	store := newMemory()
	g := newGuard(store, time.Second, func(string) {})
	entry := &raft.Log{Index: 1, Term: 2, Type: raft.LogCommand, Data: []byte("abc")}
	if err := g.StoreLog(entry); err != nil {
		t.Fatal(err)
	}
	var read raft.Log
	if err := g.GetLog(1, &read); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*raft.Log){
		"index": func(l *raft.Log) { l.Index++ },
		"term":  func(l *raft.Log) { l.Term++ },
		"type":  func(l *raft.Log) { l.Type = raft.LogNoop },
		"data":  func(l *raft.Log) { l.Data = []byte("abd") },
		"sum":   func(l *raft.Log) { l.Extensions = []byte{1, 0, 0, 0, 0} },
	} {
		bad := read
		change(&bad)
		// On its way here: refused, and this disk is not to blame.
		if err := g.StoreLog(&bad); !errors.Is(err, errDamaged) {
			t.Errorf("%s changed on its way: %v", name, err)
		}
	}
	if g.isFenced() {
		t.Error("the node fenced itself because of what others sent")
	}
	rotten := read
	rotten.Data = []byte("abd")
	if err := store.StoreLog(&rotten); err != nil {
		t.Fatal(err)
	}
	if err := g.GetLog(1, &read); !errors.Is(err, errDamaged) || !g.isFenced() {
		t.Errorf("an entry that was damaged on the disk: %v", err)
	}
}

// TestVoteIsOneRecord crashes after each half of a vote: the library writes the term, then the candidate.
func TestVoteIsOneRecord(t *testing.T) {
	t.Parallel()
	store := newMemory()
	restarted := func() *stable { return &stable{guard: newGuard(store, time.Second, func(string) {})} }
	vote := func(s *stable, halves int, term uint64, candidate string) {
		t.Helper()
		if err := s.SetUint64([]byte(keyVoteTerm), term); err != nil {
			t.Fatal(err)
		}
		if halves == 2 {
			if err := s.Set([]byte(keyVoteCand), []byte(candidate)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cast := func() string {
		t.Helper()
		s := restarted()
		term, err := s.GetUint64([]byte(keyVoteTerm))
		if err != nil {
			t.Fatal(err)
		}
		candidate, err := s.Get([]byte(keyVoteCand))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %s", term, candidate)
	}
	if got := cast(); got != "0 " {
		t.Fatalf("the first vote is %q", got)
	}
	vote(restarted(), 2, 7, "a")
	if got := cast(); got != "7 a" {
		t.Fatalf("the vote is %q", got)
	}
	vote(restarted(), 1, 8, "b")
	if got := cast(); got != "7 a" {
		t.Fatalf("after a crash between the halves the vote is %q", got)
	}
	vote(restarted(), 2, 8, "b")
	if got := cast(); got != "8 b" {
		t.Fatalf("the vote is %q", got)
	}
	if err := store.Set([]byte(keyVote), []byte("short")); err != nil {
		t.Fatal(err)
	}
	if _, err := restarted().GetUint64([]byte(keyVoteTerm)); err == nil {
		t.Error("a vote record of 5 bytes was read")
	}
}

func TestRefusalsNameTheCause(t *testing.T) {
	t.Parallel()
	d := &dataDir{path: "/data"}
	for want, cause := range map[string]error{
		"/data: its disk is full":                        syscall.ENOSPC,
		"/data: it is not writable: write x: read-only":  syscall.EROFS,
		"/data: it is not writable: write x: permission": syscall.EACCES,
		"/data: write x: input/output error":             syscall.EIO,
	} {
		err := d.refused("cannot write to the data directory", &fs.PathError{Op: "write", Path: "x", Err: cause})
		if !strings.Contains(err.Error(), want) || !errors.Is(err, cause) {
			t.Errorf("%v is worded as %q", cause, err)
		}
	}
}

func TestLatencies(t *testing.T) {
	t.Parallel()
	var l latencies
	if p50, p99, n := l.quantiles(); p50 != 0 || p99 != 0 || n != 0 {
		t.Errorf("without samples: %v %v %d", p50, p99, n)
	}
	for i := range 1000 {
		l.add(time.Duration(i))
	}
	if p50, p99, n := l.quantiles(); p50 != 500 || p99 != 990 || n != 1000 {
		t.Errorf("of 0 to 999: %v %v %d", p50, p99, n)
	}
	for range 2000 {
		l.add(5)
	}
	if p50, p99, n := l.quantiles(); p50 != 5 || p99 != 5 || n != 3000 {
		t.Errorf("the latest only: %v %v %d", p50, p99, n)
	}
}
