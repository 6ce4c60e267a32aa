package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
)

// world is a cluster in virtual time: real nodes with real logs on disk, on a network in memory that can
// be cut. Only the goroutine of the test changes it.
type world struct {
	t         *testing.T
	dirs      []string
	nodes     []*consensus.Node // nil: down
	fsms      []*ledger
	wires     []*raft.InmemTransport
	timeout   time.Duration // how long an answer is waited for
	restoring func()        // called in each restore of a state machine

	mu    sync.Mutex
	acked map[string]uint64 // command → index
	taken int               // proposals that may have been taken: acknowledged or unknown
}

// slow is a state machine that takes its time for a restore.
type slow struct {
	*ledger
	restoring func()
}

func (s slow) Restore(r io.ReadCloser) error {
	s.restoring()
	return s.ledger.Restore(r)
}

func newWorld(t *testing.T, size int, timeout time.Duration, restoring func()) *world {
	w := &world{
		t: t, timeout: timeout, restoring: restoring, nodes: make([]*consensus.Node, size), fsms: make([]*ledger, size),
		wires: make([]*raft.InmemTransport, size), acked: map[string]uint64{},
	}
	for range size {
		w.dirs = append(w.dirs, t.TempDir())
	}
	for i := range size {
		w.start(i)
	}
	return w
}

func address(i int) raft.ServerAddress { return raft.ServerAddress(fmt.Sprintf("c%d", i)) }

func (w *world) start(i int) {
	w.t.Helper()
	_, w.wires[i] = raft.NewInmemTransportWithTimeout(address(i), w.timeout)
	w.fsms[i] = &ledger{}
	var peers []consensus.Peer
	for p := range w.nodes {
		peers = append(peers, consensus.Peer{ID: string(address(p)), Address: string(address(p))})
	}
	n, err := consensus.Open(consensus.Options{
		NodeID: string(address(i)), Dir: w.dirs[i], Transport: w.wires[i], Profile: consensus.ProfileDefault,
		Bootstrap: true, Peers: peers, FSM: slow{w.fsms[i], w.restoring}, SegmentSize: 64 << 10,
		SnapshotThreshold: 64, TrailingLogs: 16,
		Fence: func(reason string) { w.t.Errorf("node %d fenced itself: %s", i, reason) },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[i] = n
}

func (w *world) stop(i int) {
	w.t.Helper()
	if err := w.nodes[i].Close(context.Background()); err != nil {
		w.t.Error(err)
	}
	w.nodes[i] = nil
}

// wire connects exactly the pairs that the given function allows, in each direction by itself.
func (w *world) wire(allowed func(from, to int) bool) {
	for from := range w.nodes {
		for to := range w.nodes {
			w.wires[from].Disconnect(address(to))
			if from != to && allowed(from, to) {
				w.wires[from].Connect(address(to), w.wires[to])
			}
		}
	}
}

// client proposes one command after the other, to whichever node says that it leads.
func (w *world) client(ctx context.Context, name int) {
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(100 * time.Millisecond)
		line := fmt.Sprintf("%d/%d", name, i)
		node := w.anyLeader()
		if node == nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, time.Second)
		_, index, err := node.Propose(call, []byte(line))
		cancel()
		w.mu.Lock()
		if err == nil {
			w.acked[line] = index
		}
		if err == nil || errors.Is(err, consensus.ErrUnknown) {
			w.taken++
		}
		w.mu.Unlock()
	}
}

func (w *world) anyLeader() *consensus.Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range rand.Perm(len(w.nodes)) {
		if n := w.nodes[i]; n != nil && n.IsLeader() {
			return n
		}
	}
	return nil
}

// trouble makes one kind of trouble for a while and ends it.
func (w *world) trouble(rng *rand.Rand) {
	victim := rng.IntN(len(w.nodes))
	for i, n := range w.nodes { // half of the time it is the leader
		if n.IsLeader() && rng.IntN(2) == 0 {
			victim = i
		}
	}
	pause := time.Duration(500+rng.IntN(4000)) * time.Millisecond
	switch rng.IntN(4) {
	case 0: // cut off
		w.wire(func(from, to int) bool { return from != victim && to != victim })
		time.Sleep(pause)
	case 1: // cannot send
		w.wire(func(from, _ int) bool { return from != victim })
		time.Sleep(pause)
	case 2: // cannot be reached
		w.wire(func(_, to int) bool { return to != victim })
		time.Sleep(pause)
	case 3: // down, and back from its disk
		w.mu.Lock()
		w.stop(victim)
		w.mu.Unlock()
		time.Sleep(pause)
		w.mu.Lock()
		w.start(victim)
		w.mu.Unlock()
	}
	w.wire(func(int, int) bool { return true })
}

// check waits until all nodes agree and compares them with what was acknowledged.
func (w *world) check() {
	w.t.Helper()
	last := "the end"
	for {
		if n := w.anyLeader(); n != nil {
			if _, _, err := n.Propose(context.Background(), []byte(last)); err == nil {
				break
			}
			last += "." // the one before may or may not be taken
		}
		time.Sleep(100 * time.Millisecond)
	}
	var want []string
	for i, f := range w.fsms {
		for lines := f.all(); len(lines) == 0 || lines[len(lines)-1] != last; lines = f.all() {
			time.Sleep(100 * time.Millisecond)
		}
		if i == 0 {
			want = f.all()
		}
		same(w.t, f.all(), want)
	}
	position := map[string]int{}
	for p, line := range want {
		if before, twice := position[line]; twice {
			w.t.Errorf("%s is in the state twice, as line %d and %d", line, before, p)
		}
		position[line] = p
	}
	byIndex := map[uint64]string{}
	for line, index := range w.acked {
		if _, ok := position[line]; !ok {
			w.t.Errorf("%s was acknowledged with index %d and is lost", line, index)
		}
		if other, twice := byIndex[index]; twice {
			w.t.Errorf("%s and %s were acknowledged with one index", line, other)
		}
		byIndex[index] = line
	}
	if len(w.acked) == 0 || len(want) > w.taken+10 {
		w.t.Errorf("%d acknowledged, %d in the state, %d taken", len(w.acked), len(want), w.taken)
	}
}

// TestNothingAcknowledgedIsLost runs two virtual minutes of partitions, one-way cuts and restarts over
// clients that never stop, for each of several seeds.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3, 500*time.Millisecond, func() {})
				w.wire(func(int, int) bool { return true })
				ctx, cancel := context.WithCancel(context.Background())
				var clients sync.WaitGroup
				for name := range 2 {
					clients.Go(func() { w.client(ctx, name) })
				}
				begun, troubles := time.Now(), 0
				for rng := rand.New(rand.NewPCG(seed, 1)); time.Since(begun) < 2*time.Minute; troubles++ {
					time.Sleep(time.Duration(1000+rng.IntN(3000)) * time.Millisecond)
					w.trouble(rng)
				}
				cancel()
				clients.Wait()
				w.check()
				t.Logf("%d troubles in %s, %d commands acknowledged", troubles, time.Since(begun), len(w.acked))
				for i := range w.nodes {
					w.stop(i)
				}
			})
		})
	}
}

// TestLongRestoreKeepsTheLeader restores a snapshot that takes every member 20 seconds, in which it answers nobody.
// More than one of them at a time would cost the leader its majority.
func TestLongRestoreKeepsTheLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, time.Minute, func() { time.Sleep(20 * time.Second) })
		w.wire(func(int, int) bool { return true })
		var leader *consensus.Node
		for leader == nil {
			time.Sleep(100 * time.Millisecond)
			leader = w.anyLeader()
		}
		propose(t, leader, "one")
		var file buffer
		if err := leader.SaveSnapshot(context.Background(), &file); err != nil {
			t.Fatal(err)
		}
		propose(t, leader, "two")
		term := leader.Stats().Term
		if err := leader.RestoreSnapshot(context.Background(), file.reader()); err != nil {
			t.Error(err)
		}
		w.acked["one"], w.taken = 1, 1
		w.check()
		same(t, w.fsms[0].all()[:1], []string{"one"})
		if now := leader.Stats().Term; now != term || !leader.IsLeader() {
			t.Errorf("the term is %d, it was %d; leads: %v", now, term, leader.IsLeader())
		}
		for i := range w.nodes {
			w.stop(i)
		}
	})
}
