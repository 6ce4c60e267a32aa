package coordinator_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func start(c *coordtest.Cluster, org string) (api.Allocation, error) {
	a, _, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: org})
	return a, err
}

func mustStart(t *testing.T, c *coordtest.Cluster, org string) api.Allocation {
	t.Helper()
	a, err := start(c, org)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func seconds(n int) *api.Duration {
	d := api.Duration(time.Duration(n) * time.Second)
	return &d
}

func TestAStartIsServedAndAStopRecycles(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	agent := c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 3)
	org := c.Organizations(1)[0]

	a, created, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: org})
	if err != nil || !created {
		t.Fatalf("created %v, error %v", created, err)
	}
	if a.State != api.AllocationActive || !a.Warm || a.Epoch == 0 || a.Hostname != "org-"+org+".example.org" {
		t.Errorf("allocation: %+v", a)
	}
	if got := agent.Serving()[org]; got != a.GatewayID {
		t.Errorf("served by %q, allocated is %q", got, a.GatewayID)
	}
	steps, err := c.Admin.Steps(c.Context(), a.AllocationID)
	if err != nil || len(steps) < 4 {
		t.Errorf("steps %v, error %v", steps, err)
	}
	again, created, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: org})
	if err != nil || created || again.AllocationID != a.AllocationID || again.Epoch != a.Epoch {
		t.Errorf("second start: created %v, %+v, error %v", created, again, err)
	}
	if _, err := c.Admin.Release(c.Context(), a.AllocationID, 0); err != nil {
		t.Fatal(err)
	}
	if len(agent.Serving()) != 0 {
		t.Error("still served after the stop")
	}
	g, err := c.Admin.Gateway(c.Context(), a.GatewayID)
	if err != nil || g.State != api.GatewayReady || g.Incarnation != 2 {
		t.Errorf("gateway after the stop: %+v, error %v", g, err)
	}
	if next := mustStart(t, c, org); next.Epoch <= a.Epoch {
		t.Errorf("epoch %d after %d", next.Epoch, a.Epoch)
	}
}

func TestFiveHundredStartsForFiftyOrganizations(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	agent := c.Agent("h1", 100, coordtest.Script{})
	c.Pool("default", 40)
	orgs := c.Organizations(50)
	var (
		wg        sync.WaitGroup
		mu        sync.Mutex
		byOrg     = map[string]string{}
		byGateway = map[string]string{}
		exhausted int
	)
	for i := range 500 {
		wg.Go(func() {
			org := orgs[i%len(orgs)]
			a, err := start(c, org)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case fault.Is(err, fault.PoolExhausted):
				exhausted++
				return
			case err != nil:
				t.Error(err)
				return
			}
			if other, ok := byOrg[org]; ok && other != a.GatewayID {
				t.Errorf("organization %s has gateways %s and %s", org, other, a.GatewayID)
			}
			if other, ok := byGateway[a.GatewayID]; ok && other != org {
				t.Errorf("gateway %s has organizations %s and %s", a.GatewayID, other, org)
			}
			byOrg[org], byGateway[a.GatewayID] = a.GatewayID, org
		})
	}
	wg.Wait()
	if len(byGateway) != 40 || len(byOrg) != 40 || exhausted != 100 {
		t.Errorf("%d gateways for %d organizations, %d refusals; want 40, 40, 100", len(byGateway), len(byOrg), exhausted)
	}
	for _, v := range agent.Violations() {
		t.Error(v)
	}
	for org := range byOrg {
		wg.Go(func() {
			a, err := c.Admin.OrganizationAllocation(c.Context(), org)
			if err == nil {
				_, err = c.Admin.Release(c.Context(), a.AllocationID, 0)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c.Ready("default", 40)
}

func TestWaitingInLine(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 1)
	orgs := c.Organizations(4)
	holder := mustStart(t, c, orgs[0])

	if _, err := start(c, orgs[1]); !fault.Is(err, fault.PoolExhausted) {
		t.Errorf("an empty pool without wait: %v", err)
	} else if fault.From(err).RetryAfter <= 0 {
		t.Error("no hint when to try again")
	}
	_, _, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: orgs[1], Wait: seconds(1)})
	if !fault.Is(err, fault.PoolExhausted) {
		t.Errorf("after the wait: %v", err)
	}
	// Two wait; the first that came is served first.
	type answer struct {
		a   api.Allocation
		err error
	}
	answers := make(chan answer, 2)
	for i, org := range orgs[2:] {
		go func() {
			a, _, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: org, Wait: seconds(50)})
			answers <- answer{a, err}
		}()
		coordtest.Eventually(t, "it stands in line", func() bool {
			p, err := c.Admin.Pool(c.Context(), "default")
			return err == nil && p.Queued == i+1
		})
	}
	release := func(a api.Allocation) {
		if _, err := c.Admin.Release(c.Context(), a.AllocationID, 0); err != nil {
			t.Fatal(err)
		}
	}
	release(holder)
	first := <-answers
	if first.err != nil || first.a.OrganizationID != orgs[2] || first.a.Warm {
		t.Fatalf("first in line: %+v", first)
	}
	release(first.a)
	if second := <-answers; second.err != nil || second.a.OrganizationID != orgs[3] {
		t.Fatalf("second in line: %+v", second)
	}
}

func TestACallerThatLeavesTheLineGivesUpItsPlace(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 1)
	orgs := c.Organizations(2)
	mustStart(t, c, orgs[0])
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, _, err := c.Admin.Start(ctx, api.StartAllocation{OrganizationID: orgs[1], Wait: seconds(240)}) // longer than the test has patience
		done <- err
	}()
	queued := func(n int) func() bool {
		return func() bool {
			p, err := c.Admin.Pool(c.Context(), "default")
			return err == nil && p.Queued == n
		}
	}
	coordtest.Eventually(t, "it stands in line", queued(1))
	leave()
	if err := <-done; err == nil {
		t.Error("a cancelled call succeeded")
	}
	coordtest.Eventually(t, "the line is empty", queued(0))
}

// A place in line is in the log. It outlives the coordinator that the caller asked, which does not wait for it to end.
func TestAPlaceInLineOutlivesTheCoordinator(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 1)
	orgs := c.Organizations(2)
	first := mustStart(t, c, orgs[0])
	done := make(chan error, 1)
	ask := func(admin *client.Client) {
		_, _, err := admin.Start(context.Background(), api.StartAllocation{OrganizationID: orgs[1], Wait: seconds(240)}, client.IdempotencyKey("one"))
		done <- err
	}
	queued := func() bool {
		p, err := c.Admin.Pool(c.Context(), "default")
		return err == nil && p.Queued == 1
	}
	go ask(c.Admin)
	coordtest.Eventually(t, "it stands in line", queued)
	c.Restart()
	if err := <-done; err == nil || fault.Is(err, fault.ActivationTimeout) { // which says that the place is given up
		t.Errorf("the caller was answered without a gateway: %v", err)
	}
	if !queued() {
		t.Error("the place in line is gone")
	}
	go ask(c.Admin)
	if _, err := c.Admin.Release(c.Context(), first.AllocationID, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the caller in line: %v", err)
	}
}

func TestAnActivationThatHangsIsUndoneAtItsDeadline(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	agent := c.Agent("h1", 10, coordtest.Script{Hold: func(string) bool { return true }})
	c.Pool("default", 1)
	if _, err := c.Admin.PutPool(c.Context(), "default", api.PutPool{ActivationTimeout: seconds(1)}); err != nil {
		t.Fatal(err)
	}
	org := c.Organizations(1)[0]
	if _, err := start(c, org); !fault.Is(err, fault.ActivationTimeout) {
		t.Fatalf("error %v", err)
	}
	c.Ready("default", 1)
	agent.SetScript(coordtest.Script{})
	mustStart(t, c, org)
}

func TestAnAllocationWithATimeToLiveEndsByItself(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	agent := c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 1)
	org := c.Organizations(1)[0]
	a, _, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: org, TTL: seconds(1)})
	if err != nil {
		t.Fatal(err)
	}
	coordtest.Eventually(t, "it is released", func() bool {
		got, err := c.Admin.Allocation(c.Context(), a.AllocationID)
		return err == nil && got.State == api.AllocationReleased
	})
	if len(agent.Serving()) != 0 {
		t.Error("still served")
	}
}

func TestABatchIsOneEntryWithAnAnswerEach(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 3)
	orgs := c.Organizations(4)
	unknown := "00000000-0000-4000-8000-000000000000"
	res, err := c.Admin.StartBatch(c.Context(), api.StartBatch{OrganizationIDs: append(orgs, unknown), WaitFor: "routable"})
	if err != nil || len(res) != 5 {
		t.Fatalf("%d results, error %v", len(res), err)
	}
	codes := ""
	for _, r := range res {
		if r.Problem != nil {
			codes += r.Problem.Code + " "
		} else {
			codes += fmt.Sprint(r.Allocation.State, " ")
		}
	}
	if want := "active active active pool_exhausted not_found "; codes != want {
		t.Errorf("results %q, want %q", codes, want)
	}
}

func TestASilentHostGetsNothingNew(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t, func(c *coordinator.Config) { c.Hosts.SilentAfter = time.Second })
	agent := c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 2)
	orgs := c.Organizations(2)
	mustStart(t, c, orgs[0])
	agent.Stop()
	coordtest.Eventually(t, "the host is silent", func() bool {
		h, err := c.Admin.Host(c.Context(), "h1")
		return err == nil && h.State == api.HostSilent
	})
	if _, err := start(c, orgs[1]); !fault.Is(err, fault.NoEligibleHost) {
		t.Errorf("error %v", err)
	}
	a, err := c.Admin.OrganizationAllocation(c.Context(), orgs[0])
	if err != nil || a.State != api.AllocationActive {
		t.Errorf("the allocation on the silent host: %+v, error %v", a, err)
	}
}

func TestGatewaysThatDoNotStartOpenTheBreaker(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	agent := c.Agent("h1", 10, coordtest.Script{Broken: func(string) bool { return true }})
	size := 2
	if _, err := c.Admin.PutPool(c.Context(), "default", api.PutPool{MinReady: &size, Max: &size}); err != nil {
		t.Fatal(err)
	}
	coordtest.Eventually(t, "the breaker opens", func() bool {
		p, err := c.Admin.Pool(c.Context(), "default")
		return err == nil && p.Breaker == "open" && p.Limited == "breaker" && strings.Contains(p.BreakerReason, "in a row did not become ready")
	})
	org := c.Organizations(1)[0]
	coordtest.Eventually(t, "a start says so, and when to come back", func() bool { // the breaker tries one now and then
		_, err := start(c, org)
		var f *fault.Error
		return errors.As(err, &f) && f.Code == fault.PoolExhausted && strings.Contains(f.Message, "keep failing") && f.RetryAfter > time.Second
	})
	agent.SetScript(coordtest.Script{})
	c.Ready("default", 2)
	coordtest.Eventually(t, "the breaker closes", func() bool {
		p, err := c.Admin.Pool(c.Context(), "default")
		return err == nil && p.Breaker == "closed" && p.Limited == ""
	})
}

func allocationsOf(org string) client.AllocationFilter {
	return client.AllocationFilter{OrganizationID: org}
}
