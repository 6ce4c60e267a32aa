package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// routes is the whole API, one row per method and path: who may call it, what it does, which statuses
// and codes it answers with besides those of every call. What is not here does not exist.
func routes() []route {
	ok, empty := []int{200}, []int{204}
	none := []fault.Code{}
	missing := []fault.Code{fault.NotFound}
	conflicting := []fault.Code{fault.Conflict}
	changeFaults := []fault.Code{fault.NotFound, fault.Conflict}
	inUse := append(slices.Clone(changeFaults), fault.OrganizationActive)
	batchFaults := append(slices.Clone(changeFaults), fault.PoolExhausted, fault.NoEligibleHost)
	releaseFaults := append(slices.Clone(changeFaults), fault.ActivationTimeout, fault.Superseded)
	startFaults := append(slices.Clone(batchFaults), fault.ActivationTimeout, fault.RouteApplyFailed, fault.VerifyFailed,
		fault.DNSFailed, fault.HostLost, fault.Superseded, fault.StaleEpoch)
	migrateFaults := append(slices.Clone(startFaults), fault.Internal)
	drainFaults := append(slices.Clone(missing), fault.HostLost)
	return append([]route{
		{post, "/v1/allocations", forMembers, on((*Server).startAllocation), "start-allocation", "Start: give an organization its gateway", []int{201, 200, 202}, startFaults},
		{post, "/v1/allocations/batch", forPlatform, on((*Server).startBatch), "start-allocations", "Start many organizations in one entry of the log", ok, batchFaults},
		{get, "/v1/allocations", forReaders, on((*Server).listAllocations), "list-allocations", "List allocations", ok, none},
		{get, "/v1/allocations/{id}", forReaders, on((*Server).getAllocation), "get-allocation", "Read an allocation", ok, missing},
		{get, "/v1/allocations/{id}/steps", forReaders, on((*Server).listSteps), "list-steps", "Read an allocation's journal: every step and its undo", ok, missing},
		{get, "/v1/allocations/{id}/explain", forReaders, on((*Server).explain), "explain-allocation", "Read why an allocation got its gateway", ok, missing},
		{post, "/v1/allocations/{id}/migrate", forOperators, on((*Server).migrateAllocation), "migrate-allocation", "Bring an allocation to a gateway of another host", ok, migrateFaults},
		{del, "/v1/allocations/{id}", forManagers, on((*Server).releaseAllocation), "release-allocation", "Release an allocation and recycle its gateway", ok, releaseFaults},

		{get, "/v1/organizations", forPlatform, on((*Server).listOrganizations), "list-organizations", "List organizations", ok, none},
		{put, "/v1/organizations/{id}", forPlatform, on((*Server).putOrganization), "put-organization", "Set the whole of an organization", []int{200, 201}, conflicting},
		{get, "/v1/organizations/{id}", forPlatform, on((*Server).getOrganization), "get-organization", "Read an organization", ok, missing},
		{del, "/v1/organizations/{id}", forPlatform, on((*Server).deleteOrganization), "delete-organization", "Forget an organization without a live allocation", empty, inUse},
		{put, "/v1/organizations/{id}/members/{user_id}", forPlatform, on((*Server).putMember), "put-member", "Add or change a member", ok, changeFaults},
		{del, "/v1/organizations/{id}/members/{user_id}", forPlatform, on((*Server).deleteMember), "delete-member", "Remove a member", ok, changeFaults},
		{put, "/v1/organizations/{id}/projects/{project_id}", forPlatform, on((*Server).putProject), "put-project", "Add or rename a project", ok, changeFaults},
		{del, "/v1/organizations/{id}/projects/{project_id}", forPlatform, on((*Server).deleteProject), "delete-project", "Remove a project", ok, changeFaults},
		{get, "/v1/organizations/{id}/allocation", forWatchers, on((*Server).organizationAllocation), "get-organization-allocation", "Read the live allocation of an organization", ok, missing},

		{get, "/v1/pools", forOperators, on((*Server).listPools), "list-pools", "List pools with live counts", ok, none},
		{put, "/v1/pools/{name}", forOperators, on((*Server).putPool), "put-pool", "Make or change a pool", []int{200, 201}, conflicting},
		{get, "/v1/pools/{name}", forOperators, on((*Server).getPool), "get-pool", "Read a pool with live counts", ok, missing},
		{del, "/v1/pools/{name}", forOperators, on((*Server).deletePool), "delete-pool", "Retire a pool's gateways and remove it", empty, inUse},

		{get, "/v1/gateways", forReaders, on((*Server).listGateways), "list-gateways", "List gateways", ok, none},
		{get, "/v1/gateways/{id}", forReaders, on((*Server).getGateway), "get-gateway", "Read a gateway", ok, missing},
		{post, "/v1/gateways/{id}/recycle", forOperators, on((*Server).recycleGateway), "recycle-gateway", "Demand a fresh process for a gateway without organization", ok, inUse},
		{post, "/v1/gateways/{id}/quarantine", forOperators, on((*Server).quarantineGateway), "quarantine-gateway", "Take a gateway out of its pool for inspection", ok, changeFaults},

		{get, "/v1/hosts", forReaders, on((*Server).listHosts), "list-hosts", "List hosts", ok, none},
		{get, "/v1/hosts/{id}", forReaders, on((*Server).getHost), "get-host", "Read a host", ok, missing},
		{post, "/v1/hosts/{id}/cordon", forOperators, on((*Server).cordonHost), "cordon-host", "Keep new grants and gateways away from a host", ok, missing},
		{post, "/v1/hosts/{id}/uncordon", forOperators, on((*Server).uncordonHost), "uncordon-host", "Let a host be used again", ok, missing},
		{post, "/v1/hosts/{id}/drain", forOperators, on((*Server).drainHost), "drain-host", "Cordon a host and bring everything it serves to other hosts", ok, drainFaults},
		{del, "/v1/hosts/{id}", forOperators, on((*Server).deleteHost), "delete-host", "Forget a host that serves no organization", empty, inUse},

		{get, "/v1/events", forReaders, on((*Server).listEvents), "list-events", "List events, or follow them as server-sent events", ok, none},
		{get, "/v1/status", forReaders, on((*Server).status), "get-status", "The state of the whole system, the worst first", ok, none},
		{post, "/v1/tokens", forAdmins, on((*Server).createToken), "create-token", "Make an API token; its secret is in this answer only", []int{201, 200}, conflicting},
		{get, "/v1/tokens", forAdmins, on((*Server).listTokens), "list-tokens", "List API tokens, without secrets", ok, none},
		{del, "/v1/tokens/{id}", forAdmins, on((*Server).deleteToken), "delete-token", "Revoke an API token", empty, missing},

		{post, "/v1/join-tokens", forOperators, on((*Server).createJoinToken), "create-join-token", "Make a token that lets one program join, once; its text is in this answer only", []int{201, 200}, conflicting},
		{get, "/v1/join-tokens", forOperators, on((*Server).listJoinTokens), "list-join-tokens", "List join tokens, without their texts", ok, none},
		{del, "/v1/join-tokens/{id}", forOperators, on((*Server).deleteJoinToken), "delete-join-token", "Take a join token back", empty, missing},
		{post, "/v1/join", forJoiners, on((*Server).join), "join", "Join the cluster with a join token, and get a certificate", ok, conflicting},

		{post, "/gateway/start", forMembers, on((*Server).gatewayStart), "gateway-start", "The platform's old name of starting", ok, startFaults},
		{post, "/gateway/stop", forManagers, on((*Server).gatewayStop), "gateway-stop", "The platform's old name of releasing", ok, releaseFaults},

		{get, streamPath, forHostsAgent, on((*Server).agentStream), "agent-stream", "The assignment of a host, as JSON lines", ok, none},
		{post, "/v1/agent/observations", forHostsAgent, on((*Server).agentObserve), "agent-observe", "Report what a host's agent saw", ok, conflicting},
		{post, "/v1/agent/certificate", forHostsAgent, on((*Server).renewCertificate), "renew-certificate", "Get the next certificate of the host that the caller has one of", ok, none},

		{get, "/healthz", forAnyone, on((*Server).healthz), "healthz", "Does this coordinator answer", ok, none},
		{get, "/readyz", forAnyone, on((*Server).readyz), "readyz", "Can this coordinator take calls: does it know a leader", ok, []fault.Code{fault.NoLeader}},
		{get, "/metrics", forAnyone, on((*Server).metrics), "metrics", "Prometheus metrics", ok, none},
		{get, "/openapi.json", forAnyone, on((*Server).openapiJSON), "openapi-json", "This document as JSON", ok, none},
		{get, "/openapi.yaml", forAnyone, on((*Server).openapiYAML), "openapi-yaml", "This document as YAML", ok, none},
	}, operatorRoutes()...)
}

// Methods, short for the table.
const (
	get  = http.MethodGet
	post = http.MethodPost
	put  = http.MethodPut
	del  = http.MethodDelete
)

// route is a row of the table.
type route struct {
	method, path string
	access       access
	register     func(s *Server, a huma.API, op huma.Operation)
	name         string // operation id
	summary      string
	statuses     []int        // of success, the usual one first
	codes        []fault.Code // besides those that every call may answer
}

// Names of the security schemes in the document.
const (
	bearer      = "token"
	certificate = "certificate"
)

const apiDescription = "Every answer of an error is application/problem+json with a stable code. " +
	"Lists are paged with limit and cursor; reading calls can block until something newer than index exists."

// bodyLimit bounds a request's body. A report of a host may be larger: a full one names every gateway.
const (
	bodyLimit        = 1 << 20
	observationLimit = 16 << 20
)

// on makes the registration of a handler.
func on[I, O any](h func(*Server, context.Context, *I) (*O, error)) func(*Server, huma.API, huma.Operation) {
	return func(s *Server, a huma.API, op huma.Operation) {
		huma.Register(a, op, func(ctx context.Context, in *I) (*O, error) {
			out, err := h(s, ctx, in)
			if err != nil {
				return nil, s.refuse(ctx, err)
			}
			return out, nil
		})
	}
}

// refuse turns a handler's error into the answer, and logs causes, which the caller does not see.
func (s *Server) refuse(ctx context.Context, err error) error {
	f := fault.From(err)
	s.noteHandler(ctx, f)
	switch {
	case ctx.Err() != nil: // nobody is there to read it
	case f.Code == fault.Internal:
		s.log.Error("cannot answer a request", "route", callerOf(ctx).route.name, "error", err)
	case f.Err != nil:
		s.log.Warn("request failed", "route", callerOf(ctx).route.name, "code", f.Code, "error", err)
	}
	return newProblem(f)
}

// mount registers a row with its documentation.
func (rt *route) mount(s *Server, a huma.API) {
	op := huma.Operation{
		Method: rt.method, Path: rt.path, OperationID: rt.name, Summary: rt.summary, DefaultStatus: rt.statuses[0],
		Tags: []string{rt.tag()}, Responses: rt.responses(a), MaxBodyBytes: bodyLimit + 1, // huma refuses at the limit itself
		BodyReadTimeout:              -1, // the gate's
		RejectUnknownQueryParameters: rt.access&public == 0,
		Extensions:                   map[string]any{"x-roles": rt.access.names()},
	}
	if rt.name == "agent-observe" {
		op.MaxBodyBytes = observationLimit + 1
		// Reading the body a second time for the schema's sake costs more than the rest of the call, which
		// every allocation waits for. What it says is checked where it gets its types (agentlink).
		op.SkipValidateBody = true
	}
	switch {
	case rt.access&public != 0:
	case rt.access&agent != 0:
		op.Security = []map[string][]string{{certificate: {}}}
	default:
		op.Security = []map[string][]string{{bearer: {}}}
	}
	if rt.name == "restore-snapshot" {
		op.RequestBody = &huma.RequestBody{Description: "What GET answered", Required: true, Content: octetsMedia()}
	}
	rt.register(s, a, op)
	usual := op.Responses[strconv.Itoa(rt.statuses[0])]
	for _, status := range rt.statuses[1:] {
		other := *usual
		other.Description = http.StatusText(status)
		op.Responses[strconv.Itoa(status)] = &other
	}
}

// tag groups a route in the document by the resource of its path.
func (rt *route) tag() string {
	parts := strings.Split(strings.TrimPrefix(rt.path, "/v1"), "/")
	if rt.access&public != 0 {
		return "system"
	}
	return parts[1]
}

// allCodes lists every code that the route may answer.
func (rt *route) allCodes() []fault.Code {
	codes := append([]fault.Code{fault.InvalidRequest, fault.RateLimited, fault.Internal}, rt.codes...)
	if rt.access&public == 0 {
		codes = append(codes, fault.Unauthenticated, fault.Forbidden, fault.NoLeader)
	}
	if rt.method == post || rt.method == put {
		codes = append(codes, fault.TooLarge)
	}
	if rt.adds() {
		codes = append(codes, fault.StorageLow)
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// responses documents the codes of a route by status, and the answers that huma cannot derive.
func (rt *route) responses(a huma.API) map[string]*huma.Response {
	schema := a.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Problem](), true, "Problem")
	byStatus := map[string][]string{}
	for _, code := range rt.allCodes() {
		status := strconv.Itoa(fault.New(code, "").Status())
		byStatus[status] = append(byStatus[status], string(code))
	}
	out := map[string]*huma.Response{}
	if media := rt.media(a.OpenAPI().Components.Schemas); media != nil {
		out[strconv.Itoa(rt.statuses[0])] = &huma.Response{Description: http.StatusText(rt.statuses[0]), Content: media}
	}
	for status, codes := range byStatus {
		out[status] = &huma.Response{
			Description: fmt.Sprintf("Code %s", strings.Join(codes, " or ")),
			Content:     map[string]*huma.MediaType{api.ProblemContentType: {Schema: schema}},
			Extensions:  map[string]any{"x-codes": codes},
		}
	}
	return out
}

// media documents the answers that handlers write themselves.
func (rt *route) media(schemas huma.Registry) map[string]*huma.MediaType {
	text := &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
	event := schemas.Schema(reflect.TypeFor[api.Event](), true, "Event")
	switch rt.name {
	case "list-events":
		list := schemas.Schema(reflect.TypeFor[api.List[api.Event]](), true, "ListEvent")
		return map[string]*huma.MediaType{"application/json": {Schema: list}, eventStream: {Schema: event}}
	case "agent-stream":
		frame := schemas.Schema(reflect.TypeFor[api.AssignmentFrame](), true, "AssignmentFrame")
		return map[string]*huma.MediaType{jsonLines: {Schema: frame}}
	case "save-snapshot":
		return octetsMedia()
	case "metrics":
		return map[string]*huma.MediaType{"text/plain": text}
	case "openapi-json":
		return map[string]*huma.MediaType{openapiJSON: {Schema: &huma.Schema{Type: huma.TypeObject}}}
	case "openapi-yaml":
		return map[string]*huma.MediaType{openapiYAML: text}
	}
	return nil
}
