package coordtest

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Script says how a scripted agent misbehaves. The zero value serves everything at once.
type Script struct {
	// Fail makes a step ("activate", "route", "verify") of an organization's activation fail with a code;
	// "" is every organization.
	Fail func(step, organization string) (code string)
	// Hold keeps the agent from answering a grant at all.
	Hold func(organization string) bool
	// Address is the host's; "" is 192.0.2.1.
	Address string
	// BackOff is how long the agent waits at most before it tries again what failed, each time twice as long as
	// before. 0: always 20 ms, which is too often for many agents.
	BackOff time.Duration
	// Broken makes gateways fail to start.
	Broken func(gateway string) bool
}

// Coordinator is where an agent's calls go: a client, or coordinators in the same process.
type Coordinator interface {
	AgentStream(ctx context.Context, host, instance string, fn func(api.AssignmentFrame) error) error
	Observe(ctx context.Context, in api.Observation, opts ...client.CallOption) (api.Observed, error)
}

// Agent speaks the agent protocol for one host, without nginx and processes: what it is assigned takes
// effect at once, or fails as its script says.
type Agent struct {
	t        testing.TB
	host     string
	instance string
	capacity int
	client   Coordinator
	cancel   context.CancelFunc // of the connection; changed by Return only
	done     sync.WaitGroup

	mu         sync.Mutex
	script     Script
	gateways   map[string]*scripted             // guarded by mu
	pending    api.Observation                  // guarded by mu
	queued     map[string]int                   // by gateway, its place in pending.Gateways; guarded by mu
	serving    map[string]api.GatewayAssignment // the gateway that serves each organization; guarded by mu
	wake       chan struct{}
	asks       int              // questions so far; guarded by mu
	asked      bool             // a coordinator waits for any word; guarded by mu
	frozen     chan struct{}    // closed: nothing is taken in or said any more, and nothing is closed; guarded by mu
	access     api.GossipAccess // as a coordinator told; guarded by mu
	ca         string           // likewise: whom the cluster trusts, PEM; guarded by mu
	node       *gossip.Node     // in the gossip, if it entered; guarded by mu
	violations []string         // guarded by mu
}

type scripted struct {
	assignment api.GatewayAssignment
	report     api.GatewayReport
	held       bool // the assignment's grant is, by the script
}

// NewAgent starts a scripted agent that speaks through this client, until Stop.
func NewAgent(t testing.TB, c Coordinator, host string, capacity int, script Script) *Agent {
	a := &Agent{
		t: t, host: host, instance: id.Secret()[:16], capacity: capacity, script: script, client: c,
		gateways: map[string]*scripted{}, queued: map[string]int{}, serving: map[string]api.GatewayAssignment{}, wake: make(chan struct{}, 1),
	}
	a.Return()
	return a
}

// Return connects an agent again that was stopped, with all that it served then and still serves, like a host
// that only was cut off.
func (a *Agent) Return() {
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	a.mu.Lock()
	a.pending = a.full()
	clear(a.queued)
	had := a.pending
	a.mu.Unlock()
	a.done.Go(func() { a.send(ctx) })
	a.done.Go(func() {
		if a.thaw(ctx) {
			a.post(ctx, had) // before a frame says what is wanted by now
		}
		a.follow(ctx)
	})
	a.poke()
}

// StopStream ends the agent's connection. Its gossip goes on.
func (a *Agent) StopStream() {
	a.cancel()
	a.done.Wait()
}

// Stop ends the agent as a crash does: nothing is said to the coordinator.
func (a *Agent) Stop() {
	a.StopStream()
	a.StopGossip()
}

// SetScript changes how the agent behaves from now on, also with the grants that it holds.
func (a *Agent) SetScript(s Script) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.script = s
	for _, g := range a.gateways {
		if g.held && g.report.Phase == api.PhaseReady {
			a.serve(g, g.assignment)
		}
	}
	a.poke()
}

// Serving lists the gateway that serves each organization on this host.
func (a *Agent) Serving() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string]string{}
	for org, g := range a.serving {
		out[org] = g.GatewayID
	}
	return out
}

// Violations lists what must never happen and did: two gateways of one organization at the same time.
func (a *Agent) Violations() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.violations...)
}

// full is a full observation of what there is.
func (a *Agent) full() api.Observation {
	obs := api.Observation{
		HostID: a.host, Instance: a.instance, Full: true,
		Host: &api.HostReport{
			Address: cmp.Or(a.script.Address, "192.0.2.1"), Capacity: a.capacity, Version: "test",
			Nginx:  api.NginxStatus{State: api.NginxServing, DesiredGeneration: 1, LiveGeneration: 1},
			Gossip: a.gossip(),
		},
	}
	for _, s := range a.gateways {
		obs.Gateways = append(obs.Gateways, s.report)
	}
	return obs
}

func (a *Agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// follow holds the stream open, and dials again when it ends.
func (a *Agent) follow(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; failures++ {
		if a.stream(ctx) {
			failures = 0
		}
		a.pause(ctx, failures)
	}
}

// pause waits before what has failed so often, after the first time, is tried again.
func (a *Agent) pause(ctx context.Context, failures int) {
	const least = 20 * time.Millisecond
	a.mu.Lock()
	most := max(a.script.BackOff, least)
	a.mu.Unlock()
	sleep.For(ctx, min(least<<min(failures, 16), most))
}

// stream reports whether anything came.
func (a *Agent) stream(ctx context.Context) (came bool) {
	_ = a.client.AgentStream(ctx, a.host, a.instance, func(f api.AssignmentFrame) error {
		came = true
		if a.thaw(ctx) {
			a.take(f)
		}
		return nil
	}) // its end, for whatever reason, is followed by the next try
	return came
}

// take applies a frame.
func (a *Agent) take(f api.AssignmentFrame) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f.Ask {
		a.asked = true
		a.asks++
	}
	if f.Gossip != nil {
		a.access = *f.Gossip
	}
	if f.CA != "" {
		a.ca = f.CA
	}
	if f.Full {
		named := map[string]bool{}
		for _, g := range f.Gateways {
			named[g.GatewayID] = true
		}
		for gw, s := range a.gateways {
			if !named[gw] {
				a.over(s)
				delete(a.gateways, gw)
			}
		}
	}
	for _, g := range f.Gateways {
		a.apply(g)
	}
	for _, v := range f.Verify {
		step := api.Step{Step: api.StepVerify, State: api.StepFailed, Error: "not served"}
		if s := a.gateways[v.GatewayID]; s != nil && s.report.Phase == api.PhaseServing && s.report.Epoch == v.Epoch {
			step.State, step.Error = api.StepDone, ""
		}
		a.pending.Steps = append(a.pending.Steps, api.StepReport{Nonce: v.Nonce, GatewayID: v.GatewayID, Epoch: v.Epoch, Step: step})
	}
	if f.Full {
		steps := a.pending.Steps
		a.pending = a.full()
		a.pending.Steps = steps
		clear(a.queued)
		for i, g := range a.pending.Gateways {
			a.queued[g.GatewayID] = i
		}
	}
	a.poke()
}

// apply makes one gateway what it is assigned to be; the caller holds mu.
func (a *Agent) apply(g api.GatewayAssignment) {
	s := a.gateways[g.GatewayID]
	if s == nil {
		s = &scripted{}
		a.gateways[g.GatewayID] = s
	}
	had := s.report
	if g.Incarnation < had.Incarnation {
		return // an assignment of the past
	}
	if g.Target == api.TargetGone {
		a.report(s, g, api.GatewayReport{GatewayID: g.GatewayID, Incarnation: g.Incarnation, Phase: api.PhaseGone})
		delete(a.gateways, g.GatewayID)
		return
	}
	if g.Grant == nil || had.Incarnation != g.Incarnation {
		s.held = false
	}
	if had.Incarnation != g.Incarnation {
		next := api.GatewayReport{GatewayID: g.GatewayID, Incarnation: g.Incarnation, Phase: api.PhaseReady, BootID: id.Secret()[:8], PID: 1}
		if a.script.Broken != nil && a.script.Broken(g.GatewayID) {
			next.Phase, next.Code, next.Message = api.PhaseFailed, "internal", "it does not start"
		}
		if had.Phase == api.PhaseServing {
			now := time.Now().UTC()
			next.Undo = []api.Step{
				{Step: api.StepUnroute, State: api.StepDone, StartedAt: now, EndedAt: &now},
				{Step: api.StepDeactivate, State: api.StepDone, StartedAt: now, EndedAt: &now},
				{Step: api.StepRecycle, State: api.StepDone, StartedAt: now, EndedAt: &now},
			}
		}
		a.report(s, g, next)
	}
	if g.Grant != nil && s.report.Phase == api.PhaseReady {
		a.serve(s, g)
	}
	s.assignment = g
}

// serve goes through the steps of a grant.
func (a *Agent) serve(s *scripted, g api.GatewayAssignment) {
	org := g.Grant.OrganizationID
	s.held = a.script.Hold != nil && a.script.Hold(org)
	if s.held {
		return
	}
	for _, name := range []string{api.StepActivate, api.StepRoute, api.StepVerify} {
		now := time.Now().UTC()
		step := api.Step{Step: name, State: api.StepDone, StartedAt: now, EndedAt: &now}
		if a.script.Fail != nil {
			if code := a.script.Fail(name, org); code != "" {
				step.State, step.Code, step.Error = api.StepFailed, code, "made to fail"
			}
		}
		a.pending.Steps = append(a.pending.Steps, api.StepReport{
			AllocationID: g.Grant.AllocationID, GatewayID: g.GatewayID, Epoch: g.Grant.Epoch, Step: step,
		})
		if step.State == api.StepFailed {
			return
		}
	}
	// A move within a host has the new gateway serve before the old one is drained: the same allocation, a higher epoch.
	if other, ok := a.serving[org]; ok && other.GatewayID != g.GatewayID &&
		(other.Grant.AllocationID != g.Grant.AllocationID || other.Grant.Epoch >= g.Grant.Epoch) {
		a.violations = append(a.violations, fmt.Sprintf("organization %s is served by %s and %s", org, other.GatewayID, g.GatewayID))
	}
	a.serving[org] = g
	next := s.report
	next.Phase, next.OrganizationID, next.Epoch, next.Undo = api.PhaseServing, org, g.Grant.Epoch, nil
	a.report(s, g, next)
}

// over ends what a gateway serves; the caller holds mu.
func (a *Agent) over(s *scripted) {
	if org := s.report.OrganizationID; s.report.Phase == api.PhaseServing && a.serving[org].GatewayID == s.report.GatewayID {
		delete(a.serving, org)
	}
}

// report puts a gateway's state into the next observation. One of the same gateway that is still waiting is
// replaced; its undo steps are kept.
func (a *Agent) report(s *scripted, g api.GatewayAssignment, r api.GatewayReport) {
	if r.Phase != api.PhaseServing {
		a.over(s)
	}
	s.assignment, s.report = g, r
	s.report.Undo = nil
	if i, ok := a.queued[r.GatewayID]; ok {
		if p := a.pending.Gateways[i]; len(r.Undo) == 0 && p.Incarnation == r.Incarnation {
			r.Undo = p.Undo
		}
		a.pending.Gateways[i] = r
		return
	}
	a.queued[r.GatewayID] = len(a.pending.Gateways)
	a.pending.Gateways = append(a.pending.Gateways, r)
}

// send posts what is pending, one observation at a time.
func (a *Agent) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		}
		if !a.thaw(ctx) {
			return
		}
		a.mu.Lock()
		obs, asked := a.pending, a.asked
		a.pending, a.asked = api.Observation{HostID: a.host, Instance: a.instance}, false
		clear(a.queued)
		a.mu.Unlock()
		if !asked && !obs.Full && len(obs.Gateways) == 0 && len(obs.Steps) == 0 {
			continue
		}
		for failures := 0; !a.post(ctx, obs); failures++ {
			if a.pause(ctx, failures); ctx.Err() != nil {
				return
			}
		}
	}
}

// post reports whether the observation is done with: taken in, or refused for good.
func (a *Agent) post(ctx context.Context, obs api.Observation) bool {
	_, err := a.client.Observe(ctx, obs)
	if err == nil || ctx.Err() != nil {
		return true
	}
	if status := fault.From(err).Status(); status/100 == 4 {
		a.t.Errorf("the coordinator refused an observation: %v", err)
		return true
	}
	return false
}
