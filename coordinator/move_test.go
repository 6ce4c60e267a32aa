package coordinator_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// estate is some coordinators with several hosts. A host whose agent is gone is lost after a second.
type estate struct {
	*coordtest.Several
	t      *testing.T
	ctx    context.Context
	agents map[string]*coordtest.Agent
}

func startEstate(t *testing.T, coordinators, hosts int) *estate {
	t.Helper()
	f := &estate{t: t, ctx: within(t), agents: map[string]*coordtest.Agent{}}
	f.Several = coordtest.StartSeveral(t, coordinators, func(c *coordinator.Config) {
		c.Hosts.SilentAfter, c.Hosts.LostAfter = time.Second, time.Second
	})
	for i := range hosts {
		name := fmt.Sprintf("h%d", i+1)
		f.agents[name] = f.Agent(name, 50, coordtest.Script{})
	}
	return f
}

// pool makes a pool that has at least this many ready gateways, and waits for them.
func (f *estate) pool(isolation string, ready, largest int) {
	f.t.Helper()
	inFlight := largest
	if _, err := f.Leader().Admin.PutPool(f.ctx, "default", api.PutPool{MinReady: &ready, Max: &largest, MaxInFlight: &inFlight, Isolation: &isolation}); err != nil {
		f.t.Fatal(err)
	}
	f.eventually("the pool is filled", func(api.Allocation) bool { return true }, func() bool {
		p, err := f.Leader().Admin.Pool(f.ctx, "default")
		return err == nil && p.Counts.Ready >= ready
	})
}

// eventually waits until all live allocations satisfy one condition, and the other one holds.
func (f *estate) eventually(what string, each func(api.Allocation) bool, also func() bool) {
	f.t.Helper()
	var last []api.Allocation
	defer func() {
		if f.t.Failed() {
			f.t.Logf("at the end: %+v", last)
		}
	}()
	coordtest.Eventually(f.t, what, func() bool {
		all, err := f.Leader().Admin.ListAllocations(f.ctx, client.AllocationFilter{})
		if err != nil {
			return false
		}
		last = all
		for _, a := range all {
			if a.EndedAt == nil && !each(a) {
				return false
			}
		}
		return also == nil || also()
	})
}

// start starts organizations and gives their allocations by id.
func (f *estate) start(n int) map[string]api.Allocation {
	f.t.Helper()
	out := map[string]api.Allocation{}
	for range n {
		org := string(id.NewOrganization())
		if _, err := f.Leader().Admin.PutOrganization(f.ctx, org, api.PutOrganization{Name: "o"}); err != nil {
			f.t.Fatal(err)
		}
		a, _, err := f.Leader().Admin.Start(f.ctx, api.StartAllocation{OrganizationID: org, Wait: seconds(20)})
		if err != nil {
			f.t.Fatal(err)
		}
		out[a.AllocationID] = a
	}
	return out
}

// served checks that every organization is served by the one gateway that its allocation names, on a host whose
// agent runs, and that no agent saw two.
func (f *estate) served() bool {
	all, err := f.Leader().Admin.ListAllocations(f.ctx, client.AllocationFilter{})
	if err != nil {
		return false
	}
	serving := map[string][]string{}
	for _, agent := range f.agents {
		for org, gateway := range agent.Serving() {
			serving[org] = append(serving[org], gateway)
		}
		for _, v := range agent.Violations() {
			f.t.Error(v)
		}
	}
	for _, a := range all {
		if a.EndedAt == nil && (a.State != api.AllocationActive || len(serving[a.OrganizationID]) != 1 || serving[a.OrganizationID][0] != a.GatewayID) {
			return false
		}
	}
	return true
}

// TestLostHostsOrganizationsAreServedElsewhere: everything that a host served is active on others, at a higher
// epoch; when the host comes back, it gives up what it still serves, and its gateways are of use again.
func TestLostHostsOrganizationsAreServedElsewhere(t *testing.T) {
	f := startEstate(t, 3, 3)
	f.pool("serve", 8, 60)
	before := f.start(12)
	f.agents["h1"].Stop()
	moved := func(a api.Allocation) bool {
		was := before[a.AllocationID]
		if was.HostID != "h1" {
			return a.Epoch == was.Epoch && a.HostID == was.HostID
		}
		return a.State == api.AllocationActive && a.HostID != "h1" && a.Epoch > was.Epoch
	}
	f.eventually("all of them are active elsewhere", moved, nil)
	for id, was := range before {
		if was.HostID != "h1" {
			continue
		}
		steps, err := f.Leader().Admin.Steps(f.ctx, id)
		if err != nil || len(steps) < 4 || steps[0].Step != api.StepRelocate || steps[1].Step != api.StepState || steps[1].State != api.StepSkipped {
			t.Errorf("%v, %+v", err, steps)
		}
	}
	f.agents["h1"].Return()
	f.eventually("the host has given up what it served", moved, func() bool {
		h, err := f.Leader().Admin.Host(f.ctx, "h1")
		return err == nil && h.State == api.HostAlive && f.served()
	})
	coordtest.Eventually(t, "its gateways are ready again", func() bool {
		gateways, err := f.Leader().Admin.ListGateways(f.ctx, client.GatewayFilter{})
		if err != nil {
			return false
		}
		for _, g := range gateways {
			if g.HostID == "h1" && g.State != api.GatewayReady {
				return false
			}
		}
		return true
	})
	f.SameState()
}

// TestLostHostWithoutAnotherGateway: what the pool has no gateway for waits, and is served as soon as a host
// joins that can hold some; nothing is lost.
func TestLostHostWithoutAnotherGateway(t *testing.T) {
	f := startEstate(t, 1, 1)
	f.pool("serve", 1, 20)
	before := f.start(4)
	f.agents["h1"].Stop()
	f.eventually("they wait", func(a api.Allocation) bool {
		return a.State == api.AllocationRelocating && a.Epoch == before[a.AllocationID].Epoch
	}, nil)
	f.agents["h2"] = f.Agent("h2", 50, coordtest.Script{})
	f.eventually("they are served by the new host", func(a api.Allocation) bool {
		return a.State == api.AllocationActive && a.HostID == "h2" && a.Epoch > before[a.AllocationID].Epoch
	}, nil)
}

// TestHostComesBackWhileItsOrganizationsMove: what has got another gateway has moved, what has not stays. Each is
// served by one gateway in the end.
func TestHostComesBackWhileItsOrganizationsMove(t *testing.T) {
	f := startEstate(t, 1, 2)
	if err := f.cordon("h2"); err != nil {
		t.Fatal(err)
	}
	f.pool("serve", 2, 20)
	before := f.start(6)
	f.agents["h2"].SetScript(coordtest.Script{Hold: func(string) bool { return true }}) // nothing gets finished there
	if _, err := f.Leader().Admin.UncordonHost(f.ctx, "h2"); err != nil {
		t.Fatal(err)
	}
	f.agents["h1"].Stop()
	f.eventually("they are on their way", func(a api.Allocation) bool { return a.State == api.AllocationRelocating }, nil)
	f.agents["h2"].SetScript(coordtest.Script{})
	f.agents["h1"].Return()
	f.eventually("each is served once", func(a api.Allocation) bool {
		was := before[a.AllocationID]
		return a.State == api.AllocationActive && (a.HostID == "h1") == (a.Epoch == was.Epoch)
	}, f.served)
}

func (f *estate) cordon(host string) error {
	_, err := f.Leader().Admin.CordonHost(f.ctx, host)
	return err
}
