package config

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"
)

// settle is how long a file must be quiet before a change counts: editors and package managers write in
// several steps.
const settle = 100 * time.Millisecond

// maxLinks bounds a chain of symbolic links, as the kernel does.
const maxLinks = 40

// Watcher sees changes of one file: writes, an editor's rename over it, removal and coming back, and the
// switch of a symbolic link anywhere on the way to it.
type Watcher struct {
	path  string
	log   hclog.Logger
	fs    *fsnotify.Watcher
	state [sha256.Size]byte
}

// NewWatcher begins to watch. No change after its return is missed: make it first, read the file then.
// Run ends the watch.
func NewWatcher(path string, log hclog.Logger) (*Watcher, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot watch %s: %w", path, err)
	}
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("cannot watch %s: %w: raise fs.inotify.max_user_instances", path, err)
	}
	w := &Watcher{path: abs, log: log.Named("watch"), fs: fs}
	w.watch()
	if _, err := os.Stat(filepath.Dir(abs)); err != nil || len(fs.WatchList()) == 0 {
		_ = fs.Close()
		return nil, fmt.Errorf("cannot watch %s: its directory cannot be watched: create it, or raise fs.inotify.max_user_watches", path)
	}
	w.state = w.look()
	return w, nil
}

// Close ends a watch that is not run. A nil Watcher has none to end.
func (w *Watcher) Close() error {
	if w == nil {
		return nil
	}
	return w.fs.Close()
}

// Run calls onChange after every change until ctx is done, and then ends the watch.
func (w *Watcher) Run(ctx context.Context, onChange func()) {
	defer func() { _ = w.fs.Close() }()
	quiet := time.NewTimer(settle) // once at the start: something may have changed since NewWatcher
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.fs.Events:
			quiet.Reset(settle)
		case err := <-w.fs.Errors: // an overflow of the queue: anything may have happened
			w.log.Warn("file changes were missed: looking again", "path", w.path, "error", err)
			quiet.Reset(settle)
		case <-quiet.C:
			// Watches first: what changes after the look is then an event again.
			if w.watch() {
				quiet.Reset(settle)
			}
			if state := w.look(); state != w.state {
				w.state = state
				onChange()
			}
		}
	}
}

// watch renews the set of watched directories: those that hold a link on the way to the file, and the one
// that holds the file. Never the file itself: that watch would stay with the old file when another is
// renamed over it. It reports whether a watch is new.
func (w *Watcher) watch() bool {
	want := directories(w.path)
	have := w.fs.WatchList() // without those whose directory is gone
	added := false
	for _, dir := range want {
		if !slices.Contains(have, dir) && w.fs.Add(dir) == nil {
			added = true
		}
	}
	for _, dir := range have {
		if !slices.Contains(want, dir) {
			_ = w.fs.Remove(dir) // it may be gone by now
		}
	}
	return added
}

// directories walks the path as the kernel does and returns, free of links, every directory that holds a
// link on the way and the last one. Where the way ends early it is the last one that is there.
func directories(path string) []string {
	var dirs []string
	at, rest := "/", components(path)
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		target, err := os.Readlink(next)
		if err == nil && links < maxLinks {
			links++
			dirs = append(dirs, at)
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(components(target), rest[1:]...)
			continue
		}
		if len(rest) == 1 || !exists(next) {
			break
		}
		at, rest = next, rest[1:]
	}
	return append(dirs, at)
}

func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// look digests the contents; a file that cannot be read has a digest of its own.
func (w *Watcher) look() [sha256.Size]byte {
	data, err := os.ReadFile(w.path)
	if err != nil {
		return sha256.Sum256([]byte("unreadable\x00" + w.path))
	}
	return sha256.Sum256(data)
}
