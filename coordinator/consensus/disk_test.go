package consensus_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

var errDisk = errors.New("input/output error")

// disk is a store with switches.
type disk struct {
	consensus.Store
	hang     chan struct{} // writes wait for it while hanging is set
	hanging  atomic.Bool
	failLogs atomic.Bool
	failTerm atomic.Bool
	rot      atomic.Bool // entries read back with a turned bit
	free     sync.Once
}

func (d *disk) StoreLogs(logs []*raft.Log) error {
	if d.hanging.Load() {
		<-d.hang
	}
	if d.failLogs.Load() {
		return errDisk
	}
	return d.Store.StoreLogs(logs)
}

func (d *disk) StoreLog(log *raft.Log) error { return d.StoreLogs([]*raft.Log{log}) }

func (d *disk) SetUint64(key []byte, value uint64) error {
	if d.failTerm.Load() && string(key) == "CurrentTerm" {
		return errDisk
	}
	return d.Store.SetUint64(key, value)
}

func (d *disk) GetLog(index uint64, log *raft.Log) error {
	err := d.Store.GetLog(index, log)
	if err == nil && d.rot.Load() && len(log.Data) > 0 {
		log.Data[0] ^= 1
	}
	return err
}

func (d *disk) release() { d.free.Do(func() { close(d.hang) }) }

// withDisk puts switches under a node. Its disk comes back when the test ends, before the node is closed.
func withDisk(opts *consensus.Options) *disk {
	d := &disk{hang: make(chan struct{})}
	opts.WrapStore = func(s consensus.Store) consensus.Store {
		d.Store = s
		return d
	}
	return d
}

func TestStalledDiskFences(t *testing.T) {
	t.Parallel()
	for name, idle := range map[string]bool{"while proposing": false, "while idle": true} {
		t.Run(name, func(t *testing.T) {
			var fence fenceCount
			opts := options(t.TempDir(), &ledger{})
			opts.Fence, opts.WriteTimeout = fence.fn, 2*time.Second
			d := withDisk(&opts)
			n := open(t, opts)
			t.Cleanup(d.release)
			leads(t, n)
			working, stopped := make(chan struct{}), make(chan struct{})
			go func() { // ends when the node has fenced itself and then is closed
				n.RunWhileLeader(context.Background(), func(ctx context.Context) {
					close(working)
					<-ctx.Done()
					close(stopped)
				})
			}()
			<-working
			d.hanging.Store(true)
			if !idle {
				if _, _, err := n.Propose(context.Background(), []byte("x")); !errors.Is(err, consensus.ErrUnknown) {
					t.Errorf("a proposal on a stalled disk: %v", err)
				}
			}
			eventually(t, "the node fences itself", func() bool { return fence.calls.Load() > 0 })
			<-stopped
			if n.IsLeader() || !n.Stats().Fenced {
				t.Error("a fenced node believes that it leads")
			}
			if _, _, err := n.Propose(within(t), []byte("y")); !fault.Is(err, fault.NoLeader) {
				t.Errorf("a proposal on a fenced node: %v", err)
			}
			d.release()
			shut(t, n)
			if calls, reason := fence.calls.Load(), fence.reason.Load().(string); calls != 1 || !strings.Contains(reason, "did not finish within 2s") {
				t.Errorf("fenced %d times, because %s", calls, reason)
			}
		})
	}
}

func TestFailedWriteFences(t *testing.T) {
	t.Parallel()
	dir, state := t.TempDir(), &ledger{}
	var fence fenceCount
	opts := options(dir, state)
	opts.Fence = fence.fn
	d := withDisk(&opts)
	n := open(t, opts)
	leads(t, n)
	want := proposeMany(t, n, "good", 3)
	d.failLogs.Store(true)
	if _, _, err := n.Propose(within(t), []byte("bad")); !errors.Is(err, consensus.ErrUnknown) {
		t.Errorf("a proposal on a failing disk: %v", err)
	}
	d.failLogs.Store(false)
	// The disk works again, but what it did with the failed write nobody knows: only a restart may write.
	if _, _, err := n.Propose(within(t), []byte("later")); !fault.Is(err, fault.NoLeader) {
		t.Errorf("a proposal on a fenced node: %v", err)
	}
	eventually(t, "Fence is called", func() bool { return fence.calls.Load() == 1 })
	if reason := fence.reason.Load().(string); !strings.Contains(reason, errDisk.Error()) {
		t.Errorf("fenced because %s", reason)
	}
	shut(t, n)
	again := &ledger{}
	leads(t, open(t, options(dir, again)))
	same(t, again.all(), want)
}

// TestFailedTermFences covers the write at whose failure the library panics.
func TestFailedTermFences(t *testing.T) {
	t.Parallel()
	var fence fenceCount
	opts := options(t.TempDir(), &ledger{})
	opts.Fence = fence.fn
	d := withDisk(&opts)
	d.failTerm.Store(true)
	opts.Bootstrap = false
	first := opts
	first.Bootstrap, first.WrapStore = true, nil
	n := open(t, first)
	leads(t, n)
	shut(t, n)
	n = open(t, opts) // its first election must write a term
	eventually(t, "the node fences itself", func() bool { return fence.calls.Load() == 1 })
	if reason := fence.reason.Load().(string); !strings.Contains(reason, "a write of the term failed") {
		t.Errorf("fenced because %s", reason)
	}
	shut(t, n)
}

// TestLeaderWithStalledDiskIsReplaced is the case in which the library alone would stay without a
// working leader for ever.
func TestLeaderWithStalledDiskIsReplaced(t *testing.T) {
	t.Parallel()
	disks := make([]*disk, 3)
	members := cluster(t, 3, func(i int, o *consensus.Options) {
		o.WriteTimeout = 2 * time.Second
		disks[i] = withDisk(o)
	})
	for _, d := range disks {
		t.Cleanup(d.release)
	}
	first := leader(t, members)
	settle(t, members, "one")
	for i, m := range members {
		if m == first {
			disks[i].hanging.Store(true)
		}
	}
	_, _, err := first.Propose(within(t), []byte("lost"))
	if !errors.Is(err, consensus.ErrUnknown) {
		t.Errorf("a proposal on a stalled disk: %v", err)
	}
	rest := without(members, first)
	settle(t, rest, "two")
	eventually(t, "the old leader is fenced", func() bool { return first.fence.calls.Load() == 1 })
	for _, m := range rest {
		if m.fence.calls.Load() != 0 {
			t.Errorf("%s fenced itself too", m.opts.NodeID)
		}
	}
}

func TestDamagedLogIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, options(dir, &ledger{}))
	leads(t, n)
	proposeMany(t, n, "x", 3)
	shut(t, n)
	var fence fenceCount
	opts := options(dir, &ledger{})
	opts.Fence = fence.fn
	withDisk(&opts).rot.Store(true)
	_, err := consensus.Open(opts)
	if err == nil || !strings.Contains(err.Error(), "was damaged on the disk; empty this node's data directory") {
		t.Fatalf("a damaged log: %v", err)
	}
	state := &ledger{}
	leads(t, open(t, options(dir, state)))
	same(t, state.all(), []string{"x-0", "x-1", "x-2"})
}
