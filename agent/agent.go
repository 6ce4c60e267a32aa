// Package agent wires one host's agent: the nginx engine, the driver of gateway processes, the actors
// that make the host match its assignment, and the connection to the coordinators. It holds no logic of
// its own.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/demiurge-platform/demiurge/agent/credential"
	"github.com/demiurge-platform/demiurge/agent/driver/process"
	"github.com/demiurge-platform/demiurge/agent/health"
	"github.com/demiurge-platform/demiurge/agent/journal"
	"github.com/demiurge-platform/demiurge/agent/lease"
	"github.com/demiurge-platform/demiurge/agent/member"
	"github.com/demiurge-platform/demiurge/agent/nginx"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/agent/syncer"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/garbage"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/lifecycle"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Options configure an Agent.
type Options struct {
	Config *Config // valid; not modified
	Logger hclog.Logger
	Timing reconcile.Timing // zero values are defaults; StopGrace comes from the configuration
	Sync   syncer.Timing
	FS     func(fsx.FS) fsx.FS // puts something before the file system, for tests of faults; nil: nothing
	Now    func() time.Time    // nil: time.Now
}

// Agent is one running agent.
type Agent struct {
	c     *Config
	o     Options
	log   hclog.Logger
	stack lifecycle.Stack

	metrics    *metrics
	credential *credential.Keeper
	nginx      *nginx.Engine
	queue      *syncer.Queue
	routed     chan struct{} // of one place: what is routed may have changed
	engine     *reconcile.Engine
	tenants    *tenants
	syncer     *syncer.Syncer
	member     *member.Member
	lease      *lease.Lease
	health     *health.Monitor
	http       net.Listener // of the metrics; nil: none
	failed     chan error   // capacity 1: a part ended that must not
	broken     atomic.Bool  // it did
	looked     atomic.Int64 // when the host was looked at last, in Unix nanoseconds
}

// New takes the directories and opens everything. Nothing of the host changes before Start. After an
// error nothing is left open.
func New(o Options) (*Agent, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FS == nil {
		o.FS = func(f fsx.FS) fsx.FS { return f }
	}
	a := &Agent{c: o.Config, o: o, log: o.Logger, metrics: newMetrics(), queue: syncer.NewQueue(o.Now), routed: make(chan struct{}, 1), failed: make(chan error, 1)}
	if err := a.open(); err != nil {
		return nil, errors.Join(err, a.stack.Stop(context.Background()))
	}
	return a, nil
}

func (a *Agent) open() error {
	if err := a.c.checkFiles(); err != nil {
		return err
	}
	release, err := openDataDir(a.c)
	if err != nil {
		return err
	}
	a.stack.PushClose("data directory", func() error { release(); return nil })
	real, err := fsx.NewOS(a.c.DataDir, a.c.RunDir)
	if err != nil {
		return err
	}
	a.stack.PushClose("file system", real.Close)
	files := a.o.FS(real)
	if a.credential, err = credential.Open(credential.Options{
		FS: files, Dir: a.c.DataDir, Host: id.Host(a.c.HostID), Logger: a.log.Named("credential"), Now: a.o.Now,
	}); err != nil {
		return err
	}
	client, err := syncer.NewClient(a.credential)
	if err != nil {
		return err
	}
	a.stack.PushClose("connections to coordinators", func() error { client.CloseIdleConnections(); return nil })
	l := layoutOf(a.c)
	jnl, err := journal.Open(journal.Options{Path: l.journal, FS: files, Logger: a.log})
	if err != nil {
		return err
	}
	a.stack.PushClose("journal", jnl.Close)
	if err := a.openNginx(); err != nil {
		return err
	}
	runner, err := process.New(process.Options{RunDir: l.sockets, Logger: a.log.Named("process")})
	if err != nil {
		return err
	}
	if a.lease, err = lease.Open(lease.Options{FS: files, Dir: a.c.RunDir, Logger: a.log.Named("lease")}); err != nil {
		return err
	}
	if a.tenants, err = openTenants(a.c, files, a.o.Now, a.log, &a.stack); err != nil {
		return err
	}
	timing := a.o.Timing
	timing.StopGrace = a.c.Gateway.StopGrace
	a.engine, err = reconcile.New(reconcile.Options{
		Logger: a.log, Journal: jnl, FS: files, Nginx: nginxPort{a.nginx}, Driver: runner,
		Control: reconcile.NewHTTPControl(l.socket), Sink: routedSink{a.queue, a.routed}, Services: a.tenants, Layout: l, Domain: a.c.Domain, Lease: a.lease, Timing: timing, Now: a.o.Now,
	})
	if err != nil {
		return err
	}
	a.syncer, err = syncer.New(syncer.Options{
		Logger: a.log, Host: id.Host(a.c.HostID), Coordinators: a.c.Coordinators, Client: client,
		Queue: a.queue, Source: source{a}, Follower: follower{a}, Leases: leases{a}, Leaving: a.leaving, Timing: a.o.Sync,
	})
	if err != nil {
		return err
	}
	if err := a.openMember(files); err != nil {
		return err
	}
	return a.listen()
}

// openMember prepares this host's place in the gossip, and what it tells there.
func (a *Agent) openMember(files fsx.FS) error {
	log := a.log.Named("gossip")
	o, err := a.c.memberOptions(a.credential.Current().Identity().Cluster(), log)
	if err != nil {
		return err
	}
	o.FS = files
	if a.member, err = member.Open(o); err != nil {
		return err
	}
	a.health = health.New(health.Options{
		DataDir: a.c.DataDir, Serving: a.serving, Publisher: a.member, Limits: health.DefaultLimits(), Every: healthLook, Logger: log,
	})
	return nil
}

func (a *Agent) openNginx() error {
	o, err := a.c.nginxOptions(a.log)
	if err != nil {
		return err
	}
	o.Now = a.o.Now
	o.Events = a.nginxEvent
	if a.nginx, err = nginx.Open(o); err != nil {
		return err
	}
	a.stack.PushClose("nginx engine", a.nginx.Close)
	return nil
}

// listen binds the metrics, so that their address is known before Start.
func (a *Agent) listen() error {
	if a.c.Metrics.Listen == "" {
		return nil
	}
	l, err := net.Listen("tcp", a.c.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("cannot listen for metrics: %w; set another metrics.listen", err)
	}
	a.http = l
	a.stack.PushClose("metrics listener", func() error {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	a.metrics.registry.MustRegister(containerMetrics{a.tenants.containers.Stats})
	a.metrics.watch(reader{
		status: a.nginx.Status, reports: a.engine.Reports, connected: a.syncer.Connected,
		oauth: a.tenants.oauth.Stats, sessions: a.tenants.api.Sessions,
	})
	return nil
}

// settlePatience is how long the agent waits with its first report for what it finds to come to rest.
const settlePatience = 3 * time.Second

// garbageAllowed is how much memory an agent leaves to garbage: with hundreds of gateways its state takes a few
// MiB, and all of it has to stay small beside them.
const garbageAllowed = 5 << 20

// metricsServer serves those who only ask, in short: they get little room and little time.
func metricsServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: http.MaxBytesHandler(h, 4<<10), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

// Start begins to act. The parts run until Stop.
func (a *Agent) Start() {
	a.looked.Store(a.o.Now().UnixNano())
	if a.http != nil {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}))
		server := metricsServer(mux)
		a.stack.Go("metrics", func(context.Context) { _ = server.Serve(a.http) })
		a.stack.PushClose("metrics server", server.Close)
	}
	a.stack.Go("memory", func(ctx context.Context) { garbage.Allow(ctx, garbage.Allowance{Garbage: garbageAllowed}) })
	a.stack.Go("nginx engine's loop", func(ctx context.Context) { a.must(ctx, "the nginx engine", a.nginx.Run) })
	if a.c.Nginx.Manage {
		a.stack.Go("nginx", a.manageNginx)
	}
	a.tenants.start(a)
	a.stack.Go("actors", func(ctx context.Context) { a.must(ctx, "the actors", a.engine.Run) })
	a.stack.Go("gossip", a.member.Run)
	a.stack.Push("farewell to the gossip", a.leaveGossip) // before the gossip ends, and after the syncer's farewell
	a.stack.Go("health", a.health.Run)
	a.stack.Go("certificate", func(ctx context.Context) { a.credential.Run(ctx, a.syncer) })
	settled := make(chan struct{})
	a.stack.Go("host report", func(ctx context.Context) { a.watchHost(ctx, settled) })
	a.stack.Go("syncer", func(ctx context.Context) {
		sctx, cancel := context.WithTimeout(ctx, settlePatience)
		a.engine.Settle(sctx)
		for sctx.Err() == nil && a.nginx.Status().State != api.NginxServing {
			sleep.For(sctx, 10*time.Millisecond) // until it is asked for the first time it counts as down
		}
		cancel()
		close(settled)
		a.syncer.Run(ctx)
	})
}

// must runs a part that may only end with ctx.
func (a *Agent) must(ctx context.Context, what string, run func(context.Context) error) {
	err := run(ctx)
	if ctx.Err() != nil {
		return
	}
	a.broken.Store(true)
	select {
	case a.failed <- fmt.Errorf("%s ended: %w", what, errors.Join(err, errors.New("the agent cannot go on"))):
	default:
	}
}

// Failed gives an error when a part has ended that must not.
func (a *Agent) Failed() <-chan error { return a.failed }

// stuck is how long a look at the host may take: it asks every part that has a lock.
const stuck = 10 * time.Second

// Healthy reports whether the agent does its work; what the coordinator or nginx does is not its health.
func (a *Agent) Healthy() bool {
	return !a.broken.Load() && a.o.Now().Sub(time.Unix(0, a.looked.Load())) < stuck
}

// Connected reports whether the agent follows a coordinator now.
func (a *Agent) Connected() bool { return a.syncer.Connected() }

// MetricsAddr is where the metrics are; empty when nowhere.
func (a *Agent) MetricsAddr() string {
	if a.http == nil {
		return ""
	}
	return a.http.Addr().String()
}

// Stop ends the agent. Gateways and their routes stay as they are; so does nginx unless this agent runs it.
func (a *Agent) Stop(ctx context.Context) error { return a.stack.Stop(ctx) }

// PrepareNginx makes everything ready for a start of nginx without agent or control plane.
func PrepareNginx(ctx context.Context, c *Config, log hclog.Logger) error {
	o, err := c.nginxOptions(log)
	if err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(o.DataDir), c.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("cannot make %s: %w; make it writable for this user, or name another directory", dir, err)
		}
	}
	return nginx.Prepare(ctx, o)
}
