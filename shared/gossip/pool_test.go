package gossip_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func TestMembersKnowEachOther(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	o := p.options("c1")
	o.Role, o.Host, o.Tags = gossip.RoleCoordinator, "", map[string]string{"raft": "127.0.0.1:7001"}
	c := p.addWith(o)
	a := p.add("h1")
	b := p.add("h2")
	waitAll(t, []*gossip.Node{a, b, c}, 3)

	d := gossip.Digest{
		Generation: 42, Gateways: map[string]uint32{api.GatewayReady: 3, api.GatewayAllocated: 12},
		RouteDigest: 0xfeed, LoadPercent: 35, DiskFreeMiB: 10240, Problems: []gossip.Problem{gossip.ProblemDisk},
	}
	if err := a.SetDigest(d); err != nil {
		t.Fatal(err)
	}
	if err := c.SetTags(map[string]string{"raft": "127.0.0.1:7002"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "h1's digest arrives", func() bool { return reflect.DeepEqual(member(b, "h1").Digest, d) })
	eventually(t, "c1's tags arrive", func() bool {
		for _, m := range b.Members() {
			if m.Role == gossip.RoleCoordinator && m.Name == "c1" && m.Tags["raft"] == "127.0.0.1:7002" {
				return true
			}
		}
		return false
	})
	m := member(b, "h1")
	if m.Host != "h1" || m.Version != "v1.2.3" || m.Address != a.Addr() || m.Run == "" || m.Self || m.DigestError != "" || m.Since.IsZero() {
		t.Errorf("h2 knows h1 as %+v", m)
	}
	if m := member(b, "h2"); !m.Self || m.DigestError != "none" {
		t.Errorf("h2 knows itself as %+v", m)
	}
}

func TestHardStopFailsAndLeaveDoesNot(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(4)
	before := member(nodes[0], "h4").Since
	stop(t, nodes[3]) // sockets closed, not a word
	for _, n := range nodes[:3] {
		waitStatus(t, n, "h4", gossip.StatusFailed)
	}
	if m := waitChange(t, nodes[0], "h4", gossip.Failed); !m.Since.After(before) {
		t.Errorf("h4 failed at %v, not after it joined at %v", m.Since, before)
	}
	if err := nodes[2].Leave(within(t)); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes[:2] {
		waitStatus(t, n, "h3", gossip.StatusLeft)
	}
	waitChange(t, nodes[0], "h3", gossip.Left)
	stop(t, nodes[2])

	if err := nodes[0].Forget(within(t), gossip.RoleAgent, "h2"); err == nil || !contains(err.Error(), "alive") {
		t.Errorf("forgetting a live member gives %v", err)
	}
	if err := nodes[0].Forget(within(t), gossip.RoleAgent, "h9"); err == nil {
		t.Error("an unknown member was forgotten")
	}
	if err := nodes[0].Forget(within(t), gossip.RoleAgent, "h4"); err != nil {
		t.Fatal(err)
	}
	waitStatus(t, nodes[1], "h4", "")
	waitChange(t, nodes[0], "h4", gossip.Forgotten)
}

func TestRestartAtANewAddress(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(3)
	old := member(nodes[0], "h3")
	stop(t, nodes[2])
	again := p.add("h3") // at once, while the others still think that it lives elsewhere
	for _, n := range nodes[:2] {
		eventually(t, "h3 is known at its new address", func() bool {
			m := member(n, "h3")
			return m.Status == gossip.StatusAlive && m.Address == again.Addr() && m.Run != old.Run
		})
	}
	waitAll(t, []*gossip.Node{again}, 3)
}

func TestRestartAtTheSameAddress(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(3)
	o := p.options("h3")
	o.Bind = nodes[2].Addr()
	run := member(nodes[0], "h3").Run
	stop(t, nodes[2])
	again := p.addWith(o)
	for _, n := range nodes[:2] {
		eventually(t, "h3 is known in its new run", func() bool {
			m := member(n, "h3")
			return m.Status == gossip.StatusAlive && m.Run != run
		})
	}
	waitAll(t, []*gossip.Node{again}, 3)
}

func TestASecondMemberOfTheSameNameIsRefused(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	patiently := func(name string) gossip.Options { // a name is free once its holder counts as failed
		o := p.options(name)
		o.Profile = gossip.ProfileSlow
		return o
	}
	var nodes []*gossip.Node
	for i := range 3 {
		nodes = append(nodes, p.addWith(patiently(fmt.Sprintf("h%d", i+1))))
	}
	waitAll(t, nodes, 3)
	run := member(nodes[0], "h2").Run
	second := p.start(patiently("h2"))
	second.GiveUpNameAfter(time.Second) // the longer it takes, the likelier a busy machine makes the first h2 fail meanwhile
	err := second.Join(within(t))
	if !errors.Is(err, gossip.ErrNameTaken) || !contains(err.Error(), nodes[1].Addr().String()) {
		t.Errorf("joining under a taken name gives %v", err)
	}
	for _, n := range nodes {
		if m := member(n, "h2"); m.Status != gossip.StatusAlive || m.Run != run || m.Address != nodes[1].Addr() {
			t.Errorf("the first h2 did not stay: %+v", m)
		}
	}
	if !refusedFor(nodes[0], "the name of the live member agent.h2") {
		t.Errorf("the second h2 is not reported: %+v", nodes[0].Refusals())
	}
	stop(t, second)
	waitAll(t, nodes, 3)
}

func TestStartingAnewIsNotFlapping(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(2)
	changes := make(chan gossip.Change, 64)
	var reader sync.WaitGroup
	reader.Go(func() {
		for c := range nodes[0].Changes() {
			if c.Member.Name == "h2" && c.Kind != gossip.Updated {
				changes <- c
			}
		}
		close(changes)
	})
	flapper := nodes[1]
	for range gossip.FlapLimit {
		at := flapper.Addr()
		stop(t, flapper)
		waitStatus(t, nodes[0], "h2", gossip.StatusFailed)
		o := p.options("h2")
		o.Bind = at
		flapper = p.addWith(o)
		waitStatus(t, nodes[0], "h2", gossip.StatusAlive)
	}
	if m := member(nodes[0], "h2"); m.Flaps != 0 {
		t.Errorf("h2 flapped %d times", m.Flaps)
	}
	var kinds []string
	for c := range changes {
		kinds = append(kinds, string(c.Kind))
		if len(kinds) == 1+2*gossip.FlapLimit {
			break
		}
	}
	if got := strings.Join(kinds, " "); got != "joined failed returned failed returned failed returned" {
		t.Errorf("told: %s", got)
	}
	stop(t, nodes[0])
	reader.Wait()
}

func TestThirtyTwoMembers(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	const count = 32
	nodes := make([]*gossip.Node, count)
	for i := range nodes {
		o := p.options(fmt.Sprintf("h%d", i+1))
		o.Profile = gossip.ProfileDistant // 32 members share the processors of one test
		nodes[i] = p.start(o)
	}
	var joins sync.WaitGroup
	for _, n := range nodes {
		joins.Go(func() {
			if err := n.Join(within(t)); err != nil {
				t.Error(err)
			}
		})
	}
	joins.Wait()
	waitAll(t, nodes, count)
	stop(t, nodes[count-1])
	for _, n := range nodes[:count-1] {
		waitStatus(t, n, fmt.Sprintf("h%d", count), gossip.StatusFailed)
	}
}

func TestNobodyReadsTheChanges(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	var nodes []*gossip.Node
	for i := range 3 { // h1 sees them come in this order, and none fails that was not stopped, however busy the machine is
		o := p.options(fmt.Sprintf("h%d", i+1))
		o.Profile = gossip.ProfileDistant
		nodes = append(nodes, p.addWith(o))
		waitAll(t, nodes, i+1)
	}
	for i := range 200 { // far more than any channel holds
		if err := nodes[1].SetTags(map[string]string{"n": fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the last tag arrives", func() bool { return member(nodes[0], "h2").Tags["n"] == "199" })
	stop(t, nodes[2])
	waitStatus(t, nodes[0], "h3", gossip.StatusFailed)
	var got []string
	for len(got) < 2 {
		c := <-nodes[0].Changes()
		got = append(got, fmt.Sprintf("%s %s %s", c.Kind, c.Member.Name, c.Member.Tags["n"]))
	}
	// One change of each, with the latest state: that h2 joined is still news, that h3 did is not.
	if want := []string{"joined h2 199", "failed h3 "}; !reflect.DeepEqual(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestComesBackWithoutSeeds(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func([]byte) []byte{
		"sound": func(b []byte) []byte { return b },
		"torn":  func(b []byte) []byte { return append([]byte("\x00\xffgarbage\n"), append(b, "alive: h"...)...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t)
			p.add("h1")
			o := p.options("h2")
			o.Dir = t.TempDir()
			n := p.addWith(o)
			waitAll(t, []*gossip.Node{n}, 2)
			path := filepath.Join(o.Dir, "gossip.snapshot")
			stop(t, n)
			data, err := os.ReadFile(path)
			if err != nil || !contains(string(data), "agent.h1") {
				t.Fatalf("kept %q, %v", data, err)
			}
			if err := os.WriteFile(path, damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			o.Seeds, o.Key, o.Bind = nil, gossip.Key{}, address()
			again := p.start(o)
			waitAll(t, []*gossip.Node{again}, 2)
		})
	}
}

// A stop must not wait for a seed that takes the connection and says nothing, and must leave nothing behind.
func TestStopWhileJoining(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p := newPool(t)
	o := p.options("h1")
	o.Seeds, o.Profile = []string{silent.Addr().String()}, gossip.ProfileDistant
	n := p.start(o)
	joined := make(chan error, 1)
	go func() { joined <- n.Join(context.Background()) }()
	taken, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	stop(t, n)
	if err := <-joined; err == nil || !contains(err.Error(), "stopping") {
		t.Errorf("join gives %v", err)
	}
	if err := n.Join(within(t)); err == nil {
		t.Error("a stopped node joins")
	}
	if err := n.Leave(within(t)); err == nil {
		t.Error("a stopped node leaves")
	}
	stop(t, n) // again: nothing happens

	other := p.start(o)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := other.Join(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("join gives %v", err)
	}
}

func TestTagsAreBounded(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	o := p.options("h1")
	o.TagInterval = 200 * time.Millisecond
	n := p.addWith(o)
	other := p.add("h2")
	if err := n.SetTags(map[string]string{"long": strings.Repeat("x", 512)}); err == nil {
		t.Error("512 bytes more than the rest were taken")
	}
	size := 512
	for n.SetTags(map[string]string{"long": strings.Repeat("x", size)}) != nil {
		size--
	}
	eventually(t, "the longest tags arrive", func() bool { return len(member(other, "h1").Tags["long"]) == size })
	if size < 300 {
		t.Errorf("only %d bytes are left for tags", size)
	}
	if err := n.SetDigest(gossip.Digest{}); err == nil {
		t.Error("a digest was taken on top of that")
	}
	if err := n.SetTags(nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	published := n.Stats().TagsPublished
	for i := range 5000 {
		if err := n.SetDigest(gossip.Digest{Generation: uint64(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the last digest arrives", func() bool { return member(other, "h1").Digest.Generation == 5000 })
	most := uint64(time.Since(began)/o.TagInterval) + 4 // those saved up, and one for the keys before
	if got := n.Stats().TagsPublished - published; got > most {
		t.Errorf("%d changes were published, more than %d", got, most)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	good := func() gossip.Options { return newPool(t).options("h1") }
	for want, change := range map[string]func(*gossip.Options){
		"role":                           func(o *gossip.Options) { o.Role = "boss" },
		"name":                           func(o *gossip.Options) { o.Name = "not a name" },
		"must be its host id":            func(o *gossip.Options) { o.Host = "other" },
		"cluster id":                     func(o *gossip.Options) { o.Cluster = "No Such" },
		"no address to bind":             func(o *gossip.Options) { o.Bind = netip.AddrPort{} },
		"needs an address to advertise":  func(o *gossip.Options) { o.Bind = netip.MustParseAddrPort("0.0.0.0:0") },
		"nobody can dial":                func(o *gossip.Options) { o.Advertise = netip.MustParseAddrPort("127.0.0.1:0") },
		"not host:port":                  func(o *gossip.Options) { o.Seeds = []string{"nowhere"} },
		"profile":                        func(o *gossip.Options) { o.Profile = "warp" },
		"the least is":                   func(o *gossip.Options) { o.TagInterval = time.Millisecond },
		"without a key":                  func(o *gossip.Options) { o.Key = gossip.Key{} },
		"only loopback addresses":        func(o *gossip.Options) { o.Dev, o.Advertise = true, netip.MustParseAddrPort("192.0.2.1:7") },
		"cannot publish tags of":         func(o *gossip.Options) { o.Tags = map[string]string{"x": strings.Repeat("y", 500)} },
		"cannot open directory":          func(o *gossip.Options) { o.Dir = filepath.Join(t.TempDir(), "missing") },
		"cannot bind the gossip to 127.": func(o *gossip.Options) { o.Bind = newPool(t).start(good()).Addr() },
	} {
		o := good()
		change(&o)
		n, err := gossip.Start(o)
		if err == nil {
			stop(t, n)
		}
		if err == nil || !contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
