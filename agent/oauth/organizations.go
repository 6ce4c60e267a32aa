package oauth

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Options of the organizations of a host.
type Options struct {
	Dir       string // of the journals, one directory each; it exists
	FS        fsx.FS // reaches Dir
	Domain    string // organizations are served as org-<uuid>.<domain>
	Lifetimes Lifetimes
	Limits    Limits
	// Interval is the longest that something stays in memory after its time, one second when it is zero. It
	// is good for nothing in that time.
	Interval time.Duration
	Now      func() time.Time // nil: the clock of this machine
	Logger   hclog.Logger
}

// Organizations holds the stores of the organizations on this host, and the two loops that serve all of
// them: one removes what has expired, one writes journals anew that have grown.
type Organizations struct {
	opts    Options
	wake    chan struct{} // something falls due earlier than the sweeper knows
	compact chan struct{} // a journal has grown

	// changing is held while an organization is opened, closed or dropped, which reads and writes disks;
	// taken before mu.
	changing sync.Mutex

	mu     sync.Mutex // guards what follows
	stores map[id.Organization]*opened
	ended  Stats // of stores that are gone, so that counters never fall
}

type opened struct {
	*Store
	epoch id.Epoch
}

// New checks the options and removes what a crash left of organizations that were dropped.
func New(o Options) (*Organizations, error) {
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Interval < 10*time.Millisecond {
		return nil, fmt.Errorf("cannot remove expired OAuth objects every %s: choose 10ms or more", o.Interval)
	}
	if err := errors.Join(o.Lifetimes.Check(), o.Limits.check()); err != nil {
		return nil, err
	}
	if _, err := id.ParseDomain(o.Domain); err != nil {
		return nil, err
	}
	all := &Organizations{
		opts: o, wake: make(chan struct{}, 1), compact: make(chan struct{}, 1),
		stores: make(map[id.Organization]*opened),
	}
	directories, err := all.directories()
	if err != nil {
		return nil, err
	}
	for _, path := range directories.temporary {
		if err := o.FS.RemoveAll("oauth.dropped", path); err != nil {
			return nil, fmt.Errorf("cannot remove the OAuth state of an organization that was dropped: %w", err)
		}
	}
	return all, nil
}

// directories are those of the journals, by organization and epoch.
type directories struct {
	journals  map[id.Organization][]id.Epoch
	temporary []string
}

func (o *Organizations) directories() (directories, error) {
	d := directories{journals: map[id.Organization][]id.Epoch{}}
	entries, err := o.opts.FS.ReadDir("oauth.organizations", o.opts.Dir)
	if err != nil {
		return d, fmt.Errorf("cannot list the OAuth journals: %w", err)
	}
	for _, e := range entries {
		if fsx.IsTemp(e.Name()) {
			d.temporary = append(d.temporary, filepath.Join(o.opts.Dir, e.Name()))
			continue
		}
		org, epoch, err := id.ParseTermName(e.Name())
		if err != nil {
			return d, fmt.Errorf("cannot use %s as the directory of OAuth journals: %s is none; move it away", o.opts.Dir, e.Name())
		}
		d.journals[org] = append(d.journals[org], epoch)
	}
	return d, nil
}

func (o *Organizations) path(org id.Organization, epoch id.Epoch) string {
	return filepath.Join(o.opts.Dir, id.TermName(org, epoch))
}

// Open returns the store of an organization that was granted to this host at the epoch. What the host has on
// disk of the same epoch is newer than any section and is used; else the store begins with the section (none:
// empty), and what is there of older epochs is removed: it does not know what happened elsewhere since.
func (o *Organizations) Open(org id.Organization, epoch id.Epoch, section []byte) (*Store, error) {
	o.changing.Lock()
	defer o.changing.Unlock()
	if s := o.find(org); s != nil {
		if s.epoch == epoch {
			return s.Store, nil
		}
		return nil, fault.New(fault.StaleEpoch, "organization %s is open at epoch %d, not %d: close it first", org, s.epoch, epoch)
	}
	found, err := o.directories()
	if err != nil {
		return nil, err
	}
	if newest := slices.Max(append(found.journals[org], epoch)); newest > epoch {
		return nil, fault.New(fault.StaleEpoch, "organization %s was here at epoch %d, so epoch %d is over", org, newest, epoch)
	}
	dir := o.path(org, epoch)
	if err := o.opts.FS.MkdirAll("oauth.organization", dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory of organization %s: %w", org, err)
	}
	if err := o.opts.FS.SyncDir("oauth.organization.sync", o.opts.Dir); err != nil {
		return nil, fmt.Errorf("cannot make the directory of organization %s: %w", org, err)
	}
	s, err := openStore(storeOptions{
		organization: org, hostname: id.Hostname(org, o.opts.Domain), dir: dir, section: section, fs: o.opts.FS,
		lifetimes: o.opts.Lifetimes, limits: o.opts.Limits, now: o.opts.Now, logger: o.opts.Logger.With("organization", org),
		wake: func() { signal(o.wake) }, compact: func() { signal(o.compact) },
	})
	if err != nil {
		return nil, err
	}
	for _, old := range found.journals[org] {
		if old < epoch {
			if err := o.remove(o.path(org, old)); err != nil {
				return nil, errors.Join(err, s.close())
			}
		}
	}
	o.mu.Lock()
	o.stores[org] = &opened{s, epoch}
	o.mu.Unlock()
	signal(o.wake)
	return s, nil
}

// Get returns the open store of an organization.
func (o *Organizations) Get(org id.Organization) (*Store, bool) {
	if s := o.find(org); s != nil {
		return s.Store, true
	}
	return nil, false
}

func (o *Organizations) find(org id.Organization) *opened {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stores[org]
}

// Close takes an organization out of memory and keeps its journal. Nothing of it is good here from then on,
// whoever still has the store.
func (o *Organizations) Close(org id.Organization) error {
	o.changing.Lock()
	defer o.changing.Unlock()
	return o.close(org)
}

func (o *Organizations) close(org id.Organization) error {
	s := o.find(org)
	if s == nil {
		return nil
	}
	err := s.close()
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.stores, org)
	last := s.Stats()
	o.ended.add(Stats{Expired: last.Expired, Removed: last.Removed})
	return err
}

// Drop forgets an organization that has left this host, with everything that is on disk of it.
func (o *Organizations) Drop(org id.Organization) error {
	o.changing.Lock()
	defer o.changing.Unlock()
	if err := o.close(org); err != nil {
		o.opts.Logger.Warn("the OAuth journal of an organization that is dropped did not close", "organization", org, "error", err)
	}
	found, err := o.directories()
	if err != nil {
		return err
	}
	for _, epoch := range found.journals[org] {
		if err := o.remove(o.path(org, epoch)); err != nil {
			return err
		}
	}
	return nil
}

// Retain removes what is on disk of all organizations but these, at these epochs. It is for the start of an
// agent, before anything is opened.
func (o *Organizations) Retain(keep map[id.Organization]id.Epoch) error {
	o.changing.Lock()
	defer o.changing.Unlock()
	found, err := o.directories()
	if err != nil {
		return err
	}
	for org, epochs := range found.journals {
		for _, epoch := range epochs {
			if keep[org] == epoch || o.find(org) != nil {
				continue
			}
			if err := o.remove(o.path(org, epoch)); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove takes a directory away so that a crash leaves all of it or nothing that is ever read.
func (o *Organizations) remove(path string) error {
	aside := fsx.TempName(path)
	if err := o.opts.FS.Rename("oauth.drop", path, aside); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("cannot remove the OAuth state of an organization: %w", err)
	}
	if err := errors.Join(o.opts.FS.SyncDir("oauth.drop.sync", o.opts.Dir), o.opts.FS.RemoveAll("oauth.drop.remove", aside)); err != nil {
		return fmt.Errorf("cannot remove the OAuth state of an organization: %w", err)
	}
	return nil
}

// CloseAll is Close for all of them.
func (o *Organizations) CloseAll() error {
	o.changing.Lock()
	defer o.changing.Unlock()
	o.mu.Lock()
	all := slices.Collect(maps.Keys(o.stores))
	o.mu.Unlock()
	var errs []error
	for _, org := range all {
		errs = append(errs, o.close(org))
	}
	return errors.Join(errs...)
}

// Stats are those of all organizations together.
func (o *Organizations) Stats() Stats {
	o.mu.Lock()
	out := o.ended
	all := slices.Collect(maps.Values(o.stores))
	o.mu.Unlock()
	for _, s := range all {
		out.add(s.Stats())
	}
	return out
}

func (o *Organizations) list() []*opened {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Values(o.stores))
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run serves all stores until ctx ends.
func (o *Organizations) Run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { o.sweepLoop(ctx) })
	loops.Go(func() { o.compactLoop(ctx) })
	loops.Wait()
}

const (
	// sweepPiece is how many tokens are removed in one hold of a store's lock.
	sweepPiece = 128
	// longestSleep is how long the sweeper sleeps though nothing is due: the clock may have been set.
	longestSleep = time.Minute
)

// sweepLoop removes what has expired when it does, at most twice in an interval.
func (o *Organizations) sweepLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var rested time.Time // before then it does not sweep again
	for {
		timer.Reset(o.sleep(o.opts.Now(), rested))
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
			continue
		case <-timer.C:
		}
		for _, s := range o.list() {
			for s.nextSweep() <= s.now() && ctx.Err() == nil && s.sweep(sweepPiece) {
				runtime.Gosched() // whoever waits for the store goes first
			}
		}
		rested = o.opts.Now().Add(o.opts.Interval / 2)
	}
}

// sleep is how long the sweeper may.
func (o *Organizations) sleep(now, rested time.Time) time.Duration {
	at := now.Add(longestSleep)
	for _, s := range o.list() {
		if next := s.nextSweep(); next < at.UnixMilli() {
			at = moment(next)
		}
	}
	if at.Before(rested) && rested.Sub(now) <= o.opts.Interval {
		at = rested
	}
	return max(0, at.Sub(now))
}

// compactLoop writes journals anew. One that cannot be written is tried again, later each time.
func (o *Organizations) compactLoop(ctx context.Context) {
	const first, longest = 250 * time.Millisecond, 30 * time.Second
	pause := first
	for {
		failed := false
		for _, s := range o.list() {
			if !s.journal.wantsBase() {
				continue
			}
			if err := s.journal.compact(ctx, s.walkAll); err != nil && ctx.Err() == nil && !errors.Is(err, os.ErrClosed) {
				failed = true
				s.opts.logger.Error("the OAuth journal cannot be written anew", "error", err)
			}
		}
		var again <-chan time.Time
		if failed {
			again = time.After(pause)
			pause = min(2*pause, longest)
		} else {
			pause = first
		}
		wake := o.compact
		if failed {
			wake = nil // every refused change would wake it
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-again:
		}
	}
}
