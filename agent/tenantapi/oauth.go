package tenantapi

import (
	"context"
	"net/http"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// routes are this package's own rows.
func (s *Server) routes() []Route {
	var rows []Route
	for _, r := range oauth.Routes() {
		caller := Proven
		if r.Caller == oauth.Anyone {
			caller = Anyone
		}
		rows = append(rows, Route{Method: r.Method, Path: r.Path, Caller: caller, Serve: s.serveOAuth, Doc: oauthDocs[r.Method+" "+r.Path]})
	}
	rows = append(rows,
		Route{Method: http.MethodGet, Path: "/oauth/login", Caller: Anyone, Serve: s.login, Doc: loginDoc},
		Route{Method: http.MethodGet, Path: pathCallback, Caller: Proven, Serve: s.callback, Doc: callbackDoc},
		Route{Method: http.MethodPost, Path: "/oauth/logout", Caller: Proven, Serve: s.logout, Doc: logoutDoc},
		Route{Method: http.MethodPost, Path: pathConsent, Caller: Proven, Serve: s.consent, Doc: consentDoc},
		Route{Method: http.MethodGet, Path: "/oauth/openapi.json", Caller: Anyone, Serve: s.openAPI, Doc: Doc{Summary: "This document", Also: []Answer{{Status: http.StatusOK, Kind: documentType}}}},
	)
	rows = append(rows, s.clientRoutes()...)
	rows = append(rows, s.containerRoutes()...)
	return append(rows, s.permissionRoutes()...)
}

// serveOAuth hands a request to the organization's authorization server.
func (s *Server) serveOAuth(c *Call) error {
	site, err := s.site(c)
	if err != nil {
		return err
	}
	site.oauth.ServeHTTP(c.W, c.R)
	return nil
}

// site gives what there is of an organization, and makes it when it is asked for the first time.
func (s *Server) site(c *Call) (*site, error) { return s.siteOf(c.R.Context(), c.Tenant) }

func (s *Server) siteOf(ctx context.Context, t *tenant.Tenant) (*site, error) {
	if s.opts.Public.Scheme == "" {
		return nil, errUnsafe
	}
	s.mu.Lock()
	found := s.sites[t.Organization()]
	s.mu.Unlock()
	if found != nil && found.tenant == t {
		return found, nil
	}
	store, err := t.OAuth(ctx)
	if err != nil {
		return nil, fault.Wrap(fault.StorageLow, err, "the organization's OAuth state cannot be read at the moment: try again")
	}
	made := &site{tenant: t, sessions: newSessions(s.opts.Login.Session, s.opts.Now)}
	who := people{s, t, made}
	made.oauth, err = oauth.NewServer(oauth.ServerOptions{
		Issuer: s.opts.Public.origin(t.Hostname()), Insecure: s.opts.Public.Scheme == "http", Store: store,
		Login: who, Members: t, Consent: who, Caller: callerOf, Now: s.opts.Now,
		Logger: s.opts.Logger.With("organization", t.Organization()),
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, err := s.opts.Tenants.Get(t.Organization(), t.Epoch()); err != nil || now != t {
		return nil, fault.New(fault.StaleEpoch, "organization %s has moved: ask again", t.Organization())
	}
	if found := s.sites[t.Organization()]; found != nil && found.tenant == t {
		return found, nil // somebody was faster; the limit of tries is counted in one place
	}
	s.sites[t.Organization()] = made
	return made, nil
}

// callerOf is the address that a request comes from, as nginx saw it or believed a trusted proxy.
func callerOf(r *http.Request) string { return r.Header.Get("X-Real-IP") }

var _ oauth.Members = (*tenant.Tenant)(nil)
