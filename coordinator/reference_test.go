package coordinator_test

import (
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// The defects of the platform that this one replaces, by their numbers, as a whole coordinator with a host shows them.

func TestA1_ConcurrentStartsOfOneOrganizationGiveOneAllocation(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 5)
	org := c.Organizations(1)[0]
	var wg sync.WaitGroup
	got := make([]api.Allocation, 32)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = start(c, org); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, a := range got {
		if a.AllocationID != got[0].AllocationID || a.Epoch != got[0].Epoch {
			t.Fatalf("two answers: %+v and %+v", got[0], a)
		}
	}
	c.Ready("default", 4)
}

func TestA2_TheUndoOfOneStartLeavesAnotherAlone(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	orgs := c.Organizations(2)
	agent := c.Agent("h1", 10, coordtest.Script{Fail: func(step, org string) string {
		if org == orgs[0] && step == api.StepRoute {
			return string(fault.RouteApplyFailed)
		}
		return ""
	}})
	c.Pool("default", 2)
	good := mustStart(t, c, orgs[1])
	_, err := start(c, orgs[0])
	if !fault.Is(err, fault.RouteApplyFailed) {
		t.Fatalf("error %v", err)
	}
	c.Ready("default", 1)
	if agent.Serving()[orgs[1]] != good.GatewayID {
		t.Error("the other organization is no longer served")
	}
	agent.SetScript(coordtest.Script{})
	if a := mustStart(t, c, orgs[0]); a.State != api.AllocationActive {
		t.Errorf("started again: %+v", a)
	}
}

func TestA3_AStopOfAnOldAllocationEndsNothing(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	agent := c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 1)
	orgs := c.Organizations(2)
	old := mustStart(t, c, orgs[0])
	if _, err := c.Admin.Release(c.Context(), old.AllocationID, 0); err != nil {
		t.Fatal(err)
	}
	next := mustStart(t, c, orgs[1])
	if next.GatewayID != old.GatewayID {
		t.Fatalf("the only gateway is %s, allocated is %s", old.GatewayID, next.GatewayID)
	}
	if _, err := c.Admin.Release(c.Context(), old.AllocationID, 0); err != nil {
		t.Errorf("releasing what has ended: %v", err)
	}
	a, err := c.Admin.Allocation(c.Context(), next.AllocationID)
	if err != nil || a.State != api.AllocationActive || agent.Serving()[orgs[1]] != next.GatewayID {
		t.Errorf("the new allocation: %+v, error %v", a, err)
	}
}

func TestA4_ACrashDuringAStartLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	agent := c.Agent("h1", 10, coordtest.Script{Hold: func(string) bool { return true }})
	c.Pool("default", 1)
	org := c.Organizations(1)[0]
	reserved, _, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: org, WaitFor: "reserved"})
	if err != nil {
		t.Fatal(err)
	}
	c.Restart()
	a, err := c.Admin.Allocation(c.Context(), reserved.AllocationID)
	if err != nil || a.State != api.AllocationReserved {
		t.Fatalf("after the restart: %+v, error %v", a, err)
	}
	agent.Stop()
	c.Agent("h1", 10, coordtest.Script{})
	if a := mustStart(t, c, org); a.AllocationID != reserved.AllocationID || a.Epoch != reserved.Epoch {
		t.Errorf("not resumed: %+v", a)
	}
}

// A start that a crash has cut, and that nobody goes on with, is undone at its deadline by whoever leads then, and
// its organization is not "already allocated" for ever.
func TestA4_AStartThatACrashHasCutIsUndoneAtItsDeadline(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	agent := c.Agent("h1", 10, coordtest.Script{Hold: func(string) bool { return true }})
	size, soon := 1, api.Duration(time.Second)
	if _, err := c.Admin.PutPool(c.Context(), "default", api.PutPool{MinReady: &size, Max: &size, ActivationTimeout: &soon}); err != nil {
		t.Fatal(err)
	}
	c.Ready("default", 1)
	org := c.Organizations(1)[0]
	reserved, _, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: org, WaitFor: "reserved"})
	if err != nil {
		t.Fatal(err)
	}
	c.Restart()
	coordtest.Eventually(t, "the start is undone", func() bool {
		a, err := c.Admin.Allocation(c.Context(), reserved.AllocationID)
		return err == nil && a.State == api.AllocationRolledBack
	})
	agent.SetScript(coordtest.Script{})
	if a := mustStart(t, c, org); a.AllocationID == reserved.AllocationID || a.Epoch <= reserved.Epoch || agent.Serving()[org] != a.GatewayID {
		t.Errorf("the next start: %+v", a)
	}
}

func TestA5_AGatewayThatFailsIsRecycledAndThenRetired(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	c.Agent("h1", 10, coordtest.Script{Fail: func(step, _ string) string {
		if step == api.StepVerify {
			return string(fault.VerifyFailed)
		}
		return ""
	}})
	c.Pool("default", 1)
	org := c.Organizations(1)[0]
	first := ""
	for try := 1; try <= 3; try++ {
		_, err := start(c, org)
		if !fault.Is(err, fault.VerifyFailed) {
			t.Fatalf("try %d: %v", try, err)
		}
		items, err := c.Admin.ListAllocations(c.Context(), allocationsOf(org))
		if err != nil || len(items) != try {
			t.Fatalf("try %d: %d allocations, error %v", try, len(items), err)
		}
		for _, a := range items {
			if a.State != api.AllocationRolledBack && a.State != api.AllocationFailed {
				t.Errorf("try %d: allocation is %s", try, a.State)
			}
			first = a.GatewayID
		}
		c.Ready("default", 1)
	}
	coordtest.Eventually(t, "the failing gateway is replaced", func() bool {
		_, err := c.Admin.Gateway(c.Context(), first)
		return fault.Is(err, fault.NotFound)
	})
	c.Ready("default", 1)
}

func TestA6_AnOrganizationWithAGatewayIsNotDeleted(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 1)
	org := c.Organizations(1)[0]
	a := mustStart(t, c, org)
	if err := c.Admin.DeleteOrganization(c.Context(), org); !fault.Is(err, fault.OrganizationActive) {
		t.Fatalf("error %v", err)
	}
	if _, err := c.Admin.Release(c.Context(), a.AllocationID, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Admin.DeleteOrganization(c.Context(), org); err != nil {
		t.Fatal(err)
	}
	c.Ready("default", 1)
}

func TestA7_AnAllocatedOrganizationIsAnsweredAfterALook(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	agent := c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 1)
	org := c.Organizations(1)[0]
	mustStart(t, c, org)
	agent.Stop() // active on record, and nobody can say that it serves
	coordtest.Eventually(t, "the last look is too old to be believed, and nobody says that it serves", func() bool {
		_, err := start(c, org)
		if err != nil && !fault.Is(err, fault.VerifyFailed) {
			t.Fatalf("error %v", err)
		}
		return err != nil
	})
	a, err := c.Admin.OrganizationAllocation(c.Context(), org)
	if err != nil || a.State != api.AllocationActive {
		t.Errorf("the allocation that does not answer: %+v, error %v", a, err)
	}
	c.Agent("h1", 10, coordtest.Script{})
	coordtest.Eventually(t, "it is served again", func() bool {
		again, err := start(c, org)
		return err == nil && again.AllocationID == a.AllocationID && again.Epoch == a.Epoch
	})
}
