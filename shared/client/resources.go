package client

import (
	"context"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// nothing is the answer of calls that answer 204.
type nothing = struct{}

func put(body any, elements ...string) *call {
	rq := newCall(http.MethodPut, elements...)
	rq.body = body
	return rq
}

func post(elements ...string) *call { return newCall(http.MethodPost, elements...) }

func remove(elements ...string) *call { return newCall(http.MethodDelete, elements...) }

// PutOrganization sets the whole of an organization.
func (c *Client) PutOrganization(ctx context.Context, organization string, in api.PutOrganization, opts ...CallOption) (api.Organization, error) {
	return do[api.Organization](ctx, c, put(in, "v1", "organizations", organization), opts)
}

// Organization reads one organization.
func (c *Client) Organization(ctx context.Context, organization string, opts ...CallOption) (api.Organization, error) {
	return do[api.Organization](ctx, c, get("v1", "organizations", organization), opts)
}

// ListOrganizations lists the organizations, all pages.
func (c *Client) ListOrganizations(ctx context.Context, opts ...CallOption) ([]api.Organization, error) {
	return all[api.Organization](ctx, c, get("v1", "organizations"), opts)
}

// DeleteOrganization forgets an organization without a live allocation.
func (c *Client) DeleteOrganization(ctx context.Context, organization string, opts ...CallOption) error {
	_, err := do[nothing](ctx, c, remove("v1", "organizations", organization), opts)
	return err
}

// PutMember adds or changes one member.
func (c *Client) PutMember(ctx context.Context, organization, user string, in api.PutMember, opts ...CallOption) (api.Organization, error) {
	return do[api.Organization](ctx, c, put(in, "v1", "organizations", organization, "members", user), opts)
}

// DeleteMember removes one member.
func (c *Client) DeleteMember(ctx context.Context, organization, user string, opts ...CallOption) (api.Organization, error) {
	return do[api.Organization](ctx, c, remove("v1", "organizations", organization, "members", user), opts)
}

// PutProject adds or renames one project.
func (c *Client) PutProject(ctx context.Context, organization, project string, in api.PutProject, opts ...CallOption) (api.Organization, error) {
	return do[api.Organization](ctx, c, put(in, "v1", "organizations", organization, "projects", project), opts)
}

// DeleteProject removes one project.
func (c *Client) DeleteProject(ctx context.Context, organization, project string, opts ...CallOption) (api.Organization, error) {
	return do[api.Organization](ctx, c, remove("v1", "organizations", organization, "projects", project), opts)
}

// OrganizationAllocation reads the live allocation of an organization; not_found when it has none.
func (c *Client) OrganizationAllocation(ctx context.Context, organization string, opts ...CallOption) (api.Allocation, error) {
	return do[api.Allocation](ctx, c, get("v1", "organizations", organization, "allocation"), opts)
}

// PutPool makes or changes a pool.
func (c *Client) PutPool(ctx context.Context, pool string, in api.PutPool, opts ...CallOption) (api.Pool, error) {
	return do[api.Pool](ctx, c, put(in, "v1", "pools", pool), opts)
}

// Pool reads one pool.
func (c *Client) Pool(ctx context.Context, pool string, opts ...CallOption) (api.Pool, error) {
	return do[api.Pool](ctx, c, get("v1", "pools", pool), opts)
}

// ListPools lists the pools.
func (c *Client) ListPools(ctx context.Context, opts ...CallOption) ([]api.Pool, error) {
	return all[api.Pool](ctx, c, get("v1", "pools"), opts)
}

// DeletePool retires a pool's gateways and removes the pool when the last is gone.
func (c *Client) DeletePool(ctx context.Context, pool string, opts ...CallOption) error {
	_, err := do[nothing](ctx, c, remove("v1", "pools", pool), opts)
	return err
}

// GatewayFilter narrows a list of gateways; empty fields match all.
type GatewayFilter struct {
	Pool, HostID, State, OrganizationID string
}

// ListGateways lists gateways, all pages.
func (c *Client) ListGateways(ctx context.Context, f GatewayFilter, opts ...CallOption) ([]api.Gateway, error) {
	return all[api.Gateway](ctx, c, filter(get("v1", "gateways"), "pool", f.Pool, "host_id", f.HostID,
		"state", f.State, "organization_id", f.OrganizationID), opts)
}

// Gateway reads one gateway.
func (c *Client) Gateway(ctx context.Context, gateway string, opts ...CallOption) (api.Gateway, error) {
	return do[api.Gateway](ctx, c, get("v1", "gateways", gateway), opts)
}

// RecycleGateway demands a fresh process for a gateway without organization and ends its quarantine.
func (c *Client) RecycleGateway(ctx context.Context, gateway string, opts ...CallOption) (api.Gateway, error) {
	return do[api.Gateway](ctx, c, post("v1", "gateways", gateway, "recycle"), opts)
}

// QuarantineGateway takes a gateway out of its pool for inspection.
func (c *Client) QuarantineGateway(ctx context.Context, gateway string, opts ...CallOption) (api.Gateway, error) {
	return do[api.Gateway](ctx, c, post("v1", "gateways", gateway, "quarantine"), opts)
}

// ListHosts lists the hosts.
func (c *Client) ListHosts(ctx context.Context, opts ...CallOption) ([]api.Host, error) {
	return all[api.Host](ctx, c, get("v1", "hosts"), opts)
}

// Host reads one host.
func (c *Client) Host(ctx context.Context, host string, opts ...CallOption) (api.Host, error) {
	return do[api.Host](ctx, c, get("v1", "hosts", host), opts)
}

// CordonHost keeps new grants and gateways away from a host.
func (c *Client) CordonHost(ctx context.Context, host string, opts ...CallOption) (api.Host, error) {
	return do[api.Host](ctx, c, post("v1", "hosts", host, "cordon"), opts)
}

// UncordonHost lets a host be used again.
func (c *Client) UncordonHost(ctx context.Context, host string, opts ...CallOption) (api.Host, error) {
	return do[api.Host](ctx, c, post("v1", "hosts", host, "uncordon"), opts)
}

// Drain is how a host is emptied; the zero value takes no deadline and ends connections at once.
type Drain struct {
	Connections time.Duration // how long open connections of each gateway may go on
	Deadline    time.Duration // after this time what is left is reported, or forced; zero: never
	Force       bool
}

// DrainHost cordons a host and begins to bring everything that it serves to other hosts. Host tells how far it
// is, UncordonHost ends it.
func (c *Client) DrainHost(ctx context.Context, host string, d Drain, opts ...CallOption) (api.Host, error) {
	rq := post("v1", "hosts", host, "drain")
	for name, value := range map[string]time.Duration{"drain": d.Connections, "deadline": d.Deadline} {
		if value != 0 {
			rq.query.Set(name, value.String())
		}
	}
	if d.Force {
		rq.query.Set("force", "true")
	}
	return do[api.Host](ctx, c, rq, opts)
}

// DeleteHost forgets a host that serves no organization.
func (c *Client) DeleteHost(ctx context.Context, host string, opts ...CallOption) error {
	_, err := do[nothing](ctx, c, remove("v1", "hosts", host), opts)
	return err
}

// CreateToken makes an API token; the answer is the only place where its secret is shown.
func (c *Client) CreateToken(ctx context.Context, in api.CreateToken, opts ...CallOption) (api.CreatedToken, error) {
	return do[api.CreatedToken](ctx, c, create(in, "v1", "tokens"), opts)
}

// ListTokens lists the API tokens, without secrets.
func (c *Client) ListTokens(ctx context.Context, opts ...CallOption) ([]api.Token, error) {
	return all[api.Token](ctx, c, get("v1", "tokens"), opts)
}

// DeleteToken revokes an API token by its public id.
func (c *Client) DeleteToken(ctx context.Context, token string, opts ...CallOption) error {
	_, err := do[nothing](ctx, c, remove("v1", "tokens", token), opts)
	return err
}

// CreateJoinToken makes a join token; the answer is the only place where its text is shown.
func (c *Client) CreateJoinToken(ctx context.Context, in api.CreateJoinToken, opts ...CallOption) (api.CreatedJoinToken, error) {
	return do[api.CreatedJoinToken](ctx, c, create(in, "v1", "join-tokens"), opts)
}

// ListJoinTokens lists the join tokens, without their texts.
func (c *Client) ListJoinTokens(ctx context.Context, opts ...CallOption) ([]api.JoinToken, error) {
	return all[api.JoinToken](ctx, c, get("v1", "join-tokens"), opts)
}

// DeleteJoinToken takes a join token back by its public id.
func (c *Client) DeleteJoinToken(ctx context.Context, token string, opts ...CallOption) error {
	_, err := do[nothing](ctx, c, remove("v1", "join-tokens", token), opts)
	return err
}

// RenewCertificate asks for the next certificate of the host that this client has one of.
func (c *Client) RenewCertificate(ctx context.Context, in api.JoinRequest, opts ...CallOption) (api.JoinAnswer, error) {
	rq := post("v1", "agent", "certificate")
	rq.body = in
	return do[api.JoinAnswer](ctx, c, rq, opts)
}

// Status reads the state of the whole system. It is answered without a leader too.
func (c *Client) Status(ctx context.Context, opts ...CallOption) (api.Status, error) {
	return do[api.Status](ctx, c, get("v1", "status"), opts)
}

// Ready returns nil when a coordinator can take calls, and why not otherwise.
func (c *Client) Ready(ctx context.Context, opts ...CallOption) error {
	_, err := do[any](ctx, c, get("readyz"), opts)
	return err
}
