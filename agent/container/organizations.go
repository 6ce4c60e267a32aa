package container

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Limits are the most of everything that one organization may have.
type Limits struct {
	Containers int
	Tickets    int // of people on their way to a container
}

// DefaultLimits are those that are used when nothing is configured.
func DefaultLimits() Limits { return Limits{Containers: 200, Tickets: 10_000} }

// Options of the organizations of a host.
type Options struct {
	Dir      string // of the journals; it exists
	FS       fsx.FS // reaches Dir
	Domain   string // organizations are served as org-<uuid>.<domain>
	Scheme   string // in which people reach this host's nginx: https (also when empty), or http on one machine
	Port     int    // at which; zero: that of the scheme
	Networks []netip.Prefix
	// Own lists the addresses of this host, at which no container is. Nil: none. While they cannot be told, none
	// is reached.
	Own         func() ([]netip.Addr, error)
	Limits      Limits        // zero fields have their default
	TokenLife   time.Duration // of hosting tokens; zero: one hour
	SessionLife time.Duration // of sessions at containers; zero: eight hours
	Patience    time.Duration // without a heartbeat; zero: 30 s
	StepTimeout time.Duration // of making or ending one container; zero: 20 s
	Now         func() time.Time
	Logger      hclog.Logger
}

func (o Options) withDefaults() (Options, error) {
	or := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	or(&o.TokenLife, time.Hour)
	or(&o.SessionLife, 8*time.Hour)
	or(&o.Patience, 30*time.Second)
	or(&o.StepTimeout, 20*time.Second)
	if o.Limits.Containers == 0 {
		o.Limits.Containers = DefaultLimits().Containers
	}
	if o.Limits.Tickets == 0 {
		o.Limits.Tickets = DefaultLimits().Tickets
	}
	if o.Scheme == "" {
		o.Scheme = "https"
	}
	if o.Port == 0 {
		o.Port = map[string]int{"https": 443, "http": 80}[o.Scheme]
	}
	if o.Own == nil {
		o.Own = func() ([]netip.Addr, error) { return nil, nil }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	const longest = 31 * 24 * time.Hour
	switch {
	case o.Scheme != "https" && o.Scheme != "http" || o.Port < 1 || o.Port > 65535:
		return o, fmt.Errorf("cannot be reached by %q at port %d: choose https or http", o.Scheme, o.Port)
	case o.Limits.Containers < 1 || o.Limits.Tickets < 1:
		return o, errors.New("cannot use a limit of containers below one")
	case o.TokenLife < time.Minute || o.TokenLife > longest:
		return o, fmt.Errorf("cannot use %s as the life of hosting tokens: choose 1m to %s", o.TokenLife, longest)
	case o.SessionLife < time.Minute || o.SessionLife > longest:
		return o, fmt.Errorf("cannot use %s as the life of sessions at containers: choose 1m to %s", o.SessionLife, longest)
	case o.Patience < time.Second || o.Patience > time.Hour:
		return o, fmt.Errorf("cannot use %s as the patience with heartbeats: choose 1s to 1h", o.Patience)
	}
	_, err := id.ParseDomain(o.Domain)
	return o, err
}

// origin is the beginning of every address of a host name.
func (o *Options) origin(hostname string) string {
	if o.Scheme == "https" && o.Port == 443 || o.Scheme == "http" && o.Port == 80 {
		return o.Scheme + "://" + hostname
	}
	return o.Scheme + "://" + net.JoinHostPort(hostname, strconv.Itoa(o.Port))
}

// Organizations holds the registries of the organizations on this host, and the two loops that serve all of
// them: one notices heartbeats that stay away, one ends what could not be ended at once.
type Organizations struct {
	opts    Options
	passage *Passage
	wake    chan struct{} // something falls due earlier than the loop knows
	again   chan struct{} // something is left to be ended

	// changing is held while an organization is opened, closed or dropped, which reads and writes disks.
	changing sync.Mutex
	// claiming is held while containers get and lose their places, so that two never get one; taken before
	// every lock of a registry.
	claiming sync.Mutex

	mu         sync.Mutex // guards what follows; nothing else is locked under it
	registries map[id.Organization]*opened
	deadlines  deadlines
	stats      Stats // of what only counts

	access [Refused + 1]atomic.Uint64
}

type opened struct {
	*Registry
	epoch id.Epoch
}

// New checks the options and removes what a crash left half-written.
func New(o Options) (*Organizations, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	all := &Organizations{opts: o, passage: newPassage(o.Logger), wake: make(chan struct{}, 1), again: make(chan struct{}, 1), registries: map[id.Organization]*opened{}}
	if err := fsx.RemoveTemps(o.FS, "container.temps", o.Dir); err != nil {
		return nil, fmt.Errorf("cannot clear the journals of containers: %w", err)
	}
	return all, nil
}

func (o *Organizations) path(org id.Organization, epoch id.Epoch) string {
	return filepath.Join(o.opts.Dir, id.TermName(org, epoch))
}

// file is one journal on disk.
type file struct {
	org   id.Organization
	epoch id.Epoch
}

// files lists the journals on disk.
func (o *Organizations) files() ([]file, error) {
	entries, err := o.opts.FS.ReadDir("container.journals", o.opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list the journals of containers: %w", err)
	}
	var out []file
	for _, e := range entries {
		org, epoch, err := id.ParseTermName(e.Name())
		switch {
		case fsx.IsTemp(e.Name()): // it is being written
		case err != nil:
			return nil, fmt.Errorf("cannot use %s: %s is no journal of containers; move it away", o.opts.Dir, e.Name())
		default:
			out = append(out, file{org, epoch})
		}
	}
	return out, nil
}

// journals lists what is on disk of an organization.
func (o *Organizations) journals(org id.Organization) ([]id.Epoch, error) {
	all, err := o.files()
	var out []id.Epoch
	for _, f := range all {
		if f.org == org {
			out = append(out, f.epoch)
		}
	}
	return out, err
}

// Retain forgets every organization but these, at these epochs. It is called before any is opened.
func (o *Organizations) Retain(keep map[id.Organization]id.Epoch) error {
	o.changing.Lock()
	defer o.changing.Unlock()
	all, err := o.files()
	if err != nil {
		return err
	}
	for _, f := range all {
		if keep[f.org] != f.epoch {
			if err := o.remove(o.path(f.org, f.epoch)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Open returns the registry of an organization that was granted to this host at the epoch. What the host has
// on disk of the same epoch is newer than any section and is used; else the registry begins with the section
// (none: empty), and what is there of older epochs is removed.
func (o *Organizations) Open(org id.Organization, epoch id.Epoch, section []byte, c Clients, p People) (*Registry, error) {
	o.changing.Lock()
	defer o.changing.Unlock()
	if r := o.find(org); r != nil {
		if r.epoch == epoch {
			return r.Registry, nil
		}
		return nil, fault.New(fault.StaleEpoch, "organization %s is open at epoch %d, not %d: close it first", org, r.epoch, epoch)
	}
	found, err := o.journals(org)
	if err != nil {
		return nil, err
	}
	if newest := slices.Max(append(found, epoch)); newest > epoch {
		return nil, fault.New(fault.StaleEpoch, "organization %s was here at epoch %d, so epoch %d is over", org, newest, epoch)
	}
	r, err := o.open(org, o.path(org, epoch), section, c, p)
	if err != nil {
		return nil, err
	}
	for _, old := range found {
		if old < epoch {
			if err := o.remove(o.path(org, old)); err != nil {
				return nil, errors.Join(err, r.close())
			}
		}
	}
	o.mu.Lock()
	o.registries[org] = &opened{r, epoch}
	o.mu.Unlock()
	if len(r.unfinished()) > 0 {
		o.retry()
	}
	return r, nil
}

// open reads a registry, or begins it with the section.
func (o *Organizations) open(org id.Organization, path string, section []byte, c Clients, p People) (*Registry, error) {
	r := &Registry{
		organization: org, hostname: id.Hostname(org, o.opts.Domain), opts: &o.opts, logger: o.opts.Logger.With("organization", org),
		clients: c, people: p, host: o, fs: o.opts.FS, containers: map[ID]*entry{}, gone: map[string]*requestMark{}, tickets: newTickets(o.opts.Limits.Tickets),
	}
	var found bool
	var err error
	if r.journal, found, err = readJournal(o.opts.FS, path, r.logger); err != nil {
		return nil, err
	}
	if !found && len(section) > 0 {
		err = r.readSection(section)
	}
	for key, value := range r.journal.values {
		if err == nil {
			err = r.read(key, value)
		}
	}
	switch {
	case err != nil && found:
		return nil, errors.Join(fmt.Errorf("cannot use %s: %w; move it away to start from the last section", path, err), r.journal.close())
	case err != nil:
		return nil, fmt.Errorf("cannot restore the containers of organization %s: %w", org, err)
	}
	for _, key := range []struct {
		name string
		of   *[]byte
	}{{signingKey, &r.signing}, {cookieKey, &r.cookies}} {
		if len(*key.of) == keySize {
			continue
		}
		*key.of = newKey()
		if err := r.journal.put(key.name, *key.of, false); err != nil {
			return nil, errors.Join(err, r.journal.close())
		}
	}
	r.settle()
	return r, nil
}

// Get returns the open registry of an organization.
func (o *Organizations) Get(org id.Organization) (*Registry, bool) {
	if r := o.find(org); r != nil {
		return r.Registry, true
	}
	return nil, false
}

// At is Get for an organization at an epoch.
func (o *Organizations) At(org id.Organization, epoch id.Epoch) (*Registry, bool) {
	if r := o.find(org); r != nil && r.epoch == epoch {
		return r.Registry, true
	}
	return nil, false
}

func (o *Organizations) find(org id.Organization) *opened {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.registries[org]
}

func (o *Organizations) list() []*opened {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Values(o.registries))
}

// Close takes an organization out of memory that is open at an epoch, and keeps its journal. Nothing of it is
// good here from then on, whoever still has the registry.
func (o *Organizations) Close(org id.Organization, epoch id.Epoch) error {
	o.changing.Lock()
	defer o.changing.Unlock()
	return o.close(org, epoch)
}

func (o *Organizations) close(org id.Organization, epoch id.Epoch) error {
	r := o.find(org)
	if r == nil || r.epoch != epoch {
		return nil
	}
	err := r.close()
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.registries, org)
	return err
}

// Drop forgets an organization that has left this host at an epoch, with everything that is on disk of it up to
// that epoch.
func (o *Organizations) Drop(org id.Organization, epoch id.Epoch) error {
	o.changing.Lock()
	defer o.changing.Unlock()
	if err := o.close(org, epoch); err != nil {
		o.opts.Logger.Warn("the journal of an organization's containers did not close", "organization", org, "error", err)
	}
	found, err := o.journals(org)
	if err != nil {
		return err
	}
	for _, old := range found {
		if old > epoch {
			continue
		}
		if err := o.remove(o.path(org, old)); err != nil {
			return err
		}
	}
	return nil
}

func (o *Organizations) remove(path string) error {
	err := o.opts.FS.Remove("container.drop", path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(err, o.opts.FS.SyncDir("container.drop.sync", o.opts.Dir)); err != nil {
		return fmt.Errorf("cannot remove the containers of an organization: %w", err)
	}
	return nil
}

// CloseAll is Close for all of them.
func (o *Organizations) CloseAll() error {
	o.changing.Lock()
	defer o.changing.Unlock()
	var errs []error
	for _, r := range o.list() {
		errs = append(errs, o.close(r.organization, r.epoch))
	}
	return errors.Join(errs...)
}

// Stats are those of all organizations together.
func (o *Organizations) Stats() Stats {
	o.mu.Lock()
	out := o.stats
	all := slices.Collect(maps.Values(o.registries))
	o.mu.Unlock()
	now := o.opts.Now()
	for _, r := range all {
		r.mu.RLock()
		for _, e := range r.containers {
			out.States[e.state(e.beating(now))]++
		}
		r.mu.RUnlock()
	}
	for i := range o.access {
		out.Access[i] = o.access[i].Load()
	}
	out.Open, out.Ended = o.passage.figures()
	return out
}

func (o *Organizations) count(add func(*Stats)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	add(&o.stats)
}

// Reconsider has the containers ended whose projects are gone, and the open requests of those who may not be
// there any more, soon. It does not wait.
func (o *Organizations) Reconsider() {
	o.retry()
	signal(o.passage.wake)
}

func (o *Organizations) retry() { signal(o.again) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
