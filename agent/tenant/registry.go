package tenant

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Options of a Registry.
type Options struct {
	Dir    string // of the organizations' permissions, one file each; it exists
	FS     fsx.FS // reaches Dir
	Domain string
	OAuth  *oauth.Organizations
	// Keepers hold more of organizations, from the time on at which somebody has asked for their OAuth.
	Keepers []Keeper
	Logger  hclog.Logger
}

// Keeper holds something of organizations that leaves with them.
type Keeper interface {
	// Retain forgets every organization but these, at these epochs. It is called before any is taken up.
	Retain(keep map[id.Organization]id.Epoch) error
	// Close ends what is in memory of an organization at an epoch, so that nothing of it is good any more.
	Close(org id.Organization, epoch id.Epoch) error
	// Drop forgets an organization that was here at an epoch, on disk too.
	Drop(org id.Organization, epoch id.Epoch) error
}

// Follower is told what becomes of organizations. It must not block.
type Follower interface {
	// Changed says that what the platform says of an organization is another: its members above all.
	Changed(t *Tenant)
	// Left says that an organization is not served here at that epoch any more.
	Left(org id.Organization, epoch id.Epoch)
}

// Registry is all organizations that are served on this host.
type Registry struct {
	opts Options
	work chan struct{} // capacity 1: a tenant is dirty

	mu        sync.Mutex
	followers []Follower
	tenants   map[id.Organization]*Tenant
	onDisk    map[id.Organization]bool // those that Retain kept
}

// New makes a registry without organizations.
func New(o Options) (*Registry, error) {
	if o.OAuth == nil || o.FS == nil || o.Logger == nil {
		return nil, errors.New("cannot keep organizations without OAuth state, file system and logger")
	}
	if err := fsx.RemoveTemps(o.FS, "tenant.temps", o.Dir); err != nil {
		return nil, fmt.Errorf("cannot clean up the permissions of organizations: %w", err)
	}
	return &Registry{opts: o, work: make(chan struct{}, 1), tenants: map[id.Organization]*Tenant{}, onDisk: map[id.Organization]bool{}}, nil
}

// Follow adds somebody who is told.
func (r *Registry) Follow(f Follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.followers = append(r.followers, f)
}

func (r *Registry) followed() []Follower {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.followers)
}

// Retain forgets every organization but these, at these epochs.
func (r *Registry) Retain(keep map[id.Organization]id.Epoch) error {
	entries, err := r.opts.FS.ReadDir("tenant.retain", r.opts.Dir)
	if err != nil {
		return fmt.Errorf("cannot list the permissions of organizations: %w", err)
	}
	for _, e := range entries {
		org, epoch, err := id.ParseTermName(e.Name())
		if err != nil || keep[org] == epoch {
			continue
		}
		if err := r.opts.FS.Remove("tenant.retain.remove", filepath.Join(r.opts.Dir, e.Name())); err != nil {
			return fmt.Errorf("cannot remove the permissions of an organization that has left: %w", err)
		}
	}
	if err := r.opts.OAuth.Retain(keep); err != nil {
		return err
	}
	for _, k := range r.opts.Keepers {
		if err := k.Retain(keep); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for org := range keep {
		r.onDisk[org] = true
	}
	return nil
}

// Serve takes up an organization. It does not wait.
func (r *Registry) Serve(body *api.Activate, version uint64) {
	org, epoch := id.Organization(body.OrganizationID), id.Epoch(body.Epoch)
	r.mu.Lock()
	old := r.tenants[org]
	if old != nil && old.epoch >= epoch {
		r.mu.Unlock()
		if old.epoch == epoch {
			r.update(old, body, version)
		}
		return
	}
	t := &Tenant{organization: org, epoch: epoch, reg: r, body: body, version: version, touched: r.onDisk[org] || old != nil}
	r.tenants[org] = t
	r.mu.Unlock()
	if old != nil {
		old.end()
		r.left(org, old.epoch)
	}
}

// Update tells what the platform says now.
func (r *Registry) Update(body *api.Activate, version uint64) {
	r.mu.Lock()
	t := r.tenants[id.Organization(body.OrganizationID)]
	r.mu.Unlock()
	if t != nil && t.epoch == id.Epoch(body.Epoch) {
		r.update(t, body, version)
	}
}

func (r *Registry) update(t *Tenant, body *api.Activate, version uint64) {
	work, err := t.update(body, version)
	if err != nil {
		r.opts.Logger.Error("what the platform says of an organization is not understood: nobody is let in", "organization", t.organization, "error", err)
	}
	if work {
		for _, f := range r.followed() {
			f.Changed(t)
		}
		r.poke()
	}
}

// Leave forgets an organization that was served at an epoch, with everything that is on disk of it.
func (r *Registry) Leave(_ context.Context, org id.Organization, epoch id.Epoch) error {
	r.mu.Lock()
	t := r.tenants[org]
	if t != nil && t.epoch != epoch {
		r.mu.Unlock()
		return nil
	}
	delete(r.tenants, org)
	untouched := t != nil && !r.onDisk[org]
	r.mu.Unlock()
	if t != nil {
		touched := t.end()
		r.left(org, epoch)
		if untouched && !touched {
			return nil // nobody has ever asked for it: nothing is on disk
		}
	}
	if err := r.opts.OAuth.Drop(org); err != nil {
		return err
	}
	for _, k := range r.opts.Keepers {
		if err := k.Drop(org, epoch); err != nil {
			return err
		}
	}
	if err := r.removePermissions(org, epoch); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.onDisk, org)
	r.mu.Unlock()
	return nil
}

func (r *Registry) left(org id.Organization, epoch id.Epoch) {
	for _, f := range r.followed() {
		f.Left(org, epoch)
	}
}

// end makes a tenant good for nothing, and tells whether there may be something of it on disk. It waits for
// whoever is about to open or change it.
func (t *Tenant) end() (touched bool) {
	t.mu.Lock()
	t.gone = true
	t.mu.Unlock()
	t.editing.Lock()
	defer t.editing.Unlock()
	t.mu.Lock()
	if v := t.view.Load(); v != nil {
		t.show(v, &view{policy: &permission.Policy{}})
	} else {
		t.view.Store(&view{policy: &permission.Policy{}, changed: make(chan struct{})})
	}
	t.mu.Unlock()
	if t.store.Swap(nil) != nil {
		for _, k := range t.reg.opts.Keepers {
			if err := k.Close(t.organization, t.epoch); err != nil {
				t.reg.opts.Logger.Warn("what is kept of an organization did not close", "organization", t.organization, "error", err)
			}
		}
		if err := t.reg.opts.OAuth.Close(t.organization); err != nil {
			t.reg.opts.Logger.Warn("the OAuth journal of an organization did not close", "organization", t.organization, "error", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.touched
}

// Get gives the organization that a request is for, by the epoch that nginx routed it with.
func (r *Registry) Get(org id.Organization, epoch id.Epoch) (*Tenant, error) {
	r.mu.Lock()
	t := r.tenants[org]
	r.mu.Unlock()
	if t == nil || t.epoch != epoch {
		return nil, fault.New(fault.StaleEpoch, "organization %s is not served here at epoch %s: ask again", org, epoch)
	}
	return t, nil
}

// Find gives an organization at whatever epoch it is served.
func (r *Registry) Find(org id.Organization) (*Tenant, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.tenants[org]
	return t, ok
}

func (r *Registry) poke() {
	select {
	case r.work <- struct{}{}:
	default:
	}
}

// Run makes last on disk what the platform took from people, until ctx ends. What fails is tried again.
func (r *Registry) Run(ctx context.Context) {
	const first, longest = 100 * time.Millisecond, 10 * time.Second
	pause := first
	for {
		failed := false
		for _, t := range r.dirty() {
			if err := t.settle(ctx); err != nil && ctx.Err() == nil && !fault.Is(err, fault.StaleEpoch) {
				failed = true
				r.opts.Logger.Error("the removal of members is not yet on disk; it holds already", "organization", t.organization, "error", err)
			}
		}
		var again <-chan time.Time
		if failed {
			again = time.After(pause)
			pause = min(2*pause, longest)
		} else {
			pause = first
		}
		select {
		case <-ctx.Done():
			return
		case <-r.work:
		case <-again:
		}
	}
}

func (r *Registry) dirty() []*Tenant {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*Tenant
	for _, t := range r.tenants {
		t.mu.Lock()
		if t.dirty && !t.gone {
			out = append(out, t)
		}
		t.mu.Unlock()
	}
	return out
}

func (r *Registry) file(org id.Organization, epoch id.Epoch) string {
	return filepath.Join(r.opts.Dir, id.TermName(org, epoch))
}

// readPermissions gives the stored section; nil: there is none.
func (r *Registry) readPermissions(org id.Organization, epoch id.Epoch) ([]byte, error) {
	data, err := r.opts.FS.ReadFile("tenant.permissions.read", r.file(org, epoch))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the permissions of organization %s: %w", org, err)
	}
	return data, nil
}

func (r *Registry) writePermissions(org id.Organization, epoch id.Epoch, section []byte) error {
	if err := fsx.WriteAtomic(r.opts.FS, "tenant.permissions", r.file(org, epoch), section, 0o600); err != nil {
		return fmt.Errorf("cannot keep the permissions of organization %s: %w", org, err)
	}
	return nil
}

func (r *Registry) removePermissions(org id.Organization, epoch id.Epoch) error {
	if err := r.opts.FS.Remove("tenant.permissions.remove", r.file(org, epoch)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the permissions of organization %s: %w", org, err)
	}
	return nil
}
