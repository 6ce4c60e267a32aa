// Package daemon is the life that all long-running programs share: read the configuration, start, tell
// systemd, reload on SIGHUP or when the file changes, and stop within a deadline.
package daemon

import (
	"context"
	"errors"
	"os"
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
	watcher, cfg, err := watched(o, cfg, log)
	if err != nil {
		return err
	}
	program, err := o.Start(cfg, log)
	if err != nil {
		return errors.Join(err, watcher.Close())
	}
	notifier := notify.New(log)
	var around lifecycle.Stack
	around.Push(o.Name, program.Stop)
	around.Go("watchdog", func(ctx context.Context) { notifier.Watchdog(ctx, program.Healthy) })
	reload := &reloader[C]{Options: o, running: cfg, log: log, notifier: notifier}
	if watcher != nil {
		around.Go("configuration watch", func(ctx context.Context) { watcher.Run(ctx, reload.now) })
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

// watched begins to watch the configuration file, and reads it again then: the program takes a while to start,
// and no change may fall between what it starts with and what is watched. There is no watcher without a file,
// or where the system gives none.
func watched[C config.Target](o Options[C], cfg C, log hclog.Logger) (*config.Watcher, C, error) {
	if o.Path == "" {
		return nil, cfg, nil
	}
	watcher, err := config.NewWatcher(o.Path, log)
	if err != nil {
		log.Warn("cannot watch the configuration file; SIGHUP still reloads it", "error", err)
		return nil, cfg, nil
	}
	latest := o.Default()
	if _, err := config.Load(o.Path, latest, o.Environ); err != nil {
		return nil, cfg, errors.Join(err, watcher.Close())
	}
	return watcher, latest, nil
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
	mu       sync.Mutex // one reload at a time; guards running and refused
	running  C
	refused  bool // the file was wrong at the last look
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
		r.refused = true
		r.log.Error("the changed configuration is not used; the program runs on with the one before", "error", err)
		return
	}
	if r.refused {
		r.refused = false
		r.log.Info("the configuration file is right again")
	}
	had, has := r.Log(r.running), r.Log(next)
	if level, err := logging.ParseLevel(has.Level); err == nil && has.Level != had.Level {
		r.log.SetLevel(level)
		had.Level = has.Level
		r.log.Info("log level changed", "level", has.Level)
	}
	if keys := config.Differences(next, r.running); len(keys) > 0 {
		r.log.Warn("the configuration file has changes that need a restart", "keys", keys)
	}
}
