package agent

import (
	"context"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/notify"
	"github.com/demiurge-platform/demiurge/shared/version"
)

// stopPatience is how long everything may take to stop.
const stopPatience = 20 * time.Second

// Run reads the configuration and runs an agent until ctx ends. A value on hup, or a change of the file,
// reloads what can be reloaded and says what needs a restart.
func Run(ctx context.Context, path string, environ []string, hup <-chan os.Signal) error {
	cfg := DefaultConfig()
	loaded, err := config.Load(path, cfg, environ)
	if err != nil {
		return err
	}
	log, err := logging.New(logging.Options{Name: "agent", Level: cfg.Log.Level, Format: cfg.Log.Format})
	if err != nil {
		return err
	}
	log.Info("starting", "version", version.String(), "config", path, "overridden", loaded.Overridden)
	a, err := New(Options{Config: cfg, Logger: log})
	if err != nil {
		return err
	}
	a.Start()
	log.Info("running", "host", cfg.HostID, "data_dir", cfg.DataDir, "metrics", a.MetricsAddr())
	notifier := notify.New(log)
	a.stack.Go("watchdog", func(ctx context.Context) { notifier.Watchdog(ctx, a.Healthy) })
	reload := &reloader{path: path, environ: environ, running: *cfg, log: log, notifier: notifier}
	if path != "" {
		watcher, err := config.NewWatcher(path, log)
		if err != nil {
			log.Warn("cannot watch the configuration file; SIGHUP still reloads it", "error", err)
		} else {
			a.stack.Go("configuration watch", func(ctx context.Context) { watcher.Run(ctx, reload.now) })
		}
	}
	notifier.Ready()
	var failure error
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case failure = <-a.Failed():
			log.Error("a part of the agent failed", "error", failure)
			done = true
		case <-hup:
			reload.now()
		}
	}
	notifier.Stopping()
	log.Info("stopping; gateways and routes stay")
	stopCtx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if err := a.Stop(stopCtx); err != nil && failure == nil {
		failure = err
	}
	return failure
}

// reloader applies what can change while the program runs: the log's level. The certificate and the token
// are watched where they are used.
type reloader struct {
	mu       sync.Mutex // one reload at a time; guards running
	path     string
	environ  []string
	running  Config
	log      hclog.Logger
	notifier *notify.Notifier
}

func (r *reloader) now() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notifier.Reloading()
	defer r.notifier.Ready()
	next := DefaultConfig()
	if _, err := config.Load(r.path, next, r.environ); err != nil {
		r.log.Error("the changed configuration is not used", "error", err)
		return
	}
	if level, err := logging.ParseLevel(next.Log.Level); err == nil && next.Log.Level != r.running.Log.Level {
		r.log.SetLevel(level)
		r.running.Log.Level = next.Log.Level
		r.log.Info("log level changed", "level", next.Log.Level)
	}
	if !reflect.DeepEqual(*next, r.running) {
		r.log.Warn("the configuration file has changes that need a restart of the agent; gateways and routes stay during one")
	}
}
