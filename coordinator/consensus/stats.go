package consensus

import (
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Stats is a picture of the node for status pages and metrics.
type Stats struct {
	State         string // Follower, Candidate, Leader or Shutdown
	Term          uint64
	LastIndex     uint64 // newest entry in the log
	CommitIndex   uint64
	AppliedIndex  uint64
	SnapshotIndex uint64 // newest snapshot on this node's disk; 0: none
	LeaderID      string // "" when unknown
	LeaderAddress string
	Peers         []Peer        // the members, this node included
	LastContact   time.Duration // since the leader was last heard of; 0 on the leader, -1: never
	Fenced        bool
}

// Stats reports the node's present state. It never waits for the disk or the network.
func (n *Node) Stats() Stats {
	s := Stats{
		State: n.raft.State().String(), Term: n.raft.CurrentTerm(), LastIndex: n.raft.LastIndex(),
		CommitIndex: n.raft.CommitIndex(), AppliedIndex: n.raft.AppliedIndex(),
		Peers: n.peers(), LastContact: -1, Fenced: n.guard.isFenced(),
	}
	s.LeaderID, s.LeaderAddress = n.Leader()
	s.SnapshotIndex, _ = strconv.ParseUint(n.raft.Stats()["last_snapshot_index"], 10, 64)
	if at := n.raft.LastContact(); n.IsLeader() {
		s.LastContact = 0
	} else if !at.IsZero() {
		s.LastContact = time.Since(at)
	}
	return s
}

func (n *Node) peers() []Peer {
	f := n.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	var out []Peer
	for _, s := range f.Configuration().Servers {
		out = append(out, Peer{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out
}

// FsyncStats gives the median and the 99th percentile of the latest log writes, sync included, and how
// many there were since the start.
func (n *Node) FsyncStats() (p50, p99 time.Duration, count uint64) { return n.guard.took.quantiles() }

// SnapshotsSent is how many snapshots this node has begun to send to each of the others since it started. One that is sent
// snapshots without end is caught in a known loop of the library, or loses what it gets.
func (n *Node) SnapshotsSent() map[string]uint64 { return n.transport.snapshots() }

// unreachedAfter is how long a member may not take the log before that is worth a word: an election, a restart and a
// short stall are over by then.
const unreachedAfter = 3 * time.Second

// Unreached are the members that do not take the log from this node, which leads, with what its latest try met. Such a
// member may run and be seen alive by the gossip, and still counts for no majority.
func (n *Node) Unreached() map[string]error {
	if !n.IsLeader() {
		return nil
	}
	return n.transport.reach.longer(unreachedAfter, time.Now())
}

// latencies keeps the latest samples.
type latencies struct {
	mu      sync.Mutex
	samples [1024]time.Duration // a ring; sample i is at i mod its length
	count   uint64
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	l.samples[l.count%uint64(len(l.samples))] = d
	l.count++
	l.mu.Unlock()
}

func (l *latencies) quantiles() (p50, p99 time.Duration, count uint64) {
	l.mu.Lock()
	latest := slices.Clone(l.samples[:min(l.count, uint64(len(l.samples)))])
	count = l.count
	l.mu.Unlock()
	if len(latest) == 0 {
		return 0, 0, 0
	}
	slices.Sort(latest)
	return latest[len(latest)/2], latest[len(latest)*99/100], count
}
