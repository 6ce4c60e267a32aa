package client

import (
	"context"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// Start asks for the gateway of an organization and waits until it is served (or reserved, as asked).
// created is false when the organization had its allocation already.
func (c *Client) Start(ctx context.Context, in api.StartAllocation, opts ...CallOption) (a api.Allocation, created bool, err error) {
	status := 0
	a, err = do[api.Allocation](ctx, c, create(in, "v1", "allocations"), append(opts, StatusTo(&status)))
	return a, status == http.StatusCreated || status == http.StatusAccepted, err
}

// StartBatch asks for the gateways of many organizations in one entry of the log.
func (c *Client) StartBatch(ctx context.Context, in api.StartBatch, opts ...CallOption) ([]api.BatchResult, error) {
	out, err := do[api.List[api.BatchResult]](ctx, c, create(in, "v1", "allocations", "batch"), opts)
	return out.Items, err
}

// AllocationFilter narrows a list of allocations; empty fields match all.
type AllocationFilter struct {
	OrganizationID, Pool, HostID, GatewayID, State string
	Live                                           bool // only those that have not ended
}

// ListAllocations lists allocations, all pages.
func (c *Client) ListAllocations(ctx context.Context, f AllocationFilter, opts ...CallOption) ([]api.Allocation, error) {
	rq := filter(get("v1", "allocations"), "organization_id", f.OrganizationID, "pool", f.Pool,
		"host_id", f.HostID, "gateway_id", f.GatewayID, "state", f.State)
	if f.Live {
		rq.query.Set("live", "true")
	}
	return all[api.Allocation](ctx, c, rq, opts)
}

// Allocation reads one allocation.
func (c *Client) Allocation(ctx context.Context, allocation string, opts ...CallOption) (api.Allocation, error) {
	return do[api.Allocation](ctx, c, get("v1", "allocations", allocation), opts)
}

// Steps reads an allocation's journal.
func (c *Client) Steps(ctx context.Context, allocation string, opts ...CallOption) ([]api.Step, error) {
	out, err := do[api.List[api.Step]](ctx, c, get("v1", "allocations", allocation, "steps"), opts)
	return out.Items, err
}

// Explain reads why an allocation got its gateway.
func (c *Client) Explain(ctx context.Context, allocation string, opts ...CallOption) (api.Explanation, error) {
	return do[api.Explanation](ctx, c, get("v1", "allocations", allocation, "explain"), opts)
}

// Migrate brings an allocation to a gateway of another host, the named one or any, and returns when that one
// serves it. Drain is how long open connections of the old gateway may go on.
func (c *Client) Migrate(ctx context.Context, allocation string, in api.MigrateAllocation, drain time.Duration, opts ...CallOption) (api.Allocation, error) {
	rq := create(in, "v1", "allocations", allocation, "migrate")
	if drain != 0 {
		rq.query.Set("drain", drain.String())
	}
	return do[api.Allocation](ctx, c, rq, opts)
}

// Release ends an allocation and returns when its gateway is recycled. Drain is how long open
// connections may go on.
func (c *Client) Release(ctx context.Context, allocation string, drain time.Duration, opts ...CallOption) (api.Allocation, error) {
	rq := newCall(http.MethodDelete, "v1", "allocations", allocation)
	if drain != 0 {
		rq.query.Set("drain", drain.String())
	}
	return do[api.Allocation](ctx, c, rq, opts)
}
