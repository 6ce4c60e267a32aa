package member_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/demiurge-platform/demiurge/agent/member"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 2 * time.Minute
	cluster  = "0c6d8a52-1f0e-4b53-9a55-0e8fb5a9c001"
)

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func stop(t testing.TB, n *gossip.Node) {
	t.Helper()
	if err := n.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

// coordinator is a member that the host can join through.
func coordinator(t testing.TB, name, ip string, key gossip.Key) *gossip.Node {
	t.Helper()
	n, err := gossip.Start(gossip.Options{
		Role: gossip.RoleCoordinator, Name: name, Cluster: cluster, Key: key, Bind: netip.AddrPortFrom(netip.MustParseAddr(ip), 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, n) })
	return n
}

func access(key gossip.Key, nodes ...*gossip.Node) api.GossipAccess {
	a := api.GossipAccess{Keys: []string{key.Text()}}
	for _, n := range nodes {
		a.Addresses = append(a.Addresses, n.Addr().String())
	}
	return a
}

// seen is the host as a coordinator knows it.
func seen(n *gossip.Node) gossip.Member {
	for _, m := range n.Members() {
		if m.Role == gossip.RoleAgent && m.Name == "h1" {
			return m
		}
	}
	return gossip.Member{}
}

// host is a directory with its runs.
type host struct {
	t   testing.TB
	o   member.Options
	end func()
}

func newHost(t testing.TB, ip string) *host {
	t.Helper()
	dir := t.TempDir()
	files, err := fsx.NewOS(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	h := &host{t: t, o: member.Options{
		FS: files, Dir: filepath.Join(dir, "gossip"), Host: "h1", Cluster: cluster, Version: "v1", Retry: 10 * time.Millisecond,
		Listen: netip.AddrPortFrom(netip.MustParseAddr(ip), 0), Logger: hclog.NewNullLogger(),
	}}
	t.Cleanup(h.stop)
	return h
}

func (h *host) start() *member.Member {
	h.t.Helper()
	m, err := member.Open(h.o)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	h.end = func() { cancel(); <-done }
	return m
}

func (h *host) stop() {
	if h.end != nil {
		h.end()
		h.end = nil
	}
}

// What the join kept is enough, also for a host that no coordinator has spoken to in this run; and again
// after a restart, at another address.
func TestAHostJoinsWithWhatItKept(t *testing.T) {
	t.Parallel()
	key := gossip.NewKey()
	c := coordinator(t, "c1", "127.1.1.1", key)
	h := newHost(t, "127.1.1.2")
	if err := member.Keep(h.o.FS, h.o.Dir, access(key, c)); err != nil {
		t.Fatal(err)
	}
	m := h.start()
	if err := m.SetDigest(gossip.Digest{Generation: 7}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the coordinator knows the host's health", func() bool {
		return seen(c).Status == gossip.StatusAlive && seen(c).Digest.Generation == 7
	})
	eventually(t, "the host knows that it is there", func() bool { return m.Status().Joined })
	first := m.Status()
	if got := seen(c); got.Run != first.Run || got.Address.String() != first.Address || first.Problem != "" {
		t.Errorf("it says %+v, and the pool has %+v", first, got)
	}
	h.stop()
	again := h.start()
	eventually(t, "the host is back", func() bool {
		s := again.Status()
		return s.Joined && seen(c).Status == gossip.StatusAlive && seen(c).Run == s.Run && s.Run != first.Run
	})
	for _, name := range []string{"pool.json", "gossip-keyring.json"} {
		info, err := os.Stat(filepath.Join(h.o.Dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// A host that was away while the keys were rotated can talk to nobody, until a coordinator has told it the
// new one over its own connection. A key that the pool has dropped is of no use to it any more.
func TestAHostThatWasAwayLearnsTheKey(t *testing.T) {
	t.Parallel()
	old, next := gossip.NewKey(), gossip.NewKey()
	c := coordinator(t, "c1", "127.1.2.1", old)
	h := newHost(t, "127.1.2.2")
	m := h.start()
	m.Take(access(old, c))
	eventually(t, "the host is there", func() bool { return seen(c).Status == gossip.StatusAlive })
	h.stop()
	eventually(t, "the host is away", func() bool { return seen(c).Status == gossip.StatusFailed })
	if err := c.TakeKeys([]gossip.Key{next}); err != nil {
		t.Fatal(err)
	}
	m = h.start()
	eventually(t, "what it sends is refused", func() bool {
		for _, r := range c.Refusals() {
			if r.Reason == gossip.ReasonKey {
				return true
			}
		}
		return false
	})
	if m.Status().Joined {
		t.Fatal("it is in the pool with a key that nobody has")
	}
	m.Take(access(next, c))
	eventually(t, "the host is back", func() bool {
		s := seen(c)
		return m.Status().Joined && s.Status == gossip.StatusAlive && len(s.Keys) == 1 && s.Keys[0] == next.Fingerprint()
	})
	h.stop()
	eventually(t, "the host is away again", func() bool { return seen(c).Status == gossip.StatusFailed })
	h.start()
	eventually(t, "it has kept the key", func() bool { return seen(c).Status == gossip.StatusAlive })
}

// While a key is being rotated both are known; which one is used is told by the gossip.
func TestARotationUnderWayIsNotTurnedBack(t *testing.T) {
	t.Parallel()
	old, next := gossip.NewKey(), gossip.NewKey()
	c := coordinator(t, "c1", "127.1.3.1", old)
	h := newHost(t, "127.1.3.2")
	m := h.start()
	m.Take(access(old, c))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	eventually(t, "the host is there", func() bool { return seen(c).Status == gossip.StatusAlive && len(seen(c).Keys) == 1 })
	for _, step := range []func() (gossip.KeyReport, error){
		func() (gossip.KeyReport, error) { return c.InstallKey(ctx, next) },
		func() (gossip.KeyReport, error) { return c.UseKey(ctx, next.Fingerprint(), false) },
	} {
		if _, err := step(); err != nil {
			t.Fatal(err)
		}
	}
	m.Take(access(next, c))
	eventually(t, "the host uses the new key", func() bool { return len(seen(c).Keys) == 1 && seen(c).Keys[0] == next.Fingerprint() })
	late := access(old, c)
	late.Keys = []string{old.Text(), next.Text()} // as the rotation began
	m.Take(late)
	eventually(t, "the host has taken what came late", func() bool { return len(seen(c).Keys) == 2 })
	if keys := seen(c).Keys; keys[0] != next.Fingerprint() {
		t.Errorf("the host has turned the rotation back: %v", keys)
	}
	last := access(next, c)
	last.Keys = []string{next.Text(), old.Text()}
	m.Take(last)
	if _, err := c.RemoveKey(ctx, old.Fingerprint(), false); err != nil {
		t.Fatal(err)
	}
	m.Take(access(next, c))
	eventually(t, "the host has the new key alone", func() bool {
		s := seen(c)
		return s.Status == gossip.StatusAlive && len(s.Keys) == 1 && s.Keys[0] == next.Fingerprint()
	})
}

// All coordinators that it knew are gone; it finds the new ones.
func TestNewCoordinatorsAreFound(t *testing.T) {
	t.Parallel()
	key := gossip.NewKey()
	first := coordinator(t, "c1", "127.1.4.1", key)
	h := newHost(t, "127.1.4.2")
	m := h.start()
	m.Take(access(key, first))
	eventually(t, "the host is there", func() bool { return seen(first).Status == gossip.StatusAlive })
	stop(t, first)
	second := coordinator(t, "c2", "127.1.4.3", key)
	m.Take(access(key, second))
	eventually(t, "the new coordinator knows the host", func() bool { return seen(second).Status == gossip.StatusAlive })
	h.stop()
	h.start() // with nothing but what it kept
	eventually(t, "the host has restarted", func() bool { return seen(second).Status == gossip.StatusAlive })
}

// A host that cannot enter the gossip goes on trying and says why.
func TestWhyAHostIsNotThere(t *testing.T) {
	t.Parallel()
	key := gossip.NewKey()
	c := coordinator(t, "c1", "127.1.5.1", key)
	h := newHost(t, "127.1.5.2")
	taken, err := net.Listen("tcp", "127.1.5.2:0")
	if err != nil {
		t.Fatal(err)
	}
	h.o.Listen = netip.MustParseAddrPort(taken.Addr().String())
	m := h.start()
	if s := m.Status(); s.Joined || !strings.Contains(s.Problem, "no coordinator has told") {
		t.Errorf("before anything is known: %+v", s)
	}
	m.Take(api.GossipAccess{})                           // says nothing
	m.Take(api.GossipAccess{Keys: []string{key.Text()}}) // says not enough
	m.Take(access(key, c))
	eventually(t, "the taken port is named", func() bool {
		return strings.Contains(m.Status().Problem, taken.Addr().String())
	})
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host is there", func() bool { return m.Status().Joined && seen(c).Status == gossip.StatusAlive })
}

// What was kept and is damaged is no reason not to start.
func TestDamageIsBorne(t *testing.T) {
	t.Parallel()
	h := newHost(t, "127.1.6.2")
	if _, err := os.Stat(h.o.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.MkdirAll(h.o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.o.Dir, "pool.json"), []byte(`{"keys": ["`), 0o600); err != nil {
		t.Fatal(err)
	}
	key := gossip.NewKey()
	c := coordinator(t, "c1", "127.1.6.1", key)
	m := h.start()
	m.Take(access(key, c))
	eventually(t, "the host is there", func() bool { return seen(c).Status == gossip.StatusAlive })
}
