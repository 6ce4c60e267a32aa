package consensus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// patience bounds waits for conditions; it is long because the machine may be busy.
const patience = 30 * time.Second

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// ledger is a state machine that keeps every command in order.
type ledger struct {
	mu      sync.Mutex
	lines   []string
	batches int // ApplyBatch calls with more than one command
}

func (l *ledger) Apply(log *raft.Log) any {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(log.Data))
	return len(l.lines)
}

func (l *ledger) ApplyBatch(logs []*raft.Log) []any {
	if len(logs) > 1 {
		l.mu.Lock()
		l.batches++
		l.mu.Unlock()
	}
	out := make([]any, len(logs))
	for i, log := range logs {
		if log.Type == raft.LogCommand {
			out[i] = l.Apply(log)
		}
	}
	return out
}

func (l *ledger) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

func (l *ledger) Snapshot() (raft.FSMSnapshot, error) { return frozen(l.all()), nil }

func (l *ledger) Restore(r io.ReadCloser) error {
	lines, err := readLines(r)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = lines
	return nil
}

func readLines(r io.Reader) ([]string, error) {
	var lines []string
	return lines, json.NewDecoder(r).Decode(&lines)
}

type frozen []string

func (f frozen) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode([]string(f)); err != nil {
		return sink.Cancel()
	}
	return sink.Close()
}

func (frozen) Release() {}

// fenceCount counts calls of the Fence function and keeps the reason.
type fenceCount struct {
	calls  atomic.Int32
	reason atomic.Value
}

func (f *fenceCount) fn(reason string) {
	f.reason.Store(reason)
	f.calls.Add(1)
}

// options of a single node that is its own cluster.
func options(dir string, fsm raft.FSM) consensus.Options {
	return consensus.Options{
		NodeID: "c1", Dir: dir, Listen: "127.0.0.1:0", Profile: consensus.ProfileFast,
		Bootstrap: true, FSM: fsm, SegmentSize: 256 << 10, WriteTimeout: patience,
	}
}

func open(t testing.TB, opts consensus.Options) *consensus.Node {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = hclog.New(&hclog.LoggerOptions{Output: t.Output(), Level: hclog.Debug})
	}
	n, err := consensus.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, n) })
	return n
}

func shut(t testing.TB, n *consensus.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

func leads(t testing.TB, n *consensus.Node) {
	t.Helper()
	eventually(t, "the node leads", func() bool { return n.IsLeader() && n.Barrier(within(t)) == nil })
}

func propose(t testing.TB, n *consensus.Node, line string) uint64 {
	t.Helper()
	_, index, err := n.Propose(within(t), []byte(line))
	if err != nil {
		t.Fatalf("propose %q: %v", line, err)
	}
	return index
}

func proposeMany(t testing.TB, n *consensus.Node, prefix string, count int) []string {
	t.Helper()
	var lines []string
	for i := range count {
		line := fmt.Sprintf("%s-%d", prefix, i)
		propose(t, n, line)
		lines = append(lines, line)
	}
	return lines
}

func same(t testing.TB, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("state has %d lines %.200v, want %d lines %.200v", len(got), got, len(want), want)
	}
}

// buffer is a file in memory that can be read more than once.
type buffer struct{ data []byte }

func (b *buffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p...)
	return len(p), nil
}

func (b *buffer) reader() io.Reader { return bytes.NewReader(b.data) }
