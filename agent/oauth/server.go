package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Login knows the people who use browsers.
type Login interface {
	// Who tells which person makes the request. When nobody is logged in it answers the request itself, with
	// the way to do so, and returns false. From there a person comes back to this very request: the address
	// is taken from the request and never from one of its parameters.
	Who(w http.ResponseWriter, r *http.Request) (id.User, bool)
}

// Members knows who belongs to the organization at this moment.
type Members interface {
	// Member returns what a member is called, and false for anybody else. It is asked at every use of a token.
	Member(user id.User) (username string, ok bool)
}

// Consent knows what people have agreed to.
type Consent interface {
	// Ask tells whether the person lets the client act for him within the scope. When it has to ask first it
	// answers the request itself and returns Asked; the person comes back to this very request.
	Ask(w http.ResponseWriter, r *http.Request, q Question) Verdict
}

// Question is what a person is asked.
type Question struct {
	User     id.User
	Client   Client
	Scope    []string
	Redirect string // where he will be sent
}

// Verdict is a person's answer.
type Verdict uint8

// The verdicts.
const (
	Asked Verdict = iota
	Agreed
	Declined
)

// ServerOptions are what a server is made of.
type ServerOptions struct {
	Issuer string // https://org-<uuid>.<domain>, without a path
	// Insecure lets the issuer be http://…, which RFC 8414 does not: for development on one machine.
	Insecure bool
	Store    *Store
	Login    Login
	Members  Members
	Consent  Consent
	// Caller names who is behind a request, for the limit of failed tries; nil: the address it comes from.
	Caller func(*http.Request) string
	Now    func() time.Time // nil: the clock of this machine
	Logger hclog.Logger
}

// Server is the authorization server of one organization.
type Server struct {
	opts  ServerOptions
	store *Store
	tries *tries
}

// NewServer checks the options.
func NewServer(o ServerOptions) (*Server, error) {
	u, err := url.Parse(o.Issuer)
	secure := err == nil && (u.Scheme == "https" || u.Scheme == "http" && o.Insecure)
	if !secure || u.Host == "" || o.Issuer != u.Scheme+"://"+u.Host {
		return nil, fmt.Errorf("cannot use %q as an OAuth issuer: want https://<host name> and nothing behind it", o.Issuer)
	}
	if o.Store == nil || o.Login == nil || o.Members == nil || o.Consent == nil || o.Logger == nil {
		return nil, errors.New("cannot make an OAuth server without store, login, members, consent and logger")
	}
	if o.Caller == nil {
		o.Caller = func(r *http.Request) string {
			host, _, err := net.SplitHostPort(r.RemoteAddr)
			if err != nil {
				return r.RemoteAddr
			}
			return host
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Server{opts: o, store: o.Store, tries: newTries(o.Now)}, nil
}

// Route is one row of the table of endpoints.
type Route struct {
	Method string
	Path   string
	Caller string // who may call
	handle func(*Server, http.ResponseWriter, *http.Request)
}

// The callers of routes.
const (
	Anyone       = "anyone"        // it tells nothing about anybody
	Person       = "person"        // Login knows him
	AnyClient    = "client"        // one that proves who it is, or a public one
	SecretClient = "secret client" // one that proves who it is
	Bearer       = "bearer"        // of an access token
)

var routes = []Route{
	{http.MethodGet, "/.well-known/oauth-authorization-server", Anyone, (*Server).metadata},
	{http.MethodGet, "/oauth/authorize", Person, (*Server).authorize},
	{http.MethodPost, "/oauth/token", AnyClient, (*Server).token},
	{http.MethodGet, "/oauth/authenticate", Bearer, (*Server).authenticate},
	{http.MethodPost, "/oauth/authenticate", Bearer, (*Server).authenticate},
	{http.MethodPost, "/oauth/revoke", AnyClient, (*Server).revoke},
	{http.MethodPost, "/oauth/introspect", SecretClient, (*Server).introspect},
}

// Routes lists the endpoints. Everything else is answered with 404.
func Routes() []Route { return slices.Clone(routes) }

// answerWithin bounds a change, above all on a disk that hangs.
const answerWithin = 10 * time.Second

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	var allowed []string
	for _, route := range routes {
		if route.Path != r.URL.Path {
			continue
		}
		if route.Method == r.Method {
			// A caller that goes away does not stop what it has begun: half an exchange helps nobody.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), answerWithin)
			defer cancel()
			route.handle(s, w, r.WithContext(ctx))
			return
		}
		allowed = append(allowed, route.Method)
	}
	if allowed == nil {
		answer(w, http.StatusNotFound, map[string]string{"error": "not_found"})
		return
	}
	h.Set("Allow", strings.Join(allowed, ", "))
	answer(w, http.StatusMethodNotAllowed, map[string]string{"error": "invalid_request", "error_description": "this method is not allowed here"})
}

// answer writes JSON.
func answer(w http.ResponseWriter, status int, body any) {
	form, err := json.Marshal(body)
	if err != nil {
		status, form = http.StatusInternalServerError, []byte(`{"error":"server_error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(form, '\n'))
}

// fail answers with an error of RFC 6749, section 5.2.
func (s *Server) fail(w http.ResponseWriter, err error) {
	r := s.refusal(err)
	if r.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((r.RetryAfter+time.Second-1)/time.Second)))
	}
	if r.Status == http.StatusUnauthorized && r.Code == "invalid_client" {
		w.Header().Set("WWW-Authenticate", `Basic realm="`+s.opts.Issuer+`"`)
	}
	answer(w, r.Status, map[string]string{"error": r.Code, "error_description": r.Description})
}

// refusal is what a caller is told of an error. What is not a refusal is for the log.
func (s *Server) refusal(err error) *Refusal {
	var r *Refusal
	switch {
	case errors.As(err, &r):
		return r
	case errors.Is(err, ErrStorage), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		s.opts.Logger.Error("an OAuth request cannot be answered", "error", err)
		return &Refusal{
			Status: http.StatusServiceUnavailable, Code: "temporarily_unavailable",
			Description: "nothing can be kept at the moment, so nothing was done: try again", RetryAfter: time.Second,
		}
	}
	s.opts.Logger.Error("an OAuth request failed", "error", err)
	return &Refusal{Status: http.StatusInternalServerError, Code: "server_error", Description: "an internal error occurred"}
}

// metadata is RFC 8414.
func (s *Server) metadata(w http.ResponseWriter, _ *http.Request) {
	at := func(path string) string { return s.opts.Issuer + path }
	methods := []string{"client_secret_basic", "client_secret_post"}
	w.Header().Set("Cache-Control", "public, max-age=300")
	w.Header().Del("Pragma")
	answer(w, http.StatusOK, map[string]any{
		"issuer":                                         s.opts.Issuer,
		"authorization_endpoint":                         at("/oauth/authorize"),
		"token_endpoint":                                 at("/oauth/token"),
		"revocation_endpoint":                            at("/oauth/revoke"),
		"introspection_endpoint":                         at("/oauth/introspect"),
		"response_types_supported":                       []string{"code"},
		"response_modes_supported":                       []string{"query"},
		"grant_types_supported":                          []string{"authorization_code", "refresh_token", "client_credentials"},
		"token_endpoint_auth_methods_supported":          append(methods, "none"),
		"revocation_endpoint_auth_methods_supported":     append(methods, "none"),
		"introspection_endpoint_auth_methods_supported":  methods,
		"code_challenge_methods_supported":               []string{"S256"},
		"authorization_response_iss_parameter_supported": true,
	})
}
