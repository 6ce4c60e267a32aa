package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
	"github.com/hashicorp/raft"
)

const (
	canaryInterval = time.Second
	barrierRetry   = 100 * time.Millisecond
)

// leadership tells the times when this node leads apart, so that work begun in one never runs on in the next.
type leadership struct {
	mu      sync.Mutex
	current *reign        // nil while this node does not lead
	changed chan struct{} // closed and replaced when current changes
	ended   bool
}

// reign is one uninterrupted time of leading.
type reign struct {
	ctx    context.Context
	cancel context.CancelFunc
}

func newLeadership() *leadership { return &leadership{changed: make(chan struct{})} }

// follow takes the library's notifications, which come in order and without gaps.
func (l *leadership) follow(ctx context.Context, notify <-chan bool) {
	for {
		select {
		case leads := <-notify:
			l.set(leads)
		case <-ctx.Done():
			return
		}
	}
}

func (l *leadership) set(leads bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	if l.current != nil {
		l.current.cancel()
		l.current = nil
	}
	if leads {
		ctx, cancel := context.WithCancel(context.Background())
		l.current = &reign{ctx, cancel}
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// end is the last change: the node closes.
func (l *leadership) end() {
	l.set(false)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
}

func (l *leadership) now() (r *reign, ended bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current, l.ended, l.changed
}

// next waits for a reign other than last; nil when ctx or the node has ended.
func (l *leadership) next(ctx context.Context, last *reign) *reign {
	for {
		r, ended, changed := l.now()
		if ended || ctx.Err() != nil {
			return nil
		}
		if r != nil && r != last {
			return r
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// RunWhileLeader calls fn each time this node comes to lead, once everything committed before is applied
// here. The context of fn ends when leadership does; fn is waited for before it is called again, so at
// most one call runs. An fn that returns early is not called again until the next time. RunWhileLeader
// returns when ctx ends or the node closes, after fn.
func (n *Node) RunWhileLeader(ctx context.Context, fn func(ctx context.Context)) {
	var last *reign
	for {
		r := n.lead.next(ctx, last)
		if r == nil {
			return
		}
		last = r
		n.run(ctx, r, fn)
	}
}

func (n *Node) run(ctx context.Context, r *reign, fn func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(r.ctx, cancel)
	defer stop()
	for {
		err := n.Barrier(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			fn(ctx)
			return
		}
		n.log.Warn("cannot begin leader work yet", "error", err)
		if !sleep.For(ctx, barrierRetry) {
			return
		}
	}
}

// IsLeader reports whether this node believes that it leads. Another may lead already: VerifyLeader asks.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader && !n.guard.isFenced() }

// Leader names the leader this node knows; empty when it knows none.
func (n *Node) Leader() (id, address string) {
	a, i := n.raft.LeaderWithID()
	return string(i), string(a)
}

// tellLeader passes the library's word on.
func (n *Node) tellLeader(ctx context.Context, changes <-chan raft.Observation) {
	for {
		select {
		case <-changes:
			n.opts.LeaderChanged()
		case <-ctx.Done():
			return
		}
	}
}

// AppliedIndex is the newest entry handed to the FSM, which may still be applying it. What the FSM's
// state contains, the state itself tells by its own index; Barrier waits for it.
func (n *Node) AppliedIndex() uint64 { return n.raft.AppliedIndex() }

// canary makes an idle leader write, so that a disk which hangs is found though nobody asks for anything.
// A barrier goes through the log like a command and leaves nothing in the state.
func (n *Node) canary(ctx context.Context) {
	tick := time.NewTicker(canaryInterval)
	defer tick.Stop()
	before := n.guard.storedCount()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := n.guard.storedCount()
		if now == before && n.IsLeader() {
			if err := n.Barrier(ctx); err != nil && ctx.Err() == nil {
				n.log.Warn("cannot write the idle leader's test entry", "error", err)
			}
			now = n.guard.storedCount()
		}
		before = now
	}
}
