package fsm_test

import (
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// pair is a cluster with two hosts: gateways 1…n are ready on h1. Those of h2 (101…100+m) become ready later, so
// that the first allocations are on h1.
func pair(t testing.TB, n int) *machine {
	m := small(t, n)
	m.host("h2", 20)
	return m
}

func (m *machine) lose(host id.Host) command.Result {
	m.Helper()
	return m.ok(command.LoseHost{Meta: m.meta(), Host: host, Reason: "no gossip", FencedBy: m.now.Add(9 * time.Second)})
}

func (m *machine) back(host id.Host) {
	m.Helper()
	m.ok(command.ObserveHost{Meta: m.meta(), Host: host, Instance: "i1", Report: hostReport(20)})
}

// confirmPending confirms what is to be confirmed of an allocation.
func (m *machine) confirmPending(allocation id.Allocation) {
	m.Helper()
	grant, ok := m.allocation(allocation).Pending()
	if !ok {
		m.Fatalf("nothing of %s is to be confirmed: %+v", allocation, m.allocation(allocation))
	}
	m.ok(command.Confirm{
		Meta: m.meta(), Allocation: allocation, Epoch: grant.Epoch, Observed: m.report(grant.Gateway, api.PhaseServing),
		Journal: []command.Step{{Step: api.StepRelocate, State: api.StepDone, StartedAt: m.now, EndedAt: m.now}},
	})
}

func (m *machine) relocate(c command.Relocate, allocations ...int) []command.ReserveOutcome {
	m.Helper()
	c.Meta = m.meta()
	if c.Cause == "" {
		c.Cause = state.CauseMigrate
	}
	for _, n := range allocations {
		c.Items = append(c.Items, command.RelocateItem{Allocation: alID(n)})
	}
	return m.ok(c).Reserved
}

func TestLostHostMovesEverythingInOneEntry(t *testing.T) {
	m := pair(t, 4)
	first, second := m.active(1, 1), m.active(2, 2)
	m.reserve(3, 3)
	half := m.allocation(alID(3))
	m.active(4, 4)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(4)})
	m.ready("default", "h2", 101, 105)

	if n := m.lose("h1").Count; n != 3 {
		t.Fatalf("%d allocations were moved", n)
	}
	if got := m.types(); !strings.HasPrefix(got, "host.lost ") || strings.Count(got, "allocation.placed") != 2+1 {
		t.Fatal(got)
	}
	seen := map[id.Gateway]bool{}
	for _, before := range []*state.Allocation{first, second} {
		a := m.allocation(before.ID)
		if a.State != state.AllocationRelocating || a.Host != "h2" || a.Epoch != id.Epoch(m.index) || seen[a.Gateway] || a.Move.From.Gateway != before.Gateway {
			t.Fatalf("%+v", a)
		}
		seen[a.Gateway] = true
		m.wantGateway(a.Gateway, state.GatewayReserved)
		m.wantGateway(before.Gateway, state.GatewayLost)
		if g := m.gateway(before.Gateway); g.Desired.Allocation != "" || g.Desired.Incarnation != 2 {
			t.Fatalf("the lost gateway is wanted as %+v", g.Desired)
		}
		if len(a.Explanation.Candidates) != 2 || a.Explanation.Index != m.index {
			t.Fatalf("explained by %+v", a.Explanation)
		}
	}
	// What never served goes on as what it was, with another gateway and the time it needs.
	if a := m.allocation(half.ID); a.State != state.AllocationReserved || a.Host != "h2" || a.Epoch <= half.Epoch || a.Move != nil || len(a.Moves) != 1 {
		t.Fatalf("%+v", a)
	}
	m.wantAllocation(alID(4), state.AllocationReleased)

	// The old epoch is over.
	m.refused(fault.StaleEpoch, command.Confirm{Meta: m.meta(), Allocation: first.ID, Epoch: first.Epoch})
	m.now = m.now.Add(time.Second)
	m.confirmPending(first.ID)
	a := m.allocation(first.ID)
	if a.State != state.AllocationActive || !a.ActiveAt.Equal(first.ActiveAt) || a.Move != nil || len(a.Moves) != 1 || a.Left != nil {
		t.Fatalf("%+v", a)
	}
	if moved := a.Moves[0]; moved.Cause != state.CauseLost || moved.From.Host != "h1" || moved.To.Host != "h2" || moved.EndedAt.Sub(moved.Since) != time.Second {
		t.Fatalf("%+v", moved)
	}
	m.wantGateway(a.Gateway, state.GatewayAllocated)

	// Back: what it says of the old epoch changes nothing; its gateways are made afresh.
	old := command.GatewayReport{Gateway: first.Gateway, Incarnation: 1, Phase: api.PhaseServing, Organization: orgID(1), Epoch: first.Epoch, BootID: "old"}
	m.ok(command.ObserveHost{Meta: m.meta(), Host: "h1", Instance: "i1", Gateways: []command.GatewayReport{old}})
	if a := m.allocation(first.ID); a.State != state.AllocationActive || a.Host != "h2" {
		t.Fatalf("%+v", a)
	}
	m.wantGateway(first.Gateway, state.GatewayRecycling)
	m.observe(m.report(first.Gateway, api.PhaseReady))
	m.wantGateway(first.Gateway, state.GatewayReady)
}

func TestLostHostWaitsForAGatewayAndIsFirstInLine(t *testing.T) {
	m := pair(t, 2)
	a1, a2 := m.active(1, 1), m.active(2, 2)
	queued := m.reserveOf(3, 3)
	queued.QueueUntil = m.now.Add(time.Hour)
	m.ok(queued)
	m.lose("h1")
	m.wantAllocation(a1.ID, state.AllocationRelocating)
	if a := m.allocation(a1.ID); a.Gateway != a1.Gateway || a.Epoch != a1.Epoch || !a.Move.Stranded || !a.Move.Served {
		t.Fatalf("%+v", a)
	}
	m.ready("default", "h2", 101, 101)
	m.wantAllocation(alID(3), state.AllocationQueued)
	if a := m.allocation(a1.ID); a.Host != "h2" || a.Move.Stranded {
		t.Fatalf("%+v", a)
	}
	// The other one's host comes back before there is anything for it: it is what it was.
	m.back("h1")
	if a := m.allocation(a2.ID); a.State != state.AllocationActive || a.Epoch != a2.Epoch || a.Gateway != a2.Gateway || a.Moves[0].Failure.Code != fault.Superseded {
		t.Fatalf("%+v", a)
	}
	m.wantGateway(a2.Gateway, state.GatewayReconciling)
	m.observe(m.report(a2.Gateway, api.PhaseServing))
	m.wantGateway(a2.Gateway, state.GatewayAllocated)
	// And the one that has moved stays moved, whatever its old host says.
	m.confirmPending(a1.ID)
	m.wantAllocation(a1.ID, state.AllocationActive)
}

func TestLostHostOfAFencedPoolWaitsForTheLease(t *testing.T) {
	m := pair(t, 3)
	pool := command.PutPool{Meta: m.meta(), Pool: "default", MinReady: 2, Step: 3, Max: 50, MaxInFlight: 10, Isolation: "stop", ActivationTimeout: 10 * time.Second}
	m.ok(pool)
	before := m.active(1, 1)
	m.reserve(2, 2)
	m.ready("default", "h2", 101, 105)
	m.lose("h1")
	for _, n := range []int{1, 2} {
		if a := m.allocation(alID(n)); a.State != state.AllocationRelocating || a.Host != "h1" || a.Move.Held != state.HeldByLease || !a.Move.HeldUntil.Equal(m.now.Add(9*time.Second)) {
			t.Fatalf("%+v", a)
		}
	}
	// Time alone does nothing: only a command says that it is over.
	m.now = m.now.Add(time.Hour)
	m.ready("default", "h2", 106, 106)
	if a := m.allocation(alID(1)); a.Host != "h1" {
		t.Fatalf("placed before the lease was over: %+v", a)
	}
	if n := m.ok(command.Place{Meta: m.meta(), Allocations: []id.Allocation{alID(1), alID(2), alID(7)}}).Count; n != 2 {
		t.Fatalf("%d were let go", n)
	}
	if a := m.allocation(alID(1)); a.Host != "h2" || a.Epoch <= before.Epoch || a.Move.Held != "" {
		t.Fatalf("%+v", a)
	}
	m.wantAllocation(alID(2), state.AllocationReserved)
	if n := m.ok(command.Place{Meta: m.meta(), Allocations: []id.Allocation{alID(1)}}).Count; n != 0 {
		t.Fatal("let go twice")
	}
	m.back("h1")
	if a := m.allocation(alID(1)); a.Host != "h2" {
		t.Fatalf("%+v", a)
	}
}

func TestNewGatewayOfALostHostFails(t *testing.T) {
	m := pair(t, 1)
	m.active(1, 1)
	m.ready("default", "h2", 101, 103)
	m.lose("h1")
	refuse := func() {
		t.Helper()
		grant, _ := m.allocation(alID(1)).Pending()
		m.ok(command.Fail{Meta: m.meta(), Allocation: alID(1), Epoch: grant.Epoch, Code: fault.VerifyFailed, Message: "no", BlameGateway: true})
		m.wantGateway(grant.Gateway, state.GatewayRecycling)
	}
	one := m.allocation(alID(1)).Gateway
	refuse()
	two := m.allocation(alID(1))
	if two.Gateway == one || two.Gateway == "" || two.Move.Stranded || two.Move.Attempts != 1 {
		t.Fatalf("no other gateway at once: %+v", two)
	}
	refuse() // and now with a pause, so that it does not go through the whole pool
	a := m.allocation(alID(1))
	if a.State != state.AllocationRelocating || a.Gateway != "" || a.Move.Held != state.HeldByBackOff || !a.Move.HeldUntil.Equal(m.now.Add(time.Second)) || a.Epoch != two.Epoch {
		t.Fatalf("%+v", a)
	}
	m.ok(command.Place{Meta: m.meta(), Allocations: []id.Allocation{alID(1)}})
	m.confirmPending(alID(1))
	if a := m.allocation(alID(1)); a.State != state.AllocationActive || a.Epoch <= two.Epoch {
		t.Fatalf("%+v", a)
	}
}

func TestTwoHostsLost(t *testing.T) {
	m := pair(t, 2)
	m.host("h3", 20)
	m.active(1, 1)
	m.ready("default", "h2", 101, 101)
	m.lose("h1")
	placed := m.allocation(alID(1))
	if placed.Host != "h2" {
		t.Fatalf("%+v", placed)
	}
	m.lose("h2") // the one that it was on its way to
	if a := m.allocation(alID(1)); !a.Move.Stranded || a.Move.Served || a.Move.From.Host != "h1" {
		t.Fatalf("%+v", a)
	}
	m.back("h1") // what served it first is made afresh there: it does not come back to it
	m.wantAllocation(alID(1), state.AllocationRelocating)
	m.ready("default", "h3", 201, 201)
	if a := m.allocation(alID(1)); a.Host != "h3" || a.Epoch <= placed.Epoch {
		t.Fatalf("%+v", a)
	}
	m.confirmPending(alID(1))
}

func TestMoveKeepsTheOldGatewayUntilTheNewOneServes(t *testing.T) {
	m := pair(t, 1)
	before := m.active(1, 1)
	m.ready("default", "h2", 101, 102)
	if out := m.relocate(command.Relocate{Drain: 30 * time.Second, Key: "k", Digest: "d"}, 1)[0]; out.Err != nil {
		t.Fatal(out.Err)
	}
	a := m.allocation(alID(1))
	grant, ok := a.Pending()
	if a.State != state.AllocationRelocating || a.Gateway != before.Gateway || a.Epoch != before.Epoch || !ok || grant.Host != "h2" || grant.Epoch <= before.Epoch {
		t.Fatalf("%+v", a)
	}
	m.wantGateway(before.Gateway, state.GatewayAllocated)
	m.wantGateway(grant.Gateway, state.GatewayReserved)
	if out := m.relocate(command.Relocate{Key: "k", Digest: "d"}, 1)[0]; out.Err != nil || !out.Existing {
		t.Fatalf("the same request again: %+v", out)
	}
	if out := m.relocate(command.Relocate{}, 1)[0]; out.Err == nil || out.Err.Code != fault.Conflict {
		t.Fatalf("moved twice: %+v", out)
	}
	m.refused(fault.Conflict, command.Relocate{Meta: m.meta(), Items: []command.RelocateItem{{Allocation: alID(1)}}, Key: "k", Digest: "other"})
	// Members who come meanwhile are told to both.
	m.ok(command.EditOrganization{Meta: m.meta(), Organization: orgID(1), PutMember: &command.Member{User: "bob", Role: "member"}})
	for _, g := range []id.Gateway{before.Gateway, grant.Gateway} {
		if m.gateway(g).Desired.Index != m.index {
			t.Fatalf("gateway %s is not told", g)
		}
	}
	m.confirmPending(alID(1))
	a = m.allocation(alID(1))
	if a.State != state.AllocationActive || a.Gateway != grant.Gateway || a.Epoch != grant.Epoch || a.Left.Gateway != before.Gateway || a.Explanation.Index != uint64(grant.Epoch) {
		t.Fatalf("%+v", a)
	}
	m.wantGateway(before.Gateway, state.GatewayDraining)
	if g := m.gateway(before.Gateway); g.Desired.Drain != 30*time.Second || g.Desired.Allocation != "" {
		t.Fatalf("%+v", g.Desired)
	}
	r := m.report(before.Gateway, api.PhaseReady)
	r.Undo = []command.Step{{Step: api.StepRecycle, State: api.StepDone, StartedAt: m.now}}
	m.observe(r)
	a = m.allocation(alID(1))
	if a.State != state.AllocationActive || a.Left != nil || a.Journal[len(a.Journal)-1].Step != api.StepRecycle || !strings.Contains(m.types(), "allocation.left") {
		t.Fatalf("%+v, %s", a, m.types())
	}
	m.wantGateway(before.Gateway, state.GatewayReady)
}

func TestMoveThatFailsStays(t *testing.T) {
	m := pair(t, 1)
	before := m.active(1, 1)
	m.ready("default", "h2", 101, 102)
	for name, end := range map[string]func(grant state.Grant){
		"its gateway fails": func(grant state.Grant) {
			m.ok(command.Fail{Meta: m.meta(), Allocation: alID(1), Epoch: grant.Epoch, Code: fault.VerifyFailed, Message: "no"})
			m.wantGateway(grant.Gateway, state.GatewayRecycling)
		},
		"its host is lost": func(state.Grant) {
			m.lose("h2")
			m.back("h2")
			m.ok(command.ObserveHost{Meta: m.meta(), Host: "h2", Instance: "i1", Gateways: []command.GatewayReport{
				m.report(gwID(101), api.PhaseReady), m.report(gwID(102), api.PhaseReady),
			}})
		},
	} {
		m.relocate(command.Relocate{}, 1)
		grant, _ := m.allocation(alID(1)).Pending()
		end(grant)
		a := m.allocation(alID(1))
		if a.State != state.AllocationActive || a.Gateway != before.Gateway || a.Epoch != before.Epoch || a.Moves[len(a.Moves)-1].Failure.Code == "" {
			t.Fatalf("%s: %+v", name, a)
		}
		m.wantGateway(before.Gateway, state.GatewayAllocated)
	}
}

func TestOldHostOfAMoveIsLost(t *testing.T) {
	for isolation, want := range map[string]bool{"serve": true, "stop": false} {
		m := pair(t, 1)
		m.ok(command.PutPool{Meta: m.meta(), Pool: "default", Step: 1, Max: 50, MaxInFlight: 10, Isolation: isolation})
		m.active(1, 1)
		m.ready("default", "h2", 101, 102)
		m.relocate(command.Relocate{}, 1)
		target, _ := m.allocation(alID(1)).Pending()
		m.lose("h1")
		a := m.allocation(alID(1))
		if grant, ok := a.Pending(); ok != want || ok && grant != target || a.Move.Cause != state.CauseLost {
			t.Fatalf("%s: %+v", isolation, a)
		}
		if !want {
			m.ok(command.Place{Meta: m.meta(), Allocations: []id.Allocation{alID(1)}})
		}
		m.confirmPending(alID(1))
		m.wantAllocation(alID(1), state.AllocationActive)
	}
}

func TestMoveIsRefused(t *testing.T) {
	m := pair(t, 3)
	m.active(1, 1)
	m.reserve(2, 2)
	m.host("h3", 20)
	m.ready("default", "h3", 201, 201)
	m.ok(command.SetHostSchedulable{Meta: m.meta(), Host: "h3"})
	for _, c := range []struct {
		code  fault.Code
		c     command.Relocate
		which int
	}{
		{fault.NotFound, command.Relocate{}, 9},
		{fault.Conflict, command.Relocate{}, 2},
		{fault.PoolExhausted, command.Relocate{}, 1},
		{fault.PoolExhausted, command.Relocate{To: "h2"}, 1},
		{fault.NoEligibleHost, command.Relocate{To: "h3"}, 1},
		{fault.NotFound, command.Relocate{To: "h9"}, 1},
		{fault.Conflict, command.Relocate{To: "h1"}, 1},
	} {
		before := m.records()
		if out := m.relocate(c.c, c.which)[0]; out.Err == nil || out.Err.Code != c.code {
			t.Errorf("%+v: %+v, want %s", c.c, out, c.code)
		}
		if m.records() != before {
			t.Errorf("%+v was refused and changed records", c.c)
		}
	}
	stale := command.Relocate{Meta: m.meta(), Items: []command.RelocateItem{{Allocation: alID(1), Epoch: 1}}}
	if out := m.ok(stale).Reserved[0]; out.Err == nil || out.Err.Code != fault.StaleEpoch {
		t.Errorf("%+v", out)
	}
	m.ok(command.SetHostSchedulable{Meta: m.meta(), Host: "h2"})
	if out := m.relocate(command.Relocate{}, 1)[0]; out.Err == nil || out.Err.Code != fault.NoEligibleHost {
		t.Errorf("no other host: %+v", out)
	}
}

func TestForcedMoveWaitsInLine(t *testing.T) {
	m := pair(t, 1)
	before := m.active(1, 1)
	if out := m.relocate(command.Relocate{Cause: state.CauseDrain, Force: true, Drain: time.Second}, 1)[0]; out.Err != nil {
		t.Fatal(out.Err)
	}
	a := m.allocation(alID(1))
	if a.State != state.AllocationRelocating || a.Gateway != "" || !a.Move.Stranded || a.Left.Gateway != before.Gateway {
		t.Fatalf("%+v", a)
	}
	m.wantGateway(before.Gateway, state.GatewayDraining)
	m.ready("default", "h2", 101, 101)
	m.confirmPending(alID(1))
	m.observe(m.report(before.Gateway, api.PhaseReady))
	if a := m.allocation(alID(1)); a.Left != nil || a.Host != "h2" {
		t.Fatalf("%+v", a)
	}
}

func TestReleaseWhileMoving(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(m *machine)
		want    state.AllocationState
	}{
		"with a target": {func(m *machine) { m.ready("default", "h2", 101, 101); m.relocate(command.Relocate{}, 1) }, state.AllocationReleasing},
		"placed":        {func(m *machine) { m.ready("default", "h2", 101, 101); m.lose("h1") }, state.AllocationReleasing},
		"stranded":      {func(m *machine) { m.lose("h1") }, state.AllocationReleased},
		"forced":        {func(m *machine) { m.relocate(command.Relocate{Force: true}, 1) }, state.AllocationReleased},
		"has left": {func(m *machine) {
			m.ready("default", "h2", 101, 101)
			m.relocate(command.Relocate{}, 1)
			m.confirmPending(alID(1))
		}, state.AllocationReleasing},
	} {
		m := pair(t, 1)
		m.active(1, 1)
		c.prepare(m)
		m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
		m.wantAllocation(alID(1), c.want)
		for g := range m.store.View().Gateways(nil) {
			if g.Desired.Allocation != "" {
				t.Errorf("%s: gateway %s is granted still", name, g.ID)
			}
			if g.State != state.GatewayLost && g.Observed.Incarnation < g.Desired.Incarnation {
				m.observe(m.report(g.ID, api.PhaseReady))
			}
		}
		m.wantAllocation(alID(1), state.AllocationReleased)
	}
}

func TestForgottenHostKeepsItsOrganizationsInLine(t *testing.T) {
	m := pair(t, 1)
	m.active(1, 1)
	m.refused(fault.OrganizationActive, command.DeleteHost{Meta: m.meta(), Host: "h1"})
	m.lose("h1")
	m.ok(command.DeleteHost{Meta: m.meta(), Host: "h1"})
	if a := m.allocation(alID(1)); a.State != state.AllocationRelocating || a.Gateway != "" {
		t.Fatalf("%+v", a)
	}
	m.ready("default", "h2", 101, 101)
	m.confirmPending(alID(1))
}

func TestGatewaysOfALostHostLeaveRoomInThePool(t *testing.T) {
	m := small(t, 0)
	m.host("h2", 20)
	m.ok(command.PutPool{Meta: m.meta(), Pool: "default", Step: 1, Max: 3, MaxInFlight: 10, Isolation: "serve"})
	m.ready("default", "h1", 1, 3)
	m.lose("h1")
	c := command.CreateGateways{Meta: m.meta(), Pool: "default", Gateways: []command.NewGateway{{ID: gwID(10), Host: "h2"}, {ID: gwID(11), Host: "h2"}}}
	if n := m.ok(c).Count; n != 0 {
		t.Fatal("version 1 counts them, so that old logs build the same state")
	}
	c.BesidesLost = true
	if n := m.ok(c).Count; n != 2 {
		t.Fatalf("created %d", n)
	}
}

func TestOldStateWithAnActiveAllocationOnALostHost(t *testing.T) {
	m := pair(t, 2)
	m.active(1, 1)
	m.ok(command.SetHostStatus{Meta: m.meta(), Host: "h1", Status: api.HostLost, Reason: "an older version"})
	m.wantAllocation(alID(1), state.AllocationActive)
	m.ready("default", "h2", 101, 101)
	if n := m.lose("h1").Count; n != 1 || strings.Contains(m.types(), "host.lost") {
		t.Fatal(n, m.types())
	}
	m.confirmPending(alID(1))
}
