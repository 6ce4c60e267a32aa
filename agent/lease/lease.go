// Package lease is how long this host may serve organizations that must not be served by a host that is cut
// off. It counts from the sending of the last word that a leader acknowledged, by a clock that goes on while
// the machine sleeps: the coordinators wait for the end of the lease, by their own clocks, before they give
// such an organization to another host. It decides nothing but that.
package lease

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// Instant is a moment of this machine since it was started.
type Instant time.Duration

// Options of a Lease. Boot and Clock are for tests.
type Options struct {
	FS     fsx.FS
	Dir    string         // outlives the agent and not the machine
	Boot   string         // tells this start of the machine from every other one; default: the kernel's
	Clock  func() Instant // default: CLOCK_BOOTTIME
	Logger hclog.Logger
}

// Lease is what is known of the last renewal.
type Lease struct {
	o Options

	mu   sync.Mutex
	last record // guarded by mu
	// After a lapse somebody else may serve what this host served, and only an assignment that is as new as
	// the renewal says so.
	need uint64 // guarded by mu: index of the assignment without which nothing is served
	seen uint64 // guarded by mu: index of the newest assignment
}

// record is what a restarted agent needs.
type record struct {
	Boot string  `json:"boot"`
	Sent Instant `json:"sent"` // zero: never
}

const file = "lease.json"

// Open takes up what an earlier run of the agent had, since this start of the machine.
func Open(o Options) (*Lease, error) {
	if o.Clock == nil {
		o.Clock = sinceBoot
	}
	if o.Boot == "" {
		boot, err := procfs.Boot()
		if err != nil {
			return nil, err
		}
		o.Boot = boot
	}
	l := &Lease{o: o}
	data, err := o.FS.ReadFile("lease.read", filepath.Join(o.Dir, file))
	if err != nil {
		return l, nil // none: the coordinator renews it within a second
	}
	var r record
	if json.Unmarshal(data, &r) == nil && r.Boot == o.Boot && r.Sent <= o.Clock() {
		l.last = r
	}
	return l, nil
}

// sinceBoot is the time since the start of the machine, its sleep included. It is never turned back.
func sinceBoot() Instant {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(errors.Join(errors.New("the system has no clock that goes on while it sleeps"), err)) // Linux has it since 2.6.39
	}
	return Instant(t.Nano())
}

// Now is the present moment, for the word that is about to be sent.
func (l *Lease) Now() Instant { return l.o.Clock() }

// Renewed notes that a leader has acknowledged a word that was sent at a moment, with an answer made at an
// index of its state. Shortest is the shortest lease that counts from it; zero: none does.
func (l *Lease) Renewed(sent Instant, index uint64, shortest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.Sent != 0 && sent <= l.last.Sent {
		return
	}
	if l.last.Sent == 0 || shortest > 0 && l.o.Clock() >= l.last.Sent+Instant(shortest) {
		l.need = max(l.need, index)
	}
	l.last = record{l.o.Boot, sent}
	if err := l.keep(); err != nil { // a restarted agent stops serving for a moment
		l.o.Logger.Warn("the lease is not kept for the next run of the agent", "error", err)
	}
}

// keep writes the record without waiting for the disk: a machine that crashes loses it, as it should.
func (l *Lease) keep() error {
	data, err := json.Marshal(l.last)
	if err != nil {
		return err
	}
	path := filepath.Join(l.o.Dir, file)
	temp := path + ".new"
	if err := l.o.FS.Write("lease.write", temp, data, 0o600); err != nil {
		return err
	}
	return l.o.FS.Rename("lease.rename", temp, path)
}

// Assigned notes the index of an assignment that is followed from now on.
func (l *Lease) Assigned(index uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = index
}

// Held reports whether a lease of this length goes on now.
func (l *Lease) Held(length time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last.Sent != 0 && l.o.Clock() < l.last.Sent+Instant(length) && l.seen >= l.need
}
