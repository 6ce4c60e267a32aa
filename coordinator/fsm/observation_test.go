package fsm_test

import (
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestHostRegistersAndChanges(t *testing.T) {
	m := newMachine(t)
	m.refused(fault.NotFound, command.ObserveHost{Meta: m.meta(), Host: "h1", Instance: "i1"})
	c := command.ObserveHost{Meta: m.meta(), Host: "h1", Instance: "i1", Full: true, Report: hostReport(5)}
	steps := []struct {
		change func()
		events string
	}{
		{func() {}, "host.registered"},
		{func() {}, ""},
		{func() { c.Instance = "i2" }, ""},
		{func() { r := *c.Report; r.LiveGeneration = 1; c.Report = &r }, "host.generation"},
		{func() { r := *c.Report; r.NginxState = api.NginxWedged; c.Report = &r }, "host.nginx"},
		{func() {
			r := *c.Report
			r.Quarantined = []command.Quarantined{{Part: "p", Message: "bad", Since: start}}
			c.Report = &r
		}, "host.quarantined"},
		{func() { c.Report = nil }, ""},
		{func() {
			c.Events = []command.Event{{Type: "config.drift", Gateway: gwID(1), Reason: "somebody wrote"}}
		}, "config.drift"},
	}
	for i, s := range steps {
		s.change()
		before := m.store.View().Host(nil, "h1")
		m.ok(c)
		if got := m.types(); got != s.events {
			t.Errorf("step %d: events %q, want %q", i, got, s.events)
		}
		if h := m.store.View().Host(nil, "h1"); i == 1 && h != before {
			t.Error("an identical report changed the host's record")
		}
	}
	if e := m.events()[0]; e.Host != "h1" || !e.At.Equal(start) || e.Reason != "somebody wrote" {
		t.Fatalf("%+v", e)
	}
	if h := m.store.View().Host(nil, "h1"); h.Instance != "i2" || h.Report.LiveGeneration != 1 || h.CreateIndex >= h.ModifyIndex {
		t.Fatalf("%+v", h)
	}
}

// TestGatewayStates walks a gateway through phases, each with the state that follows.
func TestGatewayStates(t *testing.T) {
	m := small(t, 0)
	m.create("default", "h1", 1, 1)
	m.wantGateway(gwID(1), state.GatewayPending)
	if got := m.types(); got != "gateway.created pool.grown" {
		t.Fatal("events:", got)
	}
	for _, s := range []struct {
		phase string
		want  state.GatewayState
	}{
		{api.PhaseStarting, state.GatewayStarting},
		{api.PhaseReady, state.GatewayReady},
		{api.PhaseUnhealthy, state.GatewayUnhealthy},
		{api.PhaseReady, state.GatewayReady},
		{api.PhaseFailed, state.GatewayFailed},
		{api.PhaseGone, state.GatewayPending}, // it is wanted and does not exist
		{api.PhaseReady, state.GatewayReady},
	} {
		m.observe(m.report(gwID(1), s.phase))
		m.wantGateway(gwID(1), s.want)
		if got, want := m.types(), "gateway."+string(s.want); got != want {
			t.Fatalf("%s: events %q, want %q", s.phase, got, want)
		}
	}
	g := m.gateway(gwID(1))
	m.observe(m.report(gwID(1), api.PhaseReady))
	if m.gateway(gwID(1)) != g || m.types() != "" {
		t.Fatal("an identical report changed the record")
	}
	if g.ReadyIndex == 0 || g.Observed.ReadyAt.IsZero() || g.Observed.PID != 100 {
		t.Fatalf("%+v", g)
	}
}

func TestProcessDeath(t *testing.T) {
	m := small(t, 1)
	a := m.active(1, 1)
	r := m.report(a.Gateway, api.PhaseStarting)
	r.Restarts, r.Message, r.Code = 1, "signal 9", fault.Internal
	m.observe(r)
	if e := m.events(); len(e) != 2 || e[0].Type != "gateway.died" || e[0].Reason != "signal 9" || e[0].Organization != orgID(1) || e[1].Type != "gateway.starting" {
		t.Fatalf("%+v", e)
	}
	r.BootID = "another"
	m.observe(r)
	if got := m.types(); got != "gateway.died" {
		t.Fatal("another boot id:", got)
	}
	r = m.report(a.Gateway, api.PhaseReady) // back, and not serving yet
	r.BootID, r.Restarts = "another", 1
	m.observe(r)
	m.wantGateway(a.Gateway, state.GatewayAllocated)
	m.wantAllocation(a.ID, state.AllocationActive)
}

// A process that ends because its gateway is to go has not died: who is woken by deaths sleeps on when a
// pool shrinks.
func TestAWantedEndIsNoDeath(t *testing.T) {
	m := small(t, 1)
	m.ok(command.RetireGateways{Meta: m.meta(), Gateways: []id.Gateway{gwID(1)}, Reason: "too many"})
	m.types()
	r := m.report(gwID(1), api.PhaseStarting)
	r.BootID = ""
	m.observe(r)
	if got := m.types(); strings.Contains(got, "gateway.died") {
		t.Error(got)
	}
	m.observe(m.report(gwID(1), api.PhaseGone))
	if got := m.types(); got != "gateway.removed" {
		t.Error(got)
	}
}

func TestFencedReports(t *testing.T) {
	m := small(t, 2)
	m.host("h2", 5)
	a := m.active(1, 1)
	before := m.records()
	fenced := func(what string, c command.ObserveHost) {
		t.Helper()
		c.Meta, c.Instance = m.meta(), "i1"
		m.ok(c)
		if e := m.events(); len(e) != 1 || e[0].Type != "gateway.fenced" || e[0].Code != fault.StaleEpoch || e[0].Reason == "" {
			t.Fatalf("%s: %+v", what, e)
		}
		if m.records() != before {
			t.Fatalf("%s changed a record", what)
		}
	}
	one := func(f func(*command.GatewayReport)) command.ObserveHost {
		r := m.report(a.Gateway, api.PhaseServing)
		f(&r)
		return command.ObserveHost{Host: "h1", Gateways: []command.GatewayReport{r}}
	}
	fenced("a later incarnation", one(func(r *command.GatewayReport) { r.Incarnation++ }))
	fenced("an earlier incarnation", one(func(r *command.GatewayReport) { r.Incarnation-- }))
	fenced("another epoch", one(func(r *command.GatewayReport) { r.Epoch++ }))
	fenced("another organization", one(func(r *command.GatewayReport) { r.Organization = orgID(2) }))
	fenced("serving without epoch", one(func(r *command.GatewayReport) { r.Epoch, r.Organization = 0, "" }))
	fenced("an unknown gateway", one(func(r *command.GatewayReport) { r.Gateway = gwID(99) }))
	fenced("serving without grant", one(func(r *command.GatewayReport) { r.Gateway, r.Epoch, r.Organization = gwID(2), 0, "" }))
	other := one(func(*command.GatewayReport) {})
	other.Host = "h2"
	fenced("another host", other)

	m.ok(command.ObserveHost{Meta: m.meta(), Host: "h1", Instance: "i1", Gateways: []command.GatewayReport{{Gateway: gwID(99), Phase: api.PhaseGone}}})
	if m.types() != "" || m.records() != before {
		t.Fatal("a gateway that is gone and unknown is no news, but made", m.types())
	}
}

// TestFullObservation: what it does not name does not exist on the host.
func TestFullObservation(t *testing.T) {
	m := small(t, 4)
	active := m.active(1, 1)
	m.active(2, 2)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(2)})
	m.ok(command.RetireGateways{Meta: m.meta(), Gateways: []id.Gateway{gwID(2), gwID(3)}, Reason: "test"})
	m.ok(command.ObserveHost{
		Meta: m.meta(), Host: "h1", Instance: "i1", Full: true,
		Gateways: []command.GatewayReport{m.report(gwID(4), api.PhaseReady)},
	})
	m.wantAllocation(alID(2), state.AllocationReleased) // it ended with its gateway
	v := m.store.View()
	if v.Gateway(nil, gwID(2)) != nil || v.Gateway(nil, gwID(3)) != nil {
		t.Fatal("retired gateways that do not exist are still there")
	}
	m.wantGateway(gwID(4), state.GatewayReady)
	if g := m.gateway(active.Gateway); g.State != state.GatewayPending || g.Observed.Phase != "" || g.Desired.Allocation != active.ID {
		t.Fatalf("%+v", g)
	}
	m.wantAllocation(active.ID, state.AllocationActive)
	m.observe(m.report(active.Gateway, api.PhaseServing))
	m.wantGateway(active.Gateway, state.GatewayAllocated)
}

func TestLostHost(t *testing.T) {
	m := small(t, 5)
	m.active(1, 1)
	m.reserve(2, 2)
	m.active(3, 3)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(3)})
	m.reserve(4, 4)
	m.ok(command.Fail{Meta: m.meta(), Allocation: alID(4), Epoch: m.allocation(alID(4)).Epoch, Code: fault.VerifyFailed, Message: "no"})
	status := func(s string) {
		t.Helper()
		m.now = m.now.Add(time.Second)
		m.ok(command.SetHostStatus{Meta: m.meta(), Host: "h1", Status: s, Reason: "gossip"})
	}
	m.refused(fault.NotFound, command.SetHostStatus{Meta: m.meta(), Host: "h9", Status: api.HostLost})
	m.refused(fault.InvalidRequest, command.SetHostStatus{Meta: m.meta(), Host: "h1", Status: "tired"})

	before := m.store.View()
	status(api.HostSilent)
	if m.types() != "host.silent" || m.gateway(gwID(5)) != before.Gateway(nil, gwID(5)) {
		t.Fatal("a silent host changed its gateways")
	}
	status(api.HostLost)
	status(api.HostLost) // again: nothing
	if m.types() != "" {
		t.Fatal("lost twice:", m.types())
	}
	for g := range m.store.View().GatewaysOfHost(nil, "h1") {
		m.wantGateway(g.ID, state.GatewayLost)
	}
	m.wantAllocation(alID(1), state.AllocationActive)
	m.wantAllocation(alID(3), state.AllocationReleased)
	m.wantAllocation(alID(4), state.AllocationFailed)
	if a := m.allocation(alID(2)); a.State != state.AllocationFailed || a.Failure.Code != fault.HostLost || a.EndedAt.IsZero() {
		t.Fatalf("%+v", a)
	}
	if code := m.allocation(alID(4)).Failure.Code; code != fault.VerifyFailed {
		t.Fatalf("the first reason of a failure became %s", code)
	}
	if out := m.reserve(5, 5); out.Err == nil || out.Err.Code != fault.PoolExhausted {
		t.Fatalf("%+v", out)
	}
	// Released while the host is lost: over at once.
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
	m.wantAllocation(alID(1), state.AllocationReleased)

	// Back: reconciling until each gateway is reported.
	m.ok(command.ObserveHost{Meta: m.meta(), Host: "h1", Instance: "i2", Gateways: []command.GatewayReport{m.report(gwID(5), api.PhaseReady)}})
	m.wantGateway(gwID(5), state.GatewayReady)
	m.wantGateway(gwID(1), state.GatewayReconciling)
	old := m.report(gwID(1), api.PhaseServing) // the isolated process, which does not know that it is over
	old.Incarnation, old.Organization, old.Epoch = 1, orgID(1), m.allocation(alID(1)).Epoch
	m.observe(old)
	m.wantGateway(gwID(1), state.GatewayRecycling)
	m.observe(m.report(gwID(1), api.PhaseReady))
	m.wantGateway(gwID(1), state.GatewayReady)
}

func TestSilentHostComesBackAndServesTheLine(t *testing.T) {
	m := small(t, 1)
	m.ok(command.SetHostStatus{Meta: m.meta(), Host: "h1", Status: api.HostSilent, Reason: "test"})
	c := m.reserveOf(1, 1)
	c.QueueUntil = m.now.Add(time.Hour)
	if !m.ok(c).Reserved[0].Queued {
		t.Fatal("not in line")
	}
	m.ok(command.ObserveHost{Meta: m.meta(), Host: "h1", Instance: "i1"})
	m.wantAllocation(alID(1), state.AllocationReserved)
}

// Why a host is silent may be something that its reports say nothing of, as that it comes and goes.
func TestASilentHostThatReportsIsLeftToTheMonitor(t *testing.T) {
	m := small(t, 1)
	status := func(s string) {
		t.Helper()
		m.ok(command.SetHostStatus{Meta: m.meta(), Host: "h1", Status: s, Reason: "test"})
	}
	report := func() command.ObserveHost {
		return command.ObserveHost{Meta: m.meta(), Host: "h1", Instance: "i2", StaysSilent: true}
	}
	status(api.HostSilent)
	m.ok(report())
	if h := m.store.View().Host(nil, "h1"); h.Status != api.HostSilent || h.Instance != "i2" || m.types() != "" {
		t.Errorf("a report made it %+v", h)
	}
	status(api.HostLost)
	m.ok(report())
	if h := m.store.View().Host(nil, "h1"); h.Status != api.HostAlive {
		t.Errorf("a lost host that reports is %s", h.Status)
	}
}

func TestDeleteHost(t *testing.T) {
	m := small(t, 2)
	m.refused(fault.NotFound, command.DeleteHost{Meta: m.meta(), Host: "h9"})
	m.active(1, 1)
	del := command.DeleteHost{Meta: m.meta(), Host: "h1"}
	m.refused(fault.OrganizationActive, del)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
	if r := m.ok(del); r.Count != 2 {
		t.Fatalf("%+v", r)
	}
	m.wantAllocation(alID(1), state.AllocationReleased)
	v := m.store.View()
	if v.Host(nil, "h1") != nil || v.Gateway(nil, gwID(1)) != nil || v.Counts(nil, "default").Total() != 0 {
		t.Fatal("something is left of the host")
	}
	m.host("h1", 3) // and it may come again
	m.ready("default", "h1", 1, 3)
}
