// Package fsxtest has a file system that fails or crashes at exactly one call, chosen by label.
package fsxtest

import (
	"errors"
	"io/fs"
	"sync"

	"github.com/demiurge-platform/demiurge/shared/fsx"
)

// ErrCrashed is what every call answers after the crash: nothing has any effect any more, as if the
// process were dead. The test then ends what it built on the file system and builds it anew.
var ErrCrashed = errors.New("crashed by the test")

// Point is one call: the N-th (from 1) with this label.
type Point struct {
	Label string
	N     int
	Torn  bool // a write that gets half of its bytes to the file before the crash
}

// Faulty passes calls on to a real file system, records the labels of those that have an effect, and
// fails or crashes where it was told. Reads are neither counted nor crash points, but they can be made
// to fail, and they fail after a crash.
type Faulty struct {
	inner fsx.FS

	mu      sync.Mutex // guards everything below; never held during a call of inner
	counts  map[string]int
	points  []Point
	failing map[string]error // by label; "" is every effect that takes space
	hooks   map[string]func()
	crashAt Point
	crashed chan struct{} // closed at the crash
}

var _ fsx.FS = (*Faulty)(nil)

// New wraps a file system.
func New(inner fsx.FS) *Faulty {
	return &Faulty{inner: inner, counts: map[string]int{}, failing: map[string]error{}, hooks: map[string]func(){}, crashed: make(chan struct{})}
}

// Fail makes every later call with the label fail with err and have no effect; nil ends that. The
// empty label stands for every call that takes space on the disk.
func (f *Faulty) Fail(label string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.failing, label)
		return
	}
	f.failing[label] = err
}

// Before runs hook right before every later call with the label that has its effect, so that a test can
// change the world between two steps. Nil ends that.
func (f *Faulty) Before(label string, hook func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hooks[label] = hook
}

// CrashAt makes the file system crash when the point is reached, before the call has its effect.
// Counting begins here.
func (f *Faulty) CrashAt(p Point) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts, f.crashAt = map[string]int{}, p
}

// Record begins a new recording and forgets the old one.
func (f *Faulty) Record() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts, f.points = map[string]int{}, nil
}

// Points returns every effect since Record in order. Each write comes twice: whole, and torn.
func (f *Faulty) Points() []Point {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Point(nil), f.points...)
}

// Crashed is closed at the crash.
func (f *Faulty) Crashed() <-chan struct{} { return f.crashed }

func (f *Faulty) dead() bool {
	select {
	case <-f.crashed:
		return true
	default:
		return false
	}
}

// kinds of calls
type kind int

const (
	other kind = iota
	space      // takes space: fails on a full disk
	write      // takes space and can be torn
)

// before decides one call and runs its hook. torn means: write half, then answer ErrCrashed.
func (f *Faulty) before(label string, k kind) (torn bool, err error) {
	if torn, err = f.decide(label, k); err != nil {
		return torn, err
	}
	f.mu.Lock()
	hook := f.hooks[label]
	f.mu.Unlock()
	if hook != nil {
		hook()
	}
	return false, nil
}

func (f *Faulty) decide(label string, k kind) (torn bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead() {
		return false, ErrCrashed
	}
	f.counts[label]++
	n := f.counts[label]
	f.points = append(f.points, Point{Label: label, N: n})
	if k == write {
		f.points = append(f.points, Point{Label: label, N: n, Torn: true})
	}
	if f.crashAt.Label == label && f.crashAt.N == n {
		close(f.crashed)
		return f.crashAt.Torn, ErrCrashed
	}
	if err := f.failing[label]; err != nil {
		return false, err
	}
	if k != other {
		return false, f.failing[""]
	}
	return false, nil
}

func (f *Faulty) reading(label string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead() {
		return ErrCrashed
	}
	return f.failing[label]
}

// Step implements fsx.FS.
func (f *Faulty) Step(label string) error {
	if _, err := f.before(label, other); err != nil {
		return err
	}
	return f.inner.Step(label)
}

// MkdirAll implements fsx.FS.
func (f *Faulty) MkdirAll(label, path string, perm fs.FileMode) error {
	if _, err := f.before(label, space); err != nil {
		return err
	}
	return f.inner.MkdirAll(label, path, perm)
}

// Write implements fsx.FS.
func (f *Faulty) Write(label, path string, data []byte, perm fs.FileMode) error {
	torn, err := f.before(label, write)
	if torn {
		_ = f.inner.Write(label, path, data[:len(data)/2], perm)
	}
	if err != nil {
		return err
	}
	return f.inner.Write(label, path, data, perm)
}

// WriteSync implements fsx.FS.
func (f *Faulty) WriteSync(label, path string, data []byte, perm fs.FileMode) error {
	torn, err := f.before(label, write)
	if torn {
		_ = f.inner.Write(label, path, data[:len(data)/2], perm)
	}
	if err != nil {
		return err
	}
	return f.inner.WriteSync(label, path, data, perm)
}

// SyncFile implements fsx.FS.
func (f *Faulty) SyncFile(label, path string) error {
	if _, err := f.before(label, other); err != nil {
		return err
	}
	return f.inner.SyncFile(label, path)
}

// SyncDir implements fsx.FS.
func (f *Faulty) SyncDir(label, path string) error {
	if _, err := f.before(label, other); err != nil {
		return err
	}
	return f.inner.SyncDir(label, path)
}

// SyncFS implements fsx.FS.
func (f *Faulty) SyncFS(label, path string) error {
	if _, err := f.before(label, other); err != nil {
		return err
	}
	return f.inner.SyncFS(label, path)
}

// Symlink implements fsx.FS.
func (f *Faulty) Symlink(label, target, path string) error {
	if _, err := f.before(label, space); err != nil {
		return err
	}
	return f.inner.Symlink(label, target, path)
}

// Link implements fsx.FS.
func (f *Faulty) Link(label, old, path string) error {
	if _, err := f.before(label, space); err != nil {
		return err
	}
	return f.inner.Link(label, old, path)
}

// Rename implements fsx.FS.
func (f *Faulty) Rename(label, old, path string) error {
	if _, err := f.before(label, other); err != nil {
		return err
	}
	return f.inner.Rename(label, old, path)
}

// Remove implements fsx.FS.
func (f *Faulty) Remove(label, path string) error {
	if _, err := f.before(label, other); err != nil {
		return err
	}
	return f.inner.Remove(label, path)
}

// RemoveAll implements fsx.FS.
func (f *Faulty) RemoveAll(label, path string) error {
	if _, err := f.before(label, other); err != nil {
		return err
	}
	return f.inner.RemoveAll(label, path)
}

// ReadFile implements fsx.FS.
func (f *Faulty) ReadFile(label, path string) ([]byte, error) {
	if err := f.reading(label); err != nil {
		return nil, err
	}
	return f.inner.ReadFile(label, path)
}

// Readlink implements fsx.FS.
func (f *Faulty) Readlink(label, path string) (string, error) {
	if err := f.reading(label); err != nil {
		return "", err
	}
	return f.inner.Readlink(label, path)
}

// ReadDir implements fsx.FS.
func (f *Faulty) ReadDir(label, path string) ([]fs.DirEntry, error) {
	if err := f.reading(label); err != nil {
		return nil, err
	}
	return f.inner.ReadDir(label, path)
}

// Lstat implements fsx.FS.
func (f *Faulty) Lstat(label, path string) (fs.FileInfo, error) {
	if err := f.reading(label); err != nil {
		return nil, err
	}
	return f.inner.Lstat(label, path)
}
