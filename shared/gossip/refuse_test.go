package gossip_test

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"github.com/demiurge-platform/demiurge/shared/gossip"
)

func TestAnotherKeyIsRefused(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(2)
	for name, change := range map[string]func(*gossip.Options){
		"another key": func(o *gossip.Options) { o.Key = gossip.NewKey() },
		"no key":      func(o *gossip.Options) { o.Key, o.Dev = gossip.Key{}, true },
	} {
		o := p.options("h9")
		change(&o)
		before := count(nodes[0], gossip.ReasonKey)
		stranger := p.start(o)
		ctx := within(t)
		joined := make(chan error, 1)
		go func() { joined <- stranger.Join(ctx) }()
		eventually(t, name+" is reported", func() bool { return count(nodes[0], gossip.ReasonKey) > before })
		stop(t, stranger)
		if err := <-joined; err == nil {
			t.Errorf("a node with %s joined", name)
		}
		for _, n := range nodes {
			if m := member(n, "h9"); m.Name != "" {
				t.Errorf("a node with %s is known: %+v", name, m)
			}
		}
	}
	waitAll(t, nodes, 2)
}

// count adds up the refusals of a reason.
func count(n *gossip.Node, reason string) (sum uint64) {
	for _, r := range n.Refusals() {
		if r.Reason == reason {
			sum += r.Count
		}
	}
	return sum
}

func TestAnotherClusterIsRefused(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(2)
	o := p.options("h9")
	o.Cluster = "another"
	stranger := p.start(o)
	joined := make(chan error, 1)
	ctx := within(t)
	go func() { joined <- stranger.Join(ctx) }()
	for _, n := range []*gossip.Node{nodes[0], stranger} {
		eventually(t, "both sides refuse", func() bool { return refusedFor(n, "it belongs to the cluster") })
	}
	stop(t, stranger)
	if err := <-joined; err == nil {
		t.Error("a member of another cluster joined")
	}
	for _, n := range nodes {
		if len(n.Members()) != 2 {
			t.Errorf("the pool has %+v", n.Members())
		}
	}
	if len(stranger.Members()) != 1 {
		t.Errorf("the stranger knows %+v", stranger.Members())
	}
}

// raw is a member that was not made by this package: it has the key, and says what it likes.
func raw(t *testing.T, p *pool, name string, tags map[string]string) *serf.Serf {
	t.Helper()
	c := serf.DefaultConfig()
	c.NodeName, c.Tags = name, tags
	c.LogOutput = io.Discard
	c.MemberlistConfig = memberlist.DefaultLocalConfig()
	c.MemberlistConfig.LogOutput = io.Discard
	c.MemberlistConfig.Logger = nil
	c.MemberlistConfig.BindAddr, c.MemberlistConfig.BindPort = address().Addr().String(), 0
	ring, err := memberlist.NewKeyring(nil, decode(t, p.key))
	if err != nil {
		t.Fatal(err)
	}
	c.MemberlistConfig.Keyring = ring
	s, err := serf.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestUnreadableMembersAreIgnored(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(2)
	cluster := p.options("h1").Cluster
	for want, r := range map[string]*serf.Serf{
		"does not begin with a role": raw(t, p, "somebody", map[string]string{"c": cluster}),
		"it says no cluster id":      raw(t, p, "agent.h7", nil),
		"its list of keys":           raw(t, p, "agent.h8", map[string]string{"c": cluster, "k": "zz"}),
		"host id":                    raw(t, p, "coordinator.c8", map[string]string{"c": cluster, "h": "../.."}),
	} {
		_, _ = r.Join([]string{nodes[0].Addr().String()}, true)
		eventually(t, "it is refused: "+want, func() bool { return refusedFor(nodes[0], want) })
	}
	for _, n := range nodes {
		if len(n.Members()) != 2 {
			t.Errorf("the pool has %+v", n.Members())
		}
	}
	// A digest of a later version is no reason to lose a host.
	newer := raw(t, p, "agent.h6", map[string]string{"c": cluster, "d": "9;later", "later": "tag"})
	if _, err := newer.Join([]string{nodes[0].Addr().String()}, true); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		waitStatus(t, n, "h6", gossip.StatusAlive)
		if m := member(n, "h6"); !contains(m.DigestError, "version") {
			t.Errorf("known as %+v", m)
		}
	}
	// No commands over gossip: what a member sends besides is refused, and reported.
	if err := newer.UserEvent("restart", []byte("now"), false); err != nil {
		t.Fatal(err)
	}
	if _, err := newer.Query("uptime", nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		eventually(t, "the event is refused", func() bool { return refusedFor(n, "an event over gossip") })
		eventually(t, "the query is refused", func() bool { return refusedFor(n, "a query over gossip") })
	}
}

func TestAddressesThatMayGossip(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	mine, friend := address(), address()
	o := p.options("h1")
	o.Bind = mine
	o.Allowed = []netip.Prefix{netip.PrefixFrom(mine.Addr(), 32), netip.PrefixFrom(friend.Addr(), 32)}
	n := p.addWith(o)
	o = p.options("h2")
	o.Bind = friend
	p.addWith(o)
	waitAll(t, []*gossip.Node{n}, 2)
	stranger := p.start(p.options("h3"))
	joined := make(chan error, 1)
	ctx := within(t)
	go func() { joined <- stranger.Join(ctx) }()
	eventually(t, "the address is refused", func() bool { return refusedFor(n, "not among those that may gossip") })
	stop(t, stranger)
	if err := <-joined; err == nil {
		t.Error("a node at another address joined")
	}
	if len(n.Members()) != 2 {
		t.Errorf("the pool has %+v", n.Members())
	}
}

func TestLargeAndSenselessInput(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(2)
	at := nodes[0].Addr().String()
	packets, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for _, size := range []int{1, 2, 30, 1400, 5000, 60000} {
		if _, err := packets.Write(bytes.Repeat([]byte{byte(size)}, size)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a packet is too long", func() bool { return refusedFor(nodes[0], "a packet of more than") })
	eventually(t, "a packet has no key", func() bool { return refusedFor(nodes[0], gossip.ReasonKey) })
	stream, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	// An encrypted message (type 10) that claims to be 15 MiB long: less than the library's bound.
	head := []byte{10, 0, 0xf0, 0, 0}
	if _, err := stream.Write(head); err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 64<<10); ; {
		if _, err := stream.Write(chunk); err != nil {
			break // the other side has had enough
		}
	}
	eventually(t, "a stream is too long", func() bool { return refusedFor(nodes[0], "on one connection") })
	waitAll(t, nodes, 2)
}
