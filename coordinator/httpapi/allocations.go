package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	// defaultPool is the pool of a request that names none.
	defaultPool = "default"
	// ttlLimit bounds how long an allocation or token may be asked to live.
	ttlLimit = 10 * 365 * 24 * time.Hour
	// drainLimit bounds how long connections may go on after a release.
	drainLimit = 24 * time.Hour
)

// waitReserved is the wait_for that does not wait for the steps.
const waitReserved = "reserved"

// Keyed is what every creating call accepts.
type Keyed struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"200" doc:"The same key answers with the first result for 24 h; with another body it is a conflict"`
}

// digests names a keyed request in the log: the key of this caller on this route, and the body.
func (k Keyed) digests(ctx context.Context, body any) (key, digest string, err error) {
	if k.IdempotencyKey == "" {
		return "", "", nil
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return "", "", fmt.Errorf("cannot encode the body for its digest: %w", err)
	}
	c := callerOf(ctx)
	sum := sha256.Sum256([]byte(c.actor() + "\x00" + c.route.name + "\x00" + k.IdempotencyKey))
	bodySum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), hex.EncodeToString(bodySum[:]), nil
}

type startInput struct {
	Keyed
	Body api.StartAllocation
}

type allocationOutput struct {
	Status int
	Index  uint64 `header:"X-Demiurge-Index"`
	Body   api.Allocation
}

func (s *Server) startAllocation(ctx context.Context, in *startInput) (*allocationOutput, error) {
	result, err := s.start(ctx, in.Keyed, in.Body)
	if err != nil {
		return nil, err
	}
	out, err := s.allocationNow(result.Allocation)
	if err != nil {
		return nil, err
	}
	if result.Total > 0 {
		measured := timings(command.Timings{Confirm: result.Confirm, Total: result.Total})
		out.Body.Timings.Confirm, out.Body.Timings.Total = measured.Confirm, measured.Total
	}
	switch {
	case result.Existing:
		out.Status = http.StatusOK
	case in.Body.WaitFor == waitReserved:
		out.Status = http.StatusAccepted
	default:
		out.Status = http.StatusCreated
	}
	return out, nil
}

// start checks a request and starts the allocation.
func (s *Server) start(ctx context.Context, keyed Keyed, body api.StartAllocation) (allocator.StartResult, error) {
	var c checks
	req := allocator.StartRequest{
		Organization: parse(&c, "body.organization_id", body.OrganizationID, id.ParseOrganization),
		Pool:         poolOf(&c, body.Pool),
		PoolNamed:    body.Pool != "",
		Wait:         bounded(&c, "body.wait", body.Wait, waitLimit),
		TTL:          bounded(&c, "body.ttl", body.TTL, ttlLimit),
		WaitFor:      body.WaitFor, Metadata: body.Metadata,
	}
	checkMetadata(&c, body.Metadata)
	if err := c.err(); err != nil {
		return allocator.StartResult{}, err
	}
	if err := s.atLeader(); err != nil {
		return allocator.StartResult{}, err
	}
	if err := s.mayAct(ctx, s.opts.Store.View(), nil, req.Organization); err != nil {
		return allocator.StartResult{}, err
	}
	var err error
	if req.Key, req.Digest, err = keyed.digests(ctx, body); err != nil {
		return allocator.StartResult{}, err
	}
	req.Actor, req.Source = callerOf(ctx).actor(), callerOf(ctx).address
	ctx, release := s.waitingFor(ctx)
	defer release()
	return s.opts.Allocations.Start(ctx, req)
}

// poolOf reads a pool's name or takes the default.
func poolOf(c *checks, name string) id.Pool {
	if name == "" {
		return defaultPool
	}
	return parse(c, "body.pool", name, id.ParsePool)
}

// checkMetadata keeps the log small: metadata is for the caller's own references.
func checkMetadata(c *checks, m map[string]string) {
	if len(m) > 16 {
		c.add("body.metadata", fmt.Errorf("cannot keep %d pairs: want at most 16", len(m)))
	}
	for k, v := range m {
		if k == "" || len(k) > 64 || len(v) > 256 {
			c.add("body.metadata", fmt.Errorf("cannot keep the pair of key %.70q: want a key of 1 to 64 and a value of at most 256 bytes", k))
		}
	}
}

// allocationNow is the answer after a change to an allocation.
func (s *Server) allocationNow(a id.Allocation) (*allocationOutput, error) {
	v := s.opts.Store.View()
	rec := v.Allocation(nil, a)
	if rec == nil {
		return nil, fault.New(fault.Superseded, "allocation %s has ended and was collected meanwhile", a)
	}
	return &allocationOutput{Status: http.StatusOK, Index: v.Index(), Body: s.converter(v, nil).allocation(rec)}, nil
}

type batchInput struct {
	Keyed
	Body api.StartBatch
}

func (s *Server) startBatch(ctx context.Context, in *batchInput) (*answer[api.List[api.BatchResult]], error) {
	var c checks
	req := allocator.BatchRequest{
		Pool: poolOf(&c, in.Body.Pool), PoolNamed: in.Body.Pool != "", Wait: bounded(&c, "body.wait", in.Body.Wait, waitLimit), WaitFor: in.Body.WaitFor,
		Organizations: make([]id.Organization, len(in.Body.OrganizationIDs)),
	}
	seen := make(map[id.Organization]bool, len(in.Body.OrganizationIDs))
	for i, o := range in.Body.OrganizationIDs {
		location := fmt.Sprintf("body.organization_ids[%d]", i)
		org := parse(&c, location, o, id.ParseOrganization)
		if org != "" && seen[org] {
			c.add(location, fmt.Errorf("organization %s is named twice", org))
		}
		req.Organizations[i], seen[org] = org, true
		if len(c) >= 20 {
			break
		}
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	var err error
	if req.Key, req.Digest, err = in.digests(ctx, in.Body); err != nil {
		return nil, err
	}
	req.Actor, req.Source = callerOf(ctx).actor(), callerOf(ctx).address
	ctx, release := s.waitingFor(ctx)
	defer release()
	outcomes, err := s.opts.Allocations.StartBatch(ctx, req)
	if err != nil {
		return nil, err
	}
	v := s.opts.Store.View()
	conv := s.converter(v, nil)
	out := api.List[api.BatchResult]{Items: make([]api.BatchResult, len(outcomes))}
	for i, o := range outcomes {
		out.Items[i] = conv.batchResult(o)
	}
	return &answer[api.List[api.BatchResult]]{Index: v.Index(), Body: out}, nil
}

// batchResult converts one outcome of a batch.
func (c *converter) batchResult(o allocator.BatchOutcome) api.BatchResult {
	out := api.BatchResult{OrganizationID: string(o.Organization)}
	err := o.Err
	if err == nil {
		if rec := c.view.Allocation(nil, o.Allocation); rec != nil {
			a := c.allocation(rec)
			out.Allocation = &a
			return out
		}
		err = fault.New(fault.Superseded, "allocation %s has ended and was collected meanwhile", o.Allocation)
	}
	p := newProblem(fault.From(err)).Problem
	out.Problem = &p
	return out
}

type listAllocationsInput struct {
	Reading
	Paging
	Organization string `query:"organization_id"`
	Pool         string `query:"pool"`
	Host         string `query:"host_id"`
	Gateway      string `query:"gateway_id"`
	State        string `query:"state" enum:"queued,reserved,activating,routing,verifying,active,releasing,released,rolling_back,rolled_back,failed,relocating"`
	Live         bool   `query:"live" doc:"Only allocations that have not ended"`
}

func (s *Server) listAllocations(ctx context.Context, in *listAllocationsInput) (*answer[api.List[api.Allocation]], error) {
	var c checks
	org := optional(&c, "query.organization_id", in.Organization, id.ParseOrganization)
	pool := optional(&c, "query.pool", in.Pool, id.ParsePool)
	host := optional(&c, "query.host_id", in.Host, id.ParseHost)
	gateway := optional(&c, "query.gateway_id", in.Gateway, id.ParseGateway)
	p := paging(&c, in.Paging, id.ParseAllocation)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.List[api.Allocation], error) {
		conv := s.converter(v, ws)
		keep := func(a *state.Allocation) bool {
			return like(org, a.Organization) && like(pool, a.Pool) && like(host, a.Host) && like(gateway, a.Gateway) &&
				(!in.Live || a.State.Live()) && (in.State == "" || conv.state(a) == in.State)
		}
		list := v.AllocationsAfter
		if in.Live || in.State != "" && state.AllocationState(in.State).Live() {
			list = v.UnendedAllocationsAfter
		}
		return page(p, watching(ws, list), func(a *state.Allocation) id.Allocation { return a.ID }, keep, conv.allocation), nil
	})
}

type allocationInput struct {
	Reading
	ID string `path:"id" doc:"Allocation" example:"al-abcdefghijklmnop"`
}

func (s *Server) getAllocation(ctx context.Context, in *allocationInput) (*answer[api.Allocation], error) {
	return readAllocation(ctx, s, in, (*converter).allocation)
}

func (s *Server) listSteps(ctx context.Context, in *allocationInput) (*answer[api.List[api.Step]], error) {
	return readAllocation(ctx, s, in, func(c *converter, a *state.Allocation) api.List[api.Step] {
		return api.List[api.Step]{Items: c.steps(a)}
	})
}

func (s *Server) explain(ctx context.Context, in *allocationInput) (*answer[api.Explanation], error) {
	return readAllocation(ctx, s, in, func(_ *converter, a *state.Allocation) api.Explanation { return explanation(a) })
}

// readAllocation answers from one allocation's record.
func readAllocation[T any](ctx context.Context, s *Server, in *allocationInput, convert func(*converter, *state.Allocation) T) (*answer[T], error) {
	var c checks
	a := parse(&c, "path.id", in.ID, id.ParseAllocation)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (T, error) {
		rec := v.Allocation(ws, a)
		if rec == nil {
			var zero T
			return zero, fault.New(fault.NotFound, "allocation %s is not known; it may have been collected after it ended", a)
		}
		return convert(s.converter(v, ws), rec), nil
	})
}

type releaseInput struct {
	ID    string `path:"id" doc:"Allocation" example:"al-abcdefghijklmnop"`
	Drain string `query:"drain" doc:"How long open connections may go on, at most 24h; default 0s" example:"30s"`
}

func (s *Server) releaseAllocation(ctx context.Context, in *releaseInput) (*allocationOutput, error) {
	var c checks
	a := parse(&c, "path.id", in.ID, id.ParseAllocation)
	drain := duration(&c, "query.drain", in.Drain, drainLimit)
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := s.mayRelease(ctx, a); err != nil {
		return nil, err
	}
	if err := s.release(ctx, a, drain); err != nil {
		return nil, err
	}
	return s.allocationNow(a)
}

// release ends an allocation on its caller's request.
func (s *Server) release(ctx context.Context, a id.Allocation, drain time.Duration) error {
	if err := s.atLeader(); err != nil {
		return err
	}
	c := callerOf(ctx)
	ctx, stop := s.waitingFor(ctx)
	defer stop()
	return s.opts.Allocations.Release(ctx, allocator.ReleaseRequest{
		Actor: c.actor(), Source: c.address, Allocation: a, Drain: drain, Reason: "requested",
	})
}

type migrateInput struct {
	Keyed
	ID    string `path:"id" doc:"Allocation" example:"al-abcdefghijklmnop"`
	Drain string `query:"drain" doc:"How long open connections of the old gateway may go on, at most 24h; default 0s" example:"30s"`
	Body  api.MigrateAllocation
}

func (s *Server) migrateAllocation(ctx context.Context, in *migrateInput) (*allocationOutput, error) {
	var c checks
	req := allocator.MigrateRequest{
		Allocation: parse(&c, "path.id", in.ID, id.ParseAllocation),
		To:         optional(&c, "body.host_id", in.Body.HostID, id.ParseHost),
		Drain:      duration(&c, "query.drain", in.Drain, drainLimit),
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	var err error
	if req.Key, req.Digest, err = in.digests(ctx, []any{in.ID, in.Drain, in.Body}); err != nil {
		return nil, err
	}
	req.Actor, req.Source = callerOf(ctx).actor(), callerOf(ctx).address
	ctx, release := s.waitingFor(ctx)
	defer release()
	if err := s.opts.Allocations.Migrate(ctx, req); err != nil {
		return nil, err
	}
	return s.allocationNow(req.Allocation)
}

type gatewayStartInput struct {
	Keyed
	Body api.GatewayStart
}

type gatewayStartOutput struct {
	Body api.GatewayStarted
}

// gatewayStart is the platform's old name of starting; it always answers 200.
func (s *Server) gatewayStart(ctx context.Context, in *gatewayStartInput) (*gatewayStartOutput, error) {
	result, err := s.start(ctx, in.Keyed, api.StartAllocation{OrganizationID: in.Body.OrganizationID})
	if err != nil {
		return nil, err
	}
	now, err := s.allocationNow(result.Allocation)
	if err != nil {
		return nil, err
	}
	return &gatewayStartOutput{Body: api.GatewayStarted{
		GatewayHostname: now.Body.Hostname, GatewayID: now.Body.GatewayID, Epoch: now.Body.Epoch, State: now.Body.State,
	}}, nil
}

type gatewayStopInput struct {
	Body api.GatewayStart
}

type gatewayStopOutput struct {
	Body api.GatewayStopped
}

// gatewayStop is the platform's old name of releasing. It means the organization's allocation of this
// moment, not one that a later start makes.
func (s *Server) gatewayStop(ctx context.Context, in *gatewayStopInput) (*gatewayStopOutput, error) {
	var c checks
	org := parse(&c, "body.organization_id", in.Body.OrganizationID, id.ParseOrganization)
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	v := s.opts.Store.View()
	if err := s.mayAct(ctx, v, nil, org); err != nil {
		return nil, err
	}
	a := v.LiveAllocation(nil, org)
	if a == nil {
		return nil, noAllocation(org)
	}
	if err := s.release(ctx, a.ID, 0); err != nil {
		return nil, err
	}
	return &gatewayStopOutput{Body: api.GatewayStopped{Success: true}}, nil
}

// noAllocation is the refusal for an organization that nothing serves.
func noAllocation(org id.Organization) *fault.Error {
	return fault.New(fault.NotFound, "organization %s has no live allocation; `demiurge alloc start` or POST /v1/allocations starts one", org)
}
