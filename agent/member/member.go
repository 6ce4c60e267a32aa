// Package member is this host's place in the gossip of all coordinators and agents, by which the death of
// the host is noticed within a second or two. It keeps what is needed to come back after a restart, learns
// new keys and new coordinators from the stream of a coordinator, and tries for ever: a host without gossip
// serves all the same, and its coordinators have only its connection to go by.
package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Options of a Member. Advertise, Profile and Allowed may be left out.
type Options struct {
	FS           fsx.FS // may write Dir
	Dir          string // of its own; made by Open
	Host         id.Host
	Cluster      string // id of the cluster, from the host's certificate
	Version      string
	Listen       netip.AddrPort
	Advertise    netip.AddrPort // where the others reach it; default: Listen or, if that is all addresses, the one towards the coordinators
	Coordinators []string       // host:port of their API, to find that address by
	Profile      gossip.Profile
	Allowed      []netip.Prefix
	Retry        time.Duration // between attempts to start or to join; default 5 s
	Logger       hclog.Logger
}

// Member is this host in the gossip, or on its way there.
type Member struct {
	o   Options
	log hclog.Logger

	mu      sync.Mutex
	access  api.GossipAccess // guarded by mu; as on disk
	fresh   bool             // guarded by mu: access came from a coordinator in this run
	changed chan struct{}    // guarded by mu: closed and replaced when access changes
	digest  *gossip.Digest   // guarded by mu: the latest; nil: none yet
	node    *gossip.Node     // guarded by mu; nil: not started
	joined  bool             // guarded by mu
	problem string           // guarded by mu: why this host is not in the gossip
}

// Open reads what an earlier run or the join has kept.
func Open(o Options) (*Member, error) {
	if o.Retry <= 0 {
		o.Retry = 5 * time.Second
	}
	if err := o.FS.MkdirAll("member.dir", o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory of the gossip: %w", err)
	}
	access, err := read(o.FS, o.Dir)
	if err != nil {
		o.Logger.Warn("what was known of the gossip is not used; a coordinator will tell it again", "error", err)
		access = api.GossipAccess{}
	}
	return &Member{
		o: o, log: o.Logger, access: access, changed: make(chan struct{}), problem: "no coordinator has told yet where the gossip is",
	}, nil
}

// Take notes the keys and addresses that a coordinator has told. It does not wait for anything to be done.
func (m *Member) Take(a api.GossipAccess) {
	if len(a.Keys) == 0 || len(a.Addresses) == 0 {
		return
	}
	if err := check(a); err != nil { // what is known serves on
		m.log.Error("what the coordinator told of the gossip is not used", "error", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	same := slices.Equal(a.Keys, m.access.Keys) && slices.Equal(a.Addresses, m.access.Addresses)
	if same && m.fresh {
		return
	}
	if !same {
		if err := Keep(m.o.FS, m.o.Dir, a); err != nil { // used all the same: the next start asks a coordinator again
			m.log.Error("what the coordinator told of the gossip is not kept", "error", err)
		}
	}
	m.access, m.fresh = a, true
	close(m.changed)
	m.changed = make(chan struct{})
}

// SetDigest publishes the health of the host, now or when there is a pool to publish it to.
func (m *Member) SetDigest(d gossip.Digest) error {
	m.mu.Lock()
	m.digest = &d
	node := m.node
	m.mu.Unlock()
	if node == nil {
		_, err := d.Encode()
		return err
	}
	return node.SetDigest(d)
}

// Status is what the host says of its own place in the gossip over its authenticated connection: who else
// claims to be this host is none.
func (m *Member) Status() api.HostGossip {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := api.HostGossip{Joined: m.joined, Problem: m.problem}
	if m.node != nil {
		out.Address, out.Run = m.node.Addr().String(), m.node.Run()
	}
	return out
}

// Run keeps the host in the gossip until ctx ends. The pool is not told that it goes: see Leave.
func (m *Member) Run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		access, changed := m.known()
		if len(access.Keys) == 0 || len(access.Addresses) == 0 {
			sleep.Unless(ctx, time.Hour, changed)
			continue
		}
		if err := m.serve(ctx, access); err != nil && ctx.Err() == nil {
			m.fail(err, failures)
			failures++
			sleep.Unless(ctx, m.o.Retry, changed)
		}
	}
}

func (m *Member) known() (api.GossipAccess, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.access, m.changed
}

// fail notes why this host is not in the gossip, and logs the first of many.
func (m *Member) fail(err error, before int) {
	m.mu.Lock()
	m.joined, m.problem = false, err.Error()
	m.mu.Unlock()
	if before%60 == 0 {
		m.log.Error("this host is not in the gossip; it is tried again", "error", err)
	}
}

// serve starts the gossip, joins, and follows what coordinators tell, until ctx ends or it cannot go on.
func (m *Member) serve(ctx context.Context, access api.GossipAccess) error {
	node, err := m.start(ctx, access)
	if err != nil {
		return err
	}
	defer func() {
		m.mu.Lock()
		m.node, m.joined = nil, false
		m.mu.Unlock()
		if err := node.Stop(context.WithoutCancel(ctx)); err != nil {
			m.log.Error("the gossip did not stop", "error", err)
		}
	}()
	var joining sync.WaitGroup
	defer joining.Wait()
	jctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	joining.Go(func() { ended <- m.join(jctx, node) })
	for {
		_, changed := m.known() // before follow looks, so that nothing falls between
		if err := m.follow(node); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			if err != nil {
				return err
			}
		case <-changed:
		}
	}
}

// start opens the sockets.
func (m *Member) start(ctx context.Context, access api.GossipAccess) (*gossip.Node, error) {
	key, err := gossip.ParseKey(access.Keys[0])
	if err != nil {
		return nil, err
	}
	o := gossip.Options{
		Role: gossip.RoleAgent, Name: string(m.o.Host), Cluster: m.o.Cluster, Version: m.o.Version, Bind: m.o.Listen, Advertise: m.o.Advertise,
		Seeds: access.Addresses, Allowed: m.o.Allowed, Dir: m.o.Dir, Key: key, Profile: m.o.Profile, Logger: m.log,
	}
	if o.Bind.Addr().IsUnspecified() && !o.Advertise.IsValid() {
		if o.Advertise, err = m.towards(ctx); err != nil {
			return nil, err
		}
	}
	node, err := gossip.Start(o)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.node, m.problem = node, "no member of the gossip has answered yet"
	digest := m.digest
	m.mu.Unlock()
	if digest != nil {
		if err := node.SetDigest(*digest); err != nil {
			m.log.Error("cannot publish the health of this host", "error", err)
		}
	}
	return node, nil
}

// towards is this machine's own address on the way to the coordinators, found without a packet.
func (m *Member) towards(ctx context.Context) (netip.AddrPort, error) {
	var errs []error
	dialer := net.Dialer{Timeout: 2 * time.Second}
	for _, c := range m.o.Coordinators {
		conn, err := dialer.DialContext(ctx, "udp", c)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		local, err := netip.ParseAddrPort(conn.LocalAddr().String())
		_ = conn.Close()
		if err == nil {
			return netip.AddrPortFrom(local.Addr().Unmap(), m.o.Listen.Port()), nil
		}
		errs = append(errs, err)
	}
	return netip.AddrPort{}, fmt.Errorf("cannot find this host's own address, for lack of a way to a coordinator: %w; set gossip.advertise", errors.Join(errs...))
}

// join tries until a member answers. It fails when another live member has this host's name.
func (m *Member) join(ctx context.Context, node *gossip.Node) error {
	if err := node.Join(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	m.joined, m.problem = true, ""
	m.mu.Unlock()
	return nil
}

// follow gives the node what a coordinator has told in this run. What an earlier run kept may be older than
// the node's own keys, which the pool rotates.
func (m *Member) follow(node *gossip.Node) error {
	m.mu.Lock()
	access, fresh := m.access, m.fresh
	m.mu.Unlock()
	if err := node.SetSeeds(access.Addresses); err != nil {
		m.log.Error("the addresses of the coordinators' gossip are not used", "error", err)
	}
	if !fresh {
		return nil
	}
	if err := node.FollowKeys(access.Keys); err != nil {
		return fmt.Errorf("cannot use what a coordinator told: %w", err)
	}
	return nil
}

// Leave tells the pool that this host goes for good or for long. Run must not have ended.
func (m *Member) Leave(ctx context.Context) error {
	m.mu.Lock()
	node := m.node
	m.mu.Unlock()
	if node == nil {
		return nil
	}
	return node.Leave(ctx)
}
