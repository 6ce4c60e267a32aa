//go:build e2e

package e2e

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/lab"
)

// breakage is one way to break the cluster. heal takes every one back.
type breakage struct {
	family string // of those that break the same thing in nearly the same way
	name   string
	begin  func(*nemesis) error
	clocks bool // it sets clocks, which only programs that are built for it have: not in the short form
}

// nemesis breaks the cluster, one thing after the other.
type nemesis struct {
	c        *cluster
	rng      *rand.Rand // of this piece: one that is done again is the same
	leader   *node      // when the breakage begins
	follower *node      // any other
	victim   *realHost
}

func (n *nemesis) peers(of *node) []*lab.Host {
	var out []*lab.Host
	for _, o := range n.c.nodes {
		if o != of {
			out = append(out, o.host)
		}
	}
	return out
}

// everybody is all hosts but that of a coordinator.
func (n *nemesis) everybody(but *node) []*lab.Host {
	out := append(n.peers(but), n.c.clients)
	return append(out, n.c.hostsOfAgents()...)
}

// heal takes everything back that a breakage can have done.
func (n *nemesis) heal() error {
	var errs []error
	for _, o := range n.c.nodes {
		n.disarm(o.name, o.armed)
		errs = append(errs, o.clock.set(0), forget(o.full), forget(o.armed), o.host.Heal(), o.Signal(syscall.SIGCONT), o.Start())
	}
	for _, h := range n.c.hosts {
		n.disarm(h.name, h.armed)
		errs = append(errs, h.clock.set(0), forget(h.full), forget(h.armed), h.host.PowerOn(), h.host.Heal(), h.nginx.Signal(syscall.SIGCONT), h.agent.Signal(syscall.SIGCONT), h.start())
	}
	for _, a := range n.c.agents {
		errs = append(errs, a.host.Heal())
		if a.run == nil {
			n.c.startAgent(a)
		}
	}
	return errors.Join(errs...)
}

// choose looks who leads, and chooses the others by the seed of the piece.
func (n *nemesis) choose(seed uint64) {
	n.rng = rand.New(rand.NewPCG(seed, 6))
	n.c.await("a leader before the fault", func() error {
		var err error
		n.leader, err = n.c.leader()
		return err
	})
	for n.follower = n.leader; n.follower == n.leader; {
		n.follower = n.c.nodes[n.rng.IntN(len(n.c.nodes))]
	}
	n.victim = n.c.hosts[n.rng.IntN(len(n.c.hosts))]
}

// strike breaks one thing for some seconds and takes it back.
func (n *nemesis) strike(ctx context.Context, b breakage) {
	lasts := time.Duration(2000+n.rng.IntN(2000)) * time.Millisecond
	n.c.t.Logf("%s: %s, for %s; %s leads, %s, %s", time.Now().Format("15:04:05.000"), b.name, lasts, n.leader.name, n.follower.name, n.victim.name)
	if err := b.begin(n); err != nil {
		n.c.t.Errorf("cannot %s: %v", b.name, err)
	}
	waitFor(ctx, lasts)
	if err := n.heal(); err != nil {
		n.c.t.Errorf("cannot take back: %s: %v", b.name, err)
	}
}

// waitFor lets time pass, for which faults are there.
func waitFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// order is all breakages with this in their name, each once, as the seed orders them; or of every family the first
// one only.
func order(rng *rand.Rand, named string, short bool) []breakage {
	var out []breakage
	for _, i := range rng.Perm(len(breakages)) {
		b := breakages[i]
		if !strings.Contains(b.name, named) || short && b.clocks || short && slices.ContainsFunc(out, func(o breakage) bool { return o.family == b.family }) {
			continue
		}
		out = append(out, b)
	}
	return out
}

// The short form breaks each family once, and not always with the same fault.
func TestShortFormBreaksEveryFamilyOnce(t *testing.T) {
	families, chosen := map[string]bool{}, map[string]bool{}
	for _, b := range breakages {
		if !b.clocks {
			families[b.family] = true
		}
	}
	for seed := range uint64(20) {
		broken := order(rand.New(rand.NewPCG(seed, 3)), "", true)
		seen := map[string]bool{}
		for _, b := range broken {
			seen[b.family], chosen[b.name] = true, true
		}
		if len(broken) != len(families) || !maps.Equal(seen, families) {
			t.Errorf("seed %d: %d faults of %d families; there are %d families", seed, len(broken), len(seen), len(families))
		}
	}
	if len(chosen) <= len(families) {
		t.Errorf("20 seeds choose the same %d faults", len(chosen))
	}
}

// disarm tells of a step that was not reached.
func (n *nemesis) disarm(name, armed string) {
	if label, err := os.ReadFile(armed); err == nil {
		n.c.t.Logf("%s did not reach %s", name, label)
	}
}

// forget removes a file that may not be there.
func forget(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
