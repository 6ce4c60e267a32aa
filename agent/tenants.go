package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/container"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/agent/tenantapi"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/lifecycle"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// tenants is what the agent itself does for organizations.
type tenants struct {
	oauth    *oauth.Organizations
	registry *tenant.Registry
	api      *tenantapi.Server
	users    *usertoken.Verifier
	layout   layout

	containers *container.Organizations
	access     net.Listener // where nginx asks about requests to containers
	pass       net.Listener // where it brings them
}

// openTenants takes up the state of organizations and listens for their requests.
func openTenants(c *Config, files fsx.FS, now func() time.Time, log hclog.Logger, stack *lifecycle.Stack) (*tenants, error) {
	l := layoutOf(c)
	for _, dir := range []string{l.oauth, l.permissions} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make %s: %w; make it writable for this agent's user", dir, err)
		}
	}
	t := tenants{layout: l}
	var err error
	if t.oauth, err = oauth.New(oauth.Options{
		Dir: l.oauth, FS: files, Domain: c.Domain, Lifetimes: c.OAuth.lifetimes(), Limits: oauth.DefaultLimits(),
		Interval: c.OAuth.CleanupInterval, Now: now, Logger: log.Named("oauth"),
	}); err != nil {
		return nil, err
	}
	stack.PushClose("OAuth state", t.oauth.CloseAll)
	if t.containers, err = openContainers(c, files, now, log.Named("container")); err != nil {
		return nil, err
	}
	stack.PushClose("user containers", t.containers.CloseAll)
	if t.registry, err = tenant.New(tenant.Options{
		Dir: l.permissions, FS: files, Domain: c.Domain, OAuth: t.oauth, Keepers: []tenant.Keeper{t.containers}, Logger: log.Named("tenant"),
	}); err != nil {
		return nil, err
	}
	login, err := c.Login.open()
	if err != nil {
		return nil, err
	}
	if t.users, err = usertoken.New(usertoken.Options{Issuers: c.Auth.Issuers, Logger: log, Now: now}); err != nil {
		return nil, err
	}
	if t.api, err = tenantapi.New(tenantapi.Options{
		Socket: l.tenant, Tenants: t.registry, Public: c.public(), Login: login, Users: t.users, Containers: t.containers, Now: now, Logger: log.Named("tenantapi"),
	}); err != nil {
		return nil, err
	}
	stack.PushClose("organizations' requests", t.api.Close)
	for _, s := range []struct {
		what, path string
		to         *net.Listener
	}{{"questions about containers", l.access, &t.access}, {"requests to containers", l.pass, &t.pass}} {
		if *s.to, err = listenPrivate(s.path); err != nil {
			return nil, err
		}
		stack.PushClose(s.what, func() error {
			if err := (*s.to).Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		})
	}
	return &t, nil
}

// Retain implements reconcile.Services.
func (t *tenants) Retain(keep map[id.Organization]id.Epoch) error { return t.registry.Retain(keep) }

// Serve implements reconcile.Services.
func (t *tenants) Serve(g id.Gateway, body *api.Activate, version uint64) {
	t.registry.Serve(body, version)
	t.api.Open(tenantapi.Door{Gateway: g, Socket: t.layout.control(g), Organization: id.Organization(body.OrganizationID), Epoch: id.Epoch(body.Epoch)})
}

// Update implements reconcile.Services.
func (t *tenants) Update(body *api.Activate, version uint64) { t.registry.Update(body, version) }

// Leave implements reconcile.Services.
func (t *tenants) Leave(ctx context.Context, g id.Gateway, org id.Organization, epoch id.Epoch) error {
	t.api.Shut(g)
	return t.registry.Leave(ctx, org, epoch)
}

// start begins to act.
func (t *tenants) start(a *Agent) {
	a.stack.Go("OAuth clean-up", t.oauth.Run)
	a.stack.Go("organizations", t.registry.Run)
	a.stack.Go("keys of the platform", t.users.Run)
	a.stack.Go("organizations' requests", func(ctx context.Context) { a.must(ctx, "the organizations' requests", t.api.Run) })
	door := container.NewDoor(t.containers, t.api.Containers)
	a.stack.Go("user containers", t.containers.Run)
	a.stack.Go("requests to containers", func(ctx context.Context) {
		a.must(ctx, "the passage to containers", func(ctx context.Context) error { return door.Carry(ctx, t.pass) })
	})
	a.stack.Go("questions about containers", func(ctx context.Context) {
		a.must(ctx, "the questions about containers", func(ctx context.Context) error { return serveAccess(ctx, t.access, door) })
	})
}

// tenantSocket is where nginx asks the agent.
func tenantSocket(c *Config) string { return filepath.Join(c.RunDir, "tenant.sock") }
