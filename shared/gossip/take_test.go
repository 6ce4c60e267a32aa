package gossip_test

import (
	"slices"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/gossip"
)

func TestTakeKeys(t *testing.T) {
	t.Parallel()
	a, b, c, d := gossip.NewKey(), gossip.NewKey(), gossip.NewKey(), gossip.NewKey()
	p := newPool(t)
	o := p.options("h1")
	o.Dir, o.Key = t.TempDir(), a
	n := p.addWith(o)
	for i, keys := range [][]gossip.Key{{a}, {a, b}, {b, a}, {b}, {c, b}, {d, b}, {a, c}, {c}, {c}} {
		if err := n.TakeKeys(keys); err != nil {
			t.Fatal(err)
		}
		if got := n.Keyring(); !slices.Equal(got, keys) {
			t.Errorf("step %d: %v, want %v", i, got, keys)
		}
	}
	for what, keys := range map[string][]gossip.Key{"none": nil, "three": {a, b, c}, "an empty one": {a, {}}} {
		if err := n.TakeKeys(keys); err == nil {
			t.Errorf("%s: taken", what)
		}
		if got := n.Keyring(); !slices.Equal(got, []gossip.Key{c}) {
			t.Errorf("%s: left %v", what, got)
		}
	}
}

// TestAMemberThatWasAwayTakesTheKeys: the keys were rotated while it was down. With those it was told of on
// another way, it is in the pool again and keeps them.
func TestAMemberThatWasAwayTakesTheKeys(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	old, next := p.key, gossip.NewKey()
	o1 := p.options("h1")
	o1.Dir = t.TempDir()
	n1 := p.addWith(o1)
	o2 := p.options("h2")
	o2.Dir = t.TempDir()
	n2 := p.addWith(o2)
	waitAll(t, []*gossip.Node{n1, n2}, 2)
	stop(t, n2)
	waitStatus(t, n1, "h2", gossip.StatusFailed)
	if _, err := n1.InstallKey(within(t), next); err != nil {
		t.Fatal(err)
	}
	if _, err := n1.UseKey(within(t), next.Fingerprint(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := n1.RemoveKey(within(t), old.Fingerprint(), true); err != nil {
		t.Fatal(err)
	}
	o2.Bind, o2.Seeds = n2.Addr(), []string{n1.Addr().String()}
	n2, err := gossip.Start(o2)
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, n2)
	if err := n2.TakeKeys([]gossip.Key{next}); err != nil {
		t.Fatal(err)
	}
	if err := n2.Join(within(t)); err != nil {
		t.Fatal(err)
	}
	waitAll(t, []*gossip.Node{n1, n2}, 2)
	if got := n2.Keyring(); !slices.Equal(got, []gossip.Key{next}) {
		t.Errorf("it has %v", got)
	}
}
