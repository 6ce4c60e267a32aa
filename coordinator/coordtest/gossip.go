package coordtest

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// gossipAddress numbers loopback addresses, so that no two agents of a test run share one.
var gossipAddress atomic.Uint32

func nextAddress() netip.AddrPort {
	n := gossipAddress.Add(1) + 1
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 2, byte(n >> 8), byte(n)}), 0)
}

// EnterGossip brings the agent into the gossip, with what a coordinator has told it, and waits until it is
// there.
func (a *Agent) EnterGossip(cluster string) {
	a.t.Helper()
	var access api.GossipAccess
	Eventually(a.t, "a coordinator tells "+a.host+" of the gossip", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		access = a.access
		return len(access.Keys) > 0
	})
	n := Member(a.t, cluster, a.host, access)
	a.mu.Lock()
	a.node = n
	a.mu.Unlock()
	a.Report()
}

// Member starts a member of the gossip under the name of a host's agent and waits until it has joined. It
// ends with the test, as a crash does.
func Member(t testing.TB, cluster, host string, access api.GossipAccess) *gossip.Node {
	t.Helper()
	n := Stranger(t, cluster, host, access)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := n.Join(ctx); err != nil {
		t.Fatal(err)
	}
	return n
}

// Stranger is Member without joining.
func Stranger(t testing.TB, cluster, host string, access api.GossipAccess) *gossip.Node {
	t.Helper()
	key, err := gossip.ParseKey(access.Keys[0])
	if err != nil {
		t.Fatal(err)
	}
	n, err := gossip.Start(gossip.Options{
		Role: gossip.RoleAgent, Name: host, Host: id.Host(host), Cluster: cluster, Version: "test", Bind: nextAddress(),
		Seeds: access.Addresses, Key: key,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Stop(context.Background()) })
	return n
}

// Access is how to enter the gossip, as a coordinator has told this agent.
func (a *Agent) Access() api.GossipAccess {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.access
}

// CA is whom the cluster trusts, PEM, as a coordinator has told this agent.
func (a *Agent) CA() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ca
}

// Node is the agent in the gossip; nil: it is not there.
func (a *Agent) Node() *gossip.Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.node
}

// StopGossip takes the agent out of the gossip as a crash does. Its stream goes on.
func (a *Agent) StopGossip() {
	a.mu.Lock()
	n := a.node
	a.node = nil
	a.mu.Unlock()
	if n != nil {
		_ = n.Stop(context.Background())
	}
}

// Crash ends the agent's gossip, of which the agent itself knows nothing.
func (a *Agent) Crash() { _ = a.Node().Stop(context.Background()) }

// Asked is how many questions whether anybody is there came so far.
func (a *Agent) Asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asks
}

// Freeze is the death of the machine as far as the agent's connection goes: nothing is taken in or said any
// more, and nothing is closed.
func (a *Agent) Freeze() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.frozen == nil {
		a.frozen = make(chan struct{})
	}
}

// Thaw ends a Freeze.
func (a *Agent) Thaw() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.frozen != nil {
		close(a.frozen)
		a.frozen = nil
	}
	a.poke()
}

// thaw waits until the agent is not frozen; false: it was stopped.
func (a *Agent) thaw(ctx context.Context) bool {
	for {
		a.mu.Lock()
		frozen := a.frozen
		a.mu.Unlock()
		if frozen == nil {
			return true
		}
		select {
		case <-frozen:
		case <-ctx.Done():
			return false
		}
	}
}

// Die is the death of the machine: no gossip, and a connection that stays open and silent.
func (a *Agent) Die() {
	a.Freeze()
	a.StopGossip()
}

// Farewell is what an agent says last when its machine is switched off.
func (a *Agent) Farewell(ctx context.Context) error {
	_, err := a.client.Observe(ctx, api.Observation{HostID: a.host, Instance: a.instance, Leaving: true})
	return err
}

// Report has the agent report everything again.
func (a *Agent) Report() {
	a.mu.Lock()
	defer a.mu.Unlock()
	steps := a.pending.Steps
	a.pending = a.full()
	a.pending.Steps = steps
	clear(a.queued)
	for i, g := range a.pending.Gateways {
		a.queued[g.GatewayID] = i
	}
	a.poke()
}

// gossip is what the agent says of its own place; the caller holds mu.
func (a *Agent) gossip() api.HostGossip {
	if a.node == nil {
		return api.HostGossip{}
	}
	return api.HostGossip{Joined: true, Address: a.node.Addr().String(), Run: a.node.Run()}
}
