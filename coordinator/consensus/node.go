// Package consensus runs the coordinator's Raft node: it proposes bytes, tells when they are applied, runs
// leader work, and keeps the log on a disk that it distrusts. It knows nothing of what the bytes mean: the
// state machine is given to it.
//
// The Raft library has open bugs; DESIGN.md lists them with the answer this package gives to each.
package consensus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/segment"

	"github.com/demiurge-platform/demiurge/shared/lifecycle"
)

const (
	// maxBatch bounds one log write, one message to a follower and one FSM batch, in entries.
	maxBatch        = 256
	cachedEntries   = 1024 // newest entries kept in memory for followers that are nearly up to date
	retainSnapshots = 2
	notifications   = 16 // leadership changes that may wait for the watcher
)

// Node is one member of the Raft cluster. Open makes it and Close ends it.
type Node struct {
	opts      Options
	log       hclog.Logger
	dir       *dataDir
	guard     *guard
	transport *ordered
	snaps     *raft.FileSnapshotStore
	raft      *raft.Raft
	lead      *leadership
	gather    gatherer
	roomNow   atomic.Pointer[Room]
	stack     lifecycle.Stack // what Open started; stopped by Close

	// mu guards closing; it is held while pending rises, so that Close cannot begin to wait in between.
	mu      sync.Mutex
	closing bool
	pending sync.WaitGroup // calls into the library that have not been answered
	stuck   bool           // the library did not stop: the log store is still in use. Written by Close only
	once    sync.Once
	closed  error
}

// Open starts the node on its directory. With Bootstrap and an empty directory it begins a new cluster.
// It refuses a directory that it cannot write to, that another process holds, that belongs to another
// node or format, or whose log is damaged; the error says what to do.
func Open(opts Options) (*Node, error) {
	if err := opts.normalize(); err != nil {
		return nil, err
	}
	n := &Node{opts: opts, log: opts.Logger.Named("raft"), lead: newLeadership()}
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.stack.Stop(context.Background()))
	}
	n.log.Info("raft node is open", "node", opts.NodeID, "address", n.Address(), "profile", string(opts.Profile), "term", n.raft.CurrentTerm(), "last_index", n.raft.LastIndex())
	return n, nil
}

func (n *Node) open() error {
	// Two log files: the one in use and the next one, allocated before the first is given up.
	dir, err := openDir(n.opts.Dir, n.opts.NodeID, 2*uint64(n.opts.SegmentSize), n.opts.WriteTimeout)
	if err != nil {
		if n.opts.Listener != nil {
			err = errors.Join(err, n.opts.Listener.Close())
		}
		return err
	}
	n.dir = dir
	n.roomNow.Store(&Room{})
	n.measure()
	n.stack.PushClose("data directory", n.releaseDir)
	if err := n.openTransport(); err != nil {
		return err
	}
	if err := n.openStore(); err != nil {
		return err
	}
	return n.startRaft()
}

func (n *Node) openTransport() error {
	t, err := newTransport(&n.opts)
	if err != nil {
		return err
	}
	if n.transport, err = newOrdered(t, n.log); err != nil {
		return err
	}
	n.stack.PushClose("raft transport", n.transport.Close)
	return nil
}

func (n *Node) openStore() error {
	path := filepath.Join(n.dir.path, walDir)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return n.dir.refused("cannot make the log directory in", err)
	}
	for _, left := range []string{restoreFile + "*", filepath.Join(walDir, spareFile)} {
		if err := n.dir.sweep(left); err != nil {
			return err
		}
	}
	did, err := finishRotation(path)
	if err != nil {
		return fmt.Errorf("cannot open the log in %s: %w; %s", path, err, remedyDamaged)
	}
	if did != "" {
		n.log.Warn("finished an interrupted change of log files", "change", did)
	}
	next := newSpare(filepath.Join(path, spareFile), n.opts.SegmentSize, func() bool { return n.Room().Low }, n.log)
	files := segment.NewFiler(path, &logFiles{FS: walfs.New(), spare: next, syncs: realSyncs})
	var store Store
	store, err = wal.Open(path, wal.WithSegmentSize(n.opts.SegmentSize), wal.WithSegmentFiler(files), wal.WithLogger(n.log.Named("wal")))
	if err != nil {
		return fmt.Errorf("cannot open the log in %s: %w; %s", path, err, remedyDamaged)
	}
	if n.opts.WrapStore != nil {
		store = n.opts.WrapStore(store)
	}
	n.guard = newGuard(store, n.opts.WriteTimeout, n.fence)
	n.stack.PushClose("log store", n.closeStore)
	n.stack.Go("next log file", next.run)
	n.stack.Go("disk watchdog", func(ctx context.Context) { n.guard.watch(ctx.Done()) })
	if err := n.guard.scan(); err != nil {
		return fmt.Errorf("cannot use the log in %s: %w", path, err)
	}
	if _, _, err := (&stable{guard: n.guard}).lastVote(); err != nil { // the library would only write it to its log, and never vote
		return fmt.Errorf("cannot use the log in %s: %w", path, err)
	}
	if err := n.checkMark(); err != nil {
		return fmt.Errorf("cannot use the log in %s: %w", path, err)
	}
	n.snaps, err = raft.NewFileSnapshotStoreWithLogger(n.dir.path, retainSnapshots, n.log.Named("snapshot"))
	if err != nil {
		return n.dir.refused("cannot use the snapshots in the data directory", err)
	}
	return nil
}

func (n *Node) startRaft() error {
	logs, err := raft.NewLogCache(cachedEntries, n.guard)
	if err != nil {
		return fmt.Errorf("cannot make the log cache: %w", err)
	}
	notify := make(chan bool, notifications)
	conf, err := n.config(notify)
	if err != nil {
		return err
	}
	state := &stable{guard: n.guard}
	if n.opts.Bootstrap {
		if err := n.bootstrap(conf, logs, state); err != nil {
			return err
		}
	}
	n.raft, err = raft.NewRaft(conf, n.opts.FSM, logs, state, labelledSnapshots{pacedSnapshots{n.snaps, n.dir.path}}, n.transport)
	if err != nil {
		return fmt.Errorf("cannot start the Raft node on %s: %w; %s", n.dir.path, err, remedyDamaged)
	}
	n.stack.Push("raft", n.stopRaft)
	n.stack.Go("leadership", func(ctx context.Context) { n.lead.follow(ctx, notify) })
	changes := make(chan raft.Observation, 1) // one that waits stands for those after it
	n.raft.RegisterObserver(raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		_, leader := o.Data.(raft.LeaderObservation)
		return leader
	}))
	n.stack.Go("leader", func(ctx context.Context) { n.tellLeader(ctx, changes) })
	n.stack.Go("canary", n.canary)
	n.stack.Go("room", n.watchRoom)
	return nil
}

func (n *Node) config(notify chan<- bool) (*raft.Config, error) {
	heartbeat, election, lease, err := n.opts.Profile.timers()
	if err != nil {
		return nil, err
	}
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(n.opts.NodeID)
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = heartbeat, election, lease
	conf.MaxAppendEntries = maxBatch
	conf.BatchApplyCh = true
	conf.SnapshotThreshold = n.opts.SnapshotThreshold
	conf.TrailingLogs = n.opts.TrailingLogs
	conf.ShutdownOnRemove = false // a removed member idles until its operator stops it
	conf.NoLegacyTelemetry = true
	conf.NotifyCh = notify
	conf.Logger = n.log
	return conf, nil
}

// bootstrap writes the first configuration into an empty directory. Each of several first members may do
// so with the same list; a crash before it is finished leaves a directory that is still empty.
func (n *Node) bootstrap(conf *raft.Config, logs raft.LogStore, state raft.StableStore) error {
	exists, err := raft.HasExistingState(logs, state, n.snaps)
	if err != nil {
		return fmt.Errorf("cannot find out whether %s holds a cluster: %w", n.dir.path, err)
	}
	if exists {
		return nil
	}
	peers := n.opts.Peers
	if len(peers) == 0 {
		peers = []Peer{{ID: n.opts.NodeID, Address: n.Address()}}
	}
	if len(peers)%2 == 0 {
		n.log.Warn("an even number of coordinators survives no more failures than one fewer", "coordinators", len(peers))
	}
	var first raft.Configuration
	for _, p := range peers {
		first.Servers = append(first.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Address),
		})
	}
	if err := raft.BootstrapCluster(conf, logs, state, n.snaps, n.transport, first); err != nil {
		return fmt.Errorf("cannot begin a new cluster in %s: %w", n.dir.path, err)
	}
	return nil
}

// Address is where the other members reach this node.
func (n *Node) Address() string { return string(n.transport.LocalAddr()) }

// fence cuts the node off: the others stop hearing a leader that cannot write, and elect another.
func (n *Node) fence(reason string) {
	if err := n.transport.Close(); err != nil {
		n.log.Error("cannot close the raft transport", "error", err)
	}
	n.lead.set(false)
	n.log.Error("node fenced itself; it must be restarted", "reason", reason)
	if n.opts.Fence != nil {
		go n.opts.Fence(reason) // nobody waits for it: it is meant to end the process
	}
}

// Close ends leader work, waits for calls in flight, and stops the node. When ctx ends first, or the disk
// is stalled, it returns an error, and the process should exit: the directory stays locked until then.
func (n *Node) Close(ctx context.Context) error {
	n.once.Do(func() {
		n.mu.Lock()
		n.closing = true
		n.mu.Unlock()
		n.lead.end()
		// The library forgets calls that it has not answered when it stops, so they are waited for first.
		n.closed = errors.Join(n.drain(ctx), n.stack.Stop(ctx))
	})
	return n.closed
}

func (n *Node) drain(ctx context.Context) error {
	n.guard.letGo()
	return wait(ctx, "calls in flight", n.pending.Wait)
}

func (n *Node) stopRaft(ctx context.Context) error {
	n.guard.letGo()
	stopping := n.raft.Shutdown()
	var failed error
	err := wait(ctx, "the Raft library", func() { failed = stopping.Error() })
	if err != nil {
		n.stuck = true
		return err
	}
	return failed
}

func (n *Node) closeStore() error {
	if n.stuck {
		return nil // a write in it may never return
	}
	if n.raft == nil || n.guard.isFenced() {
		return n.guard.Close()
	}
	return errors.Join(n.setMark(), n.guard.Close())
}

func (n *Node) releaseDir() error {
	if n.stuck {
		return nil
	}
	return n.dir.release()
}

// wait runs fn until ctx ends. A fn that outlives ctx ends with what it waits for, or with the process.
func wait(ctx context.Context, what string, fn func()) error {
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		fn()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot wait longer for %s: %w", what, ctx.Err())
	}
}
