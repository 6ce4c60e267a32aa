package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Prepare makes the directory ready for a start of nginx: the pointer goes back to the last proven
// generation, sockets of the dead nginx and its orphaned workers go away, nginx.conf is written, and
// where there is nothing yet an empty first generation is made. It needs no control plane and no agent,
// and it is safe while an engine has the directory. It refuses while nginx runs.
func Prepare(ctx context.Context, opts Options) error {
	opts, err := opts.withDefaults()
	if err != nil {
		return err
	}
	if err := opts.prepareDirs(); err != nil {
		return err
	}
	l := layout{data: opts.DataDir, run: opts.RunDir}
	if err := l.checkVersion(opts.Binary); err != nil {
		return err
	}
	files := opts.FS
	if files == nil {
		o, err := fsx.NewOS(l.data, l.run)
		if err != nil {
			return err
		}
		defer func() { _ = o.Close() }()
		files = o
	}
	unlock, err := fsx.Lock(ctx, l.applyLock())
	if err != nil {
		return err
	}
	defer unlock()
	if master, err := findMaster(l, opts.Binary); err == nil {
		return fmt.Errorf("cannot prepare nginx: it runs already with pid %d; stop it first", master.pid)
	}
	if err := endOrphans(ctx, files, l); err != nil {
		return err
	}
	r := renderer{opts, l}
	j, err := establish(files, l, r)
	if err != nil {
		return err
	}
	if anew, err := isStranded(files, l, r, j); err != nil {
		return err
	} else if anew {
		if j, err = begin(files, l, r, j); err != nil {
			return err
		}
	}
	if err := ensure(files, "nginx.pointer", l.pointer(), pointerText(j.Live)); err != nil {
		return err
	}
	main := r.mainConf(l.pid(), l.errorLog(), "live.conf", ownDescriptors())
	if err := ensure(files, "nginx.main", l.mainConf(), main); err != nil {
		return err
	}
	return clearSockets(files, l)
}

// isStranded tells whether nginx cannot start with the live generation and could with another: its own socket lies in
// another run directory, or it listens where this host can listen no more and the configuration names other places.
func isStranded(f fsx.FS, l layout, r renderer, j journal) (bool, error) {
	files, _, err := readGeneration(f, l.generation(j.Live))
	if err != nil {
		return false, err
	}
	if !bytes.Contains(files["fence.conf"], []byte(l.socket(j.Live))) {
		return true, nil
	}
	before := listeners(files)
	return !slices.Equal(before, listeners(r.render(j.Live, Config{}))) && bindTest(before, nil) != nil, nil
}

// ensure writes a file unless it is right already: nginx must be able to start on a full disk.
func ensure(f fsx.FS, label, path string, content []byte) error {
	if got, err := f.ReadFile(label+".read", path); err == nil && bytes.Equal(got, content) {
		return nil
	}
	if err := fsx.WriteAtomic(f, label, path, content, 0o600); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// clearSockets removes the sockets and the pid file of a dead nginx: with the file in the way, the next
// one could not bind.
func clearSockets(f fsx.FS, l layout) error {
	entries, err := f.ReadDir("nginx.sockets.list", l.run)
	if err != nil {
		return fmt.Errorf("cannot list %s: %w", l.run, err)
	}
	for _, entry := range entries {
		if socketName.MatchString(entry.Name()) || entry.Name() == filepath.Base(l.pid()) {
			if err := f.Remove("nginx.sockets.remove", filepath.Join(l.run, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("cannot remove old socket: %w", err)
			}
		}
	}
	return nil
}

// endOrphans ends workers whose master is dead, and waits for their end.
func endOrphans(ctx context.Context, f fsx.FS, l layout) error {
	signal, kill := syscall.SIGTERM, time.Now().Add(2*time.Second)
	for {
		left := orphans(l)
		if len(left) == 0 {
			return nil
		}
		if err := f.Step("nginx.orphans.end"); err != nil {
			return err
		}
		if time.Now().After(kill) {
			signal = syscall.SIGKILL
		}
		for _, p := range left {
			if err := p.signal(signal); err != nil && !errors.Is(err, errNoMaster) {
				return fmt.Errorf("cannot end an orphaned nginx worker: %w", err)
			}
		}
		if !sleep.For(ctx, 20*time.Millisecond) {
			return fmt.Errorf("cannot end %d orphaned nginx workers in time: %w", len(left), ctx.Err())
		}
	}
}
