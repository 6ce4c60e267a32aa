package fsm_test

import (
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// goBack restores an older state as an operator does, and lets the indexes leap.
func (m *machine) goBack(saved string) {
	m.Helper()
	var out strings.Builder
	keep := func(string, *state.Trust) (*state.Trust, error) { return nil, nil }
	if err := fsm.Convert(strings.NewReader(saved), &out, m.now, keep); err != nil {
		m.Fatal(err)
	}
	restore(m.TB, m.fsm, out.String())
	m.index += 1 << 32
	if err := m.store.Check(); err != nil {
		m.Fatal(err)
	}
}

// begun is what a host says of a gateway that it has begun anew more often than the restored state knows.
func (m *machine) begun(host id.Host, gateway id.Gateway, incarnation uint64) command.Result {
	m.Helper()
	return m.ok(command.RenewGateways{
		Meta: m.meta(), Host: host, Reason: "restored", Gateways: []command.BegunByItsHost{{Gateway: gateway, Incarnation: incarnation}},
	})
}

// TestARestoredStateGivesNothingOutThatItsHostHasNotWiped: gateways that are ready in the snapshot may have been granted
// after it, in the same incarnation.
func TestARestoredStateGivesNothingOutThatItsHostHasNotWiped(t *testing.T) {
	m := small(t, 2)
	kept := m.active(1, 1)
	m.ok(command.QuarantineGateway{Meta: m.meta(), Gateway: kept.Gateway})
	saved := m.snapshot()
	late := m.active(2, 2)
	serving := m.report(late.Gateway, api.PhaseServing)
	m.goBack(saved)

	m.wantAllocation(kept.ID, state.AllocationActive)
	if g := m.gateway(kept.Gateway); g.Desired.Incarnation != 1 || g.State != state.GatewayAllocated {
		t.Fatalf("what serves is interrupted: %+v", g)
	}
	m.wantGateway(late.Gateway, state.GatewayRecycling)
	if out := m.reserve(3, 3); out.Err == nil || out.Err.Code != fault.PoolExhausted {
		t.Fatalf("an unknown gateway was given out: %+v", out)
	}
	m.observe(serving) // it still serves what was lost
	if got := m.types(); strings.Contains(got, "fenced") {
		t.Fatal(got)
	}
	m.wantGateway(late.Gateway, state.GatewayRecycling)
	if n := m.gateway(late.Gateway).Desired.Incarnation; n < 1<<20 {
		t.Fatalf("the incarnation is %d, which the host may have begun meanwhile", n)
	}
	m.observe(m.report(late.Gateway, api.PhaseReady))
	if a := m.active(3, 4); a.Epoch <= late.Epoch {
		t.Fatalf("epoch %d after %d", a.Epoch, late.Epoch)
	}

	// When the grant that was kept ends, its gateway is begun anew above all that the host can have.
	m.ok(command.Release{Meta: m.meta(), Allocation: kept.ID})
	if n := m.gateway(kept.Gateway).Desired.Incarnation; n < 1<<20 {
		t.Fatalf("the incarnation after the release is %d", n)
	}
	before := m.gateway(kept.Gateway).Desired.Incarnation
	m.observe(m.report(kept.Gateway, api.PhaseReady))
	m.ok(command.RecycleGateway{Meta: m.meta(), Gateway: kept.Gateway})
	if n := m.gateway(kept.Gateway).Desired.Incarnation; n != before+1 {
		t.Fatalf("incarnation %d follows %d: it leaps once only", n, before)
	}
}

// TestAGrantThatEndedAfterTheSnapshot: the host has begun the gateway anew, so what the state has on it gets another one,
// as soon as there is one.
func TestAGrantThatEndedAfterTheSnapshot(t *testing.T) {
	m := small(t, 2)
	active := m.active(1, 1)
	m.reserve(2, 2)
	reserved := m.allocation(alID(2))
	m.goBack(m.snapshot())
	if a := m.allocation(reserved.ID); !a.Deadline.After(m.now.Add(10 * time.Second)) {
		t.Fatalf("the grant of the snapshot has time until %s, and it is %s", a.Deadline, m.now)
	}

	before := m.records()
	for _, n := range []int{
		m.begun("h1", active.Gateway, 1).Count, // it was demanded
		m.begun("h1", gwID(99), 5).Count,       // nobody knows it
	} {
		if n != 0 || m.records() != before {
			t.Fatalf("%d gateways were demanded afresh", n)
		}
	}
	m.refused(fault.NotFound, command.RenewGateways{Meta: m.meta(), Host: "h9", Gateways: []command.BegunByItsHost{{Gateway: active.Gateway, Incarnation: 5}}})

	for _, was := range []*state.Allocation{active, reserved} {
		if n := m.begun("h1", was.Gateway, 5).Count; n != 1 {
			t.Fatalf("%d gateways were demanded afresh", n)
		}
		if a := m.allocation(was.ID); a.State != state.AllocationRelocating || !a.Move.Stranded || a.Gateway != "" {
			t.Fatalf("%+v", a)
		}
		g := m.gateway(was.Gateway)
		if g.Desired.Allocation != "" || g.Desired.Epoch != 0 || g.Desired.Incarnation <= 5 {
			t.Fatalf("it is wanted as %+v", g.Desired)
		}
		old := m.report(g.ID, api.PhaseServing)
		old.Incarnation, old.Organization, old.Epoch = 5, orgID(7), 99
		m.observe(old)
		if got := m.types(); strings.Contains(got, "fenced") {
			t.Fatal(got)
		}
		m.wantGateway(g.ID, state.GatewayRecycling)
	}
	m.observe(m.report(gwID(1), api.PhaseReady), m.report(gwID(2), api.PhaseReady))
	if a := m.allocation(active.ID); a.State != state.AllocationRelocating || a.Move.Stranded || a.Epoch != id.Epoch(m.index) {
		t.Fatalf("%+v", a)
	}
	m.confirmPending(active.ID)
	m.wantAllocation(active.ID, state.AllocationActive)
	if a := m.allocation(reserved.ID); a.State != state.AllocationReserved || a.Epoch <= reserved.Epoch {
		t.Fatalf("%+v", a)
	}
	m.confirmPending(reserved.ID)
	m.wantAllocation(reserved.ID, state.AllocationActive)
}

// TestAMoveThatEndedAfterTheSnapshot: one of the two gateways of an allocation that was moving is begun anew on its host,
// or both are.
func TestAMoveThatEndedAfterTheSnapshot(t *testing.T) {
	moving := func(t *testing.T) (m *machine, from, to state.Grant) {
		m = pair(t, 1)
		was := m.active(1, 1)
		m.ready("default", "h2", 101, 101)
		if out := m.relocate(command.Relocate{}, 1); out[0].Err != nil {
			t.Fatal(out[0].Err)
		}
		m.goBack(m.snapshot())
		a := m.allocation(was.ID)
		if !a.Move.Target.Deadline.After(m.now.Add(10 * time.Second)) {
			t.Fatalf("the target of the snapshot has time until %s", a.Move.Target.Deadline)
		}
		return m, a.Grant(), *a.Move.Target
	}
	t.Run("the first one", func(t *testing.T) {
		m, from, to := moving(t)
		m.begun("h1", from.Gateway, 2)
		if a := m.allocation(alID(1)); a.State != state.AllocationRelocating || a.Gateway != to.Gateway || a.Move.Target != nil {
			t.Fatalf("%+v", a)
		}
		m.confirmPending(alID(1))
		m.wantGateway(to.Gateway, state.GatewayAllocated)
		m.begun("h2", to.Gateway, 2) // and both
		if a := m.allocation(alID(1)); a.State != state.AllocationRelocating || !a.Move.Stranded {
			t.Fatalf("%+v", a)
		}
	})
	t.Run("the second one", func(t *testing.T) {
		m, from, to := moving(t)
		m.begun("h2", to.Gateway, 2)
		if a := m.allocation(alID(1)); a.State != state.AllocationActive || a.Gateway != from.Gateway || a.Epoch != from.Epoch {
			t.Fatalf("%+v", a)
		}
		m.wantGateway(to.Gateway, state.GatewayRecycling)
	})
	t.Run("while it waits", func(t *testing.T) {
		m := pair(t, 1)
		was := m.active(1, 1)
		m.lose("h1")
		m.goBack(m.snapshot())
		m.begun("h1", was.Gateway, 2)
		m.back("h1")
		if a := m.allocation(was.ID); a.State != state.AllocationRelocating || !a.Move.Stranded || a.Gateway != "" {
			t.Fatalf("%+v", a)
		}
		m.ready("default", "h2", 101, 101)
		m.confirmPending(was.ID)
		m.wantAllocation(was.ID, state.AllocationActive)
	})
}

// TestARestoredStateEndsWhatWasEnding: a release and the removal of a gateway that the snapshot has half-way.
func TestARestoredStateEndsWhatWasEnding(t *testing.T) {
	m := small(t, 3)
	a := m.active(1, 1)
	m.ok(command.Release{Meta: m.meta(), Allocation: a.ID})
	m.ok(command.RetireGateways{Meta: m.meta(), Gateways: []id.Gateway{gwID(3)}})
	m.goBack(m.snapshot())
	m.wantAllocation(a.ID, state.AllocationReleasing)
	m.wantGateway(a.Gateway, state.GatewayDraining)
	m.wantGateway(gwID(3), state.GatewayTerminating)
	m.observe(m.report(a.Gateway, api.PhaseReady))
	m.wantAllocation(a.ID, state.AllocationReleased)
	m.observe(m.report(gwID(3), api.PhaseGone))
	if g := m.store.View().Gateway(nil, gwID(3)); g != nil {
		t.Fatalf("%+v", g)
	}
}

// TestARestoredStateIsPreparedInPieces counts what one transaction changes: what it replaces stays in memory until it ends.
func TestARestoredStateIsPreparedInPieces(t *testing.T) {
	const gateways, hosts = 3000, 2
	m := newMachine(t)
	m.check = false
	m.ok(command.PutPool{Meta: m.meta(), Pool: "default", Max: gateways, Step: 3, MaxInFlight: 10, Isolation: "serve", ActivationTimeout: time.Second})
	for h := range hosts {
		name := id.Host("h" + coded(h, 3))
		m.host(name, gateways/hosts)
		m.ready("default", name, h*gateways/hosts, (h+1)*gateways/hosts-1)
	}
	reserve := command.Reserve{Meta: m.meta(), Pool: "default"}
	for n := range 1500 {
		m.org(n)
		reserve.Items = append(reserve.Items, command.ReserveItem{Organization: orgID(n), Allocation: alID(n)})
	}
	m.ok(reserve)
	m.now = m.now.Add(time.Hour)
	last := m.store.View().Index()
	m.goBack(m.snapshot())

	changed := map[uint64]int{}
	for g := range m.store.View().Gateways(nil) {
		changed[g.ModifyIndex]++
		if want := g.Desired.Allocation == ""; want != (g.State == state.GatewayRecycling) || max(g.Desired.Outrun, g.Desired.Incarnation) < 1<<20 {
			t.Fatalf("gateway %s is %s and wanted as %+v", g.ID, g.State, g.Desired)
		}
	}
	for a := range m.store.View().LiveAllocations(nil) {
		changed[a.ModifyIndex]++
		if !a.Deadline.After(m.now) {
			t.Fatalf("allocation %s has time until %s, and it is %s", a.ID, a.Deadline, m.now)
		}
	}
	for index, n := range changed {
		if index <= last || n > 1000 {
			t.Errorf("%d records were changed at index %d, of which the snapshot has %d", n, index, last)
		}
	}
	if len(changed) != 5 {
		t.Errorf("changed at %v", changed)
	}
}
