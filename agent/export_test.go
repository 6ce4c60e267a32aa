package agent

import (
	"context"
	"maps"

	"github.com/demiurge-platform/demiurge/agent/container"
	"github.com/demiurge-platform/demiurge/agent/nginx"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/agent/tenantapi"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// AddRoutes gives the host routes beside those of its gateways, as if it had that many more gateways.
func (a *Agent) AddRoutes(more map[id.Organization]nginx.Target) {
	every := a.nginx.Routes()
	maps.Copy(every, more)
	a.nginx.Retain(every)
}

// TenantRoutes is the table of organizations' host names.
func (a *Agent) TenantRoutes() []tenantapi.Route { return a.tenants.api.Routes() }

// Tenants is what the agent holds for organizations.
func (a *Agent) Tenants() *tenant.Registry { return a.tenants.registry }

// Containers gives the user containers of an organization.
func (a *Agent) Containers(ctx context.Context, org id.Organization) (*container.Registry, error) {
	return a.tenants.api.Containers(ctx, org)
}
