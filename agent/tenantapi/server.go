// Package tenantapi is what the agent answers on organizations' host names, behind this host's nginx: the
// table of all routes with who may call each, the login of people, and the organization's OAuth, roles and
// grants.
//
// A request comes through the unix socket that nginx knows, with the organization and the epoch that nginx
// routed it for, and is answered for these and nothing else. What is not in the table is refused.
package tenantapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/container"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// Public is how people reach this host's nginx: what stands before an organization's host name, and the port
// behind it. The zero Public is a host that cannot be reached in a safe way: nothing is answered then.
type Public struct {
	Scheme string // https; http for development on one machine
	Port   int
}

// origin is the beginning of every address of a host name.
func (p Public) origin(hostname string) string {
	if p.Scheme == "https" && p.Port == 443 || p.Scheme == "http" && p.Port == 80 {
		return p.Scheme + "://" + hostname
	}
	return p.Scheme + "://" + net.JoinHostPort(hostname, strconv.Itoa(p.Port))
}

// Options of a Server.
type Options struct {
	Socket  string // unix socket that nginx asks
	Tenants *tenant.Registry
	Public  Public
	Login   Login               // of people in browsers
	Users   *usertoken.Verifier // of programs with a token of the platform; nil: none is believed
	// Containers are the user containers; nil: there are none on this host.
	Containers *container.Organizations
	Routes     []Route          // of other parts of the agent, beside this package's own
	Now        func() time.Time // nil: the clock of this machine
	Logger     hclog.Logger
}

// Server answers for all organizations of a host.
type Server struct {
	opts     Options
	table    *table
	sealer   *sealer
	provider *provider // nil: nobody can log in with a browser
	listener net.Listener
	http     *http.Server

	mu    sync.Mutex
	sites map[id.Organization]*site

	doors *doors
}

// site is what the server has made for one organization.
type site struct {
	tenant   *tenant.Tenant
	oauth    *oauth.Server
	sessions *sessions
}

// New listens. Nothing is answered before Run.
func New(o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{opts: o, sites: map[id.Organization]*site{}}
	s.doors = newDoors(s)
	if o.Login.Issuer != "" {
		s.provider = newProvider(o.Login)
	}
	var err error
	if s.sealer, err = newSealer(o.Now); err != nil {
		return nil, err
	}
	if s.table, err = newTable(append(s.routes(), o.Routes...)); err != nil {
		return nil, err
	}
	// The directory belongs to this agent alone, so what is there is a dead one's.
	if err := os.Remove(o.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove the socket of an earlier agent: %w", err)
	}
	if s.listener, err = net.Listen("unix", o.Socket); err != nil {
		return nil, fmt.Errorf("cannot listen for organizations' requests: %w; is the run directory writable?", err)
	}
	if err := os.Chmod(o.Socket, 0o660); err != nil { // nginx connects as another user of the group
		return nil, errors.Join(fmt.Errorf("cannot let nginx's group use %s: %w", o.Socket, err), s.listener.Close())
	}
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute, // longer than nginx keeps a connection, so that nginx is the one to close it
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          o.Logger.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	o.Tenants.Follow(s)
	return s, nil
}

// Run answers until ctx ends, and lets what is being answered finish.
func (s *Server) Run(ctx context.Context) error {
	defer s.doors.close()
	done := make(chan error, 1)
	go func() { done <- s.http.Serve(s.listener) }() // received below
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if s.http.Shutdown(stop) != nil {
		_ = s.http.Close()
	}
	<-done
	return nil
}

// Close ends listening when Run was never called.
func (s *Server) Close() error {
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Routes lists the table.
func (s *Server) Routes() []Route { return append([]Route(nil), s.table.rows...) }

// Sessions is how many browsers are logged in.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, in := range s.sites {
		n += in.sessions.count()
	}
	return n
}

// Changed implements tenant.Follower: the sessions of people who are no members any more end.
func (s *Server) Changed(t *tenant.Tenant) {
	s.mu.Lock()
	found := s.sites[t.Organization()]
	s.mu.Unlock()
	if s.opts.Containers != nil {
		s.opts.Containers.Reconsider()
	}
	if found != nil && found.tenant == t {
		found.sessions.keep(func(user id.User) bool { _, ok := t.Member(user); return ok })
	}
}

// Left implements tenant.Follower.
func (s *Server) Left(org id.Organization, epoch id.Epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.sites[org]; found != nil && found.tenant.Epoch() == epoch {
		delete(s.sites, org)
	}
}

// ServeHTTP is the way in for every request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if err := s.serve(w, r); err != nil {
		s.refuse(w, r, err)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	t, err := s.tenantOf(r)
	if err != nil {
		return err
	}
	route, params, allowed := s.table.find(r.Method, r.URL.Path)
	if route == nil {
		if len(allowed) == 0 {
			return fault.New(fault.NotFound, "there is nothing at this path")
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		return &methodError{strings.Join(allowed, " and ")}
	}
	c := &Call{W: w, R: r, Tenant: t, params: params}
	if route.Caller == Member {
		if err := s.admit(c, route); err != nil {
			return err
		}
	}
	return route.Serve(c)
}

// tenantOf finds the organization that nginx says a request is for.
func (s *Server) tenantOf(r *http.Request) (*tenant.Tenant, error) {
	org, err1 := id.ParseOrganization(r.Header.Get("X-Demiurge-Organization"))
	epoch, err2 := id.ParseEpoch(r.Header.Get(api.HeaderEpoch))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fault.Wrap(fault.Forbidden, err, "the request did not come through nginx")
	}
	t, err := s.opts.Tenants.Get(org, epoch)
	if err != nil {
		return nil, err
	}
	// Sessions, tokens and pages belong to the one name: a name below it may be anybody's of the organization.
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if !strings.EqualFold(host, t.Hostname()) {
		return nil, fault.New(fault.NotFound, "there is nothing at this path on this name: use %s", t.Hostname())
	}
	switch {
	case s.opts.Public.Scheme == "":
		return nil, errUnsafe
	case r.Header.Get("X-Forwarded-Proto") != s.opts.Public.Scheme:
		return nil, fault.New(fault.Forbidden, "use %s: what was sent has been seen by everybody on the way", s.opts.Public.origin(t.Hostname()))
	}
	return t, nil
}

// errUnsafe is what a host answers that people reach over plain HTTP alone: whatever proves who they are would be seen.
var errUnsafe = fault.New(fault.NotFound, "this host cannot be reached in a safe way, so it has neither OAuth nor logins: set nginx.listen_tls, or nginx.trusted_proxies with a proxy that speaks HTTPS")

// methodError is a path that exists for another method.
type methodError struct{ allowed string }

// Error implements error.
func (e *methodError) Error() string { return "this path is for " + e.allowed }

// refuse answers with the problem that an error carries. The cause of an internal one stays in the log.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	f := fault.From(err)
	status := f.Status()
	var method *methodError
	switch {
	case errors.As(err, &method):
		f, status = fault.New(fault.InvalidRequest, "%s", method.Error()), http.StatusMethodNotAllowed
	case f.Code == fault.Internal:
		s.opts.Logger.Error("a request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	case f.Code == fault.Unauthenticated:
		w.Header().Set("WWW-Authenticate", `Bearer realm="demiurge"`)
	}
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((f.RetryAfter+time.Second-1)/time.Second)))
	}
	w.Header().Set("Content-Type", api.ProblemContentType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{
		Status: status, Title: http.StatusText(status), Detail: f.Message, Code: string(f.Code), Errors: f.Locations,
	})
}
