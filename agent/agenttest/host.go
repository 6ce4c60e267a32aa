package agenttest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/journal"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Domain is the one of a scripted host.
const Domain = "apps.example.test"

// Host is a host in this process with a scripted World. Runs of an agent's engine come and go on it;
// the world and the directory stay. It is made for a testing/synctest bubble, where time costs nothing.
type Host struct {
	*World
	Logger hclog.Logger
	Timing reconcile.Timing
	Engine *reconcile.Engine // of the present run
	FS     *fsxtest.Faulty   // of the present run
	Lease  reconcile.Lease   // of the next run

	t     testing.TB
	dir   string
	end   func() // ends the present run; nil: none
	ended bool   // the present run's effects are over

	mu      sync.Mutex // guards all below
	index   uint64
	wanted  map[string]api.GatewayAssignment
	reports map[string]api.GatewayReport
	history []api.GatewayReport
	steps   []api.StepReport
	events  []api.AgentEvent
}

// NewHost makes a host in a directory of the test, without a run.
func NewHost(t testing.TB) *Host {
	h := &Host{
		World: NewWorld(), Logger: hclog.NewNullLogger(), t: t, dir: t.TempDir(), index: 100,
		wanted: make(map[string]api.GatewayAssignment), reports: make(map[string]api.GatewayReport),
	}
	for _, d := range []string{"run", "gateways"} {
		if err := os.Mkdir(filepath.Join(h.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// Dir implements reconcile.Layout.
func (h *Host) Dir() string { return filepath.Join(h.dir, "gateways") }

// Spec implements reconcile.Layout.
func (h *Host) Spec(g id.Gateway, _ string, limits api.Limits) (driver.Spec, error) {
	return driver.Spec{
		Gateway: g, Program: "/bin/true", Listen: filepath.Join(h.dir, "run", string(g), "http.sock"),
		StateDir: filepath.Join(h.dir, "gateways", string(g), reconcile.StateDir),
		LogFile:  filepath.Join(h.dir, "gateways", string(g), reconcile.LogFile), Limits: limits,
	}, nil
}

// Observe implements reconcile.Sink. What a run observes after its end reaches nobody.
func (h *Host) Observe(o api.Observation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended || crashed(h.FS) {
		return
	}
	for _, r := range o.Gateways {
		h.reports[r.GatewayID] = r
		h.history = append(h.history, r)
	}
	h.steps = append(h.steps, o.Steps...)
	h.events = append(h.events, o.Events...)
}

// Start begins a run of an agent's engine on what is there.
func (h *Host) Start() {
	h.t.Helper()
	real, err := fsx.NewOS(h.dir)
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.FS, h.ended = fsxtest.New(real), false
	faulty := h.FS
	h.mu.Unlock()
	jnl, err := journal.Open(journal.Options{Path: filepath.Join(h.dir, "journal"), FS: faulty, Logger: h.Logger})
	if err != nil {
		h.t.Fatal(err)
	}
	life := Life{World: h.World, dead: func() bool { return h.over(faulty) }}
	h.Engine, err = reconcile.New(reconcile.Options{
		Logger: h.Logger, Journal: jnl, FS: faulty, Nginx: life, Driver: life, Control: control{life}, Sink: h,
		Layout: h, Domain: Domain, Lease: h.Lease, Timing: h.Timing,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	engine := h.Engine
	go func() { done <- engine.Run(ctx) }() // waited for by end
	h.end = func() {
		h.mu.Lock()
		h.ended = true
		h.mu.Unlock()
		cancel()
		if err := <-done; err != nil && !h.over(faulty) {
			h.t.Error(err)
		}
		_ = jnl.Close()
		_ = real.Close()
	}
}

// over reports whether the run with that file system has no effect any more.
func (h *Host) over(f *fsxtest.Faulty) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended || h.FS != f || crashed(f)
}

// Kill ends the run from one moment to the next: nothing that it still does has an effect.
func (h *Host) Kill() {
	if h.end != nil {
		h.end()
		h.end = nil
	}
}

// Connect gives the run a full frame, as a coordinator does first.
func (h *Host) Connect() {
	h.t.Helper()
	h.mu.Lock()
	f := api.AssignmentFrame{Index: h.index, Full: true, Domain: Domain}
	for _, g := range h.wanted {
		f.Gateways = append(f.Gateways, g)
	}
	h.mu.Unlock()
	if err := h.Engine.Apply(f); err != nil {
		h.t.Fatal(err)
	}
}

// Assign wants a gateway in this form, and tells the run when there is one.
func (h *Host) Assign(g api.GatewayAssignment) {
	h.t.Helper()
	h.mu.Lock()
	h.index++
	h.wanted[g.GatewayID] = g
	f := api.AssignmentFrame{Index: h.index, Gateways: []api.GatewayAssignment{g}}
	h.mu.Unlock()
	if h.end == nil {
		return
	}
	if err := h.Engine.Apply(f); err != nil {
		h.t.Fatal(err)
	}
}

// Drop forgets a gateway: only the next Connect tells the run.
func (h *Host) Drop(g id.Gateway) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index++
	delete(h.wanted, string(g))
}

// NewGateway wants a new gateway.
func (h *Host) NewGateway() id.Gateway {
	g := id.NewGateway()
	h.Assign(api.GatewayAssignment{GatewayID: string(g), Target: api.TargetRun, Incarnation: 1})
	return g
}

// Wanted is what is wanted of a gateway.
func (h *Host) Wanted(g id.Gateway) api.GatewayAssignment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wanted[string(g)]
}

// Grant gives a gateway an organization and returns the epoch.
func (h *Host) Grant(g id.Gateway, org id.Organization) uint64 {
	h.t.Helper()
	w := h.Wanted(g)
	h.mu.Lock()
	epoch := h.index + 1
	h.mu.Unlock()
	w.Grant = &api.Grant{
		OrganizationID: string(org), AllocationID: string(id.NewAllocation()), Epoch: epoch,
		Hostname: id.Hostname(org, Domain), Version: epoch, Members: []api.Member{{UserID: "ada", Role: "owner"}},
	}
	h.Assign(w)
	return epoch
}

// Recycle takes the organization away and wants the next incarnation.
func (h *Host) Recycle(g id.Gateway) uint64 {
	h.t.Helper()
	w := h.Wanted(g)
	w.Grant = nil
	w.Incarnation++
	h.Assign(w)
	return w.Incarnation
}

// Report is the last one of a gateway.
func (h *Host) Report(g id.Gateway) api.GatewayReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reports[string(g)]
}

// Phases is every phase that a gateway was reported in, as "incarnation phase".
func (h *Host) Phases(g id.Gateway) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, r := range h.history {
		if r.GatewayID == string(g) {
			out = append(out, fmt.Sprintf("%d %s", r.Incarnation, r.Phase))
		}
	}
	return out
}

// Steps is every reported step of a gateway.
func (h *Host) Steps(g id.Gateway) []api.StepReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []api.StepReport
	for _, s := range h.steps {
		if s.GatewayID == string(g) {
			out = append(out, s)
		}
	}
	return out
}

// Events is every event of a type.
func (h *Host) Events(typ string) []api.AgentEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []api.AgentEvent
	for _, e := range h.events {
		if e.Type == typ {
			out = append(out, e)
		}
	}
	return out
}

// WaitPhase waits until a gateway is reported in a phase of an incarnation.
func (h *Host) WaitPhase(g id.Gateway, phase string, incarnation uint64) api.GatewayReport {
	h.t.Helper()
	h.Until(fmt.Sprintf("gateway %s %s in incarnation %d", g, phase, incarnation), func() bool {
		r := h.Report(g)
		return r.Phase == phase && r.Incarnation == incarnation
	})
	return h.Report(g)
}

// WaitServing waits until a gateway is reported to serve an epoch.
func (h *Host) WaitServing(g id.Gateway, epoch uint64) api.GatewayReport {
	h.t.Helper()
	h.Until(fmt.Sprintf("gateway %s serving epoch %d", g, epoch), func() bool {
		r := h.Report(g)
		return r.Phase == api.PhaseServing && r.Epoch == epoch
	})
	return h.Report(g)
}

// Until waits, and shows everything when it was in vain.
func (h *Host) Until(what string, done func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.t.Fatalf("waited in vain: %s\nreports: %+v\nlog: %q", what, h.history, h.Log())
		}
	}
}

// Check fails the test when the agent broke a rule.
func (h *Host) Check() {
	h.t.Helper()
	for _, f := range h.Faults() {
		h.t.Errorf("a rule was broken: %s", f)
	}
}

func crashed(f *fsxtest.Faulty) bool {
	select {
	case <-f.Crashed():
		return true
	default:
		return false
	}
}

// Over reports whether the present run has crashed at the point that the test chose.
func (h *Host) Over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return crashed(h.FS)
}
