package reconcile

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/journal"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

// Options of an engine. All but Services, Lease, Timing and Now must be set.
type Options struct {
	Logger   hclog.Logger
	Journal  *journal.Journal
	FS       fsx.FS // reaches Layout.Dir and the gateways' sockets
	Nginx    Nginx
	Driver   driver.Driver
	Control  Control
	Sink     Sink
	Services Services // nil: none
	Layout   Layout
	Domain   string // that the host's nginx serves
	Lease    Lease  // nil: nothing that is assigned with a lease is served
	Timing   Timing
	Now      func() time.Time // nil: time.Now

	born time.Time // of the engine; what the common moments of questions for health are counted from
}

// Engine holds the actors of a host's gateways.
type Engine struct {
	o      Options
	logger hclog.Logger

	// mu guards everything below. It is held while an actor is told something, never while one acts.
	mu       sync.Mutex
	actors   map[id.Gateway]*actor
	spawn    func(*actor) // starts an actor's goroutine; nil before Run and after its end
	slots    []Slot       // as given to nginx
	stale    bool         // slots may not be what the actors need
	index    uint64       // highest of a frame
	seenAt   time.Time    // of that frame, or a later one
	mismatch string       // why frames are not followed; empty: they are
	cleaned  bool         // leftovers were looked for
	clean    chan struct{}
	shortest time.Duration // lease of an actor, if leased
	leased   bool          // shortest is what the actors have
}

// New makes an engine of what the journal knows. Nothing happens before Run.
func New(o Options) (*Engine, error) {
	o.Timing = o.Timing.withDefaults()
	if o.Now == nil {
		o.Now = time.Now
	}
	o.born = o.Now()
	if o.Services == nil {
		o.Services = noServices{}
	}
	o.Logger = o.Logger.Named("reconcile")
	e := &Engine{o: o, logger: o.Logger, actors: make(map[id.Gateway]*actor), clean: make(chan struct{}, 1)}
	entries, err := o.Journal.Entries()
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		e.actors[entry.Gateway.Gateway] = newActor(o, entry, wantedOf(entry))
	}
	return e, nil
}

// wantedOf is what the journal says is wanted, which holds until a coordinator says something else. That
// a coordinator cannot be reached never means that an organization is not wanted any more.
func wantedOf(e journal.Entry) desired {
	w := desired{Wanted: e.Wanted}
	if g := e.Grant; g != nil && e.Wanted.Incarnation == e.Incarnation {
		w.grant = &grant{organization: g.Organization, allocation: g.Allocation, epoch: g.Epoch, version: g.Version, body: e.Body}
	}
	return w
}

// Run acts until ctx ends. Gateways and routes stay as they are then.
func (e *Engine) Run(ctx context.Context) error {
	if err := e.recover(ctx); err != nil {
		return err
	}
	var wg sync.WaitGroup
	e.mu.Lock()
	e.spawn = func(a *actor) { // waited for below
		wg.Go(func() {
			a.run(ctx)
			e.left(a)
		})
	}
	for _, a := range e.actors {
		e.spawn(a)
	}
	e.mu.Unlock()
	wg.Go(func() { e.watchLease(ctx) })
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-e.clean:
			e.removeLeftovers(ctx)
		}
	}
	e.mu.Lock()
	e.spawn = nil
	e.mu.Unlock()
	wg.Wait()
	return nil
}

// recover puts routes and processes in order before any actor runs.
func (e *Engine) recover(ctx context.Context) error {
	keep := make(map[id.Organization]Route)
	if err := e.recoverServices(); err != nil {
		return err
	}
	e.mu.Lock()
	for _, a := range e.actors {
		g := a.ob.Grant
		if _, ending := a.ob.Ending.Next(); g == nil || ending || mustEnd(a.w, a.ob) || a.leaseOver() {
			continue
		}
		if s := a.ob.Change.Status(api.StepRoute); !g.Served && (a.ob.Change.Back || s != steps.Done && s != steps.Doing) {
			continue
		}
		keep[g.Organization] = Route{Gateway: a.id, Epoch: g.Epoch}
	}
	e.setSlots()
	e.mu.Unlock()
	e.o.Nginx.Retain(keep)
	running, err := e.o.Driver.List(ctx)
	if err != nil {
		return fmt.Errorf("cannot list the gateways that run: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range running {
		a := e.actors[p.Gateway]
		if a == nil || a.ob.Process != nil && *a.ob.Process == p {
			continue
		}
		if a.ob.Process == nil && a.ob.Used {
			found := p // started right before the agent ended, and not recorded
			a.ob.Process = &found
			continue
		}
		e.logger.Warn("a second process of a gateway is stopped", "gateway", p.Gateway, "pid", p.PID)
		if err := e.o.Driver.Stop(ctx, p, e.o.Timing.StopGrace); err != nil {
			e.logger.Error("a second process of a gateway cannot be stopped", "gateway", p.Gateway, "pid", p.PID, "error", err)
		}
	}
	return nil
}

// recoverServices takes up again what the agent itself does for the organizations that the journal knows.
// What is about to end is kept for its end and not taken up.
func (e *Engine) recoverServices() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	keep := make(map[id.Organization]id.Epoch)
	for _, a := range e.actors {
		if g := a.ob.Grant; g != nil {
			keep[g.Organization] = max(keep[g.Organization], g.Epoch)
		}
	}
	if err := e.o.Services.Retain(keep); err != nil {
		return err
	}
	for _, a := range e.actors {
		if _, ending := a.ob.Ending.Next(); a.ob.Grant == nil || a.body == nil || ending || mustEnd(a.w, a.ob) {
			continue
		}
		e.o.Services.Serve(a.id, a.body, a.ob.Grant.Version)
	}
	return nil
}

// Settle returns when every gateway that the journal knew has come to rest once, or ctx has ended. What
// is reported before that says "starting" of gateways that serve.
func (e *Engine) Settle(ctx context.Context) {
	for ctx.Err() == nil && !e.settled() {
		sleep.For(ctx, 5*time.Millisecond)
	}
}

func (e *Engine) settled() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.spawn == nil {
		return false
	}
	for _, a := range e.actors {
		if !a.settled() {
			return false
		}
	}
	return true
}

// Apply takes a frame of the assignment. It does not wait for anything to be done.
func (e *Engine) Apply(f api.AssignmentFrame) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.o.Now()
	if f.Index < e.index && now.Sub(e.seenAt) < e.o.Timing.StaleFrames {
		return fmt.Errorf("cannot follow the coordinator: its frame has index %d, and %d was seen: it lags behind", f.Index, e.index)
	}
	if f.Full {
		if err := e.checkDomain(f.Domain); err != nil {
			return err
		}
	}
	if e.mismatch != "" {
		return errors.New(e.mismatch)
	}
	e.index, e.seenAt = f.Index, now
	defer e.assigned(f.Index) // when everything in the frame was told
	named := make(map[id.Gateway]bool, len(f.Gateways))
	for _, g := range f.Gateways {
		gw, err := e.assign(g)
		if err != nil {
			e.logger.Error("part of the assignment is not understood", "gateway", fmt.Sprintf("%.40q", g.GatewayID), "error", err)
		}
		named[gw] = true // also when the rest is not understood: it is no reason to end the gateway
	}
	if f.Full {
		e.dropUnnamed(named)
	}
	if e.stale { // most frames are grants, and looking at every actor for each is not for free
		e.setSlots()
	}
	for _, v := range f.Verify {
		e.ask(v)
	}
	return nil
}

// checkDomain compares the coordinator's domain with the one this host's nginx serves.
func (e *Engine) checkDomain(domain string) error {
	if domain == "" || domain == e.o.Domain {
		e.mismatch = ""
		return nil
	}
	message := fmt.Sprintf("cannot serve this cluster: its domain is %q and this host's configuration says %q; set domain in the agent's configuration", domain, e.o.Domain)
	if e.mismatch != message {
		e.o.Sink.Observe(api.Observation{Events: []api.AgentEvent{{Type: EventDomain, At: e.o.Now().UTC(), Reason: message}}})
	}
	e.mismatch = message
	return errors.New(message)
}

// Problem says why this host cannot follow its coordinator; empty when it can.
func (e *Engine) Problem() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mismatch
}

// assign gives a gateway's actor what is wanted of it, and makes the actor when there is none. mu is held.
func (e *Engine) assign(g api.GatewayAssignment) (id.Gateway, error) {
	gw, w, err := parse(g)
	if err != nil {
		return gw, err
	}
	if w.grant != nil {
		e.o.Services.Update(w.grant.body, w.grant.version)
	}
	a := e.actors[gw]
	switch {
	case a != nil:
		e.stale = e.stale || a.maxBody() != w.Limits.BodyBytes
		e.leased = e.leased && a.lease() == time.Duration(w.Lease)
		a.want(w)
	case w.Target == api.TargetGone: // said again, because the last report of it was lost
		e.o.Sink.Observe(api.Observation{Gateways: []api.GatewayReport{goneReport(gw, w.Incarnation)}})
	default:
		a = newActor(e.o, journal.Entry{Gateway: journal.Gateway{Gateway: gw, Wanted: w.Wanted}}, w)
		e.actors[gw], e.stale, e.leased = a, true, false
		if e.spawn != nil {
			e.spawn(a)
		}
	}
	return gw, nil
}

// dropUnnamed ends the gateways that a full assignment does not name, and has leftovers looked for. mu is
// held.
func (e *Engine) dropUnnamed(named map[id.Gateway]bool) {
	for gw, a := range e.actors {
		if !named[gw] {
			e.logger.Info("a gateway is not assigned any more", "gateway", gw)
			a.drop()
		}
	}
	if !e.cleaned {
		e.cleaned = true
		e.clean <- struct{}{}
	}
}

func (e *Engine) ask(v api.VerifyRequest) {
	if a := e.actors[id.Gateway(v.GatewayID)]; a != nil {
		a.verify(v)
		return
	}
	now := e.o.Now().UTC()
	e.o.Sink.Observe(api.Observation{Steps: []api.StepReport{{
		GatewayID: v.GatewayID, Epoch: v.Epoch, Nonce: v.Nonce,
		Step: api.Step{
			Step: api.StepVerify, State: api.StepFailed, StartedAt: now, EndedAt: &now,
			Code: "verify_failed", Error: "the host has no such gateway",
		},
	}}})
}

// left takes an ended actor out. It is not called when the agent ends with the actor still needed.
func (e *Engine) left(a *actor) {
	if !a.gone {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.actors, a.id)
	e.leased = false
	e.setSlots()
}

// setSlots tells nginx the gateways it must name. A gateway keeps its slot until nothing of it is left,
// so that its routes go first. mu is held.
func (e *Engine) setSlots() {
	e.stale = false
	slots := make([]Slot, 0, len(e.actors))
	for gw, a := range e.actors {
		slots = append(slots, Slot{Gateway: gw, MaxBody: a.maxBody()})
	}
	sort.Slice(slots, func(i, k int) bool { return slots[i].Gateway < slots[k].Gateway })
	if e.slots != nil && reflect.DeepEqual(slots, e.slots) {
		return
	}
	e.slots = slots
	e.o.Nginx.SetSlots(slots)
}

// Reports is what is known of every gateway that exists on the host.
func (e *Engine) Reports() []api.GatewayReport {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]api.GatewayReport, 0, len(e.actors))
	for _, a := range e.actors {
		if r, ok := a.report(); ok {
			out = append(out, r)
		}
	}
	sort.Slice(out, func(i, k int) bool { return out[i].GatewayID < out[k].GatewayID })
	return out
}

// removeLeftovers stops gateway processes and removes directories that neither the journal nor the
// assignment knows. It runs only after a coordinator has said what it wants: without one, what is
// unknown may be all there is.
func (e *Engine) removeLeftovers(ctx context.Context) {
	running, err := e.o.Driver.List(ctx)
	if err != nil {
		e.logger.Error("the gateways that run cannot be listed", "error", err)
	}
	for _, p := range running {
		if e.known(p.Gateway) {
			continue
		}
		e.leftover(fmt.Sprintf("process %d of gateway %s, which nobody knows, is stopped", p.PID, p.Gateway), p.Gateway)
		if err := e.o.Driver.Stop(ctx, p, e.o.Timing.StopGrace); err != nil {
			e.logger.Error("a leftover process cannot be stopped", "pid", p.PID, "error", err)
		}
	}
	dirs, err := e.o.FS.ReadDir("reconcile.leftovers", e.o.Layout.Dir())
	if err != nil {
		e.logger.Error("the gateways' directories cannot be listed", "error", err)
	}
	for _, d := range dirs {
		gw, err := id.ParseGateway(d.Name())
		if err != nil || e.known(gw) {
			continue
		}
		e.leftover(fmt.Sprintf("the directory of gateway %s, which nobody knows, is removed", gw), gw)
		if err := e.o.FS.RemoveAll("reconcile.leftover", filepath.Join(e.o.Layout.Dir(), d.Name())); err != nil {
			e.logger.Error("a leftover directory cannot be removed", "directory", d.Name(), "error", err)
		}
	}
}

func (e *Engine) leftover(reason string, gw id.Gateway) {
	e.logger.Warn("a leftover is removed", "what", reason)
	e.o.Sink.Observe(api.Observation{Events: []api.AgentEvent{{
		Type: EventLeftover, At: e.o.Now().UTC(), GatewayID: string(gw), Reason: reason,
	}}})
}

func (e *Engine) known(gw id.Gateway) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.actors[gw] != nil
}

// parse checks a gateway's assignment and gives everything in it its type.
func parse(g api.GatewayAssignment) (id.Gateway, desired, error) {
	gw, err := id.ParseGateway(g.GatewayID)
	if err != nil {
		return "", desired{}, err
	}
	if g.Target != api.TargetRun && g.Target != api.TargetGone {
		return gw, desired{}, fmt.Errorf("cannot use %.80q as a target: want run or gone", g.Target)
	}
	if g.Incarnation == 0 {
		return gw, desired{}, errors.New("cannot use the incarnation 0: they begin with 1")
	}
	if g.Pool != "" {
		if _, err := id.ParsePool(g.Pool); err != nil {
			return gw, desired{}, err
		}
	}
	if g.Drain < 0 || g.Lease < 0 || g.Limits.BodyBytes < 0 {
		return gw, desired{}, fmt.Errorf("cannot use a drain of %s, a lease of %s and bodies of %d bytes: want none below zero",
			time.Duration(g.Drain), time.Duration(g.Lease), g.Limits.BodyBytes)
	}
	w := desired{Wanted: journal.Wanted{
		Target: g.Target, Incarnation: g.Incarnation, Pool: g.Pool, Release: g.Release, Limits: g.Limits, Drain: g.Drain, Lease: g.Lease,
	}}
	if g.Grant == nil {
		return gw, w, nil
	}
	org, err := id.ParseOrganization(g.Grant.OrganizationID)
	if err != nil {
		return gw, desired{}, err
	}
	al, err := id.ParseAllocation(g.Grant.AllocationID)
	if err != nil {
		return gw, desired{}, err
	}
	if g.Grant.Epoch == 0 {
		return gw, desired{}, errors.New("cannot use a grant without an epoch")
	}
	w.grant = &grant{
		organization: org, allocation: al, epoch: id.Epoch(g.Grant.Epoch), version: g.Grant.Version,
		body: &api.Activate{
			OrganizationID: string(org), AllocationID: string(al), Epoch: g.Grant.Epoch, Name: g.Grant.Name,
			Hostname: g.Grant.Hostname, Members: g.Grant.Members, Projects: g.Grant.Projects,
		},
	}
	return gw, w, nil
}
