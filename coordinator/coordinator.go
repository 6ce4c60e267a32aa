// Package coordinator wires one coordinator: the Raft node and its state, the leader's loops, and the
// HTTP API. It holds no logic of its own.
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/autopilot"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/coordinator/events"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/hostmonitor"
	"github.com/demiurge-platform/demiurge/coordinator/httpapi"
	"github.com/demiurge-platform/demiurge/coordinator/membership"
	"github.com/demiurge-platform/demiurge/coordinator/metrics"
	"github.com/demiurge-platform/demiurge/coordinator/peerlink"
	"github.com/demiurge-platform/demiurge/coordinator/poolkeeper"
	"github.com/demiurge-platform/demiurge/coordinator/relocator"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/coordinator/trust"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/garbage"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/lifecycle"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

const (
	// garbageAllowed is how much memory a coordinator leaves to garbage beside its state.
	garbageAllowed = 64 << 20
	// busyHeap is how large a coordinator's heap may become under load. A collection holds up what comes meanwhile, and
	// one a second is more than one call in a hundred.
	busyHeap = 224 << 20
)

// LeastProcessors is how many of Go's processors (GOMAXPROCS) a busy process with a coordinator needs. A goroutine that
// waits for the disk keeps the one it ran on until the runtime notices, which takes up to ten milliseconds: with one for
// each of a small machine's two cores, a log write beside a snapshot stops everything else, heartbeats too.
const LeastProcessors = 4

// Options configure a Coordinator.
type Options struct {
	Config *Config
	Logger hclog.Logger
	// Fence is called when the disk stalls or a write fails, with the transport closed: it must end the
	// process. Nil: os.Exit(1).
	Fence func(reason string)
	// Now is the clock for what people see and for deadlines. Nil: time.Now.
	Now func() time.Time
}

// Coordinator is one running coordinator.
type Coordinator struct {
	opts  Options
	log   hclog.Logger
	stack lifecycle.Stack

	store    *state.Store
	node     *consensus.Node
	propose  *proposer
	metrics  *metrics.Metrics
	broker   *events.Broker
	link     *agentlink.Link
	runner   *allocator.Runner
	receiver *agentlink.Receiver
	trust    *trust.Keeper
	users    *usertoken.Verifier
	peers    *peerlink.Link
	gossip   *gossip.Node
	members  *membership.View
	names    dns.Provider
	listener net.Listener
	api      *httpapi.Server
	failed   chan error
	rotation sync.Mutex                      // held by a change of certificates or gossip keys
	reign    atomic.Pointer[context.Context] // of the last call of lead
	leaders  *bell                           // rings when another coordinator leads, or this one is ready to
}

// New opens the data directory, starts the Raft node and binds the API's listener. Nothing is served
// before Start. A failed New leaves nothing open.
func New(opts Options) (*Coordinator, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Fence == nil {
		opts.Fence = func(string) { os.Exit(1) }
	}
	c := &Coordinator{opts: opts, log: opts.Logger, failed: make(chan error, 1), leaders: newBell()}
	if err := c.open(); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return nil, errors.Join(err, c.stack.Stop(ctx))
	}
	return c, nil
}

func (c *Coordinator) open() error {
	cfg := c.opts.Config
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the data directory: %w; set data_dir to a directory this user may write, or make it for this user", err)
	}
	var err error
	if c.listener, err = net.Listen("tcp", cfg.API.Listen); err != nil {
		return fmt.Errorf("cannot listen for the API at %s: %w; set api.listen to a free address, or end the program that has it", cfg.API.Listen, err)
	}
	c.stack.Push("API listener", func(context.Context) error { return ignoreClosed(c.listener.Close()) })
	if c.metrics, err = metrics.New(); err != nil {
		return err
	}
	c.store = state.New()
	if err = c.openTrust(); err != nil {
		return err
	}
	if c.users, err = usertoken.New(usertoken.Options{Issuers: cfg.Auth.Issuers, Logger: c.log, Now: c.opts.Now}); err != nil {
		return fmt.Errorf("cannot use auth.issuers: %w", err)
	}
	if err = c.openPeers(); err != nil {
		return err
	}
	callers, err := c.trust.Live().Server(pki.Peer{Roles: []pki.Role{pki.RoleAgent, pki.RoleCoordinator}, Anonymous: true}, "h2", "http/1.1")
	if err != nil {
		return err
	}
	c.listener = httpapi.Listen(c.listener, callers)
	machine := fsm.New(c.store, c.log.Named("fsm"))
	c.node, err = consensus.Open(consensus.Options{
		NodeID: cfg.NodeID, Dir: filepath.Join(cfg.DataDir, "raft"), Stream: c.peers.Raft(),
		Profile: consensus.Profile(cfg.Raft.Profile), MinFree: uint64(cfg.Raft.MinFreeMiB) << 20,
		FSM: machine, ConvertSnapshot: c.convertSnapshot, LeaderChanged: c.leaders.ring, Logger: c.log.Named("raft"),
		Fence: func(reason string) {
			c.log.Error("fenced: this coordinator ends, so that another one can lead", "reason", reason)
			c.opts.Fence(reason)
		},
	})
	if err != nil {
		return err
	}
	c.stack.Push("Raft node", c.node.Close)
	c.propose = &proposer{c.node}
	if err := c.openGossip(); err != nil {
		return err
	}
	if err := c.openDNS(); err != nil {
		return err
	}
	return c.wire()
}

func (c *Coordinator) wire() error {
	cfg, now := c.opts.Config, c.opts.Now
	c.link = agentlink.New(agentlink.Options{
		Store: c.store, Proposer: c.propose, Domain: cfg.Domain, Heartbeat: api.StreamHeartbeat, Lease: cfg.Hosts.Lease,
		VerifyLeader: c.node.VerifyLeader, Logger: c.log.Named("agents"), Now: now,
		Alive: func(h id.Host) bool { return c.members.Snapshot().Hosts[h].Status == gossip.StatusAlive },
	})
	c.link.SetAccess(c.gossipAccess(), c.trust.Bundle().PEM())
	c.runner = allocator.New(allocator.Options{
		Store: c.store, Proposer: c.propose, Verifier: c.link, Names: c.stepNames(), Logger: c.log.Named("allocator"), Now: now,
		RetryAfter: c.metrics.RefillEstimate,
	})
	c.receiver = agentlink.NewReceiver(c.link, c.runner)
	c.broker = events.New(events.Options{
		Store: c.store, Logger: c.log, Observe: c.metrics.Event, After: c.node.Stats().LastIndex,
	})
	c.metrics.Watch(metrics.Sources{Store: c.store, Node: c.node, Link: c.link, Now: now})
	var err error
	c.api, err = httpapi.New(httpapi.Options{
		Store: c.store, Proposer: c.propose, Allocations: c.runner, Agents: c.receiver, Cluster: cluster{c.node, &c.reign, c.leaders},
		Events: c.broker, Metrics: c.metrics, Operator: operator{c, &c.rotation}, Domain: cfg.Domain, PublicURL: cfg.publicURL, Logger: c.log, Now: now,
		Peers: c.peers.Transport(), Trust: joins{c.trust, c}, Users: c.users, Plain: cfg.API.Plain,
		Limits: httpapi.Limits{
			Token:  httpapi.Rate{PerSecond: cfg.API.RateLimit, Burst: float64(cfg.API.RateBurst)},
			User:   httpapi.Rate{PerSecond: cfg.Auth.UserRateLimit, Burst: 2 * cfg.Auth.UserRateLimit},
			Failed: httpapi.Rate{PerSecond: cfg.API.AuthFailures, Burst: 2 * cfg.API.AuthFailures},
		},
	})
	return err
}

// Addr is where the API listens.
func (c *Coordinator) Addr() net.Addr { return c.listener.Addr() }

// Start begins to serve and to lead when elected.
func (c *Coordinator) Start() {
	c.stack.Go("memory", func(ctx context.Context) {
		garbage.Allow(ctx, garbage.Allowance{Garbage: garbageAllowed, Busy: busyHeap})
	})
	c.stack.Go("trust", c.trust.Run)
	c.stack.Go("keys of issuers", c.users.Run)
	c.stack.Go("members", c.members.Run)
	c.stack.Go("tags", c.tell)
	c.stack.Go("gossip keys", c.followKeys)
	c.stack.Go("joining the gossip", c.join)
	c.stack.Go("agents' gossip", c.tellAgents)
	c.stack.Go("forming the cluster", func(ctx context.Context) { autopilot.RunFormer(ctx, c.autopilot()) })
	c.stack.Go("events", c.broker.Run)
	c.stack.Go("leader loops", func(ctx context.Context) { c.node.RunWhileLeader(ctx, c.lead) })
	server := c.api.HTTPServer()
	c.stack.Go("API refusals", c.api.Run)
	c.servePeers()
	c.stack.Push("API", func(ctx context.Context) error {
		err := server.Shutdown(ctx)
		return errors.Join(err, ignoreClosed(server.Close()))
	})
	go func() { // ends when the stack closes the server
		if err := server.Serve(c.listener); !errors.Is(err, http.ErrServerClosed) {
			c.failed <- fmt.Errorf("the API stopped serving: %w", err)
		}
	}()
}

// lead runs the leader's loops until leadership ends.
func (c *Coordinator) lead(ctx context.Context) {
	c.link.Leads()
	c.reign.Store(&ctx)
	c.leaders.ring()
	c.log.Info("leading")
	defer c.log.Info("no longer leading")
	if err := c.initialize(ctx); err != nil {
		c.log.Error("cannot initialize the cluster", "error", err)
	}
	var loops lifecycle.Stack
	loops.Go("autopilot", func(ctx context.Context) { autopilot.RunPilot(ctx, c.autopilot()) })
	loops.Go("allocator", c.runner.Run)
	loops.Go("pool keeper", poolkeeper.New(poolkeeper.Options{
		Store: c.store, Proposer: c.propose, Logger: c.log.Named("poolkeeper"), Now: c.opts.Now,
	}).Run)
	loops.Go("host monitor", hostmonitor.New(hostmonitor.Options{
		Store: c.store, Proposer: c.propose, Agents: agents{c.link}, Members: c.members.Snapshot,
		Thresholds: c.opts.Config.thresholds(), Lease: c.opts.Config.Hosts.Lease,
		Logger: c.log.Named("hostmonitor"), Now: c.opts.Now,
	}).Run)
	loops.Go("relocator", relocator.New(relocator.Options{
		Store: c.store, Proposer: c.propose, FencedBy: c.fencedBy(c.opts.Now()), Lease: membership.LeaseSpan(c.opts.Config.Hosts.Lease),
		Logger: c.log.Named("relocator"), Now: c.opts.Now,
	}).Run)
	loops.Go("DNS", dns.NewLoop(dns.LoopOptions{
		Provider: c.names, Domain: c.opts.Config.Domain, Wanted: c.wantedNames, Current: c.node.VerifyLeader,
		Logger: c.log.Named("dns"), Now: c.opts.Now,
	}).Run)
	<-ctx.Done()
	if err := loops.Stop(context.Background()); err != nil {
		c.log.Error("a leader loop did not stop", "error", err)
	}
}

// fencedBy tells when a host that is not heard of any more has ended its lease, for a leader since then.
func (c *Coordinator) fencedBy(leadsSince time.Time) func(id.Host) time.Time {
	return func(h id.Host) time.Time {
		s, _ := agents{c.link}.Signals(h)
		s.LeadsSince = leadsSince
		return membership.LeaseEnd(s, c.opts.Config.Hosts.Lease)
	}
}

// Healthy reports whether this coordinator does its part. Knowing a leader is not in its hands: a restart
// would not help a minority.
func (c *Coordinator) Healthy() bool { return !c.node.Stats().Fenced }

// State is the index of the newest entry in this coordinator's state, and a digest of all records and
// events: coordinators at the same index have the same. It reads everything.
func (c *Coordinator) State() (index uint64, hash string) {
	at := c.store.Checkpoint() // of one moment: a digest takes longer than it is until the next entry
	return at.View.Index(), at.Hash()
}

// Failed gives the error of a part that ended by itself.
func (c *Coordinator) Failed() <-chan error { return c.failed }

// Stop lets another coordinator lead, where this one does, and ends everything in reverse order.
func (c *Coordinator) Stop(ctx context.Context) error {
	c.abdicate(ctx)
	return c.stack.Stop(ctx)
}

// handOver bounds how long one that stops tries to let another lead.
const handOver = 2 * time.Second

// abdicate makes another coordinator lead. Without it nobody decided anything from the end of the API on until the others
// missed this one, and to its own loops it would look as if all hosts had gone silent, with their connections to it.
func (c *Coordinator) abdicate(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, handOver)
	defer cancel()
	peers := c.node.Stats().Peers
	if !c.node.IsLeader() || len(peers) < 2 {
		return
	}
	next, err := successor(c.opts.Config.NodeID, "", peers, c.gossip.Members())
	if err != nil { // where nobody is fit, one that is not is still better than nobody
		c.log.Warn("whoever leads after this one is not fit for it", "error", err)
	}
	if err := c.node.TransferLeadership(ctx, next); err != nil {
		c.log.Warn("cannot let another coordinator lead before this one ends: the others will miss it and elect one", "error", err)
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
