package coordinator

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

// proposer puts commands into the log of the node.
type proposer struct{ node *consensus.Node }

// Propose encodes a command and returns what the state machine answered, once it is applied here. Before
// and after are failpoints: propose.<name>.before and .after.
func (p *proposer) Propose(ctx context.Context, c command.Command) (command.Result, uint64, error) {
	data, err := command.Encode(c)
	if err != nil {
		return command.Result{}, 0, err
	}
	passing(c, "before")
	answer, index, err := p.node.Propose(ctx, data)
	if err != nil {
		return command.Result{}, 0, err
	}
	passing(c, "after")
	result, ok := answer.(command.Result)
	if !ok {
		return command.Result{}, 0, fmt.Errorf("the state machine answered a command of type %d with a %T", c.Type(), answer)
	}
	return result, index, nil
}

// passing marks a proposal as a failpoint, by the name of its type: "propose.create_gateways.before" for
// command.CreateGateways.
func passing(c command.Command, when string) {
	if !failpoint.Enabled {
		return
	}
	var b strings.Builder
	for i, r := range reflect.TypeOf(c).Name() {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	failpoint.Hit("propose." + b.String() + "." + when)
}

// cluster tells the API about the node.
type cluster struct {
	*consensus.Node
	reign   *atomic.Pointer[context.Context] // of leading with all that was committed before applied here
	leaders *bell
}

// IsLeader reports whether this node leads and its state is whole. An elected leader that is still
// applying its log knows neither all tokens nor all allocations: what it would answer is not so.
func (c cluster) IsLeader() bool {
	reign := c.reign.Load()
	return reign != nil && (*reign).Err() == nil && c.Node.IsLeader()
}

// over is done.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// Reign is done when this node no longer leads.
func (c cluster) Reign() context.Context {
	if reign := c.reign.Load(); reign != nil {
		return *reign
	}
	return over
}

// Leader is the leader as far as known here, and empty while this node is it and cannot answer yet.
func (c cluster) Leader() (nodeID, address string) {
	if c.Node.IsLeader() && !c.IsLeader() {
		return "", ""
	}
	return c.Node.Leader()
}

// LeaderChanged is closed at the next change of what Leader or IsLeader tell. It may be closed without one.
func (c cluster) LeaderChanged() <-chan struct{} { return c.leaders.next() }

// bell tells everybody who waits that something has changed.
type bell struct {
	mu    sync.Mutex
	rings chan struct{} // closed and replaced by ring; guarded by mu
}

func newBell() *bell { return &bell{rings: make(chan struct{})} }

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.rings)
	b.rings = make(chan struct{})
}

// next is closed by the next ring.
func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rings
}

// Progress is the term, and the newest index that is applied here.
func (c cluster) Progress() (term, applied uint64) {
	stats := c.Stats()
	return stats.Term, stats.AppliedIndex
}

// StorageLow says how little room is left for the log, in words; "" while there is enough.
func (c cluster) StorageLow() string {
	if room := c.Room(); room.Low {
		return room.String()
	}
	return ""
}

// Peers are the members of the cluster.
func (c cluster) Peers() []api.Peer {
	stats := c.Stats()
	out := make([]api.Peer, 0, len(stats.Peers))
	for _, p := range stats.Peers {
		out = append(out, api.Peer{ID: p.ID, Address: p.Address, Voter: p.Voter, Leader: p.ID == stats.LeaderID})
	}
	return out
}
