package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Each group of entries costs every member a log write, and the leader and its followers a message each way, however
// few entries it has. The library makes a group of what came during the write before, which on a quick disk is one
// entry or two: half of what an entry costs three coordinators on shared cores is then its group's. So while at least
// fewInFlight entries are on their way, those that come wait, and go together when all that waited before have been
// joined by as many as were answered since, who may be the same callers again. Nothing waits longer than gatherFor,
// and nothing waits where few propose, however quickly one entry follows the other.
const (
	fewInFlight = 4
	gatherFor   = 4 * time.Millisecond
)

// proposal is a command on its way into the log.
type proposal struct {
	data   []byte
	done   chan error // has the outcome once it is known; it has room for it
	result any        // valid when the outcome is nil
	index  uint64     // the same
}

// gatherer makes groups of proposals.
type gatherer struct {
	mu       sync.Mutex
	inFlight int         // proposals in the library; guarded by mu
	waiting  []*proposal // the next group; guarded by mu
	timer    *time.Timer // proposes the next group at the latest; set while waiting is not empty; guarded by mu
	enough   int         // of waiting for a group, once fewer than fewInFlight are on their way; guarded by mu
	ended    time.Time   // when the latest group was over; guarded by mu
}

// join takes a proposal in and gives the group that is to be proposed now, if it makes one complete. Else overdue is
// called in time, which takes it.
func (g *gatherer) join(p *proposal, now time.Time, overdue func()) (group []*proposal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, p)
	if g.readyLocked(now) {
		return g.takeLocked()
	}
	if g.timer == nil {
		g.timer = time.AfterFunc(gatherFor, overdue)
	}
	return nil
}

// readyLocked reports whether those that wait go now.
func (g *gatherer) readyLocked(now time.Time) bool {
	if g.inFlight >= fewInFlight {
		return false
	}
	return len(g.waiting) >= g.enough || now.Sub(g.ended) >= gatherFor
}

// take gives the next group, to be proposed now.
func (g *gatherer) take() []*proposal {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.takeLocked()
}

func (g *gatherer) takeLocked() []*proposal {
	group := g.waiting
	g.inFlight += len(group)
	g.waiting = nil
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	return group
}

// over notes that a group of so many has its outcome.
func (g *gatherer) over(size int, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inFlight, g.enough, g.ended = g.inFlight-size, len(g.waiting)+size, now
}

// submit proposes a command, alone or with others, and waits for its outcome, or until ctx ends or the node fences
// itself. Close waits for those that nobody waits for any more.
func (n *Node) submit(ctx context.Context, p *proposal) error {
	if err := n.begin(); err != nil {
		return err
	}
	if group := n.gather.join(p, time.Now(), func() { n.propose(n.gather.take()) }); group != nil {
		go n.propose(group) // waited for by Close, as the timer is
	}
	return n.outcome(ctx, p.done)
}

// propose puts a group into the log, where it stays together unless it is larger than the library's groups, and hands
// out the outcomes, which come in the same order.
func (n *Node) propose(group []*proposal) {
	futures := make([]raft.ApplyFuture, len(group))
	for i, p := range group {
		futures[i] = n.raft.Apply(p.data, n.opts.WriteTimeout)
	}
	for i, p := range group {
		err := futures[i].Error()
		if err == nil {
			p.result, p.index = futures[i].Response(), futures[i].Index()
		}
		if i == len(group)-1 {
			n.gather.over(len(group), time.Now()) // before a caller can come back
		}
		p.done <- err
		n.pending.Done()
	}
}
