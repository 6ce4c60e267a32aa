// Package httpapi is the coordinator's HTTP API: a table of routes, authentication, conversion between
// the wire and the records, blocking reads. It decides nothing about gateways or allocations.
//
// Every request passes one gate (gate.go): what is not a row of the table in routes.go, or not for this
// caller, never reaches a handler. huma parses and validates the input and generates the OpenAPI
// document from the same handlers.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/version"
)

// Options of a Server. Everything without a default is needed.
type Options struct {
	Store       *state.Store
	Proposer    Proposer
	Allocations Allocations
	Agents      Agents
	Cluster     Cluster
	Events      Events
	Metrics     Metrics
	Operator    Operator
	Trust       Trust
	Users       Users // nil: no platform user gets in
	Logger      hclog.Logger
	Now         func() time.Time
	// Domain is the zone that organizations are served under, without a port.
	Domain string
	// PublicURL makes the URL of an organization's host name.
	PublicURL func(hostname string) string
	// Peers reaches the coordinator at the host of a request's URL, which is its address as Cluster names
	// it. Nil: there are no others.
	Peers http.RoundTripper
	// LeaderPatience is how long a request waits for a leader before it is refused for the lack of one; default
	// 1.5 s, negative: not at all.
	LeaderPatience time.Duration
	// Plain lets callers in that do not speak TLS.
	Plain bool
	// Limits has defaults field by field.
	Limits Limits
	// Heartbeat is how often a silent event stream says that it is alive; default 15 s.
	Heartbeat time.Duration
}

// Server answers the HTTP API. Run must be running while it serves.
type Server struct {
	opts     Options
	log      hclog.Logger
	mux      *http.ServeMux
	rows     map[string]*route // by the mux's pattern
	document document
	// poolMu is held from reading a pool to changing it: what a change leaves out keeps its value.
	poolMu   sync.Mutex
	reads    *reads
	limits   *limits
	refusals *refusals
	waiting  atomic.Int64 // requests that wait for a leader

	draining context.Context // done after Drain; the requests that are held open end with it
	drain    context.CancelFunc
}

// New makes a Server and its OpenAPI document.
func New(opts Options) (*Server, error) {
	if opts.Store == nil || opts.Proposer == nil || opts.Allocations == nil || opts.Agents == nil || opts.Cluster == nil ||
		opts.Events == nil || opts.Metrics == nil || opts.Operator == nil || opts.Trust == nil || opts.Logger == nil || opts.Now == nil || opts.PublicURL == nil {
		return nil, errors.New("cannot make the HTTP API: an option is missing")
	}
	if _, err := id.ParseDomain(opts.Domain); err != nil {
		return nil, fmt.Errorf("cannot make the HTTP API: %w", err)
	}
	if opts.Heartbeat == 0 {
		opts.Heartbeat = 15 * time.Second
	}
	if opts.LeaderPatience == 0 {
		opts.LeaderPatience = leaderPatience
	}
	draining, drain := context.WithCancel(context.Background())
	s := &Server{
		opts: opts, log: opts.Logger.Named("http"), mux: http.NewServeMux(), rows: map[string]*route{},
		reads: newReads(), limits: newLimits(opts.Limits, opts.Now), draining: draining, drain: drain,
	}
	s.refusals = newRefusals(s)
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	schemas.RegisterTypeAlias(reflect.TypeFor[problem](), reflect.TypeFor[api.Problem]())
	mounted := humago.New(s.mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: "Demiurge coordinator", Version: version.Get().Version, Description: apiDescription},
			Components: &huma.Components{
				Schemas: schemas,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					bearer:      {Type: "http", Scheme: "bearer", Description: "An API token, or the signed token (JWT) of a platform user where x-roles names members"},
					certificate: {Type: "mutualTLS"},
				},
			},
		},
		Formats:       map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat: "application/json",
	})
	for _, rt := range routes() {
		s.rows[rt.method+" "+rt.path] = &rt
		rt.mount(s, mounted)
	}
	s.document = newDocument(mounted.OpenAPI())
	return s, nil
}

// Run does the server's background work, which is to record refusals in the event feed, until ctx is done.
func (s *Server) Run(ctx context.Context) { s.refusals.run(ctx) }

// Drain ends the streams and blocking reads, so that the HTTP server can shut down. It is final.
func (s *Server) Drain() { s.drain() }

// held is the context of a request that may be held open: it ends with the request or with Drain.
func (s *Server) held(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.draining, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// stopGrace is how long a change that somebody waits for may go on after Drain before the waiting ends. What is being
// activated or released usually takes less; what waits in line or for connections to end would hold the stop up.
const stopGrace = time.Second

// waitingFor is the context of a call that waits for a change: it ends with the request or soon after Drain.
func (s *Server) waitingFor(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.draining, func() {
		select {
		case <-time.After(stopGrace):
			cancel(allocator.ErrStopping)
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// HTTPServer wraps the Server with the limits on slow and greedy clients. A body has its own time
// limit, and an answer has one per write, because a request may be held for minutes.
func (s *Server) HTTPServer() *http.Server {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	srv.RegisterOnShutdown(s.Drain)
	return srv
}
