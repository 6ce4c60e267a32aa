package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func TestProposeRestartReplay(t *testing.T) {
	t.Parallel()
	dir, state := t.TempDir(), &ledger{}
	n := open(t, options(dir, state))
	leads(t, n)
	var (
		mu      sync.Mutex
		indexes = map[uint64]string{}
		wg      sync.WaitGroup
	)
	for w := range 16 {
		wg.Go(func() {
			for i := range 20 {
				line := fmt.Sprintf("%d/%d", w, i)
				result, index, err := n.Propose(within(t), []byte(line))
				if err != nil {
					t.Errorf("propose: %v", err)
					return
				}
				if state.all()[result.(int)-1] != line {
					t.Errorf("result %v is not the one of %q", result, line)
				}
				mu.Lock()
				indexes[index] = line
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	want := state.all()
	if len(indexes) != 320 || len(want) != 320 {
		t.Fatalf("%d indexes, %d lines, want 320 of both", len(indexes), len(want))
	}
	var order []uint64
	for index := range indexes {
		order = append(order, index)
	}
	slices.Sort(order)
	for i, index := range order {
		if indexes[index] != want[i] {
			t.Fatalf("line %d is %q by index and %q in the state", i, indexes[index], want[i])
		}
	}
	if _, _, count := n.FsyncStats(); count == 0 {
		t.Error("no log write was measured")
	}
	shut(t, n)
	if state.batches == 0 {
		t.Error("the state machine never got a batch")
	}

	again := &ledger{}
	n = open(t, options(dir, again))
	leads(t, n)
	same(t, again.all(), want)
	if id, address := n.Leader(); id != "c1" || address != n.Address() {
		t.Errorf("leader is %q at %q", id, address)
	}
	if err := n.VerifyLeader(within(t)); err != nil {
		t.Error(err)
	}
}

func TestSnapshotThenRestart(t *testing.T) {
	t.Parallel()
	dir, state := t.TempDir(), &ledger{}
	opts := options(dir, state)
	opts.TrailingLogs = 1
	n := open(t, opts)
	leads(t, n)
	want := proposeMany(t, n, "before", 50)
	if err := n.Snapshot(within(t)); err != nil {
		t.Fatal(err)
	}
	want = append(want, proposeMany(t, n, "after", 5)...)
	shut(t, n)

	again := &ledger{}
	opts.FSM = again
	n = open(t, opts)
	leads(t, n)
	same(t, again.all(), want)
	eventually(t, "all that is in the log counts as applied", func() bool { s := n.Stats(); return s.AppliedIndex == s.LastIndex })
	s := n.Stats()
	if s.SnapshotIndex == 0 || s.State != "Leader" || s.Term < 2 || n.AppliedIndex() == 0 {
		t.Errorf("stats are %+v", s)
	}
	if len(s.Peers) != 1 || s.Peers[0].ID != "c1" || !s.Peers[0].Voter {
		t.Errorf("peers are %+v", s.Peers)
	}
}

// TestLogRolls fills several log files, so that the next ones are allocated and, after a snapshot, old ones go.
func TestLogRolls(t *testing.T) {
	t.Parallel()
	dir, state := t.TempDir(), &ledger{}
	opts := options(dir, state)
	opts.SegmentSize = 64 << 10
	opts.TrailingLogs = 1
	n := open(t, opts)
	leads(t, n)
	fill := strings.Repeat("x", 8<<10)
	for i := range 40 {
		propose(t, n, fmt.Sprintf("%d %s", i, fill))
		if i%15 == 14 {
			if err := n.Snapshot(within(t)); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := state.all()
	shut(t, n)
	again := &ledger{}
	opts.FSM = again
	leads(t, open(t, opts))
	same(t, again.all(), want)
}

func TestProposeRefusals(t *testing.T) {
	t.Parallel()
	n := open(t, options(t.TempDir(), &ledger{}))
	leads(t, n)
	if _, _, err := n.Propose(within(t), make([]byte, consensus.MaxProposal+1)); !fault.Is(err, fault.TooLarge) {
		t.Errorf("a huge command: %v", err)
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := n.Propose(gone, []byte("x")); !fault.Is(err, fault.NoLeader) || errors.Is(err, consensus.ErrUnknown) {
		t.Errorf("a caller that is gone: %v", err)
	}
	shut(t, n)
	if _, _, err := n.Propose(within(t), []byte("x")); !fault.Is(err, fault.NoLeader) {
		t.Errorf("a closed node: %v", err)
	}
	if err := n.Barrier(within(t)); !fault.Is(err, fault.NoLeader) {
		t.Errorf("a barrier on a closed node: %v", err)
	}
	n.RunWhileLeader(within(t), func(context.Context) { t.Error("leader work on a closed node") })
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	good := options(t.TempDir(), &ledger{})
	for name, change := range map[string]func(*consensus.Options){
		"it has no node id":   func(o *consensus.Options) { o.NodeID = "" },
		"no data directory":   func(o *consensus.Options) { o.Dir = "" },
		"no state machine":    func(o *consensus.Options) { o.FSM = nil },
		"exactly one of":      func(o *consensus.Options) { o.Listen = "" },
		"default, fast, slow": func(o *consensus.Options) { o.Profile = "brisk" },
		"the least is":        func(o *consensus.Options) { o.SegmentSize = 1 },
		"itself is missing":   func(o *consensus.Options) { o.Peers = []consensus.Peer{{ID: "c2", Address: "h:1"}} },
		"needs an id and an":  func(o *consensus.Options) { o.Peers = []consensus.Peer{{ID: "c1"}} },
		"the same id or address": func(o *consensus.Options) {
			o.Peers = []consensus.Peer{{ID: "c1", Address: "h:1"}, {ID: "c2", Address: "h:1"}}
		},
		"set the advertised":        func(o *consensus.Options) { o.Listen = "0.0.0.0:0" },
		"cannot advertise \"here\"": func(o *consensus.Options) { o.Advertise = "here" },
		"cannot listen on":          func(o *consensus.Options) { o.Listen = "127.0.0.1:99999" },
	} {
		opts := good
		change(&opts)
		if _, err := consensus.Open(opts); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want an error with %q, got %v", name, err)
		}
	}
}

func TestAdvertise(t *testing.T) {
	t.Parallel()
	opts := options(t.TempDir(), &ledger{})
	opts.Listen, opts.Advertise = "127.0.0.1:0", "coordinator.example:7300"
	n := open(t, opts)
	leads(t, n)
	if n.Address() != opts.Advertise || n.Stats().Peers[0].Address != opts.Advertise {
		t.Errorf("the node is at %s, its peers are %+v", n.Address(), n.Stats().Peers)
	}
}
