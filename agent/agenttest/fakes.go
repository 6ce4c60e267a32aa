package agenttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Script decides about one call: nil lets it happen, an error makes it fail without an effect. It may
// block until ctx ends.
type Script func(ctx context.Context) error

// World is what outlives an agent: the processes, nginx and its routes. Its fields are switches; a
// test sets them under Do.
type World struct {
	mu sync.Mutex

	// Fail is asked before a call has an effect, by its name: route, unroute, get, slot, start, stop,
	// health, activate, deactivate, list.
	Fail map[string]Script
	// Answer changes what nginx answers for an organization.
	Answer func(org id.Organization, status int, header http.Header, body *api.GatewayHealth)
	// Health changes what a gateway answers to the question for its health.
	Health func(h *api.GatewayHealth)

	log       []string
	pid       int
	processes map[int]*process
	exited    chan struct{} // closed and replaced when a process ends
	routes    map[id.Organization]reconcile.Route
	slots     map[id.Gateway]reconcile.Slot
	faults    []string
}

// process is a scripted gateway.
type process struct {
	driver.Process
	spec driver.Spec
	boot string
	held *api.Activate
	over bool // it had an organization, and takes no other
	exit *driver.Exit
}

// NewWorld makes an empty one.
func NewWorld() *World {
	return &World{
		Fail: make(map[string]Script), pid: 1000, processes: make(map[int]*process), exited: make(chan struct{}),
		routes: make(map[id.Organization]reconcile.Route), slots: make(map[id.Gateway]reconcile.Slot),
	}
}

// Do changes switches while nothing else looks at them.
func (w *World) Do(f func(w *World)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

// Log is what happened, in order; with a filter only entries that begin with one of the words.
func (w *World) Log(words ...string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, l := range w.log {
		if len(words) == 0 || slices.ContainsFunc(words, func(p string) bool { return strings.HasPrefix(l, p) }) {
			out = append(out, l)
		}
	}
	return out
}

// Faults is every breach of a rule that the agent must never break.
func (w *World) Faults() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.faults)
}

// Route is where an organization's name leads.
func (w *World) Route(org id.Organization) (reconcile.Route, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.routes[org]
	return r, ok
}

// Slot is what nginx was told of a gateway last.
func (w *World) Slot(g id.Gateway) (reconcile.Slot, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.slots[g]
	return s, ok
}

// Routes is how many organizations are routed.
func (w *World) Routes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.routes)
}

// Running is the processes of a gateway that run.
func (w *World) Running(g id.Gateway) []driver.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []driver.Process
	for _, p := range w.processes {
		if p.Gateway == g && p.exit == nil {
			out = append(out, p.Process)
		}
	}
	return out
}

// Held is the organization and epoch that a process has.
func (w *World) Held(pid int) (org string, epoch uint64, members int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.processes[pid]; p != nil && p.held != nil {
		return p.held.OrganizationID, p.held.Epoch, len(p.held.Members)
	}
	return "", 0, 0
}

// End makes a process end.
func (w *World) End(pid int, e driver.Exit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.processes[pid]; p != nil {
		w.end(p, e)
	}
}

// Stray starts a process that no agent knows.
func (w *World) Stray(g id.Gateway) driver.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.spawn(driver.Spec{Gateway: g}).Process
}

func (w *World) end(p *process, e driver.Exit) {
	if p.exit == nil {
		p.exit = &e
		close(w.exited)
		w.exited = make(chan struct{})
	}
}

func (w *World) spawn(spec driver.Spec) *process {
	w.pid++
	p := &process{
		Process: driver.Process{Gateway: spec.Gateway, PID: w.pid, StartTime: uint64(w.pid), MachineBoot: "boot"},
		spec:    spec, boot: fmt.Sprintf("boot-%d", w.pid),
	}
	w.processes[w.pid] = p
	return p
}

func (w *World) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func (w *World) breach(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// Life is the world as one run of an agent reaches it. After its end nothing that the agent still does
// has an effect, as if it had been killed.
type Life struct {
	*World
	dead func() bool
}

var errDead = errors.New("this run of the agent is over")

// enter asks the scripts; on success mu is held.
func (l Life) enter(ctx context.Context, name string) error {
	l.mu.Lock()
	script := l.Fail[name]
	l.mu.Unlock()
	if script != nil {
		if err := script(ctx); err != nil {
			return err
		}
	}
	if l.dead() {
		return errDead
	}
	l.mu.Lock()
	return nil
}

// SetSlots implements reconcile.Nginx.
func (l Life) SetSlots(slots []reconcile.Slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.slots)
	for _, s := range slots {
		l.slots[s.Gateway] = s
	}
}

// WaitSlot implements reconcile.Nginx.
func (l Life) WaitSlot(ctx context.Context, g id.Gateway) error {
	if err := l.enter(ctx, "slot"); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if _, ok := l.slots[g]; !ok {
		return fmt.Errorf("no slot of %s", g)
	}
	return nil
}

// Route implements reconcile.Nginx.
func (l Life) Route(ctx context.Context, org id.Organization, to reconcile.Route) error {
	if err := l.enter(ctx, "route"); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if _, ok := l.slots[to.Gateway]; !ok {
		l.breach("route to %s, which has no slot", to.Gateway)
	}
	l.routes[org] = to
	l.note("route %s %d", to.Gateway, to.Epoch)
	return nil
}

// Unroute implements reconcile.Nginx.
func (l Life) Unroute(ctx context.Context, org id.Organization, from reconcile.Route) error {
	if err := l.enter(ctx, "unroute"); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if l.routes[org] == from {
		delete(l.routes, org)
	}
	l.note("unroute %s %d", from.Gateway, from.Epoch)
	return nil
}

// Retain implements reconcile.Nginx.
func (l Life) Retain(keep map[id.Organization]reconcile.Route) {
	if l.dead() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.routes)
	for org, r := range keep {
		l.routes[org] = r
	}
}

// Get implements reconcile.Nginx.
func (l Life) Get(ctx context.Context, org id.Organization, _ string) (*http.Response, error) {
	if err := l.enter(ctx, "get"); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	status, header, body := http.StatusServiceUnavailable, http.Header{}, &api.GatewayHealth{}
	if r, ok := l.routes[org]; ok {
		status = http.StatusBadGateway
		header.Set(api.HeaderGateway, string(r.Gateway))
		header.Set(api.HeaderEpoch, r.Epoch.String())
		for _, p := range l.processes {
			if p.Gateway == r.Gateway && p.exit == nil && p.held != nil && p.held.Epoch == uint64(r.Epoch) {
				status, body = http.StatusOK, p.health()
			}
		}
	}
	if l.Answer != nil {
		l.Answer(org, status, header, body)
		if s := header.Get("Test-Status"); s != "" {
			_, _ = fmt.Sscan(s, &status)
		}
	}
	b, err := json.Marshal(body)
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(string(b)))}, err
}

func (p *process) health() *api.GatewayHealth {
	h := &api.GatewayHealth{GatewayID: string(p.Gateway), BootID: p.boot}
	if p.held != nil {
		h.OrganizationID, h.Epoch = p.held.OrganizationID, p.held.Epoch
	}
	return h
}

// Start implements driver.Driver. It leaves a file in the state directory, as a gateway does.
func (l Life) Start(ctx context.Context, spec driver.Spec) (driver.Process, error) {
	if err := l.enter(ctx, "start"); err != nil {
		return driver.Process{}, err
	}
	defer l.mu.Unlock()
	for _, p := range l.processes {
		if p.Gateway == spec.Gateway && p.exit == nil {
			l.breach("%s started twice", spec.Gateway)
		}
	}
	p := l.spawn(spec)
	l.note("start %s", spec.Gateway)
	return p.Process, nil
}

// Adopt implements driver.Driver.
func (l Life) Adopt(_ context.Context, p driver.Process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.processes[p.PID]; q == nil || q.Process != p || q.exit != nil {
		return driver.ErrGone
	}
	return nil
}

// Wait implements driver.Driver.
func (l Life) Wait(ctx context.Context, p driver.Process) (driver.Exit, error) {
	for {
		l.mu.Lock()
		q, changed := l.processes[p.PID], l.exited
		if q == nil || q.exit != nil {
			defer l.mu.Unlock()
			if q == nil {
				return driver.Exit{}, nil
			}
			return *q.exit, nil
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return driver.Exit{}, ctx.Err()
		case <-changed:
		}
	}
}

// Stop implements driver.Driver.
func (l Life) Stop(ctx context.Context, p driver.Process, _ time.Duration) error {
	if err := l.enter(ctx, "stop"); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if q := l.processes[p.PID]; q != nil && q.exit == nil {
		l.end(q, driver.Exit{Signal: "SIGTERM", Known: true})
		l.note("stop %s", p.Gateway)
	}
	return nil
}

// List implements driver.Driver.
func (l Life) List(ctx context.Context) ([]driver.Process, error) {
	if err := l.enter(ctx, "list"); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	var out []driver.Process
	for _, p := range l.processes {
		if p.exit == nil {
			out = append(out, p.Process)
		}
	}
	return out, nil
}

// control gives the Life's control of gateways, whose method names clash with the driver's.
type control struct{ Life }

func (c control) find(p driver.Process) (*process, error) {
	q := c.processes[p.PID]
	if q == nil || q.Process != p || q.exit != nil {
		return nil, errors.New("connection refused")
	}
	return q, nil
}

// Health implements reconcile.Control.
func (c control) Health(ctx context.Context, p driver.Process) (api.GatewayHealth, error) {
	if err := c.enter(ctx, "health"); err != nil {
		return api.GatewayHealth{}, err
	}
	defer c.mu.Unlock()
	q, err := c.find(p)
	if err != nil {
		return api.GatewayHealth{}, err
	}
	h := q.health()
	if c.World.Health != nil {
		c.World.Health(h)
	}
	return *h, nil
}

// Activate implements reconcile.Control.
func (c control) Activate(ctx context.Context, p driver.Process, body *api.Activate) error {
	if err := c.enter(ctx, "activate"); err != nil {
		return err
	}
	defer c.mu.Unlock()
	q, err := c.find(p)
	if err != nil {
		return err
	}
	if q.over || q.held != nil && (q.held.OrganizationID != body.OrganizationID || q.held.Epoch != body.Epoch) {
		c.breach("process %d of %s was given a second organization", p.PID, p.Gateway)
		return errors.New("it has an organization")
	}
	if q.held == nil { // its state, which must be gone before the next organization
		left, _ := os.ReadDir(q.spec.StateDir)
		for _, e := range left {
			if e.Name() != body.OrganizationID {
				c.breach("%s was given organization %s with the state of %s", p.Gateway, body.OrganizationID, e.Name())
			}
		}
		_ = os.WriteFile(filepath.Join(q.spec.StateDir, body.OrganizationID), nil, 0o600)
	}
	q.held = body
	c.note("activate %s %d", p.Gateway, body.Epoch)
	return nil
}

// Forget implements reconcile.Control.
func (control) Forget(id.Gateway) {}

// Deactivate implements reconcile.Control.
func (c control) Deactivate(ctx context.Context, p driver.Process, body api.Deactivate) error {
	if err := c.enter(ctx, "deactivate"); err != nil {
		return err
	}
	defer c.mu.Unlock()
	q, err := c.find(p)
	if err != nil {
		return err
	}
	q.held, q.over = nil, true
	c.note("deactivate %s %d %s", p.Gateway, body.Epoch, body.Drain)
	return nil
}
