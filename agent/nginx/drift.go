package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// watch sees changes below the data directory as they happen.
type watch struct {
	*fsnotify.Watcher
}

func (e *Engine) newWatch() (*watch, error) {
	w, err := fsnotify.NewBufferedWatcher(4096)
	if err != nil {
		return nil, fmt.Errorf("cannot watch the nginx directory: %w; is fs.inotify.max_user_instances reached?", err)
	}
	for _, dir := range []string{e.l.routes(), e.l.run, e.l.data, e.l.certs()} {
		if err := w.Add(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot watch %s: %w", dir, err), w.Close())
		}
	}
	return &watch{w}, nil
}

func (w *watch) close() { _ = w.Close() }

// watchDrift repairs what somebody else changed: at once where the watch sees it, by a full scan where
// the watch lost events, and every few minutes in any case.
func (e *Engine) watchDrift(ctx context.Context, w *watch) {
	scan := time.NewTicker(scanEvery)
	defer scan.Stop()
	e.scanRoutes(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case ev, ok := <-w.Events:
			if !ok {
				return
			}
			if ev.Name == e.l.routes() {
				if ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename) {
					e.remakeRoutes(ctx, w)
				}
				continue
			}
			e.changedFile(ctx, ev.Name)
		case err, ok := <-w.Errors:
			if !ok {
				return
			}
			e.log.Warn("the watch on the nginx directory lost events; comparing everything", "error", err)
			e.scanRoutes(ctx)
			e.poke()
		case <-scan.C:
			e.scanRoutes(ctx)
			e.poke()
		}
	}
}

// watchCertificate has another certificate in the one file taken up, whichever link on the way to it was
// switched. While it cannot be watched, which a directory that is not there is a reason for, that is tried again.
func (e *Engine) watchCertificate(ctx context.Context) {
	said := false
	for e.opts.CertificateFile != "" && ctx.Err() == nil {
		w, err := config.NewWatcher(e.opts.CertificateFile, e.log)
		if err != nil {
			if !said {
				e.log.Warn("the certificate is not watched yet", "error", err)
			}
			said = true
			sleep.For(ctx, checkEvery)
			continue
		}
		e.poke() // it may have changed before it was watched
		w.Run(ctx, e.poke)
	}
}

// remakeRoutes makes the directory of routes again, with every link, and lets nginx start new workers: the
// old ones stand in the one that is gone.
func (e *Engine) remakeRoutes(ctx context.Context, w *watch) {
	err := e.missingDirs()
	if err == nil {
		_ = w.Remove(e.l.routes()) // of the one that is gone, if it is known still
		err = w.Add(e.l.routes())
	}
	if err != nil {
		e.log.Error("cannot make the directory of routes again", "error", err)
		return
	}
	e.scanRoutes(ctx)
	e.renewWorkers("the directory was removed or moved away")
}

// workersStandElsewhere tells whether a worker that takes requests stands in another directory than the one
// of the routes, where the system lets us see that.
func (e *Engine) workersStandElsewhere() bool {
	master, err := findMaster(e.l, e.opts.Binary)
	if err != nil {
		return false
	}
	own, err := os.Stat(e.l.routes())
	if err != nil {
		return false
	}
	for _, pid := range children(master.pid) {
		// A worker bears its title from when it stands where it is told to; before that it is where the master is.
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !bytes.Contains(title, []byte("worker process")) || bytes.Contains(title, []byte("is shutting down")) {
			continue
		}
		if stands, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && !os.SameFile(own, stands) {
			return true
		}
	}
	return false
}

// renewWorkers loads the configuration anew although it has not changed, because the running workers do
// not follow the links.
func (e *Engine) renewWorkers(reason string) {
	e.log.Warn("nginx does not follow the routes; it gets new workers", "reason", reason)
	e.event(Event{Type: DriftRepaired, Part: "routes", Reason: reason})
	e.change(func(st *state) { st.force = true })
	e.poke()
}

func (e *Engine) changedFile(ctx context.Context, path string) {
	name := filepath.Base(path)
	switch {
	case filepath.Dir(path) == e.l.routes():
		if org, err := id.ParseOrganization(name); err == nil && string(org) == name {
			e.repairRoute(ctx, org)
		}
	case path == e.l.pointer():
		// The apply loop owns the pointer; it compares when it is not moving it itself.
		e.poke()
	case path == e.l.mainConf():
		if err := e.checkMain(ownDescriptors()); err != nil {
			e.log.Error("cannot put nginx.conf back", "error", err)
		}
	case filepath.Dir(path) == e.l.certs() && !fsx.IsTemp(name):
		e.poke() // its content is part of the configuration
	}
}

// repairPointer puts the pointer back to the live generation. Only the apply loop calls it, between
// generations.
func (e *Engine) repairPointer() error {
	live := e.snapshot().j.Live
	if e.pointsTo(live) {
		return nil
	}
	if err := e.point(live); err != nil {
		return transient(err, "cannot put the pointer back")
	}
	e.log.Warn("the pointer to the live generation was changed and has been put back", "generation", live)
	e.event(Event{Type: DriftRepaired, Part: "live.conf", Generation: live, Reason: "changed by somebody else"})
	return nil
}
