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
	"github.com/demiurge-platform/demiurge/shared/fault"
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
		c.Hosts.SilentAfter, c.Hosts.LostAfter, c.Hosts.Lease = time.Second, time.Second, 3*time.Second
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
	t.Parallel()
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
	refused := 0
	feed, err := f.Leader().Admin.ListEvents(f.ctx, client.EventQuery{Topics: []string{"gateway"}})
	for _, e := range feed {
		if e.Type == "gateway.fenced" && e.Code == string(fault.StaleEpoch) && e.HostID == "h1" {
			refused++
		}
	}
	if err != nil || refused == 0 {
		t.Errorf("what it said of its old epochs was not refused: %d events, %v", refused, err)
	}
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
	t.Parallel()
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
	t.Parallel()
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
		return a.State == api.AllocationActive && (a.GatewayID == was.GatewayID) == (a.Epoch == was.Epoch)
	}, f.served)
}

func (f *estate) cordon(host string) error {
	_, err := f.Leader().Admin.CordonHost(f.ctx, host)
	return err
}

// TestMigrate: the organization is served elsewhere, the old gateway is made afresh, a repeated request is the
// same one, and what cannot be says why.
func TestMigrate(t *testing.T) {
	t.Parallel()
	f := startEstate(t, 1, 3)
	f.pool("serve", 6, 20)
	var a api.Allocation
	for _, a = range f.start(1) {
	}
	admin := f.Leader().Admin
	other := "h2"
	if a.HostID == other {
		other = "h3"
	}
	key := client.IdempotencyKey("once")
	moved, err := admin.Migrate(f.ctx, a.AllocationID, api.MigrateAllocation{HostID: other}, time.Second, key)
	if err != nil || moved.HostID != other || moved.Epoch <= a.Epoch || moved.State != api.AllocationActive || len(moved.Moves) != 1 {
		t.Fatalf("%v, %+v", err, moved)
	}
	again, err := admin.Migrate(f.ctx, a.AllocationID, api.MigrateAllocation{HostID: other}, time.Second, key)
	if err != nil || again.Epoch != moved.Epoch {
		t.Errorf("the same request moved again: %v, %+v", err, again)
	}
	coordtest.Eventually(t, "the old gateway is ready again", func() bool {
		g, err := admin.Gateway(f.ctx, a.GatewayID)
		return err == nil && g.State == api.GatewayReady
	})
	steps, err := admin.Steps(f.ctx, a.AllocationID)
	if err != nil || steps[0].Step != api.StepRelocate || steps[len(steps)-1].Step != api.StepRecycle || steps[len(steps)-1].State != api.StepDone {
		t.Errorf("%v, %+v", err, steps)
	}
	code := func(what string, want fault.Code, in api.MigrateAllocation, allocation string) {
		t.Helper()
		if _, err := admin.Migrate(f.ctx, allocation, in, 0); fault.From(err).Code != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	code("where it is", fault.Conflict, api.MigrateAllocation{HostID: other}, a.AllocationID)
	code("to no host", fault.NotFound, api.MigrateAllocation{HostID: "h9"}, a.AllocationID)
	code("of nothing", fault.NotFound, api.MigrateAllocation{}, string(id.NewAllocation()))
	if err := f.cordon("h1"); err != nil {
		t.Fatal(err)
	}
	code("to a cordoned host", fault.NoEligibleHost, api.MigrateAllocation{HostID: "h1"}, a.AllocationID)

	// The new gateway does not come to serve: the organization stays where it is, and nobody saw anything.
	for name, agent := range f.agents {
		if name != other {
			agent.SetScript(coordtest.Script{Fail: func(step, _ string) string {
				if step == api.StepVerify {
					return string(fault.VerifyFailed)
				}
				return ""
			}})
		}
	}
	code("to where it does not come up", fault.VerifyFailed, api.MigrateAllocation{}, a.AllocationID)
	now, err := admin.Allocation(f.ctx, a.AllocationID)
	if err != nil || now.State != api.AllocationActive || now.Epoch != moved.Epoch || now.Moves[1].Failure == nil {
		t.Errorf("%v, %+v", err, now)
	}
	if !f.served() {
		t.Error("it is not served where it is")
	}
}

// TestDrain: a host is emptied while its organizations are served all the time, and nothing is placed there until
// it is uncordoned.
func TestDrain(t *testing.T) {
	t.Parallel()
	f := startEstate(t, 1, 3)
	f.pool("serve", 4, 60)
	before := f.start(20)
	admin := f.Leader().Admin
	h, err := admin.DrainHost(f.ctx, "h1", client.Drain{Connections: time.Second, Deadline: time.Hour})
	if err != nil || h.Schedulable || h.Drain == nil || h.Drain.Total == 0 {
		t.Fatalf("%v, %+v", err, h)
	}
	f.eventually("the host is empty", func(a api.Allocation) bool { return a.HostID != "h1" && a.State == api.AllocationActive }, func() bool {
		h, err = admin.Host(f.ctx, "h1")
		return err == nil && h.Drain.State == api.DrainDrained && h.Drain.Left == 0 && h.Gateways == 0
	})
	all, err := admin.ListAllocations(f.ctx, client.AllocationFilter{})
	if err != nil || len(all) != len(before) {
		t.Fatal(err, len(all))
	}
	for _, a := range all {
		if was := before[a.AllocationID]; (was.HostID == "h1") != (a.Epoch > was.Epoch) {
			t.Errorf("%+v was %+v", a, was)
		}
	}
	if !f.served() {
		t.Error("not everything is served")
	}
	if h, err = admin.UncordonHost(f.ctx, "h1"); err != nil || !h.Schedulable || h.Drain != nil {
		t.Errorf("%v, %+v", err, h)
	}
}

// TestDrainThatCannotBe: what no other host takes stays and is served, the deadline says so, force takes it off,
// and uncordon ends the drain.
func TestDrainThatCannotBe(t *testing.T) {
	t.Parallel()
	f := startEstate(t, 1, 1)
	f.pool("serve", 1, 20)
	before := f.start(3)
	admin := f.Leader().Admin
	state := func(want string) func() bool {
		return func() bool {
			h, err := admin.Host(f.ctx, "h1")
			return err == nil && h.Drain != nil && h.Drain.State == want && h.Drain.Waiting != "" && h.Drain.Left == 3
		}
	}
	same := func(a api.Allocation) bool {
		return a.State == api.AllocationActive && a.Epoch == before[a.AllocationID].Epoch
	}
	if _, err := admin.DrainHost(f.ctx, "h1", client.Drain{Deadline: time.Second}); err != nil {
		t.Fatal(err)
	}
	f.eventually("it is overdue", same, state(api.DrainOverdue))
	if h, err := admin.UncordonHost(f.ctx, "h1"); err != nil || h.Drain != nil {
		t.Fatalf("%v, %+v", err, h)
	}
	f.eventually("nothing has happened", same, f.served)
	if _, err := admin.DrainHost(f.ctx, "h1", client.Drain{Deadline: time.Second, Force: true}); err != nil {
		t.Fatal(err)
	}
	f.eventually("all are taken off", func(a api.Allocation) bool {
		return a.State == api.AllocationRelocating && a.GatewayID == "" && a.Relocation.Waiting
	}, nil)
	f.agents["h2"] = f.Agent("h2", 20, coordtest.Script{})
	f.eventually("the new host serves them", func(a api.Allocation) bool { return a.State == api.AllocationActive && a.HostID == "h2" }, f.served)
	if _, err := admin.DrainHost(f.ctx, "h1", client.Drain{Force: true}); fault.From(err).Code != fault.InvalidRequest {
		t.Errorf("force without a deadline: %v", err)
	}
}

// TestCutOffHostOfAFencedPool: nothing is served elsewhere before the host's lease is over.
func TestCutOffHostOfAFencedPool(t *testing.T) {
	t.Parallel()
	f := startEstate(t, 1, 2)
	f.pool("stop", 6, 20)
	before := f.start(4)
	f.agents["h1"].Stop()
	held := func(a api.Allocation) bool {
		return before[a.AllocationID].HostID != "h1" || a.State == api.AllocationRelocating && a.Relocation.HeldBy == "lease" && a.Epoch == before[a.AllocationID].Epoch
	}
	f.eventually("they wait for the lease", held, nil)
	f.eventually("they are served elsewhere", func(a api.Allocation) bool { return a.State == api.AllocationActive && a.HostID == "h2" }, nil)
	for _, a := range before {
		if a.HostID != "h1" {
			continue
		}
		now, err := f.Leader().Admin.Allocation(f.ctx, a.AllocationID)
		if err != nil {
			t.Fatal(err)
		}
		if waited := now.Moves[0].EndedAt.Sub(now.Moves[0].Since); waited < f.Leader().Config.Hosts.Lease-2*time.Second {
			t.Errorf("granted again after %v, with a lease of %v", waited, f.Leader().Config.Hosts.Lease)
		}
	}
}

// TestTwoHostsAreLost: also those that were on their way to the second one are served in the end.
func TestTwoHostsAreLost(t *testing.T) {
	t.Parallel()
	f := startEstate(t, 1, 3)
	f.pool("serve", 6, 60)
	before := f.start(9)
	f.agents["h2"].SetScript(coordtest.Script{Hold: func(string) bool { return true }})
	f.agents["h1"].Stop()
	f.eventually("some are on their way", func(a api.Allocation) bool {
		return before[a.AllocationID].HostID != "h1" || a.Epoch > before[a.AllocationID].Epoch
	}, nil)
	f.agents["h2"].Stop()
	f.eventually("all are served by the third", func(a api.Allocation) bool { return a.State == api.AllocationActive && a.HostID == "h3" }, nil)
	delete(f.agents, "h1")
	delete(f.agents, "h2")
	if !f.served() {
		t.Error("not everything is served")
	}
}
