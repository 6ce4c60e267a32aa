package tenantapi

import (
	"net/http"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// routes are this package's own rows.
func (s *Server) routes() []Route {
	var rows []Route
	for _, r := range oauth.Routes() {
		caller := Proven
		if r.Caller == oauth.Anyone {
			caller = Anyone
		}
		rows = append(rows, Route{Method: r.Method, Path: r.Path, Caller: caller, Serve: s.serveOAuth})
	}
	return rows
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
func (s *Server) site(c *Call) (*site, error) {
	t := c.Tenant
	s.mu.Lock()
	found := s.sites[t.Organization()]
	s.mu.Unlock()
	if found != nil && found.tenant == t {
		return found, nil
	}
	store, err := t.OAuth(c.R.Context())
	if err != nil {
		return nil, fault.Wrap(fault.StorageLow, err, "the organization's OAuth state cannot be read at the moment: try again")
	}
	server, err := oauth.NewServer(oauth.ServerOptions{
		Issuer: s.opts.Public.origin(t.Hostname()), Insecure: s.opts.Public.Scheme == "http", Store: store,
		Login: noLogin{}, Members: t, Consent: noLogin{}, Caller: callerOf, Now: s.opts.Now,
		Logger: s.opts.Logger.With("organization", t.Organization()),
	})
	if err != nil {
		return nil, err
	}
	made := &site{tenant: t, oauth: server}
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

// noLogin is a host on which people cannot log in.
type noLogin struct{}

// Who implements oauth.Login.
func (noLogin) Who(w http.ResponseWriter, _ *http.Request) (id.User, bool) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write([]byte("Nobody can log in here: this host knows no issuer.\n"))
	return "", false
}

// Ask implements oauth.Consent.
func (noLogin) Ask(http.ResponseWriter, *http.Request, oauth.Question) oauth.Verdict {
	return oauth.Declined
}
