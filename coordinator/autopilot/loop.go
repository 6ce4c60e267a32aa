package autopilot

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
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
	// Meet returns nil when the coordinator of an id is at an address, by what it proves over mutual TLS. For the Pilot
	// only.
	Meet   func(ctx context.Context, id, address string) error
	Rules  Rules
	Logger hclog.Logger
	Now    func() time.Time
}

// look is how often the loops look though nothing changed: the rules depend on time.
const look = time.Second

// again is how often the log says for whom the beginning waits, while nothing about it changes.
const again = time.Minute

// RunFormer waits until all first members of a new cluster are there and begins it, and returns. It
// returns at once when there is nothing to form here. For whom it waits is in the log.
func RunFormer(ctx context.Context, o Options) {
	var told string // for whom it waits, as last said
	var at time.Time
	for ctx.Err() == nil && o.Self.Expect > 0 && o.Node.Empty() {
		seen, changed := o.Gossip.Seen()
		self := o.Self
		self.Empty = true
		members := Form(self, seen)
		if members == nil {
			if why := waits(self, seen); why != told || o.Now().Sub(at) >= again {
				o.Logger.Warn("no cluster begins yet", "reason", why)
				told, at = why, o.Now()
			}
			sleep.Unless(ctx, look, changed)
			continue
		}
		if err := o.Node.Found(ctx, members); err != nil && ctx.Err() == nil {
			o.Logger.Warn("cannot begin the cluster yet", "error", err)
			sleep.For(ctx, look)
			continue
		}
		names := make([]string, len(members))
		for i, m := range members {
			names[i] = m.ID
		}
		o.Logger.Info("a new cluster begins", "coordinators", names)
	}
}

// meetTime bounds one look whether a coordinator is there.
const meetTime = 2 * time.Second

// meetMost is how many of them are looked for at the same time; of more, any.
const meetMost = 16

// RunPilot keeps the members as Plan says, while this coordinator leads.
func RunPilot(ctx context.Context, o Options) {
	since := o.Now()
	var told map[string]bool // what could not be confirmed at the last look
	for ctx.Err() == nil {
		seen, changed := o.Gossip.Seen()
		actions := Plan(o.Self.ID, o.Node.Peers(), seen, since, o.Now(), o.Rules)
		if len(actions) > meetMost {
			rand.Shuffle(len(actions), func(i, j int) { actions[i], actions[j] = actions[j], actions[i] })
		}
		a, unsure := confirmed(ctx, o, actions[:min(len(actions), meetMost)], told)
		told = unsure
		if a == nil {
			if len(actions) > 0 {
				changed = nil // whatever is not as the gossip says need not be looked at whenever it says something
			}
			sleep.Unless(ctx, look, changed)
			continue
		}
		if err := act(ctx, o.Node, a); err != nil {
			o.Logger.Warn("cannot change the coordinators now", "action", a.Do, "coordinator", a.Peer.ID, "reason", a.Reason, "error", err)
			sleep.For(ctx, look)
			continue
		}
		o.Logger.Info("the coordinators changed", "action", a.Do, "coordinator", a.Peer.ID, "address", a.Peer.Address, "reason", a.Reason)
	}
}

// confirmed gives the first action that the gossip's word is right about. Every host has the key of the gossip: whoever
// has taken one can say there that it is a coordinator, or that another one has left. Members that are not there would
// cost the cluster its majority.
func confirmed(ctx context.Context, o Options, actions []Action, told map[string]bool) (first *Action, unsure map[string]bool) {
	ctx, cancel := context.WithTimeout(ctx, meetTime)
	defer cancel()
	met := make([]error, len(actions))
	var looks sync.WaitGroup
	for i, a := range actions {
		looks.Go(func() { met[i] = o.Meet(ctx, a.Peer.ID, a.Peer.Address) })
	}
	looks.Wait()
	unsure = map[string]bool{}
	for i := range actions {
		a := &actions[i]
		if (met[i] == nil) == (a.Do != Remove) {
			if first == nil {
				first = a
			}
			continue
		}
		what := string(a.Do) + " " + a.Peer.ID + " " + a.Peer.Address
		if unsure[what] = true; !told[what] {
			o.Logger.Warn("the coordinators stay as they are: what the gossip says of one is not so", "action", a.Do, "coordinator", a.Peer.ID,
				"address", a.Peer.Address, "reason", a.Reason, "reached", met[i] == nil, "error", met[i])
		}
	}
	return first, unsure
}

func act(ctx context.Context, n Node, a *Action) error {
	switch a.Do {
	case Add:
		return n.AddNonvoter(ctx, a.Peer.ID, a.Peer.Address)
	case Promote:
		return n.AddVoter(ctx, a.Peer.ID, a.Peer.Address)
	}
	return n.RemovePeer(ctx, a.Peer.ID)
}
