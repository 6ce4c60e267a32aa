package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// member is one node of a test cluster on loopback.
type member struct {
	*consensus.Node
	opts  consensus.Options
	state *ledger
	fence fenceCount
}

// cluster starts count nodes that begin a cluster together.
func cluster(t *testing.T, count int, change func(i int, o *consensus.Options)) []*member {
	t.Helper()
	members := make([]*member, count)
	var peers []consensus.Peer
	for i := range members {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		m := &member{state: &ledger{}}
		m.opts = options(t.TempDir(), m.state)
		m.opts.NodeID, m.opts.Listen, m.opts.Listener = fmt.Sprintf("c%d", i+1), "", l
		m.opts.Profile = consensus.ProfileDefault
		m.opts.Fence = m.fence.fn
		members[i] = m
		peers = append(peers, consensus.Peer{ID: m.opts.NodeID, Address: l.Addr().String()})
	}
	for i, m := range members {
		m.opts.Peers = peers
		if change != nil {
			change(i, &m.opts)
		}
		m.Node = open(t, m.opts)
	}
	return members
}

// leader waits for one of the members to lead with everything applied.
func leader(t *testing.T, members []*member) *member {
	t.Helper()
	var found *member
	eventually(t, "a member leads", func() bool {
		for _, m := range members {
			if m.IsLeader() && m.VerifyLeader(within(t)) == nil && m.Barrier(within(t)) == nil {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func without(members []*member, gone *member) []*member {
	var rest []*member
	for _, m := range members {
		if m != gone {
			rest = append(rest, m)
		}
	}
	return rest
}

// settle proposes until it is taken for sure and waits until every member has it.
func settle(t *testing.T, members []*member, line string) {
	t.Helper()
	eventually(t, "a proposal is taken", func() bool {
		_, _, err := leader(t, members).Propose(within(t), []byte(line))
		return err == nil
	})
	eventually(t, "all members have applied it", func() bool {
		want := members[0].state.all()
		for _, m := range members {
			got := m.state.all()
			if len(got) != len(want) || len(got) == 0 || got[len(got)-1] != line {
				return false
			}
		}
		return true
	})
	for _, m := range members {
		same(t, m.state.all(), members[0].state.all())
	}
}

func TestThreeNodesLoseTheirLeader(t *testing.T) {
	t.Parallel()
	members := cluster(t, 3, nil)
	// Leader work of each member: begun, ended, running now.
	type work struct{ begun, ended, running atomic.Int32 }
	works := map[*member]*work{}
	for _, m := range members {
		w := &work{}
		works[m] = w
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { // waited for by the clean-up
			defer close(done)
			m.RunWhileLeader(ctx, func(ctx context.Context) {
				w.begun.Add(1)
				if w.running.Add(1) != 1 {
					t.Error("leader work ran twice at a time on one node")
				}
				<-ctx.Done()
				w.running.Add(-1)
				w.ended.Add(1)
			})
		}()
		t.Cleanup(func() { stop(); <-done })
	}
	first := leader(t, members)
	eventually(t, "leader work begins", func() bool { return works[first].running.Load() == 1 })
	settle(t, members, "one")

	follower := without(members, first)[0]
	_, _, err := follower.Propose(within(t), []byte("x"))
	if !fault.Is(err, fault.NoLeader) || fault.From(err).RetryAfter <= 0 || errors.Is(err, consensus.ErrUnknown) {
		t.Errorf("a proposal on a follower: %v", err)
	}
	if err := follower.Barrier(within(t)); !fault.Is(err, fault.NoLeader) {
		t.Errorf("a barrier on a follower: %v", err)
	}
	if err := follower.AddVoter(within(t), "c9", "127.0.0.1:1"); !fault.Is(err, fault.NoLeader) {
		t.Errorf("a new member on a follower: %v", err)
	}
	eventually(t, "the follower knows the leader", func() bool {
		id, address := follower.Leader()
		return id == first.opts.NodeID && address == first.Address()
	})

	shut(t, first.Node)
	if w := works[first]; w.running.Load() != 0 || w.begun.Load() != w.ended.Load() {
		t.Error("leader work ran on after the node was closed")
	}
	rest := without(members, first)
	second := leader(t, rest)
	eventually(t, "leader work begins again", func() bool { return works[second].running.Load() == 1 })
	settle(t, rest, "two")

	again := &member{opts: first.opts, state: &ledger{}}
	again.opts.FSM, again.opts.Listener, again.opts.Listen = again.state, nil, first.Address()
	again.Node = open(t, again.opts)
	settle(t, append(rest, again), "three")
	same(t, again.state.all(), []string{"one", "two", "three"})
}

func TestTransferLeadership(t *testing.T) {
	t.Parallel()
	told := make([]atomic.Int32, 3)
	members := cluster(t, 3, func(i int, o *consensus.Options) { o.LeaderChanged = func() { told[i].Add(1) } })
	first := leader(t, members)
	settle(t, members, "one")
	target := without(members, first)[1]
	var before [3]int32
	for i := range told {
		before[i] = told[i].Load()
	}
	eventually(t, "leadership is transferred", func() bool {
		return target.IsLeader() || leader(t, members).TransferLeadership(within(t), target.opts.NodeID) == nil
	})
	settle(t, members, "two")
	eventually(t, "every member is told of the change", func() bool {
		return told[0].Load() > before[0] && told[1].Load() > before[1] && told[2].Load() > before[2]
	})
	if err := leader(t, members).TransferLeadership(within(t), "c9"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a transfer to nobody: %v", err)
	}
}

func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	members := cluster(t, 1, nil)
	first := members[0]
	leads(t, first.Node)
	proposeMany(t, first.Node, "old", 10)
	if err := first.RemovePeer(within(t), "c1"); !fault.Is(err, fault.Conflict) {
		t.Errorf("removing the last member: %v", err)
	}
	if err := first.TransferLeadership(within(t), ""); !fault.Is(err, fault.Conflict) {
		t.Errorf("a transfer without others: %v", err)
	}
	// The second member joins through a snapshot, for the log before it is gone.
	if err := first.Snapshot(within(t)); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"c2", "c3"} {
		m := &member{state: &ledger{}}
		m.opts = options(t.TempDir(), m.state)
		m.opts.NodeID, m.opts.Bootstrap, m.opts.Profile = id, false, consensus.ProfileDefault
		m.Node = open(t, m.opts)
		for range 2 { // the second time changes nothing
			if err := first.AddVoter(within(t), id, m.Address()); err != nil {
				t.Fatal(err)
			}
		}
		if err := first.AddVoter(within(t), "c9", m.Address()); !fault.Is(err, fault.Conflict) {
			t.Errorf("a second member at one address: %v", err)
		}
		members = append(members, m)
	}
	settle(t, members, "three of us")

	if err := leader(t, members).RemovePeer(within(t), "c2"); err != nil {
		t.Fatal(err)
	}
	rest := without(members, members[1])
	settle(t, rest, "two of us")
	if peers := leader(t, rest).Stats().Peers; len(peers) != 2 {
		t.Errorf("peers are %+v", peers)
	}
	// The leader may remove itself; the other one goes on alone.
	last := leader(t, rest)
	if err := last.RemovePeer(within(t), last.opts.NodeID); err != nil {
		t.Fatal(err)
	}
	settle(t, without(rest, last), "alone")
}

// TestRestoreReachesFollowers restores on the leader of three; the others get the state from it.
func TestRestoreReachesFollowers(t *testing.T) {
	t.Parallel()
	members := cluster(t, 3, nil)
	settle(t, members, "one")
	var file buffer
	lead := leader(t, members)
	if err := lead.SaveSnapshot(within(t), &file); err != nil {
		t.Fatal(err)
	}
	settle(t, members, "two")
	follower := without(members, leader(t, members))[0]
	if err := follower.RestoreSnapshot(within(t), file.reader()); !fault.Is(err, fault.NoLeader) {
		t.Errorf("a restore on a follower: %v", err)
	}
	if err := leader(t, members).RestoreSnapshot(within(t), file.reader()); err != nil {
		t.Fatal(err)
	}
	settle(t, members, "three")
	same(t, members[0].state.all(), []string{"one", "three"})
}
