// Package gossip is the pool of all coordinators and agents: who is there, who stopped answering, who left,
// and a few bytes about each (Serf and memberlist, of which this package is the only home). It tells what
// it sees and decides nothing; what it sees is a suspicion until a second signal confirms it
// (coordinator/membership). It carries no commands, except those of its own keys.
//
// Everything on the wire is encrypted. What an outsider sends is refused and counted (Refusals): without a
// key of the pool, from an address that is not allowed, with another cluster's id. Sizes are bounded:
// packets, connections, tags, and what waits for a slow reader.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/lifecycle"
)

// Node is this process in the pool.
type Node struct {
	opts   Options
	timers timers
	log    hclog.Logger
	run    string
	self   netip.AddrPort // advertised

	serf      *serf.Serf
	transport *transport
	ring      *ring // nil: development without a key
	refusals  *refusals
	feed      *feed
	stack     lifecycle.Stack
	loops     chan struct{}  // closed when the loops have to end
	joins     sync.WaitGroup // joins and leaves under way in the library, which takes no context
	publish   chan struct{}  // holds one value when there is something to publish

	mu        sync.Mutex
	seeds     []string          // guarded by mu: members to join through
	stopping  bool              // guarded by mu: nothing more is started
	track     *tracker          // guarded by mu
	digest    string            // guarded by mu: the next to be published
	extra     map[string]string // guarded by mu: the next to be published
	contested time.Time         // guarded by mu: when another member last claimed this node's name
	claimant  netip.AddrPort    // guarded by mu: that member
	published uint64            // guarded by mu: tags sent out so far
}

// Start opens the sockets and begins to answer. The node is alone until Join.
func Start(opts Options) (*Node, error) {
	opts.Seeds, opts.Allowed, opts.Tags = slices.Clone(opts.Seeds), slices.Clone(opts.Allowed), maps.Clone(opts.Tags)
	if err := opts.normalize(); err != nil {
		return nil, err
	}
	t, _ := opts.Profile.timers() // normalize has checked it
	n := &Node{
		opts: opts, timers: t, log: opts.Logger, run: newRun(), feed: newFeed(), refusals: newRefusals(opts.Logger),
		loops: make(chan struct{}), publish: make(chan struct{}, 1),
		track: newTracker(poolName(opts.Role, opts.Name)), extra: opts.Tags, seeds: opts.Seeds,
	}
	if err := n.start(); err != nil {
		return nil, errors.Join(err, n.stack.Stop(context.Background()))
	}
	return n, nil
}

func (n *Node) start() error {
	if err := n.openKeys(); err != nil {
		return err
	}
	conf := n.opts.config(n.timers, nil)
	if n.ring != nil {
		conf.MemberlistConfig.Keyring = n.ring.live
	}
	lines := logSink{n.log, n.refusals}
	conf.LogOutput, conf.MemberlistConfig.LogOutput = lines, lines
	conf.Merge = gate{n}
	first, err := n.tags().encode()
	if err != nil {
		return err
	}
	conf.Tags = maps.Clone(first)
	if err := n.listen(conf.MemberlistConfig); err != nil {
		return err
	}
	events := make(chan serf.Event, 1024)
	conf.EventCh = events
	if n.opts.Dir != "" {
		conf.SnapshotPath = filepath.Join(n.opts.Dir, snapshotFile)
		if err := n.checkSnapshot(conf.SnapshotPath); err != nil {
			return err
		}
	}
	if n.serf, err = serf.Create(conf); err != nil {
		return fmt.Errorf("cannot start the gossip on %s: %w", n.opts.Bind, err)
	}
	n.stack.Go("gossip changes", func(ctx context.Context) { n.feed.run(ctx.Done()) })
	n.stack.Go("gossip events", func(context.Context) { n.watch(events) }) // ends with the library, which stops first
	n.stack.Push("gossip", n.shutdown)
	n.stack.Go("gossip tags", func(ctx context.Context) { n.publisher(ctx, first) })
	n.stack.Go("gossip seeds", n.rejoin)
	n.log.Info("gossip started", "name", poolName(n.opts.Role, n.opts.Name), "address", n.self, "encrypted", n.ring != nil)
	return nil
}

// openKeys takes the keyring up. Without a key there is no gossip.
func (n *Node) openKeys() error {
	var files fsx.FS
	if n.opts.Dir != "" {
		osFS, err := fsx.NewOS(n.opts.Dir)
		if err != nil {
			return err
		}
		n.stack.PushClose("gossip directory", osFS.Close)
		if err := fsx.RemoveTemps(osFS, "gossip.temps", n.opts.Dir); err != nil {
			return err
		}
		files = osFS
	}
	var err error
	if n.ring, err = openRing(files, n.opts.Dir, n.opts.Key); err != nil {
		return err
	}
	if n.ring == nil && !n.opts.Dev {
		return errors.New("cannot start the gossip without a key: everybody who reaches the port would be a member; make a key, or set the option for development on loopback")
	}
	if n.ring != nil && !n.opts.Key.IsZero() {
		if _, has := n.ring.find(n.opts.Key.Fingerprint()); !has {
			n.log.Info("the configured gossip key was rotated out; those of the keyring are used", "key", n.opts.Key)
		}
	}
	return nil
}

// listen opens the sockets.
func (n *Node) listen(conf *memberlist.Config) error {
	inner, err := listenRetry(n.opts.Bind, conf.LogOutput)
	if err != nil {
		return fmt.Errorf("cannot bind the gossip to %s: %w", n.opts.Bind, err)
	}
	n.transport = newTransport(inner, n.opts.Bind.Addr(), n.opts.Allowed, func(from net.Addr, reason string) { n.refusals.note(hostOf(from), reason) })
	n.stack.PushClose("gossip sockets", n.transport.Shutdown) // of a start that failed; else the library has done it
	conf.Transport = n.transport
	n.self = netip.AddrPortFrom(n.opts.Bind.Addr(), uint16(inner.GetAutoBindPort()))
	conf.BindPort = inner.GetAutoBindPort()
	if n.opts.Advertise.IsValid() {
		n.self = n.opts.Advertise
	}
	return nil
}

// listenRetry binds TCP and UDP of one port. A free TCP port may be taken for UDP: then another is tried.
func listenRetry(at netip.AddrPort, lines io.Writer) (*memberlist.NetTransport, error) {
	conf := &memberlist.NetTransportConfig{
		BindAddrs: []string{at.Addr().String()}, BindPort: int(at.Port()), Logger: log.New(lines, "", 0),
	}
	tries := 1
	if at.Port() == 0 {
		tries = 10
	}
	var err error
	for range tries {
		var t *memberlist.NetTransport
		if t, err = memberlist.NewNetTransport(conf); err == nil {
			return t, nil
		}
	}
	return nil, err
}

// tags gives what is to be published now.
func (n *Node) tags() tags {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := tags{opts: &n.opts, run: n.run, digest: n.digest, extra: n.extra}
	if n.ring != nil {
		t.keys = n.ring.saved
	}
	return t
}

// watch takes the library's events until it has stopped.
func (n *Node) watch(events <-chan serf.Event) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case e := <-events:
			n.handle(e)
		case <-look.C: // what is seen counts, should an event ever be missed
			for _, m := range n.serf.Members() {
				n.see(m)
			}
		case <-n.serf.ShutdownCh():
			return
		}
	}
}

func (n *Node) handle(e serf.Event) {
	switch e := e.(type) {
	case serf.MemberEvent:
		for _, m := range e.Members {
			if e.Type != serf.EventMemberReap {
				n.see(m)
				continue
			}
			n.follow(func(t *tracker) (Change, bool) { return t.forget(m.Name) })
		}
	case serf.UserEvent:
		n.refusals.note(e.Name, "an event over gossip, which carries no commands")
	case *serf.Query:
		n.refusals.note(e.SourceNode(), "a query over gossip, which carries no commands")
	}
}

func (n *Node) see(m serf.Member) {
	parsed, err := parse(m, n.opts.Cluster)
	if err != nil { // refused before, by NotifyMerge; it may be in a list of earlier members
		n.refusals.note(m.Name, err.Error())
		return
	}
	n.follow(func(t *tracker) (Change, bool) { return t.see(parsed, time.Now()) })
}

// follow takes in what happened to a member. Its change waits for the reader before Members gives it.
func (n *Node) follow(what func(*tracker) (Change, bool)) {
	n.mu.Lock()
	c, ok := what(n.track)
	if ok = ok && !c.Member.Self; ok {
		n.feed.put(Change{c.Kind, c.Member.clone()})
	}
	n.mu.Unlock()
	if !ok {
		return
	}
	switch c.Kind {
	case Updated:
		n.log.Trace("member updated", "member", c.Member.id())
	case Failed, Flapping:
		n.log.Warn("member "+string(c.Kind), "member", c.Member.id(), "address", c.Member.Address, "flaps", c.Member.Flaps)
	default:
		n.log.Info("member "+string(c.Kind), "member", c.Member.id(), "address", c.Member.Address)
	}
}

// Run tells this start of the node from every other one, as its Member.Run does.
func (n *Node) Run() string { return n.run }

// Addr is where the others reach this node.
func (n *Node) Addr() netip.AddrPort { return n.self }

// Members gives all that are known, this node too, in the order of their names.
func (n *Node) Members() []Member {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.track.all(time.Now())
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.id(), b.id()) })
	return out
}

// Changes tells what happens to the other members. A slow reader holds nobody up: at most one change of
// each member waits, with its latest state. The channel is closed by Stop. Read Members after the first
// change or at the start: what was there before is not told.
func (n *Node) Changes() <-chan Change { return n.feed.out }

// Refusals gives what was kept out, the latest first.
func (n *Node) Refusals() []Refusal { return n.refusals.list() }

// Stats are counters since the start.
type Stats struct {
	PacketsSent, BytesSent         uint64 // datagrams
	PacketsReceived, BytesReceived uint64
	TagsPublished                  uint64
	HealthScore                    int // 0 is best; it rises when this node itself is slow
}

// Stats gives the counters.
func (n *Node) Stats() Stats {
	n.mu.Lock()
	published := n.published
	n.mu.Unlock()
	return Stats{
		PacketsSent: n.transport.sent.Load(), BytesSent: n.transport.sentBytes.Load(),
		PacketsReceived: n.transport.received.Load(), BytesReceived: n.transport.receivedBytes.Load(),
		TagsPublished: published, HealthScore: n.serf.Memberlist().GetHealthScore(),
	}
}
