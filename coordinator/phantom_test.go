package coordinator_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// TestTheGossipAloneMakesNoCoordinator: every host has the key of the gossip, so whoever has taken one can say there
// that it is a coordinator, as often as it likes. None of them becomes a member, and one that is there really still
// does.
func TestTheGossipAloneMakesNoCoordinator(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 1)
	ctx := within(t)
	agent := s.Agent("h1", 1, coordtest.Script{})
	agent.EnterGossip(s.Cluster())
	access := agent.Access()
	key, err := gossip.ParseKey(access.Keys[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		name := fmt.Sprintf("a%d", i) // before those that are real
		n, err := gossip.Start(gossip.Options{
			Role: gossip.RoleCoordinator, Name: name, Cluster: s.Cluster(), Version: "test",
			Bind: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 3, 1, byte(i + 1)}), 0), Seeds: access.Addresses, Key: key,
			Tags: map[string]string{"r": coordtest.FreeAddr(t), "x": "0", "s": "f", "a": "127.0.0.1:1"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Stop(ctx) })
		if err := n.Join(ctx); err != nil {
			t.Fatal(err)
		}
	}
	known := func() (names map[string]api.RaftPeer) {
		t.Helper()
		peers, err := s.Nodes[0].Admin.RaftPeers(ctx)
		if err != nil {
			t.Fatal(err)
		}
		names = map[string]api.RaftPeer{}
		for _, p := range peers {
			names[p.ID] = p
		}
		return names
	}
	coordtest.Eventually(t, "the leader has heard of them", func() bool {
		members, err := s.Nodes[0].Admin.Members(ctx, client.MemberFilter{Role: string(gossip.RoleCoordinator), Status: "alive"})
		return err == nil && len(members) == 4
	})
	s.Add()
	coordtest.Eventually(t, "the real one votes", func() bool { return known()["c2"].Voter })
	if all := known(); len(all) != 2 {
		t.Errorf("the coordinators are %+v", all)
	}
}
