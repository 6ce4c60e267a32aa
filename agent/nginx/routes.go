package nginx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// routes is the table of routes and the links that nginx reads. Links live as long as nginx can: they are
// not durable, because after a start of the machine the agent makes them anew from its journal.
type routes struct {
	fs    fsx.FS
	l     layout
	locks keyedLocks

	mu    sync.Mutex // guards table
	table map[id.Organization]Target
	// A route is changed only by the holder of its organization's lock, table and link together, so that
	// the drift watch never repairs a switch that is on its way.
}

func newRoutes(f fsx.FS, l layout) *routes {
	return &routes{fs: f, l: l, table: map[id.Organization]Target{}, locks: keyedLocks{held: map[id.Organization]chan struct{}{}}}
}

func (r *routes) get(org id.Organization) (Target, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.table[org]
	return t, ok
}

func (r *routes) set(org id.Organization, t Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table[org] = t
}

func (r *routes) drop(org id.Organization) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.table, org)
}

func (r *routes) all() map[id.Organization]Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.table)
}

func (r *routes) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.table)
}

// sample returns at most n organizations that have a route; map order is random enough.
func (r *routes) sample(n int) []id.Organization {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []id.Organization
	for org := range r.table {
		if len(out) == n {
			break
		}
		out = append(out, org)
	}
	return out
}

// gateways are those that some route leads to.
func (r *routes) gateways() map[id.Gateway]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[id.Gateway]bool{}
	for _, t := range r.table {
		out[t.Gateway] = true
	}
	return out
}

// load fills the table from the links at start. What is not exactly a route of ours or its slot is
// removed.
func (r *routes) load() error {
	if _, err := r.fs.Lstat("nginx.route.stat", r.l.slotFile()); errors.Is(err, fs.ErrNotExist) {
		if err := r.fs.Write("nginx.route.slotfile", r.l.slotFile(), nil, 0o600); err != nil {
			return fmt.Errorf("cannot write %s: %w", r.l.slotFile(), err)
		}
	}
	entries, err := r.fs.ReadDir("nginx.route.list", r.l.routes())
	if err != nil {
		return fmt.Errorf("cannot list routes: %w", err)
	}
	slots := map[Target]bool{} // true: some route leads to it
	for _, entry := range entries {
		if target, ok := parseLink(entry.Name()); ok && entry.Type().IsRegular() {
			slots[target] = false
			continue
		}
		org, err := id.ParseOrganization(entry.Name())
		target, ok := Target{}, false
		if err == nil && string(org) == entry.Name() {
			text, err := r.fs.Readlink("nginx.route.read", r.l.route(org))
			if err == nil {
				target, ok = parseLink(text)
			}
		}
		if !ok {
			if err := r.fs.RemoveAll("nginx.leftovers.route", filepath.Join(r.l.routes(), entry.Name())); err != nil {
				return fmt.Errorf("cannot remove leftover %s of the routes: %w", entry.Name(), err)
			}
			continue
		}
		r.table[org] = target
	}
	for _, target := range r.table {
		if _, exists := slots[target]; !exists {
			if err := r.makeSlot(target); err != nil {
				return fmt.Errorf("cannot make the slot of a route: %w", err)
			}
		}
		slots[target] = true
	}
	for target, used := range slots {
		if !used {
			_ = r.fs.Remove("nginx.route.forget", r.l.slot(target)) // costs only a name
		}
	}
	return nil
}

// place makes the link of an organization lead to a target, in one rename over the one that is there. Where
// none is expected it is made at once.
func (r *routes) place(org id.Organization, t Target, over bool) error {
	if err := r.makeSlot(t); err != nil {
		return err
	}
	if !over {
		err := r.fs.Symlink("nginx.route.symlink", link(t), r.l.route(org))
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return fsx.SymlinkAtomic(r.fs, "nginx.route", link(t), r.l.route(org))
}

// remove takes the link away.
func (r *routes) remove(org id.Organization) error {
	err := r.fs.Remove("nginx.route.remove", r.l.route(org))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// inPlace tells whether the link of an organization is what the table says.
func (r *routes) inPlace(org id.Organization) bool {
	want, has := r.get(org)
	got, err := r.fs.Readlink("nginx.route.read", r.l.route(org))
	if !has {
		return errors.Is(err, fs.ErrNotExist)
	}
	return err == nil && got == link(want)
}

// proofText is what nginx answers for a route that leads to t.
func proofText(t Target) string { return string(t.Gateway) + " " + t.Epoch.String() }

func checkTarget(org id.Organization, t Target) error {
	if got, err := id.ParseOrganization(string(org)); err != nil || got != org {
		return fault.New(fault.InvalidRequest, "cannot route organization %q: want a lower-case UUID", org)
	}
	if _, err := id.ParseGateway(string(t.Gateway)); err != nil {
		return fault.New(fault.InvalidRequest, "cannot route organization %s: %v", org, err)
	}
	if t.Epoch == 0 {
		return fault.New(fault.InvalidRequest, "cannot route organization %s to gateway %s: the epoch is missing", org, t.Gateway)
	}
	return nil
}

// Route leads an organization's requests to a gateway and epoch: one rename, then nginx's own word that the
// name leads there now. On failure of either the previous target is put back. An epoch below the current
// one is refused.
func (e *Engine) Route(ctx context.Context, org id.Organization, t Target) error {
	return e.lead(ctx, org, t, true)
}

// Lead is Route without nginx's word, for a caller that asks nginx for the organization itself before it
// relies on the route.
func (e *Engine) Lead(ctx context.Context, org id.Organization, t Target) error {
	return e.lead(ctx, org, t, false)
}

func (e *Engine) lead(ctx context.Context, org id.Organization, t Target, proven bool) error {
	if err := checkTarget(org, t); err != nil {
		return err
	}
	unlock, err := e.routes.locks.lock(ctx, org)
	if err != nil {
		return fault.Wrap(fault.RouteApplyFailed, err, "cannot route organization %s: another change of its route did not end in time", org)
	}
	defer unlock()
	before, had := e.routes.get(org)
	if had && t.Epoch < before.Epoch {
		return fault.New(fault.StaleEpoch, "cannot route organization %s to epoch %s: its route has epoch %s", org, t.Epoch, before.Epoch)
	}
	if !e.names(t.Gateway) {
		return fault.New(fault.RouteApplyFailed, "cannot route organization %s: the live nginx configuration does not name gateway %s", org, t.Gateway)
	}
	e.routes.set(org, t)
	err = e.routes.place(org, t, had)
	if err == nil && proven {
		err = e.proveRoute(ctx, org, proofText(t))
	}
	if err != nil {
		if backErr := e.restoreRoute(org, before, had); backErr != nil {
			err = errors.Join(err, fmt.Errorf("cannot put the previous route back: %w", backErr))
		}
		if before != t {
			e.routes.forget(t)
		}
		return fault.Wrap(fault.RouteApplyFailed, err, "cannot route organization %s to gateway %s; its previous route is in place", org, t.Gateway)
	}
	if had && before != t {
		e.routes.forget(before)
	}
	return nil
}

// names tells whether the live generation has an upstream for the gateway.
func (e *Engine) names(g id.Gateway) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.st.slots[g]
	return ok
}

func (e *Engine) restoreRoute(org id.Organization, before Target, had bool) error {
	if had {
		e.routes.set(org, before)
		return e.routes.place(org, before, true)
	}
	e.routes.drop(org)
	return e.routes.remove(org)
}

// Unroute ends an organization's route if it leads to this target; a route that leads elsewhere belongs
// to a later grant and is left alone. It returns when nginx has answered 503 for the name, or when no
// nginx accepts connections: the link is gone for good, and nginx reads it on every request.
func (e *Engine) Unroute(ctx context.Context, org id.Organization, t Target) error {
	if err := checkTarget(org, t); err != nil {
		return err
	}
	unlock, err := e.routes.locks.lock(ctx, org)
	if err != nil {
		return fault.Wrap(fault.RouteApplyFailed, err, "cannot end the route of organization %s: another change of it did not end in time", org)
	}
	defer unlock()
	current, has := e.routes.get(org)
	if has && current != t {
		return nil
	}
	fail := func(err error) error {
		return fault.Wrap(fault.RouteApplyFailed, err, "cannot end the route of organization %s to gateway %s", org, t.Gateway)
	}
	// From here on the route is not wanted, whether or not nginx can confirm it: the caller tries again.
	e.routes.drop(org)
	if err := e.routes.remove(org); err != nil {
		e.routes.set(org, t)
		return fail(err)
	}
	if err := e.proveRoute(ctx, org, unrouted); err != nil && !isRefused(err) {
		return fail(err)
	}
	e.routes.forget(t)
	e.poke() // its gateway's slot may have been kept only for this route
	return nil
}

// proveRoute asks nginx where the name leads. nginx follows the link on every request, so the first
// answer counts; only a connection that a reload has closed is tried again.
func (e *Engine) proveRoute(ctx context.Context, org id.Organization, want string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := e.fs.Step("nginx.route.prove"); err != nil {
		return err
	}
	var err error
	for range 3 {
		var got string
		if got, err = e.web.routeOf(ctx, e.base(), org); err == nil {
			if got == want {
				return nil
			}
			if e.routes.inPlace(org) {
				e.renewWorkers("the link is right and nginx leads elsewhere")
			}
			return fmt.Errorf("nginx leads the name of organization %s to %q instead of %q", org, got, want)
		}
		if ctx.Err() != nil || isRefused(err) {
			break
		}
	}
	return fmt.Errorf("cannot ask nginx where the name of organization %s leads: %w", org, err)
}

// Routes returns a copy of the table.
func (e *Engine) Routes() map[id.Organization]Target { return e.routes.all() }

// Retain makes the routes exactly those of keep: the start of an agent that knows which grants it has.
// It does not ask nginx.
func (e *Engine) Retain(keep map[id.Organization]Target) {
	changed := 0
	every := e.routes.all()
	maps.Copy(every, keep)
	for org := range every {
		if e.retainOne(org, keep) {
			changed++
		}
	}
	if changed == 0 {
		return
	}
	e.log.Info("routes brought in line with the assignment", "changed", changed, "routes", len(keep))
	e.poke()
}

func (e *Engine) retainOne(org id.Organization, keep map[id.Organization]Target) bool {
	unlock, err := e.routes.locks.lock(context.Background(), org)
	if err != nil {
		return false
	}
	defer unlock()
	before, had := e.routes.get(org)
	t, wanted := keep[org]
	if wanted {
		if err := checkTarget(org, t); err != nil {
			e.log.Error("cannot keep a route", "organization", org, "error", err)
			return false
		}
		e.routes.set(org, t)
		if had && before == t && e.routes.inPlace(org) {
			return false
		}
		err = e.routes.place(org, t, had)
	} else {
		e.routes.drop(org)
		err = e.routes.remove(org)
	}
	if err != nil {
		e.log.Error("cannot bring a route in line", "organization", org, "error", err)
	} else if had && before != t {
		e.routes.forget(before)
	}
	return true
}

// repairRoute puts one link back to what the table says. It reports whether it had to.
func (e *Engine) repairRoute(ctx context.Context, org id.Organization) bool {
	unlock, err := e.routes.locks.lock(ctx, org)
	if err != nil {
		return false
	}
	defer unlock()
	if e.routes.inPlace(org) {
		return false
	}
	if t, has := e.routes.get(org); has {
		// Something that is no link can stand where the route belongs.
		if _, linkErr := e.routes.fs.Readlink("nginx.route.read", e.l.route(org)); linkErr != nil {
			_ = e.fs.RemoveAll("nginx.drift.remove", e.l.route(org))
		}
		err = e.routes.place(org, t, true)
	} else {
		err = e.fs.RemoveAll("nginx.drift.remove", e.l.route(org))
	}
	if err != nil {
		e.log.Error("cannot repair a route", "organization", org, "error", err)
		return false
	}
	e.log.Warn("a route was changed by somebody else and has been put back", "organization", org)
	e.event(Event{Type: DriftRepaired, Organization: org, Part: "routes/" + string(org), Reason: "changed by somebody else"})
	return true
}

// scanRoutes compares every link with the table, removes what is no route and asks nginx about some. It is
// for the watch that lost events, and every few minutes for what the watch cannot see.
func (e *Engine) scanRoutes(ctx context.Context) {
	entries, err := e.fs.ReadDir("nginx.route.list", e.l.routes())
	if err != nil {
		e.log.Error("cannot list routes", "error", err)
		return
	}
	suspects := e.routes.all()
	for _, entry := range entries {
		if _, ok := parseLink(entry.Name()); ok && entry.Type().IsRegular() {
			continue // in use, or of a switch on its way
		}
		org, err := id.ParseOrganization(entry.Name())
		if err == nil && string(org) == entry.Name() {
			suspects[org] = Target{}
			continue
		}
		// A temporary link of a switch on its way is younger than this.
		info, err := entry.Info()
		if err == nil && (!fsx.IsTemp(entry.Name()) || time.Since(info.ModTime()) > time.Minute) {
			_ = e.fs.RemoveAll("nginx.drift.remove", filepath.Join(e.l.routes(), entry.Name()))
			e.event(Event{Type: DriftRepaired, Part: "routes/" + strings.ToValidUTF8(entry.Name(), "?"), Reason: "does not belong there"})
		}
	}
	looked := 0
	for org := range suspects {
		if looked++; looked%scanStride == 0 && !sleep.For(ctx, scanPause) {
			return
		}
		e.repairRoute(ctx, org)
		if t, has := e.routes.get(org); has {
			if _, err := e.fs.Lstat("nginx.route.stat", e.l.slot(t)); errors.Is(err, fs.ErrNotExist) {
				if err := e.routes.makeSlot(t); err == nil {
					e.event(Event{Type: DriftRepaired, Organization: org, Part: "routes/" + link(t), Reason: "removed by somebody else"})
				}
			}
		}
	}
	if e.workersStandElsewhere() {
		e.renewWorkers("its workers stand in another directory")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, silence) // what takes connections and does not answer would keep these routes locked
	defer cancel()
	for _, org := range e.routes.sample(canarySample) {
		var wrong *wrongAnswer
		if err := e.tryRoute(ctx, e.base(), org); errors.As(err, &wrong) {
			e.renewWorkers(err.Error())
			return
		}
	}
}
