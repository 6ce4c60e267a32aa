package pki

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/config"
)

// Watch gives a Live what is saved in its store, by this process or another one, until ctx is done. What
// cannot be used is logged and the credentials of before stay. It blocks; give it to an owner that waits
// for it.
func Watch(ctx context.Context, store *Store, live *Live, log hclog.Logger) error {
	log = log.Named("pki")
	// Of two files, because a rotation changes the roots and may leave the certificate as it is; the key
	// never changes alone.
	var watchers []*config.Watcher
	for _, path := range []string{store.CertFile(), store.CAFile()} {
		w, err := config.NewWatcher(path, log)
		if err != nil {
			stopped, cancel := context.WithCancel(ctx)
			cancel()
			for _, open := range watchers {
				open.Run(stopped, func() {}) // closes it
			}
			return err
		}
		watchers = append(watchers, w)
	}
	var running sync.WaitGroup // both watches are waited for before the return
	for _, w := range watchers {
		running.Go(func() { w.Run(ctx, func() { Reload(store, live, log) }) })
	}
	Reload(store, live, log) // what was saved before the watch began
	running.Wait()
	return nil
}

// Reload looks at the store once, as Watch does after a change (SIGHUP).
func Reload(store *Store, live *Live, log hclog.Logger) {
	next, err := store.Load(live.now())
	if err != nil {
		log.Warn("cannot use the changed certificate: the one before stays", "error", err)
		return
	}
	if next.Equal(live.Current()) {
		return
	}
	if err := live.Replace(next); err != nil {
		log.Warn("cannot use the changed certificate: the one before stays", "error", err)
		return
	}
	log.Info("certificate loaded", "identity", next.Identity().String(), "expires", next.Expires().UTC().Format(time.RFC3339), "roots", len(next.bundle.roots))
}
