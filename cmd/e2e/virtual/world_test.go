package virtual_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/poolkeeper"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/lifecycle"
)

const (
	size     = 3 // coordinators
	hosts    = 2
	gateways = 8
	callers  = 12 // organizations
	pool     = id.Pool("default")
)

// world is a cluster in virtual time.
type world struct {
	t      *testing.T
	begun  time.Time
	disks  []*raft.InmemStore // they outlive their coordinators
	dirs   []string
	wires  []*raft.InmemTransport
	agents []*coordtest.Agent
	orgs   []id.Organization

	mu      sync.Mutex
	members []*member       // nil: down; guarded by mu
	slow    []time.Duration // what each disk needs for a write; guarded by mu
}

// member is one coordinator without its edges: what it needs to lead.
type member struct {
	node     *consensus.Node
	store    *state.Store
	runner   *allocator.Runner
	receiver *agentlink.Receiver
	stack    lifecycle.Stack

	mu    sync.Mutex
	reign context.Context // of leading with everything applied; guarded by mu
}

// disk is a disk in memory that can be slow.
type disk struct {
	*raft.InmemStore
	delay func() time.Duration
}

// waitForDisk is what a write takes, in virtual time.
func waitForDisk(d time.Duration) { time.Sleep(d) }

func (d disk) StoreLogs(logs []*raft.Log) error {
	waitForDisk(d.delay())
	return d.InmemStore.StoreLogs(logs)
}
func (d disk) StoreLog(log *raft.Log) error { return d.StoreLogs([]*raft.Log{log}) }
func (disk) IsMonotonic() bool              { return false }
func (disk) Close() error                   { return nil }

// Get answers what is not there with nothing, as the stores on real disks do.
func (d disk) Get(key []byte) ([]byte, error) {
	v, err := d.InmemStore.Get(key)
	if err != nil { // "not found"
		return nil, nil
	}
	return v, nil
}

// GetUint64 does so too.
func (d disk) GetUint64(key []byte) (uint64, error) {
	v, err := d.InmemStore.GetUint64(key)
	if err != nil {
		return 0, nil
	}
	return v, nil
}

// proposer puts commands into the log of a node.
type proposer struct{ node *consensus.Node }

func (p proposer) Propose(ctx context.Context, c command.Command) (command.Result, uint64, error) {
	data, err := command.Encode(c)
	if err != nil {
		return command.Result{}, 0, err
	}
	answer, index, err := p.node.Propose(ctx, data)
	if err != nil {
		return command.Result{}, 0, err
	}
	return answer.(command.Result), index, nil
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, begun: time.Now(), members: make([]*member, size), slow: make([]time.Duration, size)}
	for i := range size {
		w.dirs = append(w.dirs, t.TempDir())
		w.disks = append(w.disks, raft.NewInmemStore())
		w.wires = append(w.wires, nil)
		w.start(i)
	}
	w.wire(func(int, int) bool { return true })
	return w
}

func name(i int) string { return fmt.Sprint("c", i) }

// start starts a coordinator from its disk.
func (w *world) start(i int) {
	w.t.Helper()
	logs := hclog.NewNullLogger()
	m := &member{store: state.New()}
	_, w.wires[i] = raft.NewInmemTransport(raft.ServerAddress(name(i)))
	var peers []consensus.Peer
	for p := range size {
		peers = append(peers, consensus.Peer{ID: name(p), Address: name(p)})
	}
	var err error
	m.node, err = consensus.Open(consensus.Options{
		NodeID: name(i), Dir: w.dirs[i], Transport: w.wires[i], Profile: consensus.ProfileDefault, Bootstrap: true, Peers: peers,
		FSM: fsm.New(m.store, logs), SegmentSize: 64 << 10, SnapshotThreshold: 256, TrailingLogs: 64,
		Fence: func(reason string) { w.t.Errorf("%s fenced itself: %s", name(i), reason) },
		WrapStore: func(s consensus.Store) consensus.Store {
			if err := s.Close(); err != nil { // nothing is in it
				w.t.Error(err)
			}
			return disk{w.disks[i], func() time.Duration { w.mu.Lock(); defer w.mu.Unlock(); return w.slow[i] }}
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	p := proposer{m.node}
	link := agentlink.New(agentlink.Options{
		Store: m.store, Proposer: p, Domain: "example.org", Heartbeat: time.Second, Lease: 10 * time.Second, Logger: logs, Now: time.Now,
	})
	m.runner = allocator.New(allocator.Options{
		Store: m.store, Proposer: p, Verifier: link, Logger: logs, Now: time.Now, RetryAfter: func(id.Pool) time.Duration { return time.Second },
	})
	m.receiver = agentlink.NewReceiver(link, m.runner)
	m.stack.Push("node", m.node.Close)
	m.stack.Go("leader loops", func(ctx context.Context) {
		m.node.RunWhileLeader(ctx, func(ctx context.Context) {
			m.mu.Lock()
			m.reign = ctx
			m.mu.Unlock()
			var loops lifecycle.Stack
			loops.Go("allocator", m.runner.Run)
			loops.Go("pool keeper", poolkeeper.New(poolkeeper.Options{Store: m.store, Proposer: p, Logger: logs, Now: time.Now}).Run)
			<-ctx.Done()
			_ = loops.Stop(context.Background()) // all of them end with their context
		})
	})
	w.mu.Lock()
	w.members[i] = m
	w.mu.Unlock()
}

// stop ends a coordinator. What it had not written is lost, as its memory is.
func (w *world) stop(i int) {
	w.t.Helper()
	w.mu.Lock()
	m := w.members[i]
	w.members[i] = nil
	w.mu.Unlock()
	if m == nil {
		return
	}
	if err := m.stack.Stop(context.Background()); err != nil {
		w.t.Error(err)
	}
}

// wire connects exactly the pairs that the function allows, in each direction by itself.
func (w *world) wire(allowed func(from, to int) bool) {
	for from := range size {
		for to := range size {
			w.wires[from].Disconnect(raft.ServerAddress(name(to)))
			if from != to && allowed(from, to) {
				w.wires[from].Connect(raft.ServerAddress(name(to)), w.wires[to])
			}
		}
	}
}

// member is the i-th coordinator, or nil while it is down.
func (w *world) member(i int) *member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.members[i]
}

// reigning is the context of the member's leadership; ok is false when it does not lead.
func (m *member) reigning() (context.Context, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reign, m.reign != nil && m.reign.Err() == nil && m.node.IsLeader()
}

// asLeader calls f with a coordinator that leads, or takes itself for the leader, beginning with the i-th. The call
// ends when it leads no more.
func (w *world) asLeader(ctx context.Context, i int, f func(context.Context, *member) error) error {
	for n := range size {
		m := w.member((i + n) % size)
		if m == nil {
			continue
		}
		if reign, ok := m.reigning(); ok {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(reign, cancel)()
			return f(ctx, m)
		}
	}
	return fault.New(fault.NoLeader, "nobody leads")
}

// AgentStream implements coordtest.Coordinator.
func (w *world) AgentStream(ctx context.Context, host, instance string, fn func(api.AssignmentFrame) error) error {
	return w.asLeader(ctx, rand.IntN(size), func(ctx context.Context, m *member) error {
		return m.receiver.Stream(ctx, id.Host(host), instance, "virtual", fn)
	})
}

// Observe implements coordtest.Coordinator.
func (w *world) Observe(ctx context.Context, in api.Observation, _ ...client.CallOption) (api.Observed, error) {
	var out api.Observed
	err := w.asLeader(ctx, rand.IntN(size), func(ctx context.Context, m *member) error {
		_, err := m.receiver.Observe(ctx, id.Host(in.HostID), in)
		return err
	})
	return out, err
}
