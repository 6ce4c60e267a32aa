package coordinator_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// hosts is a cluster with hosts whose agents are in its gossip.
type hosts struct {
	*coordtest.Several
	t      *testing.T
	agents []*coordtest.Agent
}

func startHosts(t *testing.T, coordinators int, names ...string) *hosts {
	t.Helper()
	s := &hosts{t: t, Several: coordtest.StartSeveral(t, coordinators, func(c *coordinator.Config) {
		c.Hosts.SilentAfter = time.Second // hosts in doubt are asked this often
	})}
	for _, name := range names {
		a := s.Agent(name, 10, coordtest.Script{})
		a.EnterGossip(s.Cluster())
		s.agents = append(s.agents, a)
	}
	for _, name := range names {
		s.awaitMember(name, "alive")
	}
	return s
}

// awaitMember waits until all running coordinators hold a host's agent for this.
func (s *hosts) awaitMember(host, status string) {
	s.t.Helper()
	coordtest.Eventually(s.t, host+" is "+status+" in the gossip", func() bool {
		for _, n := range s.Nodes {
			if !n.Running() {
				continue
			}
			if m := s.member(n, host); m.Status != status {
				return false
			}
		}
		return true
	})
}

func (s *hosts) member(n *coordtest.Node, host string) api.GossipMember {
	items, err := n.Admin.Members(within(s.t), client.MemberFilter{Role: "agent"}, client.Consistency("stale"))
	if err != nil {
		return api.GossipMember{}
	}
	for _, m := range items {
		if m.Name == host {
			return m
		}
	}
	return api.GossipMember{}
}

func (s *hosts) awaitState(host, state string) {
	s.t.Helper()
	coordtest.Eventually(s.t, host+" is "+state, func() bool { return s.state(host) == state })
}

func (s *hosts) state(host string) string {
	h, err := s.Leader().Admin.Host(within(s.t), host)
	if err != nil {
		return err.Error()
	}
	return h.State
}

// reasons lists why hosts came into a state, in order.
func (s *hosts) reasons(host, state string) []string {
	s.t.Helper()
	var out []string
	all, err := s.Leader().Admin.ListEvents(within(s.t), client.EventQuery{Topics: []string{"host"}})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range all {
		if e.HostID == host && e.Type == "host."+state {
			out = append(out, e.Reason)
		}
	}
	return out
}

// unmoved fails the test when any host was ever lost.
func (s *hosts) unmoved(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if why := s.reasons(name, api.HostLost); len(why) > 0 {
			s.t.Errorf("%s was lost: %q", name, why)
		}
	}
}

// A machine dies: its gossip ends and its connection stays open and silent, as that of a machine without
// power does. The pool says so, the question down the connection confirms it. Then it is back.
func TestADeadHostIsLost(t *testing.T) {
	t.Parallel()
	s := startHosts(t, 1, "h1", "h2", "h3")
	s.agents[0].Die()
	s.awaitState("h1", api.HostLost)
	if why := s.reasons("h1", api.HostLost); len(why) != 1 || why[0] != "the pool holds it for failed, and it did not answer within 500ms" {
		t.Errorf("it was lost because of %q", why)
	}
	s.unmoved("h2", "h3")
	s.agents[0].Thaw()
	s.agents[0].EnterGossip(s.Cluster())
	s.awaitState("h1", api.HostAlive)
	s.awaitMember("h1", "alive")
}

// The gossip does not reach a host any more, its connection does: it answers the question, and goes on.
func TestTheEndOfTheGossipAloneMovesNothing(t *testing.T) {
	t.Parallel()
	s := startHosts(t, 1, "h1", "h2")
	s.agents[0].StopGossip()
	s.awaitMember("h1", "failed")
	before := s.agents[0].Asked()
	coordtest.Eventually(t, "it was asked and asked again", func() bool { return s.agents[0].Asked() >= before+2 })
	s.awaitState("h1", api.HostAlive)
	s.unmoved("h1", "h2")
	// That it answers every time costs no entry in the log.
	index := s.index()
	asked := s.agents[0].Asked()
	coordtest.Eventually(t, "it was asked again", func() bool { return s.agents[0].Asked() > asked })
	if now := s.index(); now != index {
		t.Errorf("the questions have moved the state from %d to %d", index, now)
	}
}

func (s *hosts) index() uint64 {
	st, err := s.Leader().Admin.Status(within(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	return st.Index
}

// The connection of a host ends, its gossip goes on: nothing new is placed there after a while, and that is
// all, until the connection is back.
func TestTheEndOfTheConnectionAloneMovesNothing(t *testing.T) {
	t.Parallel()
	s := startHosts(t, 1, "h1", "h2")
	s.agents[0].StopStream()
	s.awaitState("h1", api.HostSilent)
	if got := s.member(s.Leader(), "h1").Status; got != "alive" {
		t.Errorf("its gossip is %s", got)
	}
	s.agents[0].Return()
	s.awaitState("h1", api.HostAlive)
	s.unmoved("h1", "h2")
}

// A machine that is switched off in good order says so, over its connection and to the pool. It does not
// count as alive for as long as a dead agent on a living machine does.
func TestASwitchedOffHostIsLostAtOnce(t *testing.T) {
	t.Parallel()
	s := startHosts(t, 1, "h1", "h2")
	if err := s.agents[0].Farewell(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.agents[0].Node().Leave(within(t)); err != nil {
		t.Fatal(err)
	}
	s.agents[0].Stop()
	s.awaitState("h1", api.HostLost)
	s.awaitMember("h1", "left")
	if why := s.reasons("h1", api.HostLost); len(why) != 1 || why[0] != "it said that it is being switched off" {
		t.Errorf("it was lost because of %q", why)
	}
	s.unmoved("h2")
}

// Somebody who has a key of the gossip takes the name of a host. While the host is in the gossip the name is
// taken; when it is not, what the pool says of the name is not believed: it costs questions, and no move.
func TestAForgedHostMovesNothing(t *testing.T) {
	t.Parallel()
	s := startHosts(t, 1, "h1", "h2")
	access := s.agents[0].Access()
	rogue := coordtest.Stranger(t, s.Cluster(), "h1", access)
	if err := rogue.Join(within(t)); !errors.Is(err, gossip.ErrNameTaken) {
		t.Errorf("it joined under the name of a living host: %v", err)
	}
	if err := rogue.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	s.awaitMember("h1", "alive")

	own := s.agents[0].Node().Addr().String()
	s.agents[0].Crash()
	s.awaitMember("h1", "failed")
	rogue = coordtest.Member(t, s.Cluster(), "h1", access)
	s.awaitMember("h1", "alive")
	if at := s.member(s.Leader(), "h1").Address; at == own {
		t.Fatalf("the member at %s is not the rogue", at)
	}
	asked := s.agents[0].Asked()
	coordtest.Eventually(t, "the host is asked", func() bool { return s.agents[0].Asked() > asked })
	if err := rogue.Leave(within(t)); err != nil { // and now it tells that the host has gone for good
		t.Fatal(err)
	}
	s.awaitMember("h1", "left")
	asked = s.agents[0].Asked()
	coordtest.Eventually(t, "the host is asked again", func() bool { return s.agents[0].Asked() > asked })
	s.awaitState("h1", api.HostAlive)
	s.unmoved("h1", "h2")
}

// A new leader has the pool's word on every host at once, and takes nobody for lost because the connections
// are not back yet. A host that died with the leader is found by the new one.
func TestANewLeaderIsNotBlind(t *testing.T) {
	t.Parallel()
	s := startHosts(t, 3, "h1", "h2", "h3")
	s.Leader().Stop()
	next := s.Leader()
	s.agents[0].Die()
	for _, host := range []string{"h2", "h3"} {
		if got := s.member(next, host).Status; got != "alive" {
			t.Errorf("the new leader holds %s for %q", host, got)
		}
	}
	s.awaitState("h1", api.HostLost)
	s.awaitState("h2", api.HostAlive)
	s.awaitState("h3", api.HostAlive)
	s.unmoved("h2", "h3")
}

// The agents are told of a rotation of the CA at once: their certificates would be due by their age long after it is over.
func TestAgentsAreToldOfARotationOfTheCA(t *testing.T) {
	t.Parallel()
	s := startHosts(t, 1, "h1")
	signs := func(pin string) func() bool {
		return func() bool {
			b, err := pki.ParseBundle(s.agents[0].CA())
			return err == nil && b.Pin().String() == pin
		}
	}
	rotated, err := s.Leader().Admin.RotateCA(within(t), api.RotateCA{})
	if err != nil {
		t.Fatal(err)
	}
	coordtest.Eventually(t, "the agent is told", signs(rotated.Pin))
	s.agents[0].StopStream()
	if rotated, err = s.Leader().Admin.RotateCA(within(t), api.RotateCA{}); err != nil {
		t.Fatal(err)
	}
	s.agents[0].Return()
	coordtest.Eventually(t, "the agent is told when it is back", signs(rotated.Pin))
}

// An agent that was away while the gossip key was rotated is told the new one when it is back.
func TestAnAgentThatWasAwayIsToldTheKey(t *testing.T) {
	t.Parallel()
	s := startHosts(t, 1, "h1", "h2")
	s.agents[0].StopStream()
	s.agents[0].StopGossip()
	s.awaitMember("h1", "failed")
	old := s.agents[0].Access()
	rotated, err := s.Leader().Admin.RotateGossip(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(rotated.Without) != 1 || rotated.Without[0] != "agent.h1" {
		t.Errorf("%+v", rotated)
	}
	stranger := coordtest.Stranger(t, s.Cluster(), "h1", old)
	refused := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return stranger.Join(ctx) != nil
	}
	if !refused() {
		t.Error("the old key opens the gossip")
	}
	if err := stranger.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	s.agents[0].Return()
	coordtest.Eventually(t, "the agent is told the new key", func() bool {
		keys := s.agents[0].Access().Keys
		if len(keys) != 1 {
			return false
		}
		key, err := gossip.ParseKey(keys[0])
		return err == nil && string(key.Fingerprint()) == rotated.Key
	})
	s.agents[0].EnterGossip(s.Cluster())
	s.awaitMember("h1", "alive")
}
