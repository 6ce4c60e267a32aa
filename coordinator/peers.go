package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/autopilot"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/membership"
	"github.com/demiurge-platform/demiurge/coordinator/peerlink"
	"github.com/demiurge-platform/demiurge/coordinator/trust"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/version"
)

// The tags by which coordinators know each other in the gossip. They are for ever: older members read them.
const (
	tagRaft   = "r" // address of the port of the coordinators
	tagExpect = "x" // how many it begins a new cluster with
	tagAPI    = "a" // address of the API, for agents
	tagState  = "s" // one of the following
	tagLow    = "d" // MiB left on the disk of its log; there only while they are too few
	stateNew  = "n" // it never was in a cluster
	stateFit  = "f" // it has what the leader has
	stateLag  = "l" // it is behind, or knows no leader
)

// clusterKey reads the key that all coordinators share. The one that begins a cluster alone makes it.
func clusterKey(cfg *Config, files fsx.FS) (pki.Key, error) {
	path := cfg.Cluster.KeyFile
	if path == "" {
		path = trust.KeyPath(cfg.DataDir)
	}
	key, err := trust.ReadKey(path)
	if !errors.Is(err, trust.ErrNoKey) {
		return key, err
	}
	if cfg.Cluster.BootstrapExpect == 0 {
		return key, fmt.Errorf("%w: this coordinator is to be brought into a cluster (cluster.bootstrap_expect is 0), so let it join first: make a join token (`demiurge host join-token --coordinator --host %s`) and run `demiurge-coordinator join`", err, cfg.NodeID)
	}
	if cfg.Cluster.KeyFile != "" || cfg.Cluster.BootstrapExpect != 1 {
		return key, fmt.Errorf("%w: copy it from another coordinator of the cluster, or make one for a new cluster (`demiurge-coordinator keygen`) and give the same to each coordinator", err)
	}
	key = pki.NewKey()
	if err := trust.WriteKey(files, cfg.DataDir, key); err != nil {
		return key, fmt.Errorf("cannot write to the data directory %s: %w; give it to the user of this process and mount it writable", cfg.DataDir, err)
	}
	return key, nil
}

// openTrust makes what coordinators and agents know each other by.
func (c *Coordinator) openTrust() error {
	cfg := c.opts.Config
	files, err := fsx.NewOS(cfg.DataDir)
	if err != nil {
		return err
	}
	c.stack.PushClose("data directory", files.Close)
	if err := fsx.RemoveTemps(files, "coordinator.temps", cfg.DataDir); err != nil {
		return fmt.Errorf("cannot clear the data directory of what a crash left: %w", err)
	}
	key, err := clusterKey(cfg, files)
	if err != nil {
		return err
	}
	c.trust, err = trust.Open(trust.Options{
		FS: files, Dir: cfg.DataDir, NodeID: cfg.NodeID, Key: key, Hosts: certifiedHosts(cfg), Store: c.store,
		Logger: c.log.Named("trust"), Now: c.opts.Now,
	})
	return err
}

// openPeers opens the port of the coordinators.
func (c *Coordinator) openPeers() error {
	cfg := c.opts.Config
	only := pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}
	server, err := c.trust.Live().Server(only)
	if err != nil {
		return err
	}
	client, err := c.trust.Live().Client(only)
	if err != nil {
		return err
	}
	c.peers, err = peerlink.Open(peerlink.Options{
		Listen: cfg.Raft.Listen, Advertise: cfg.Raft.Advertise, Server: server, Client: client, Logger: c.log.Named("peers"),
	})
	if err != nil {
		return err
	}
	c.stack.PushClose("port of the coordinators", c.peers.Close)
	return nil
}

// openGossip enters the pool of all coordinators and agents.
func (c *Coordinator) openGossip() error {
	cfg := c.opts.Config
	dir := filepath.Join(cfg.DataDir, "gossip")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of the gossip: %w", err)
	}
	key, err := gossip.ParseKey(c.trust.Keyring()[0])
	if err != nil {
		return err
	}
	opts := gossip.Options{
		Role: gossip.RoleCoordinator, Name: cfg.NodeID, Cluster: c.trust.Cluster(), Version: version.Get().Version,
		Seeds: cfg.Cluster.Join, Dir: dir, Key: key, Profile: gossip.Profile(cfg.Gossip.Profile), Logger: c.log.Named("gossip"),
		Tags: c.gossipTags(),
	}
	if opts.Bind, err = netip.ParseAddrPort(cfg.Gossip.Listen); err != nil {
		return fmt.Errorf("cannot use gossip.listen %q: %w", cfg.Gossip.Listen, err)
	}
	if cfg.Gossip.Advertise != "" {
		if opts.Advertise, err = netip.ParseAddrPort(cfg.Gossip.Advertise); err != nil {
			return fmt.Errorf("cannot use gossip.advertise %q: %w", cfg.Gossip.Advertise, err)
		}
	}
	for _, network := range cfg.Gossip.Allowed {
		prefix, err := netip.ParsePrefix(network)
		if err != nil {
			return fmt.Errorf("cannot use gossip.allowed %q: %w", network, err)
		}
		opts.Allowed = append(opts.Allowed, prefix)
	}
	if c.gossip, err = gossip.Start(opts); err != nil {
		return err
	}
	c.stack.Push("gossip", c.gossip.Stop)
	c.members = membership.New(c.gossip)
	return nil
}

// gossipTags is what the other coordinators have to know of this one.
func (c *Coordinator) gossipTags() map[string]string {
	fitness := stateLag
	switch stats := c.node.Stats(); {
	case c.node.Empty():
		fitness = stateNew
	case stats.LeaderID != "" && stats.LastContact >= 0 && stats.LastContact < time.Second && stats.AppliedIndex+64 > stats.CommitIndex:
		fitness = stateFit
	}
	tags := map[string]string{
		tagRaft: c.peers.Addr().String(), tagAPI: c.apiAddress(), tagExpect: strconv.Itoa(c.opts.Config.Cluster.BootstrapExpect), tagState: fitness,
	}
	if room := c.node.Room(); room.Low {
		tags[tagLow] = strconv.FormatUint(room.Free>>20, 10)
	}
	return tags
}

// tell keeps the tags up to date.
func (c *Coordinator) tell(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := c.gossip.SetTags(c.gossipTags()); err != nil {
			c.log.Error("cannot tell the other coordinators how this one is", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// join enters the gossip through the configured addresses.
func (c *Coordinator) join(ctx context.Context) {
	if err := c.gossip.Join(ctx); err != nil && ctx.Err() == nil {
		c.log.Error("cannot join the gossip", "addresses", c.opts.Config.Cluster.Join, "error", err)
	}
}

// servePeers answers what other coordinators pass on.
func (c *Coordinator) servePeers() {
	server := c.api.PeerServer()
	c.stack.Push("calls of other coordinators", func(ctx context.Context) error {
		err := server.Shutdown(ctx)
		return errors.Join(err, ignoreClosed(server.Close()))
	})
	go func() { // ends when the stack closes the server
		err := server.Serve(c.peers.APIListener())
		if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			c.failed <- fmt.Errorf("the port of the coordinators stopped serving: %w", err)
		}
	}()
}

// autopilot is what its two loops need.
func (c *Coordinator) autopilot() autopilot.Options {
	cfg := c.opts.Config
	return autopilot.Options{
		Self: autopilot.Candidate{ID: cfg.NodeID, Address: c.peers.Addr().String(), Expect: cfg.Cluster.BootstrapExpect},
		Node: raftNode{c.node}, Gossip: coordinators{c.members}, Meet: c.meet,
		Rules:  autopilot.Rules{Settle: 2 * time.Second, DeadAfter: cfg.Cluster.DeadAfter, MinVoters: cfg.Cluster.MinVoters},
		Logger: c.log.Named("autopilot"), Now: c.opts.Now,
	}
}

// agents is the agents' own connections as the host monitor sees them.
type agents struct{ *agentlink.Link }

// Signals is what is known of a host over its agent's connection.
func (a agents) Signals(h id.Host) (membership.Signals, api.HostGossip) {
	c := a.Contact(h)
	return membership.Signals{
		Heard: c.Heard, Open: c.Open, Ended: c.Ended, Asked: c.Asked, Answered: c.Answered, Farewell: c.Farewell,
	}, c.Gossip
}

// meet finds out whether a coordinator is at an address.
func (c *Coordinator) meet(ctx context.Context, nodeID, address string) error {
	state, err := c.peers.Meet(ctx, address)
	if err != nil {
		return err
	}
	if who, ok := pki.PeerOf(&state); !ok || who.Name() != nodeID {
		return fmt.Errorf("cannot find coordinator %s at %s: %s is there", nodeID, address, who)
	}
	return nil
}

// raftNode is the node as the autopilot sees it.
type raftNode struct{ *consensus.Node }

// Found begins a new cluster.
func (n raftNode) Found(ctx context.Context, voters []autopilot.Peer) error {
	first := make([]consensus.Peer, len(voters))
	for i, v := range voters {
		first[i] = consensus.Peer{ID: v.ID, Address: v.Address, Voter: true}
	}
	return n.Node.Found(ctx, first)
}

// Peers lists the members.
func (n raftNode) Peers() []autopilot.Peer {
	var out []autopilot.Peer
	for _, p := range n.Stats().Peers {
		out = append(out, autopilot.Peer{ID: p.ID, Address: p.Address, Voter: p.Voter})
	}
	return out
}

// coordinators is the gossip as the autopilot sees it.
type coordinators struct{ view *membership.View }

// Seen lists the coordinators that the gossip knows.
func (s coordinators) Seen() ([]autopilot.Candidate, <-chan struct{}) {
	snap := s.view.Snapshot()
	var out []autopilot.Candidate
	for _, m := range snap.Coordinators {
		out = append(out, candidate(m))
	}
	return out, snap.Changed()
}

// candidate reads what a coordinator says of itself. One whose tags cannot be read is there all the same: it is not
// brought in, and while it answers it is not taken out; and nobody knows that it is not of a cluster that exists.
func candidate(m gossip.Member) autopilot.Candidate {
	c := autopilot.Candidate{
		ID: m.Name, Alive: m.Status == gossip.StatusAlive, Left: m.Status == gossip.StatusLeft, Since: m.Since,
		Expect: -1, Empty: m.Tags[tagState] == stateNew, Fit: m.Tags[tagState] == stateFit,
	}
	expect, err := strconv.Atoi(m.Tags[tagExpect])
	if err == nil && expect >= 0 && reachable(m.Tags[tagRaft]) {
		c.Expect, c.Address = expect, m.Tags[tagRaft]
	}
	return c
}

// reachable reports whether others can connect to an address: host:port, with a name or an address that means the same
// elsewhere, and a port.
func reachable(address string) bool {
	host, port, err := net.SplitHostPort(address)
	n, err2 := strconv.ParseUint(port, 10, 16)
	ip, err3 := netip.ParseAddr(host)
	name := host != "" && strings.Trim(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
	return err == nil && err2 == nil && n > 0 && (name || err3 == nil && ip.Zone() == "")
}
