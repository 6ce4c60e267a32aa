package consensus

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// AddVoter makes a node a voting member, or changes the address of one. Only the leader can. The new node
// must be running, empty, and opened without Bootstrap.
func (n *Node) AddVoter(ctx context.Context, id, address string) error {
	if id == "" || address == "" {
		return fault.New(fault.InvalidRequest, "cannot add coordinator %q at %q: it needs an id and an address", id, address)
	}
	for _, p := range n.peers() {
		if p.Address == address && p.ID != id {
			return fault.New(fault.Conflict, "cannot add coordinator %q: %q has its address %s", id, p.ID, address)
		}
		if p.ID == id && p.Address == address && p.Voter {
			return nil
		}
	}
	return n.asLeader(ctx, "add coordinator "+id, func() error {
		return n.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, n.opts.WriteTimeout).Error()
	})
}

// AddNonvoter makes a node a member that gets the log and does not vote, or changes the address of one.
// Only the leader can. A voter stays one.
func (n *Node) AddNonvoter(ctx context.Context, id, address string) error {
	return n.asLeader(ctx, "add coordinator "+id, func() error {
		return n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, n.opts.WriteTimeout).Error()
	})
}

// Found begins a new cluster with these voters. Each of them must be told the same list. A node that has
// a log already refuses.
func (n *Node) Found(ctx context.Context, voters []Peer) error {
	var first raft.Configuration
	for _, p := range voters {
		first.Servers = append(first.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Address)})
	}
	return n.await(ctx, func() error { return n.raft.BootstrapCluster(first).Error() })
}

// Empty reports whether this node never was in a cluster.
func (n *Node) Empty() bool { return n.raft.LastIndex() == 0 && len(n.peers()) == 0 }

// RemovePeer takes a node out of the cluster. Only the leader can; it may remove itself unless it is the
// last one. Removing a node that is no member succeeds.
func (n *Node) RemovePeer(ctx context.Context, id string) error {
	peers := n.peers()
	if len(peers) == 1 && peers[0].ID == id {
		return fault.New(fault.Conflict, "cannot remove coordinator %q: it is the last one", id)
	}
	return n.asLeader(ctx, "remove coordinator "+id, func() error {
		return n.raft.RemoveServer(raft.ServerID(id), 0, n.opts.WriteTimeout).Error()
	})
}

// TransferLeadership makes another member lead: the given one, or with "" the one that is most up to date.
// Proposals are refused with no_leader meanwhile.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	peers := n.peers()
	if len(peers) < 2 {
		return fault.New(fault.Conflict, "cannot transfer leadership: there is no other coordinator")
	}
	if id == "" {
		return n.asLeader(ctx, "transfer leadership", func() error { return n.raft.LeadershipTransfer().Error() })
	}
	for _, p := range peers {
		if p.ID == id {
			return n.asLeader(ctx, "transfer leadership to "+id, func() error {
				return n.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(p.Address)).Error()
			})
		}
	}
	return fault.New(fault.NotFound, "cannot transfer leadership: there is no coordinator %q", id)
}

// Snapshot writes a snapshot of the FSM to this node's disk, so that the log before it can go. It does
// nothing when there is nothing new.
func (n *Node) Snapshot(ctx context.Context) error {
	err := n.await(ctx, func() error { return n.raft.Snapshot().Error() })
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}
