// Package tenant holds what this host's agent itself keeps for the organizations that are served here: who
// belongs to them, what these people may do, and their OAuth state. An organization is there at one epoch, from
// its grant until it has left; what the platform says of it takes effect at once, and what follows from it on
// disk soon after.
//
// Nothing is read or written for an organization before somebody asks for it, because taking one up is on the
// way of its first byte.
package tenant

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Tenant is one organization at one epoch. It is safe for use by several goroutines.
type Tenant struct {
	organization id.Organization
	epoch        id.Epoch
	reg          *Registry

	// view is what requests look at: replaced whole, so that they need no lock.
	view atomic.Pointer[view]

	// editing is held while the policy is changed or the store opened, which reads and writes disks; taken
	// before mu.
	editing sync.Mutex
	store   atomic.Pointer[oauth.Store] // changed under editing; nil: not open

	mu      sync.Mutex
	body    *api.Activate // what the platform said last
	version uint64
	touched bool // something of the organization is on disk, or somebody has asked for it
	dirty   bool // members were removed since the disk was told
	// removed are the people who left since the OAuth state was told. What they had ends, though they may be
	// members again.
	removed map[id.User]bool
	gone    bool // it has left, or is here at another epoch
}

// view is an organization's people and what they may do, at one moment.
type view struct {
	policy  *permission.Policy
	names   map[id.User]string
	version uint64
	changed chan struct{} // closed when there is another
}

// Organization is whose it is.
func (t *Tenant) Organization() id.Organization { return t.organization }

// Epoch is the grant's.
func (t *Tenant) Epoch() id.Epoch { return t.epoch }

// Hostname is the name that the organization is served under.
func (t *Tenant) Hostname() string { return id.Hostname(t.organization, t.reg.opts.Domain) }

// Name is what the platform calls the organization.
func (t *Tenant) Name() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.body.Name
}

// Policy is who may do what now.
func (t *Tenant) Policy() (*permission.Policy, error) {
	v, err := t.look()
	if err != nil {
		return nil, err
	}
	return v.policy, nil
}

// Member returns what a member is called, and false for anybody else. It implements oauth.Members.
func (t *Tenant) Member(user id.User) (string, bool) {
	v, err := t.look()
	if err != nil {
		return "", false
	}
	name, ok := v.names[user]
	return name, ok
}

// look gives the present view, which the first who asks makes.
func (t *Tenant) look() (*view, error) {
	if v := t.view.Load(); v != nil {
		return v, nil
	}
	t.editing.Lock()
	defer t.editing.Unlock()
	return t.load()
}

// load makes the view if there is none. editing is held.
func (t *Tenant) load() (*view, error) {
	if v := t.view.Load(); v != nil {
		return v, nil
	}
	stored, err := t.reg.readPermissions(t.organization, t.epoch)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return nil, t.over()
	}
	m, names, err := membership(t.body)
	if err != nil {
		return nil, err
	}
	v := &view{names: names, version: 1, changed: make(chan struct{})}
	if stored == nil {
		v.policy, err = permission.New(t.organization, m)
	} else {
		v.policy, err = permission.Restore(t.organization, m, stored)
	}
	if err != nil {
		return nil, err
	}
	t.touched = true
	t.view.Store(v)
	return v, nil
}

func (t *Tenant) over() error {
	return fault.New(fault.StaleEpoch, "organization %s is not served here at epoch %s any more: ask again", t.organization, t.epoch)
}

// membership reads what the platform says.
func membership(body *api.Activate) (permission.Membership, map[id.User]string, error) {
	m := permission.Membership{Members: make(map[id.User]permission.RoleName, len(body.Members))}
	names := make(map[id.User]string, len(body.Members))
	for _, member := range body.Members {
		user, err := id.ParseUser(member.UserID)
		if err != nil {
			return m, nil, err
		}
		m.Members[user] = permission.RoleName(member.Role)
		names[user] = member.Username
	}
	for _, p := range body.Projects {
		project, err := id.ParseProject(p.ProjectID)
		if err != nil {
			return m, nil, err
		}
		m.Projects = append(m.Projects, project)
	}
	return m, names, nil
}

// update takes over what the platform says now. What was taken from people is taken at once; the worker
// makes it last. It reports whether there is something to do on disk.
func (t *Tenant) update(body *api.Activate, version uint64) (work bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone || version <= t.version {
		return false, nil
	}
	v := t.view.Load()
	if v != nil || t.touched {
		t.noteRemoved(t.body, body)
	}
	t.body, t.version = body, version
	if v == nil {
		t.dirty = t.dirty || t.touched
		return t.dirty, nil
	}
	m, names, err := membership(body)
	if err == nil {
		var next *permission.Policy
		if next, err = v.policy.WithMembership(m); err == nil {
			t.show(v, &view{policy: next, names: names})
		}
	}
	if err != nil {
		// Whoever was removed must not stay because something else is not understood: nobody gets in.
		t.show(v, &view{policy: &permission.Policy{}, names: map[id.User]string{}})
	}
	t.dirty = true
	return true, err
}

// noteRemoved notes who is no member any more. mu is held.
func (t *Tenant) noteRemoved(before, now *api.Activate) {
	stays := make(map[string]bool, len(now.Members))
	for _, member := range now.Members {
		stays[member.UserID] = true
	}
	for _, member := range before.Members {
		if stays[member.UserID] {
			continue
		}
		if t.removed == nil {
			t.removed = map[id.User]bool{}
		}
		t.removed[id.User(member.UserID)] = true
	}
}

// keepMembers ends the tokens of whoever is no member or was none in between. editing is held.
func (t *Tenant) keepMembers(ctx context.Context, store *oauth.Store) error {
	t.mu.Lock()
	left := t.removed
	t.removed = nil
	t.mu.Unlock()
	err := store.KeepMembers(ctx, func(user id.User) bool { return t.isMember(user) && !left[user] })
	if err != nil && len(left) > 0 {
		t.mu.Lock()
		defer t.mu.Unlock()
		maps.Copy(left, t.removed)
		t.removed = left
	}
	return err
}

// Edit changes the organization's own roles and grants. The change takes effect when it is on disk.
func (t *Tenant) Edit(change func(*permission.Policy) (*permission.Policy, error)) error {
	t.editing.Lock()
	defer t.editing.Unlock()
	for written := false; ; written = true {
		v, err := t.load()
		if err != nil {
			return err
		}
		next, err := change(v.policy)
		if err != nil || next == v.policy {
			if written { // what was decided before the platform changed the members does not hold
				err = errors.Join(err, t.reg.writePermissions(t.organization, t.epoch, v.policy.Section()))
			}
			return err
		}
		if err := t.reg.writePermissions(t.organization, t.epoch, next.Section()); err != nil {
			return err
		}
		if done, err := t.replace(v, &view{policy: next, names: v.names}); done || err != nil {
			return err
		}
	}
}

// replace makes a view the present one, unless what it was made from is not that any more: then whoever made
// it decides again, because he may have lost the right to.
func (t *Tenant) replace(from, to *view) (done bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return false, errors.Join(t.over(), t.reg.removePermissions(t.organization, t.epoch))
	}
	if t.view.Load() != from {
		return false, nil
	}
	t.show(from, to)
	return true, nil
}

// show replaces what requests look at, and wakes who waits for that. mu is held.
func (t *Tenant) show(from, to *view) {
	to.version, to.changed = from.version+1, make(chan struct{})
	t.view.Store(to)
	close(from.changed)
}

// Version rises whenever somebody may do more or less than before; changed is closed when there is another one.
func (t *Tenant) Version() (version uint64, changed <-chan struct{}, err error) {
	v, err := t.look()
	if err != nil {
		return 0, nil, err
	}
	return v.version, v.changed, nil
}

// OAuth opens the organization's OAuth state, or gives what is open.
func (t *Tenant) OAuth(ctx context.Context) (*oauth.Store, error) {
	if s := t.store.Load(); s != nil {
		return s, nil
	}
	t.editing.Lock()
	defer t.editing.Unlock()
	if s := t.store.Load(); s != nil {
		return s, nil
	}
	if _, err := t.load(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	gone := t.gone
	t.mu.Unlock()
	if gone {
		return nil, t.over()
	}
	s, err := t.reg.opts.OAuth.Open(t.organization, t.epoch, nil)
	if err != nil {
		return nil, err
	}
	// Who was removed while nobody looked must not come back with what the disk still has of him.
	if err := t.keepMembers(ctx, s); err != nil {
		return nil, err
	}
	t.store.Store(s)
	return s, nil
}

func (t *Tenant) isMember(user id.User) bool {
	v := t.view.Load()
	if v == nil {
		return false
	}
	_, ok := v.names[user]
	return ok
}

// settle makes last on disk what update took from people.
func (t *Tenant) settle(ctx context.Context) error {
	store, err := t.OAuth(ctx)
	if err != nil {
		return err
	}
	t.editing.Lock()
	defer t.editing.Unlock()
	t.mu.Lock()
	t.dirty = false
	gone, v := t.gone, t.view.Load()
	t.mu.Unlock()
	if gone || v == nil {
		return nil
	}
	if err = t.keepMembers(ctx, store); err == nil {
		err = t.reg.writePermissions(t.organization, t.epoch, v.policy.Section())
	}
	if err != nil {
		t.mu.Lock()
		t.dirty = true
		t.mu.Unlock()
	}
	return err
}

// Dirty reports whether the disk still has what was taken from people.
func (t *Tenant) Dirty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dirty
}
