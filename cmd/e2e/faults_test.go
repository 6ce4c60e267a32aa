//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
)

// spoil lets the steps of a program that these words name find a bad disk.
func spoil(file, words string) error { return os.WriteFile(file, []byte(words), 0o600) }

// arm lets a program die at one of the steps that it lately passed so often that it will be reached soon, each of
// them as likely.
func (n *nemesis) arm(armed, trace string) error {
	text, err := os.ReadFile(trace)
	if err != nil {
		return err
	}
	const lately = 64 << 10
	if len(text) > lately {
		text = text[bytes.IndexByte(text[len(text)-lately:], '\n')+len(text)-lately+1:]
	}
	often := map[string]int{}
	for _, label := range strings.Fields(string(text)) {
		often[label]++
	}
	var labels []string
	for _, label := range slices.Sorted(maps.Keys(often)) {
		if often[label] > 3 {
			labels = append(labels, label)
		}
	}
	if len(labels) == 0 {
		return errors.New("it passed no step often yet")
	}
	label := labels[n.rng.IntN(len(labels))]
	n.c.t.Logf("to die at %s, of %d steps", label, len(labels))
	return os.WriteFile(armed, fmt.Appendf(nil, "%s:%d", label, 1+n.rng.IntN(3)), 0o600)
}

// breakages, each once in every round, in the order that the seed gives.
var breakages = []breakage{
	{family: "a coordinator dies", name: "kill -9 the leader", begin: func(n *nemesis) error { return n.leader.Kill() }},
	{family: "a coordinator dies", name: "kill -9 a follower", begin: func(n *nemesis) error { return n.follower.Kill() }},
	{family: "a coordinator dies", name: "kill -9 all coordinators", begin: func(n *nemesis) error {
		var errs []error
		for _, o := range n.c.nodes {
			errs = append(errs, o.Kill())
		}
		return errors.Join(errs...)
	}},
	{family: "a coordinator dies", name: "kill -9 the leader and start it at once", begin: func(n *nemesis) error {
		return errors.Join(n.leader.Kill(), n.leader.Start())
	}},
	{family: "a coordinator stands still", name: "stop the leader", begin: func(n *nemesis) error { return n.leader.Signal(syscall.SIGSTOP) }},
	{family: "a coordinator stands still", name: "stop a follower", begin: func(n *nemesis) error { return n.follower.Signal(syscall.SIGSTOP) }},
	{family: "coordinators are cut off", name: "cut the leader off from all", begin: func(n *nemesis) error {
		return errors.Join(n.leader.host.Refuse(n.everybody(n.leader)...), n.leader.host.Withhold(n.everybody(n.leader)...))
	}},
	{family: "coordinators are cut off", name: "cut the leader off from the followers", begin: func(n *nemesis) error {
		return errors.Join(n.leader.host.Refuse(n.peers(n.leader)...), n.leader.host.Withhold(n.peers(n.leader)...))
	}},
	{family: "coordinators are cut off", name: "the leader hears no follower", begin: func(n *nemesis) error { return n.leader.host.Refuse(n.peers(n.leader)...) }},
	{family: "coordinators are cut off", name: "no follower hears the leader", begin: func(n *nemesis) error { return n.leader.host.Withhold(n.peers(n.leader)...) }},
	{family: "coordinators are cut off", name: "a follower hears nobody", begin: func(n *nemesis) error { return n.follower.host.Refuse(n.everybody(n.follower)...) }},
	{family: "hosts are cut off", name: "the agents hear no coordinator", begin: func(n *nemesis) error {
		var errs []error
		for _, h := range n.c.hostsOfAgents() {
			errs = append(errs, h.Refuse(n.peers(nil)...))
		}
		return errors.Join(errs...)
	}},
	{family: "hosts are cut off", name: "cut a host off from the coordinators", begin: func(n *nemesis) error {
		return errors.Join(n.victim.host.Refuse(n.peers(nil)...), n.victim.host.Withhold(n.peers(nil)...))
	}},
	{family: "hosts are cut off", name: "no coordinator hears a host", begin: func(n *nemesis) error { return n.victim.host.Withhold(n.peers(nil)...) }},
	{family: "an agent is gone", name: "kill -9 an agent", begin: func(n *nemesis) error { return n.victim.agent.Kill() }},
	{family: "an agent is gone", name: "stop an agent", begin: func(n *nemesis) error { return n.victim.agent.Signal(syscall.SIGSTOP) }},
	{family: "nginx is gone", name: "kill -9 nginx", begin: func(n *nemesis) error { return n.victim.nginx.Kill() }},
	{family: "nginx is gone", name: "stop nginx", begin: func(n *nemesis) error { return n.victim.nginx.Signal(syscall.SIGSTOP) }},
	{family: "gateways are gone", name: "kill -9 all gateways of a host", begin: func(n *nemesis) error {
		pids, err := n.victim.host.Processes("demiurge-gateway")
		for _, pid := range pids {
			err = errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
		}
		return err
	}},
	{family: "gateways are gone", name: "a host loses power", begin: func(n *nemesis) error { return n.victim.host.PowerOff() }},
	{family: "gateways are gone", name: "a host is switched off in order", begin: func(n *nemesis) error {
		h := n.victim
		return errors.Join(h.host.Run(h.leave...), h.agent.End(), h.host.PowerOff())
	}},
	{family: "an agent is gone", name: "a scripted agent crashes", begin: func(n *nemesis) error {
		a := n.c.agents[n.rng.IntN(len(n.c.agents))]
		a.run.Stop()
		n.c.reports = append(n.c.reports, a.run.Violations()...)
		a.run = nil
		return nil
	}},
	{family: "a coordinator's disk is bad", name: "the leader's disk is full", begin: func(n *nemesis) error { return spoil(n.leader.full, "raft.log") }},
	{family: "a coordinator's disk is bad", name: "a follower's disk is full", begin: func(n *nemesis) error { return spoil(n.follower.full, "raft.log") }},
	{family: "a coordinator's disk is bad", name: "fsync fails on the leader", begin: func(n *nemesis) error { return spoil(n.leader.full, "raft.log.fsync=eio") }},
	{family: "a coordinator's disk is slow", name: "fsync is slow on the leader", begin: func(n *nemesis) error { return spoil(n.leader.full, "raft.log.fsync=200ms") }},
	{family: "a coordinator's disk is slow", name: "fsync hangs on the leader", begin: func(n *nemesis) error { return spoil(n.leader.full, "raft.log.fsync=20s") }},
	{family: "a coordinator's disk is slow", name: "fsync is slow on all coordinators", begin: func(n *nemesis) error {
		var errs []error
		for _, o := range n.c.nodes {
			errs = append(errs, spoil(o.full, "raft.log.fsync=100ms"))
		}
		return errors.Join(errs...)
	}},
	{family: "a host's disk is bad", name: "a host's disk is full", begin: func(n *nemesis) error { return spoil(n.victim.full, "journal. nginx.") }},
	{family: "a host's disk is bad", name: "fsync is slow on a host", begin: func(n *nemesis) error { return spoil(n.victim.full, "journal.=100ms nginx.=100ms") }},
	{family: "a coordinator dies at a step", name: "crash the leader at a step", begin: func(n *nemesis) error { return n.arm(n.leader.armed, n.leader.trace) }},
	{family: "a coordinator dies at a step", name: "crash a follower at a step", begin: func(n *nemesis) error { return n.arm(n.follower.armed, n.follower.trace) }},
	{family: "an agent dies at a step", name: "crash an agent at a step", begin: func(n *nemesis) error { return n.arm(n.victim.armed, n.victim.trace) }},
	{family: "an agent dies at a step", name: "crash another agent at a step", begin: func(n *nemesis) error { return n.arm(n.victim.armed, n.victim.trace) }},
	{clocks: true, family: "a clock is set", name: "the leader's clock goes forward", begin: func(n *nemesis) error { return n.leader.clock.set(ahead(n.rng)) }},
	{clocks: true, family: "a clock is set", name: "the leader's clock goes back", begin: func(n *nemesis) error { return n.leader.clock.set(-ahead(n.rng)) }},
	{clocks: true, family: "a clock is set", name: "the leader's clock goes to and fro", begin: func(n *nemesis) error { return n.toAndFro(n.leader.clock) }},
	{clocks: true, family: "a clock is set", name: "a follower's clock goes to and fro", begin: func(n *nemesis) error { return n.toAndFro(n.follower.clock) }},
	{clocks: true, family: "a clock is set", name: "the next leader's clock is wrong", begin: func(n *nemesis) error {
		var errs []error
		by := ahead(n.rng)
		for _, o := range n.c.nodes {
			if o != n.leader {
				errs = append(errs, o.clock.set(by))
				by = -by
			}
		}
		return errors.Join(append(errs, n.leader.Kill())...)
	}},
	{clocks: true, family: "a clock is set", name: "a host's clock goes forward", begin: func(n *nemesis) error { return n.victim.clock.set(ahead(n.rng)) }},
	{clocks: true, family: "a clock is set", name: "a host's clock goes back", begin: func(n *nemesis) error { return n.victim.clock.set(-ahead(n.rng)) }},
	{clocks: true, family: "a clock is set", name: "a host's clock goes to and fro", begin: func(n *nemesis) error { return n.toAndFro(n.victim.clock) }},
}
