//go:build e2e

package e2e

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/lab"
)

// breakage is one way to break the cluster. heal takes every one back.
type breakage struct {
	name  string
	begin func(*nemesis) error
}

// nemesis breaks the cluster, one thing after the other.
type nemesis struct {
	c        *cluster
	rng      *rand.Rand
	leader   *node // when the breakage begins
	follower *node // any other
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
		if err := os.Remove(o.full); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		errs = append(errs, o.host.Heal(), o.Signal(syscall.SIGCONT), o.Start())
	}
	for _, h := range n.c.hosts {
		errs = append(errs, h.host.PowerOn(), h.host.Heal(), h.nginx.Signal(syscall.SIGCONT), h.agent.Signal(syscall.SIGCONT), h.start())
	}
	for _, a := range n.c.agents {
		errs = append(errs, a.host.Heal())
		if a.run == nil {
			n.c.startAgent(a)
		}
	}
	return errors.Join(errs...)
}

// breakages, each once in every round, in the order that the seed gives.
var breakages = []breakage{
	{name: "kill -9 the leader", begin: func(n *nemesis) error { return n.leader.Kill() }},
	{name: "kill -9 a follower", begin: func(n *nemesis) error { return n.follower.Kill() }},
	{name: "kill -9 all coordinators", begin: func(n *nemesis) error {
		var errs []error
		for _, o := range n.c.nodes {
			errs = append(errs, o.Kill())
		}
		return errors.Join(errs...)
	}},
	{name: "kill -9 the leader and start it at once", begin: func(n *nemesis) error {
		return errors.Join(n.leader.Kill(), n.leader.Start())
	}},
	{name: "stop the leader", begin: func(n *nemesis) error { return n.leader.Signal(syscall.SIGSTOP) }},
	{name: "stop a follower", begin: func(n *nemesis) error { return n.follower.Signal(syscall.SIGSTOP) }},
	{name: "cut the leader off from all", begin: func(n *nemesis) error {
		return errors.Join(n.leader.host.Refuse(n.everybody(n.leader)...), n.leader.host.Withhold(n.everybody(n.leader)...))
	}},
	{name: "cut the leader off from the followers", begin: func(n *nemesis) error {
		return errors.Join(n.leader.host.Refuse(n.peers(n.leader)...), n.leader.host.Withhold(n.peers(n.leader)...))
	}},
	{name: "the leader hears no follower", begin: func(n *nemesis) error { return n.leader.host.Refuse(n.peers(n.leader)...) }},
	{name: "no follower hears the leader", begin: func(n *nemesis) error { return n.leader.host.Withhold(n.peers(n.leader)...) }},
	{name: "a follower hears nobody", begin: func(n *nemesis) error { return n.follower.host.Refuse(n.everybody(n.follower)...) }},
	{name: "the agents hear no coordinator", begin: func(n *nemesis) error {
		var errs []error
		for _, h := range n.c.hostsOfAgents() {
			errs = append(errs, h.Refuse(n.peers(nil)...))
		}
		return errors.Join(errs...)
	}},
	{name: "cut a host off from the coordinators", begin: func(n *nemesis) error {
		return errors.Join(n.victim.host.Refuse(n.peers(nil)...), n.victim.host.Withhold(n.peers(nil)...))
	}},
	{name: "no coordinator hears a host", begin: func(n *nemesis) error { return n.victim.host.Withhold(n.peers(nil)...) }},
	{name: "kill -9 an agent", begin: func(n *nemesis) error { return n.victim.agent.Kill() }},
	{name: "stop an agent", begin: func(n *nemesis) error { return n.victim.agent.Signal(syscall.SIGSTOP) }},
	{name: "kill -9 nginx", begin: func(n *nemesis) error { return n.victim.nginx.Kill() }},
	{name: "stop nginx", begin: func(n *nemesis) error { return n.victim.nginx.Signal(syscall.SIGSTOP) }},
	{name: "kill -9 all gateways of a host", begin: func(n *nemesis) error {
		pids, err := n.victim.host.Processes("demiurge-gateway")
		for _, pid := range pids {
			err = errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
		}
		return err
	}},
	{name: "a host loses power", begin: func(n *nemesis) error { return n.victim.host.PowerOff() }},
	{name: "a scripted agent crashes", begin: func(n *nemesis) error {
		a := n.c.agents[n.rng.IntN(len(n.c.agents))]
		a.run.Stop()
		n.c.reports = append(n.c.reports, a.run.Violations()...)
		a.run = nil
		return nil
	}},
	{name: "the leader's disk is full", begin: func(n *nemesis) error { return os.WriteFile(n.leader.full, []byte("raft.log"), 0o600) }},
	{name: "a follower's disk is full", begin: func(n *nemesis) error { return os.WriteFile(n.follower.full, []byte("raft.log"), 0o600) }},
}

// choose looks who leads, and chooses the others by the seed.
func (n *nemesis) choose() {
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
	lasts := time.Duration(2500+n.rng.IntN(2500)) * time.Millisecond
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

// order is all breakages with this in their name, each once, as the seed orders them.
func (n *nemesis) order(named string) []breakage {
	var out []breakage
	for _, i := range n.rng.Perm(len(breakages)) {
		if strings.Contains(breakages[i].name, named) {
			out = append(out, breakages[i])
		}
	}
	return out
}
