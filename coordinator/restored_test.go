package coordinator_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// TestRestoreOfAnOlderState: after the snapshot organizations start, are released, and start once more elsewhere, so that
// hosts know grants and incarnations that the restored state does not. Everything that the state has is served again,
// nothing else is, and new organizations start at once or when a gateway has been wiped.
func TestRestoreOfAnOlderState(t *testing.T) {
	t.Parallel()
	const gateways = 8
	c := coordtest.Start(t)
	agents := []*coordtest.Agent{c.Agent("h1", 20, coordtest.Script{}), c.Agent("h2", 20, coordtest.Script{})}
	c.Pool("default", gateways)
	ctx := c.Context()
	orgs := c.Organizations(gateways)
	start := func(org string) api.Allocation {
		t.Helper()
		a, _, err := c.Admin.Start(ctx, api.StartAllocation{OrganizationID: org, Wait: seconds(30)})
		if err != nil {
			t.Fatalf("organization %s: %v", org, err)
		}
		return a
	}
	release := func(a api.Allocation) {
		t.Helper()
		if _, err := c.Admin.Release(ctx, a.AllocationID, 0); err != nil {
			t.Fatal(err)
		}
	}
	saved := map[string]api.Allocation{}
	for _, org := range orgs[:4] {
		saved[org] = start(org)
	}
	var file bytes.Buffer
	if err := c.Admin.SaveSnapshot(ctx, &file); err != nil {
		t.Fatal(err)
	}

	release(saved[orgs[0]])
	release(saved[orgs[1]])
	c.Ready("default", gateways-2)
	late := map[string]string{}
	for _, org := range append([]string{orgs[1]}, orgs[4:]...) { // on all gateways but one
		late[org] = start(org).GatewayID
	}
	more := gateways + 2
	if _, err := c.Admin.PutPool(ctx, "default", api.PutPool{Max: &more}); err != nil {
		t.Fatal(err)
	}
	c.Ready("default", gateways+2-7)
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(file.Bytes())), nil }
	if _, err := c.Admin.RestoreSnapshot(ctx, open); err != nil {
		t.Fatal(err)
	}

	for _, org := range orgs[4:] { // while the hosts learn of it
		if a := start(org); a.Epoch <= 1<<32 || a.State != api.AllocationActive {
			t.Errorf("organization %s: %+v", org, a)
		}
	}
	coordtest.Eventually(t, "what the state has is what the hosts serve", func() bool {
		serving, n := map[string]string{}, 0
		for _, a := range agents {
			for org, gateway := range a.Serving() {
				serving[org] = gateway
				n++
			}
		}
		all, err := c.Admin.ListAllocations(ctx, client.AllocationFilter{})
		for _, a := range all {
			if a.EndedAt != nil {
				continue
			}
			n--
			if a.State != api.AllocationActive || serving[a.OrganizationID] != a.GatewayID {
				return false
			}
		}
		return err == nil && n == 0
	})
	for i, org := range orgs[:4] {
		is, err := c.Admin.OrganizationAllocation(ctx, org)
		was := saved[org]
		if err != nil || is.AllocationID != was.AllocationID {
			t.Errorf("organization %s: %+v, %v", org, is, err)
		}
		if i < 2 && is.Epoch <= 1<<32 || i >= 2 && (is.Epoch != was.Epoch || is.GatewayID != was.GatewayID) {
			t.Errorf("organization %s was served at epoch %d by %s, and is at %d by %s", org, was.Epoch, was.GatewayID, is.Epoch, is.GatewayID)
		}
	}
	for _, a := range agents {
		for _, v := range a.Violations() {
			t.Error(v)
		}
	}
	events, err := c.Admin.ListEvents(ctx, client.EventQuery{Index: 1 << 32})
	if err != nil || len(events) == 0 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	for _, e := range events {
		if e.Type == "gateway.fenced" && !strings.Contains(e.Reason, "unknown") || e.Type == "allocation.rolling_back" {
			t.Errorf("%+v", e)
		}
	}
}
