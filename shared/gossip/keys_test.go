package gossip_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/gossip"
)

func decode(t testing.TB, k gossip.Key) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(k.Text())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestKeysDoNotPrint(t *testing.T) {
	t.Parallel()
	k := gossip.NewKey()
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %s %q", k, k, k, k, k), fmt.Sprintf("%v", gossip.Options{Key: k})} {
		if contains(s, k.Text()) || contains(s, string(decode(t, k))) {
			t.Errorf("a key prints itself: %q", s)
		}
	}
	if _, err := json.Marshal(k); err == nil {
		t.Error("a key goes into JSON")
	}
	again, err := gossip.ParseKey(k.Text())
	if err != nil || again != k {
		t.Errorf("reading a key again gives %v, %v", again, err)
	}
	for _, bad := range []string{"", "x", k.Text() + "AAAA", base64.StdEncoding.EncodeToString(make([]byte, 16))} {
		if _, err := gossip.ParseKey(bad); err == nil || bad != "" && contains(err.Error(), bad) {
			t.Errorf("reading %q gives %v", bad, err)
		}
	}
}

func TestRotationWhileMembersJoin(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	dirs := map[string]string{}
	add := func(name string, key gossip.Key) *gossip.Node {
		o := p.options(name)
		o.Dir, o.Key = t.TempDir(), key
		o.Profile = gossip.ProfileDistant // one that a busy machine makes fail for a moment is passed over, or stands against it
		dirs[name] = o.Dir
		return p.addWith(o)
	}
	old, next := p.key, gossip.NewKey()
	nodes := []*gossip.Node{add("h1", old), add("h2", old), add("h3", old)}
	waitAll(t, nodes, 3)

	// Three more come with the old key while the new one is installed.
	var joining sync.WaitGroup
	joining.Go(func() {
		for i := 4; i <= 6; i++ {
			nodes = append(nodes, add(fmt.Sprintf("h%d", i), old))
		}
	})
	if _, err := nodes[0].InstallKey(within(t), next); err != nil {
		t.Fatal(err)
	}
	joining.Wait()
	waitAll(t, nodes, 6)
	if _, err := nodes[0].InstallKey(within(t), next); err != nil { // for those who came too late for the first
		t.Fatal(err)
	}
	if _, err := nodes[1].InstallKey(within(t), gossip.NewKey()); err == nil {
		t.Error("a third key was installed in the middle of a rotation")
	}
	if _, err := nodes[0].RemoveKey(within(t), old.Fingerprint(), false); err == nil {
		t.Error("the key in use was removed")
	}
	report, err := nodes[2].UseKey(within(t), next.Fingerprint(), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Members) != 6 {
		t.Errorf("reported: %+v", report)
	}
	if _, err := nodes[5].RemoveKey(within(t), old.Fingerprint(), false); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if keys := n.Keyring(); len(keys) != 1 || keys[0] != next {
			t.Errorf("%s has %v", n.Addr(), keys)
		}
	}
	waitAll(t, nodes, 6)

	// Every member has it on its disk, for nobody else to read, and comes back with it.
	for name, dir := range dirs {
		info, err := os.Stat(filepath.Join(dir, "gossip-keyring.json"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	stop(t, nodes[1])
	waitStatus(t, nodes[0], "h2", gossip.StatusFailed)
	o := p.options("h2")
	o.Dir, o.Key = dirs["h2"], old // the configuration still has the first one
	p.addWith(o)
	waitAll(t, []*gossip.Node{nodes[0]}, 6)
	// The old key opens nothing any more.
	o = p.options("h9")
	o.Key = old
	stranger := p.start(o)
	joined := make(chan error, 1)
	ctx := within(t)
	go func() { joined <- stranger.Join(ctx) }()
	eventually(t, "the old key is refused", func() bool { return refusedFor(nodes[0], gossip.ReasonKey) })
	stop(t, stranger)
	if err := <-joined; err == nil {
		t.Error("the old key still joins")
	}
}

func TestRotationSparesWhoIsAway(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(3)
	eventually(t, "everybody tells its keys", func() bool {
		alive, _ := nodes[0].Keys().Without(p.key.Fingerprint())
		return len(nodes[0].Keys().Members) == 3 && len(alive) == 0
	})
	stop(t, nodes[2])
	waitStatus(t, nodes[0], "h3", gossip.StatusFailed)
	waitStatus(t, nodes[1], "h3", gossip.StatusFailed)
	next := gossip.NewKey()
	report, err := nodes[0].InstallKey(within(t), next)
	if err != nil {
		t.Fatal(err)
	}
	if _, failed := report.Without(next.Fingerprint()); len(failed) != 1 || failed[0] != "agent.h3" {
		t.Errorf("away without the key: %v", failed)
	}
	if _, err := nodes[0].UseKey(within(t), next.Fingerprint(), false); err == nil || !contains(err.Error(), "agent.h3") {
		t.Errorf("using a key that h3 lacks gives %v", err)
	}
	if _, err := nodes[0].UseKey(within(t), next.Fingerprint(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].RemoveKey(within(t), p.key.Fingerprint(), false); err == nil || !contains(err.Error(), "agent.h3") {
		t.Errorf("removing a key that h3 needs gives %v", err)
	}
	if _, err := nodes[0].UseKey(within(t), "12345678", false); err == nil {
		t.Error("an unknown key is used")
	}
	if _, err := nodes[0].RemoveKey(within(t), "12345678", false); err == nil {
		t.Error("an unknown key is removed")
	}
}

// What a member published last may be of before somebody else changed its keys: it is asked nevertheless.
func TestWhoIsKnownToHaveAKeyIsAskedToo(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	nodes := p.of(3)
	waitAll(t, nodes, 3)
	next := gossip.NewKey()
	if _, err := nodes[0].InstallKey(within(t), next); err != nil {
		t.Fatal(err)
	}
	if err := nodes[1].TakeKeys([]gossip.Key{p.key}); err != nil { // of which nodes[0] has not heard yet
		t.Fatal(err)
	}
	if _, err := nodes[0].InstallKey(within(t), next); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if keys := n.Keyring(); !slices.Contains(keys, next) {
			t.Errorf("%s has %v and not %v", n.Addr(), keys, next)
		}
	}
}

func TestKeyringFile(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	for name, text := range map[string]string{
		"no JSON": "{", "none": "[]", "not a key": `["eA=="]`,
		"three": fmt.Sprintf(`[%q,%q,%q]`, gossip.NewKey().Text(), gossip.NewKey().Text(), gossip.NewKey().Text()),
	} {
		o := p.options("h1")
		o.Dir = t.TempDir()
		if err := os.WriteFile(filepath.Join(o.Dir, "gossip-keyring.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := gossip.Start(o)
		if err == nil {
			stop(t, n)
			t.Errorf("%s: started", name)
		} else if !contains(err.Error(), "gossip-keyring.json") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDevelopmentHasNoKeys(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	p.key = gossip.Key{}
	o := p.options("h1")
	o.Dev = true
	n := p.addWith(o)
	o = p.options("h2")
	o.Dev = true
	p.addWith(o)
	waitAll(t, []*gossip.Node{n}, 2)
	if n.Keyring() != nil {
		t.Errorf("keys: %v", n.Keyring())
	}
	if _, err := n.InstallKey(within(t), gossip.NewKey()); err == nil {
		t.Error("a key was installed")
	}
	if _, err := n.RemoveKey(within(t), "12345678", false); err == nil {
		t.Error("a key was removed")
	}
}
