package autopilot

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Node is this coordinator's Raft node.
type Node interface {
	// Empty reports whether it never was in a cluster.
	Empty() bool
	Found(ctx context.Context, voters []Peer) error
	Peers() []Peer
	AddNonvoter(ctx context.Context, id, address string) error
	AddVoter(ctx context.Context, id, address string) error
	RemovePeer(ctx context.Context, id string) error
}

// Gossip is what the gossip says of the coordinators.
type Gossip interface {
	// Seen lists them, this one too, with a channel that is closed when the list has changed.
	Seen() (seen []Candidate, changed <-chan struct{})
}

// Options of both loops. All are needed; Rules for the Pilot only.
type Options struct {
	Self   Candidate // ID, Address and Expect
	Node   Node
	Gossip Gossip
	Rules  Rules
	Logger hclog.Logger
	Now    func() time.Time
}

// look is how often the loops look though nothing changed: the rules depend on time.
const look = time.Second

// RunFormer waits until all first members of a new cluster are there and begins it, and returns. It
// returns at once when there is nothing to form here.
func RunFormer(ctx context.Context, o Options) {
	for ctx.Err() == nil && o.Self.Expect > 0 && o.Node.Empty() {
		seen, changed := o.Gossip.Seen()
		self := o.Self
		self.Empty = true
		members := Form(self, seen)
		if members == nil {
			wait(ctx, changed)
			continue
		}
		if err := o.Node.Found(ctx, members); err != nil && ctx.Err() == nil {
			o.Logger.Warn("cannot begin the cluster yet", "error", err)
			wait(ctx, nil)
			continue
		}
		names := make([]string, len(members))
		for i, m := range members {
			names[i] = m.ID
		}
		o.Logger.Info("a new cluster begins", "coordinators", names)
	}
}

// RunPilot keeps the members as Plan says, while this coordinator leads.
func RunPilot(ctx context.Context, o Options) {
	for ctx.Err() == nil {
		seen, changed := o.Gossip.Seen()
		a := Plan(o.Self.ID, o.Node.Peers(), seen, o.Now(), o.Rules)
		if a == nil {
			wait(ctx, changed)
			continue
		}
		var err error
		switch a.Do {
		case Add:
			err = o.Node.AddNonvoter(ctx, a.Peer.ID, a.Peer.Address)
		case Promote:
			err = o.Node.AddVoter(ctx, a.Peer.ID, a.Peer.Address)
		case Remove:
			err = o.Node.RemovePeer(ctx, a.Peer.ID)
		}
		if err != nil {
			o.Logger.Warn("cannot change the coordinators now", "action", a.Do, "coordinator", a.Peer.ID, "reason", a.Reason, "error", err)
			wait(ctx, nil)
			continue
		}
		o.Logger.Info("the coordinators changed", "action", a.Do, "coordinator", a.Peer.ID, "address", a.Peer.Address, "reason", a.Reason)
	}
}

func wait(ctx context.Context, changed <-chan struct{}) {
	timer := time.NewTimer(look)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-timer.C:
	}
}
