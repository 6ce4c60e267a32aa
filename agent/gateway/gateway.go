package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/lifecycle"
	"github.com/hashicorp/go-hclog"
)

// Gateway is one running gateway.
type Gateway struct {
	opts     Options
	log      hclog.Logger
	boot     string // random, of this process: a restarted one is not mistaken for it
	tenant   tenant
	sockets  *sockets
	page     *page
	table    []route
	guard    *guard
	relay    relay
	listener *listener
	server   *http.Server
	stack    lifecycle.Stack
	failed   chan error   // holds what ended serving, if not Stop
	open     atomic.Int64 // requests and WebSockets at the moment
	busy     sync.Once    // Options.Busy was called

	recheckEvery time.Duration // the constant, but in tests
}

// New opens the socket. Nothing is answered before Start.
func New(opts Options) (*Gateway, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	if info, err := os.Stat(opts.StateDir); err != nil {
		return nil, fmt.Errorf("cannot use the state directory: %w: create it", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("cannot use the state directory %s: it is no directory", opts.StateDir)
	}
	if opts.MaxBody == 0 {
		opts.MaxBody = defaultMaxBody
	}
	g := &Gateway{
		opts: opts, log: opts.Logger, boot: id.Secret()[:16], sockets: newSockets(), guard: newGuard(opts.Control), failed: make(chan error, 1),
		recheckEvery: recheckEvery,
	}
	var err error
	if g.page, err = newPage(g); err != nil {
		return nil, err
	}
	g.table = g.routes()
	if err := checkTable(g.table); err != nil {
		return nil, err
	}
	if g.listener, err = listen(opts.Listen); err != nil {
		return nil, err
	}
	g.stack.PushClose("socket", g.listener.Close)
	g.stack.PushClose("questions to the agent", func() error { g.guard.close(); return nil })
	warm()
	g.server = &http.Server{
		Handler:           http.HandlerFunc(g.serve),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       5 * time.Minute,  // of a whole request; a WebSocket is none any more
		IdleTimeout:       10 * time.Minute, // longer than nginx keeps a connection, so that nginx is the one to close it
		MaxHeaderBytes:    64 << 10,
		ConnContext:       keepConn,
		ErrorLog:          opts.Logger.Named("http").StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	return g, nil
}

// Addr is where the gateway listens.
func (g *Gateway) Addr() net.Addr { return g.listener.Addr() }

// Start begins to answer.
func (g *Gateway) Start() {
	g.stack.Go("server", func(context.Context) { // Serve ends when the stop below shuts it down
		if err := g.server.Serve(g.listener); !errors.Is(err, http.ErrServerClosed) {
			g.failed <- err
		}
	})
	g.stack.Push("requests", g.drain)
	g.log.Info("gateway is listening", "gateway", g.opts.Gateway, "address", g.Addr().String(), "boot", g.boot)
}

// Failed delivers the error that ended serving, when it was not Stop that did.
func (g *Gateway) Failed() <-chan error { return g.failed }

// Stop ends accepting, tells WebSockets to go (1001), lets requests finish until ctx is done, and ends.
func (g *Gateway) Stop(ctx context.Context) error { return g.stack.Stop(ctx) }

// drain runs first of all stops.
func (g *Gateway) drain(ctx context.Context) error {
	g.sockets.refuseNew()
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		g.sockets.closeAll(ctx, "the gateway stops")
	}()
	err := g.server.Shutdown(ctx) // ends accepting at once
	<-done
	if err != nil {
		_ = g.server.Close()
		return fmt.Errorf("requests were cut off: %w", err)
	}
	return nil
}

// Run serves until ctx is done and stops then.
func Run(ctx context.Context, opts Options) error {
	g, err := New(opts)
	if err != nil {
		return err
	}
	g.Start()
	var failed error
	select {
	case <-ctx.Done():
	case err := <-g.Failed():
		failed = fmt.Errorf("cannot serve on %s: %w", opts.Listen, err)
	}
	stopCtx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	g.log.Info("gateway stops", "gateway", opts.Gateway, "connections", g.sockets.count())
	if err := g.Stop(stopCtx); err != nil {
		g.log.Warn("gateway did not stop cleanly", "error", err)
	}
	return failed
}
