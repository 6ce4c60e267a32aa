package systemtest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// killedInTurn kills each program once while users ask all the time. Some answers may fail; none may come
// from another organization's gateway, and no allocation may be lost.
func (d *days) killedInTurn() {
	second := d.allocate(d.other, "")
	held := []api.Allocation{d.anchor, second}
	ctx, stop := context.WithCancel(d.t.Context())
	var group sync.WaitGroup
	for _, a := range held {
		group.Go(func() { d.watchAnswers(ctx, a) })
	}
	finish := sync.OnceFunc(func() { stop(); group.Wait() })
	defer finish()
	for _, victim := range []struct {
		name string
		pid  func() int
	}{
		{"the agent", func() int { return d.pid("agent-1") }},
		{"the coordinator", func() int { return d.pid("coordinator-1") }},
		{"a gateway", func() int { return d.pid("gateway-" + second.GatewayID) }},
		{"the nginx master", func() int { return d.pid("nginx-1") }},
		{"an nginx worker", func() int { return d.workers()[0].pid }},
	} {
		d.kill(victim.pid())
		waitFor(d.t, "all to be healthy after the end of "+victim.name, func() string { return d.wrong(d.anchor.OrganizationID, d.other) })
		waitTrue(d.t, "nginx to have all its workers", func() bool { return len(d.workers()) == 2 })
		live, err := d.client.ListAllocations(d.t.Context(), client.AllocationFilter{Live: true})
		if err != nil || len(live) != len(held) {
			d.t.Fatalf("after the end of %s the allocations are %+v, %v", victim.name, live, err)
		}
		for _, want := range held {
			got, err := d.client.Allocation(d.t.Context(), want.AllocationID)
			if err != nil || got.State != api.AllocationActive || got.GatewayID != want.GatewayID || got.Epoch != want.Epoch {
				d.t.Errorf("after the end of %s allocation %s is %+v, %v", victim.name, want.AllocationID, got, err)
			}
		}
	}
	finish()
	d.release(second)
}

// workers are those of the nginx that runs, without the orphans of one that was killed.
func (d *days) workers() []proc {
	master := d.pid("nginx-1")
	return slices.DeleteFunc(d.processes("nginx"), func(p proc) bool { return p.name != "nginx worker" || p.parent != master })
}

// watchAnswers asks for an organization until ctx ends and fails the test when another's gateway answers.
func (d *days) watchAnswers(ctx context.Context, a api.Allocation) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	answered := 0
	for ctx.Err() == nil {
		got, err := d.get(a.OrganizationID, "/collab/ping")
		switch {
		case err != nil || got.status != http.StatusOK: // nginx or the gateway is being started again
		case got.gateway != a.GatewayID || got.health.OrganizationID != a.OrganizationID || got.health.Epoch != a.Epoch:
			d.t.Errorf("organization %s is answered by %+v", a.OrganizationID, got)
		default:
			answered++
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	if answered == 0 {
		d.t.Errorf("organization %s was never answered", a.OrganizationID)
	}
}

// twice: a second start is answered with the first's result, and there is nothing to stop twice.
func (d *days) twice() {
	ctx := d.t.Context()
	first, created, err := d.client.Start(ctx, api.StartAllocation{OrganizationID: d.other})
	if err != nil || !created {
		d.t.Fatalf("the first start: %v, created %t", err, created)
	}
	second, created, err := d.client.Start(ctx, api.StartAllocation{OrganizationID: d.other})
	if err != nil || created || second.AllocationID != first.AllocationID || second.Epoch != first.Epoch || second.GatewayID != first.GatewayID {
		d.t.Errorf("the second start: %+v, created %t, %v; the first was %+v", second, created, err, first)
	}
	d.mustServe(second)
	stdout, _, code := d.command("alloc", "start", d.other, "-o", "json")
	if code != 0 || !strings.Contains(stdout, first.AllocationID) {
		d.t.Errorf("the command's start: exit %d\n%s", code, stdout)
	}
	status, body := d.post("/gateway/start", `{"organization_id":"`+d.other+`"}`)
	if status != http.StatusOK || !strings.Contains(body, fmt.Sprintf(`"epoch":%d`, first.Epoch)) {
		d.t.Errorf("the platform's start: %d %s", status, body)
	}
	d.release(first)
	again, err := d.client.Release(ctx, first.AllocationID, 0)
	if err != nil || again.State != api.AllocationReleased {
		d.t.Errorf("the second stop: %+v, %v", again, err)
	}
	_, err = d.client.Release(ctx, "al-aaaaaaaaaaaaaaaa", 0)
	wantFault(d.t, err, "not_found", "al-aaaaaaaaaaaaaaaa", "demiurge alloc list")
	_, stderr, code := d.command("alloc", "stop", d.other)
	if code != 1 || !strings.Contains(stderr, "not_found") || !strings.Contains(stderr, "has no live allocation") {
		d.t.Errorf("the command's stop of nothing: exit %d\n%s", code, stderr)
	}
	status, body = d.post("/gateway/stop", `{"organization_id":"`+d.other+`"}`)
	if status != http.StatusNotFound || !strings.Contains(body, "has no live allocation") {
		d.t.Errorf("the platform's stop of nothing: %d %s", status, body)
	}
}
