package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/agent/tenantapi"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/lifecycle"
)

// OAuthConfig is the authorization server of every organization on this host.
type OAuthConfig struct {
	Port            int           `yaml:"port"`             // that people reach this host's nginx at over HTTPS
	CodeLifetime    time.Duration `yaml:"code_lifetime"`    // of an authorization code
	AccessLifetime  time.Duration `yaml:"access_lifetime"`  // of an access token
	RefreshLifetime time.Duration `yaml:"refresh_lifetime"` // of a refresh token; each use gives a new one
	LoginLifetime   time.Duration `yaml:"login_lifetime"`   // of all that comes of one login
	RefreshGrace    time.Duration `yaml:"refresh_grace"`    // a used refresh token is good once more
	CleanupInterval time.Duration `yaml:"cleanup_interval"` // the longest that something expired is kept
}

func defaultOAuth() OAuthConfig {
	l := oauth.DefaultLifetimes()
	return OAuthConfig{
		Port: 443, CodeLifetime: l.Code, AccessLifetime: l.Access, RefreshLifetime: l.Refresh, LoginLifetime: l.Absolute,
		RefreshGrace: l.Grace, CleanupInterval: time.Second,
	}
}

func (o OAuthConfig) lifetimes() oauth.Lifetimes {
	return oauth.Lifetimes{Code: o.CodeLifetime, Access: o.AccessLifetime, Refresh: o.RefreshLifetime, Absolute: o.LoginLifetime, Grace: o.RefreshGrace}
}

// validate checks what the types cannot.
func (o OAuthConfig) validate() error {
	var errs []error
	if o.Port < 1 || o.Port > 65535 {
		errs = append(errs, config.Invalid("oauth.port", fmt.Sprintf("%d is not a port", o.Port), "set the port that people reach this host at over HTTPS, or leave it out for 443"))
	}
	if err := o.lifetimes().Check(); err != nil {
		errs = append(errs, config.Invalid("oauth", err.Error(), "correct the lifetimes, or leave them out for the defaults"))
	}
	if o.CleanupInterval < 10*time.Millisecond || o.CleanupInterval > time.Hour {
		errs = append(errs, config.Invalid("oauth.cleanup_interval", fmt.Sprintf("%s is not between 10ms and 1h", o.CleanupInterval), "leave it out for the default of 1s"))
	}
	return errors.Join(errs...)
}

// public is how people reach this host's nginx in a safe way: over HTTPS, or on this machine alone.
func (c *Config) public() tenantapi.Public {
	if len(c.Nginx.ListenTLS) > 0 || len(c.Nginx.TrustedProxies) > 0 {
		return tenantapi.Public{Scheme: "https", Port: c.OAuth.Port}
	}
	listen, err := addrPorts(c.Nginx.Listen)
	if err != nil || len(listen) == 0 {
		return tenantapi.Public{}
	}
	for _, a := range listen {
		if !a.Addr().Unmap().IsLoopback() {
			return tenantapi.Public{}
		}
	}
	return tenantapi.Public{Scheme: "http", Port: int(listen[0].Port())}
}

// tenants is what the agent itself does for organizations.
type tenants struct {
	oauth    *oauth.Organizations
	registry *tenant.Registry
	api      *tenantapi.Server
}

// openTenants takes up the state of organizations and listens for their requests.
func openTenants(c *Config, files fsx.FS, now func() time.Time, log hclog.Logger, stack *lifecycle.Stack) (*tenants, error) {
	l := layoutOf(c)
	for _, dir := range []string{l.oauth, l.permissions} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make %s: %w; make it writable for this agent's user", dir, err)
		}
	}
	var t tenants
	var err error
	if t.oauth, err = oauth.New(oauth.Options{
		Dir: l.oauth, FS: files, Domain: c.Domain, Lifetimes: c.OAuth.lifetimes(), Limits: oauth.DefaultLimits(),
		Interval: c.OAuth.CleanupInterval, Now: now, Logger: log.Named("oauth"),
	}); err != nil {
		return nil, err
	}
	stack.PushClose("OAuth state", t.oauth.CloseAll)
	if t.registry, err = tenant.New(tenant.Options{
		Dir: l.permissions, FS: files, Domain: c.Domain, OAuth: t.oauth, Logger: log.Named("tenant"),
	}); err != nil {
		return nil, err
	}
	if t.api, err = tenantapi.New(tenantapi.Options{
		Socket: l.tenant, Tenants: t.registry, Public: c.public(), Now: now, Logger: log.Named("tenantapi"),
	}); err != nil {
		return nil, err
	}
	stack.PushClose("organizations' requests", t.api.Close)
	return &t, nil
}

// start begins to act.
func (t *tenants) start(a *Agent) {
	a.stack.Go("OAuth clean-up", t.oauth.Run)
	a.stack.Go("organizations", t.registry.Run)
	a.stack.Go("organizations' requests", func(ctx context.Context) { a.must(ctx, "the organizations' requests", t.api.Run) })
}

// tenantSocket is where nginx asks the agent.
func tenantSocket(c *Config) string { return filepath.Join(c.RunDir, "tenant.sock") }
