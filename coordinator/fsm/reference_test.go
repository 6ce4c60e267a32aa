package fsm_test

import (
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// The defects of the platform that this one replaces, by their numbers, as far as the state decides them.

// TestA1_ConcurrentStartsOfOneOrganization: two starts at once, in one batch, in one entry and in two, give
// one live allocation.
func TestA1_ConcurrentStartsOfOneOrganization(t *testing.T) {
	m := small(t, 4)
	var entries []*raft.Log
	for n := range 5 {
		c := m.reserveOf(1, 10+2*n)
		c.Items = append(c.Items, command.ReserveItem{Organization: orgID(1), Allocation: alID(11 + 2*n)})
		entries = append(entries, m.entry(c))
	}
	made := 0
	for _, answer := range m.fsm.ApplyBatch(entries) {
		for _, out := range answer.(command.Result).Reserved {
			if out.Err != nil || out.Allocation != alID(10) {
				t.Fatalf("%+v", out)
			}
			if !out.Existing {
				made++
			}
		}
	}
	if live := slices.Collect(m.store.View().LiveAllocations(nil)); made != 1 || len(live) != 1 {
		t.Fatalf("%d made, %d live", made, len(live))
	}
	if n := m.store.View().Counts(nil, "default").Of(state.GatewayReserved); n != 1 {
		t.Fatalf("%d gateways are reserved", n)
	}
	if err := m.store.Check(); err != nil {
		t.Fatal(err)
	}
}

// TestA2_UndoOfOneStartSparesAnother: the failure of a start that is over, or of another epoch, does nothing
// to what succeeded since.
func TestA2_UndoOfOneStartSparesAnother(t *testing.T) {
	m := small(t, 1)
	m.reserve(1, 1)
	first := m.allocation(alID(1))
	undo := command.Fail{Meta: m.meta(), Allocation: first.ID, Epoch: first.Epoch, Code: fault.ActivationTimeout, Message: "late", BlameGateway: true}
	m.ok(undo)
	m.observe(m.report(gwID(1), api.PhaseReady))
	second := m.active(1, 2)
	if second.Gateway != first.Gateway || second.Epoch <= first.Epoch {
		t.Fatalf("%+v after %+v", second, first)
	}
	m.refused(fault.Superseded, undo) // the undo of the first, again and late
	late := undo
	late.Allocation = second.ID
	m.refused(fault.Superseded, late) // a failure of what is active already
	m.wantAllocation(second.ID, state.AllocationActive)
	m.wantGateway(gwID(1), state.GatewayAllocated)

	// One that waited is granted before its failure arrives: the failure knows no epoch and is refused.
	m.ready("default", "h1", 2, 2)
	m.reserve(2, 3)
	m.refused(fault.StaleEpoch, command.Fail{Meta: m.meta(), Allocation: alID(3), Code: fault.PoolExhausted, Message: "waited too long"})
	m.wantAllocation(alID(3), state.AllocationReserved)

	// And the failure of that one, which is right, leaves the neighbour on the same host alone.
	third := m.allocation(alID(3))
	m.ok(command.Fail{Meta: m.meta(), Allocation: third.ID, Epoch: third.Epoch, Code: fault.ActivationTimeout, Message: "late", BlameGateway: true})
	m.wantAllocation(third.ID, state.AllocationRollingBack)
	m.wantAllocation(second.ID, state.AllocationActive)
	m.wantGateway(gwID(1), state.GatewayAllocated)
}

// TestA3_StopWithAnOldToken: what names a former allocation of a gateway does not reach the present one.
func TestA3_StopWithAnOldToken(t *testing.T) {
	m := small(t, 1)
	old := m.active(1, 1)
	m.ok(command.Release{Meta: m.meta(), Allocation: old.ID})
	m.observe(m.report(old.Gateway, api.PhaseReady))
	present := m.active(2, 2)
	if present.Gateway != old.Gateway {
		t.Fatalf("another gateway was given: %s", present.Gateway)
	}
	before := m.records()
	m.ok(command.Release{Meta: m.meta(), Allocation: old.ID}) // has ended: nothing to do
	if m.records() != before {
		t.Fatal("an old release changed something")
	}
	m.refused(fault.Superseded, command.Fail{Meta: m.meta(), Allocation: old.ID, Epoch: old.Epoch, Code: fault.Internal, Message: "old"})
	stale := m.report(present.Gateway, api.PhaseServing)
	stale.Epoch, stale.Organization = old.Epoch, orgID(1)
	m.observe(stale) // the agent's word about the old epoch
	if got := m.types(); got != "gateway.fenced" || m.records() != before {
		t.Fatalf("a report of an old epoch: %s", got)
	}
	// The epoch alone tells: who claims to hold the present organization at the old epoch is not believed either, nor
	// who names none.
	for _, org := range []id.Organization{orgID(2), ""} {
		stale.Organization = org
		m.observe(stale)
		if got := m.types(); got != "gateway.fenced" || m.records() != before {
			t.Fatalf("a report of an old epoch and organization %q: %s", org, got)
		}
	}
	m.wantAllocation(present.ID, state.AllocationActive)
}

// TestA4_CrashBetweenCommitAndUndo: what was reserved when everything stopped is found after a restart, with
// its deadline, and can be undone, after which a start works again.
func TestA4_CrashBetweenCommitAndUndo(t *testing.T) {
	m := small(t, 1)
	m.reserve(1, 1)
	saved := m.snapshot()
	after := newMachine(t)
	restore(t, after.fsm, saved)
	after.index, after.now = m.index, m.now.Add(time.Hour)

	a := after.store.View().LiveAllocation(nil, orgID(1))
	if a == nil || a.State != state.AllocationReserved || !a.Deadline.Before(after.now) {
		t.Fatalf("after the restart: %+v", a)
	}
	after.ok(command.Fail{Meta: after.meta(), Allocation: a.ID, Epoch: a.Epoch, Code: fault.ActivationTimeout, Message: "the deadline passed"})
	if out := after.reserve(1, 2); out.Err == nil || out.Err.RetryAfter == 0 {
		t.Fatalf("a start while the undo runs: %+v", out)
	}
	after.observe(after.report(a.Gateway, api.PhaseReady))
	after.wantAllocation(a.ID, state.AllocationRolledBack)
	if again := after.active(1, 3); again.Epoch <= a.Epoch {
		t.Fatalf("epoch %d after %d", again.Epoch, a.Epoch)
	}
}

// TestA5_DeadGatewayIsNotReady: a gateway that died, failed or was not recycled is not given out, and one
// that failed before is passed over.
func TestA5_DeadGatewayIsNotReady(t *testing.T) {
	m := small(t, 1)
	refusedNow := func(why string) {
		t.Helper()
		if out := m.reserve(2, 100+int(m.index)); out.Err == nil || out.Err.Code != fault.PoolExhausted {
			t.Fatalf("%s: %+v", why, out)
		}
	}
	a := m.active(1, 1)
	died := m.report(a.Gateway, api.PhaseUnhealthy)
	died.BootID, died.PID, died.Message = "", 0, "killed"
	m.observe(died)
	if got := m.types(); got != "gateway.died gateway.unhealthy" {
		t.Fatal("events:", got)
	}
	refusedNow("it died with its organization")
	m.ok(command.Release{Meta: m.meta(), Allocation: a.ID})
	refusedNow("it was released and not recycled")
	before := m.report(a.Gateway, api.PhaseReady)
	before.Incarnation = 1
	m.observe(before) // the process from before the release says that it is ready
	m.wantGateway(a.Gateway, state.GatewayDraining)
	refusedNow("the old process says that it is ready")
	for _, phase := range []string{api.PhaseStarting, api.PhaseUnhealthy, api.PhaseFailed} {
		m.observe(m.report(a.Gateway, phase))
		refusedNow(phase)
	}
	m.observe(m.report(a.Gateway, api.PhaseReady))
	if out := m.reserve(2, 2); out.Err != nil {
		t.Fatal(out.Err)
	}
	// Selection has a memory: TestFailUndoes and TestBlamedTooOftenIsRetired.
}

// TestA6_DeletingAnOrganizationLeaksNothing: it is refused while a gateway is held, and every gateway is
// counted at any time.
func TestA6_DeletingAnOrganizationLeaksNothing(t *testing.T) {
	m := small(t, 2)
	del := command.DeleteOrganization{Meta: m.meta(), Organization: orgID(1)}
	counted := func(want map[state.GatewayState]int) {
		t.Helper()
		c := m.store.View().Counts(nil, "default")
		for s, n := range want {
			if c.Of(s) != n {
				t.Fatalf("%d gateways are %s, want %d", c.Of(s), s, n)
			}
		}
		if c.Total() != 2 {
			t.Fatalf("%d gateways in all", c.Total())
		}
	}
	m.reserve(1, 1)
	m.refused(fault.OrganizationActive, del)
	counted(map[state.GatewayState]int{state.GatewayReserved: 1, state.GatewayReady: 1})
	m.ok(m.confirmOf(alID(1)))
	m.refused(fault.OrganizationActive, del)
	counted(map[state.GatewayState]int{state.GatewayAllocated: 1, state.GatewayReady: 1})
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
	m.refused(fault.OrganizationActive, del)
	counted(map[state.GatewayState]int{state.GatewayDraining: 1, state.GatewayReady: 1})
	m.observe(m.report(gwID(1), api.PhaseReady))
	m.ok(del)
	counted(map[state.GatewayState]int{state.GatewayReady: 2})
}

// TestA9_GatewayIsNotGivenBeforeItsRouteIsGone: a released gateway is given to the next organization only
// after its agent reported the new incarnation, which says that everything of the old one is unrouted,
// stopped and wiped.
func TestA9_GatewayIsNotGivenBeforeItsRouteIsGone(t *testing.T) {
	m := small(t, 1)
	a := m.active(1, 1)
	m.ok(command.Release{Meta: m.meta(), Allocation: a.ID})
	waiting := m.reserveOf(2, 2)
	waiting.QueueUntil = m.now.Add(time.Hour)
	m.ok(waiting)

	routed := m.report(a.Gateway, api.PhaseServing)
	routed.Incarnation, routed.Organization, routed.Epoch = 1, orgID(1), a.Epoch
	m.observe(routed)
	idle := m.report(a.Gateway, api.PhaseReady)
	idle.Incarnation = 1
	m.observe(idle)
	m.wantAllocation(alID(2), state.AllocationQueued)
	m.wantAllocation(a.ID, state.AllocationReleasing)

	unrouted := m.report(a.Gateway, api.PhaseStarting)
	unrouted.Undo = []command.Step{{Step: api.StepUnroute, State: api.StepDone}}
	m.observe(unrouted)
	m.wantAllocation(a.ID, state.AllocationReleased)
	m.wantAllocation(alID(2), state.AllocationQueued) // not ready yet
	m.observe(m.report(a.Gateway, api.PhaseReady))
	m.wantAllocation(alID(2), state.AllocationReserved)
	if g := m.gateway(a.Gateway); g.Desired.Organization != orgID(2) || g.Desired.Incarnation != 2 {
		t.Fatalf("%+v", g.Desired)
	}
	// And the old process cannot speak for the new grant.
	m.observe(routed)
	if got := m.types(); got != "gateway.fenced" {
		t.Fatal("events:", got)
	}
}
