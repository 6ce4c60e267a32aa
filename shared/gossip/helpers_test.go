package gossip_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// TestMain looks for what the tests have left running. Questions of the library that were under way when its node
// stopped end with their own time limit, which grows to some seconds on a busy machine.
func TestMain(m *testing.M) {
	code := m.Run()
	err := goleak.Find()
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); {
		err = goleak.Find() // waits a while by itself
	}
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// patience bounds waits for conditions; it is long because the machine may be busy.
const patience = 2 * time.Minute

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// nextAddress numbers loopback addresses, so that no two nodes of a test run share one.
var nextAddress atomic.Uint32

func address() netip.AddrPort {
	n := nextAddress.Add(1) + 1
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(n >> 8), byte(n)}), 0)
}

// pool is a set of nodes that belong together.
type pool struct {
	t     testing.TB
	key   gossip.Key
	mu    sync.Mutex
	first string // where the others join
}

func newPool(t testing.TB) *pool { return &pool{t: t, key: gossip.NewKey()} }

// options of one more node, an agent of this name.
func (p *pool) options(name string) gossip.Options {
	o := gossip.Options{
		Role: gossip.RoleAgent, Name: name, Host: id.Host(name), Cluster: "0c6d8a52-1f0e-4b53-9a55-0e8fb5a9c001",
		Version: "v1.2.3", Bind: address(), Key: p.key, TagInterval: 100 * time.Millisecond, Logger: logger(p.t),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first != "" {
		o.Seeds = []string{p.first}
	}
	return o
}

// logger writes into the test's output, if it is wanted: with 32 members the lines cost more than the work.
func logger(t testing.TB) hclog.Logger {
	level := hclog.LevelFromString(os.Getenv("GOSSIP_TEST_LOG"))
	if level == hclog.NoLevel {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Output: t.Output(), Level: level, Name: t.Name()})
}

// start starts a node without joining.
func (p *pool) start(o gossip.Options) *gossip.Node {
	p.t.Helper()
	n, err := gossip.Start(o)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { stop(p.t, n) })
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first == "" {
		p.first = n.Addr().String()
	}
	return n
}

// add starts a node and has it join.
func (p *pool) add(name string) *gossip.Node { return p.addWith(p.options(name)) }

func (p *pool) addWith(o gossip.Options) *gossip.Node {
	p.t.Helper()
	n := p.start(o)
	if err := n.Join(within(p.t)); err != nil {
		p.t.Fatal(err)
	}
	return n
}

// of starts this many nodes and waits until all see all.
func (p *pool) of(count int) []*gossip.Node {
	p.t.Helper()
	nodes := make([]*gossip.Node, count)
	for i := range nodes {
		nodes[i] = p.add(fmt.Sprintf("h%d", i+1))
	}
	waitAll(p.t, nodes, count)
	return nodes
}

// waitAll waits until each of the nodes sees this many alive.
func waitAll(t testing.TB, nodes []*gossip.Node, count int) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, fmt.Sprintf("%s sees %d members alive", n.Addr(), count), func() bool { return len(alive(n)) == count })
	}
}

func alive(n *gossip.Node) []gossip.Member {
	var out []gossip.Member
	for _, m := range n.Members() {
		if m.Status == gossip.StatusAlive {
			out = append(out, m)
		}
	}
	return out
}

// member gives what a node knows of an agent; the zero Member if nothing.
func member(n *gossip.Node, name string) gossip.Member {
	for _, m := range n.Members() {
		if m.Role == gossip.RoleAgent && m.Name == name {
			return m
		}
	}
	return gossip.Member{}
}

func waitStatus(t testing.TB, n *gossip.Node, name string, s gossip.Status) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s takes %s for %s", n.Addr(), name, s), func() bool { return member(n, name).Status == s })
}

func stop(t testing.TB, n *gossip.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// waitChange reads changes until there is one of this kind about this member.
func waitChange(t testing.TB, n *gossip.Node, name string, kind gossip.Kind) gossip.Member {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case c, ok := <-n.Changes():
			if !ok {
				t.Fatalf("the changes ended before %s %s", name, kind)
			}
			if c.Member.Name == name && c.Kind == kind {
				return c.Member
			}
		case <-limit:
			t.Fatalf("waited in vain for %s %s", name, kind)
		}
	}
}

// refusedFor reports whether a node refused something for this reason.
func refusedFor(n *gossip.Node, part string) bool {
	for _, r := range n.Refusals() {
		if contains(r.Reason, part) && r.Count > 0 {
			return true
		}
	}
	return false
}
