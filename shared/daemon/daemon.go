// Package daemon is the life that all long-running programs share: read the configuration, start, tell
// systemd, reload on SIGHUP or when the file changes, and stop within a deadline.
package daemon

import (
	"context"
	"errors"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/lifecycle"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/notify"
	"github.com/demiurge-platform/demiurge/shared/version"
)

// stopPatience is how long everything may take to stop.
const stopPatience = 20 * time.Second

// Program is what runs between start and stop.
type Program interface {
	// Healthy reports whether the program does its work; systemd's watchdog restarts it when it does not.
	Healthy() bool
	// Failed gives the error of a part that ended by itself, after which the program has to end.
	Failed() <-chan error
	// Stop ends everything that was started.
	Stop(ctx context.Context) error
}

// Options of Run. C is the pointer type of the program's configuration.
type Options[C config.Target] struct {
	Name    string           // of the program, in its log
	Path    string           // of the configuration file; empty: none
	Environ []string         // as from os.Environ
	Hup     <-chan os.Signal // a value reloads
	// Default makes the configuration before file and environment are read.
	Default func() C
	// Log is the part of a configuration that is about the log; its level is what a reload changes.
	Log func(C) *logging.Config
	// Start makes and starts the program.
	Start func(C, hclog.Logger) (Program, error)
}

// Run runs a program until ctx ends or a part of it fails.
func Run[C config.Target](ctx context.Context, o Options[C]) error {
	cfg := o.Default()
	loaded, err := config.Load(o.Path, cfg, o.Environ)
	if err != nil {
		return err
	}
	log, err := logging.New(logging.Options{Name: o.Name, Level: o.Log(cfg).Level, Format: o.Log(cfg).Format})
	if err != nil {
		return err
	}
	log.Info("starting", "version", version.String(), "config", o.Path, "overridden", loaded.Overridden)
	program, err := o.Start(cfg, log)
	if err != nil {
		return err
	}
	notifier := notify.New(log)
	var around lifecycle.Stack
	around.Push(o.Name, program.Stop)
	around.Go("watchdog", func(ctx context.Context) { notifier.Watchdog(ctx, program.Healthy) })
	reload := &reloader[C]{Options: o, running: cfg, log: log, notifier: notifier}
	if o.Path != "" {
		watcher, err := config.NewWatcher(o.Path, log)
		if err != nil {
			log.Warn("cannot watch the configuration file; SIGHUP still reloads it", "error", err)
		} else {
			around.Go("configuration watch", func(ctx context.Context) { watcher.Run(ctx, reload.now) })
		}
	}
	notifier.Ready()
	failure := wait(ctx, o.Hup, program.Failed(), reload.now)
	if failure != nil {
		log.Error("a part of the program failed", "error", failure)
	}
	notifier.Stopping()
	log.Info("stopping")
	stopCtx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	return errors.Join(failure, around.Stop(stopCtx))
}

// wait reloads as asked until the program has to end, and returns why if it is a failure.
func wait(ctx context.Context, hup <-chan os.Signal, failed <-chan error, reload func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-hup:
			reload()
		}
	}
}

// reloader applies what can change while a program runs: the log's level. Certificates and tokens are
// watched where they are used.
type reloader[C config.Target] struct {
	Options[C]
	mu       sync.Mutex // one reload at a time; guards running
	running  C
	log      hclog.Logger
	notifier *notify.Notifier
}

func (r *reloader[C]) now() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notifier.Reloading()
	defer r.notifier.Ready()
	next := r.Default()
	if _, err := config.Load(r.Path, next, r.Environ); err != nil {
		r.log.Error("the changed configuration is not used", "error", err)
		return
	}
	had, has := r.Log(r.running), r.Log(next)
	if level, err := logging.ParseLevel(has.Level); err == nil && has.Level != had.Level {
		r.log.SetLevel(level)
		had.Level = has.Level
		r.log.Info("log level changed", "level", has.Level)
	}
	if !reflect.DeepEqual(next, r.running) {
		r.log.Warn("the configuration file has changes that need a restart")
	}
}
