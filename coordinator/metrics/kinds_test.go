package metrics_test

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// TestEveryKindIsAnEventAndAMetric: whatever happens to an organization, a pool, a configuration or a process is in the
// feed, which is logged, replayed and followed, and is counted. Each row happens to the same system after those above it.
func TestEveryKindIsAnEventAndAMetric(t *testing.T) {
	s := newSystem(t)
	s.gateways(2)
	_, served := s.reserve()
	first := func() *state.Allocation { return s.store.View().Allocation(nil, served.Allocation) }
	report := func(h id.Host, r ...command.GatewayReport) {
		s.apply(command.ObserveHost{Meta: s.meta(), Host: h, Instance: "i", Gateways: r})
	}
	fail := func(a *state.Allocation) {
		grant, _ := a.Pending()
		s.apply(command.Fail{Meta: s.meta(), Allocation: a.ID, Epoch: grant.Epoch, Code: fault.VerifyFailed, Message: "another answered"})
	}
	var undone *state.Allocation
	recycled := []command.Step{{Step: api.StepUnroute, State: api.StepDone, StartedAt: s.now}, {Step: api.StepRecycle, State: api.StepDone, StartedAt: s.now}}
	for _, row := range []struct {
		kind, event string
		reason      bool
		sample      string
		happen      func()
	}{
		{"allocation", "allocation.active", false, `demiurge_allocations_total{code="",result="active",warm="true"}`, func() { s.confirm(served) }},
		{"undo of an allocation, begun", "allocation.rolling_back", true, `demiurge_events_total{type="allocation.rolling_back"}`, func() {
			_, o := s.reserve()
			undone = s.store.View().Allocation(nil, o.Allocation)
			fail(undone)
		}},
		{"refusal", "allocation.refused", true, `demiurge_allocations_total{code="pool_exhausted",result="refused",warm="false"}`, func() { s.reserve() }},
		{"undo of an allocation, done", "allocation.rolled_back", true, `demiurge_allocation_undos_total{step="unroute"}`, func() {
			report("h1", command.GatewayReport{Gateway: undone.Gateway, Incarnation: 2, Phase: api.PhaseReady, BootID: "c", Undo: recycled})
		}},
		{"pool decision: growth", "pool.grown", true, `demiurge_events_total{type="pool.grown"}`, func() {
			s.apply(command.ObserveHost{Meta: s.meta(), Host: "h2", Instance: "i", Full: true, Report: &command.HostReport{Capacity: 50, NginxState: api.NginxServing}})
			s.apply(command.CreateGateways{Meta: s.meta(), Pool: "default", Reason: "below the minimum", Gateways: []command.NewGateway{{ID: "gw-aaaaaaaaaa", Host: "h2"}}})
			report("h2", command.GatewayReport{Gateway: "gw-aaaaaaaaaa", Incarnation: 1, Phase: api.PhaseReady, BootID: "b"})
		}},
		{"pool decision: a limit", "pool.limited", false, `demiurge_pool_limited{pool="default",reason="max"}`, func() {
			s.apply(command.NotePool{Meta: s.meta(), Pool: "default", Limited: "max"})
		}},
		{"undo of a move: its gateway", "allocation.relocation_failed", true, `demiurge_allocation_undos_total{step="recycle"}`, func() {
			s.apply(command.Relocate{Meta: s.meta(), Cause: state.CauseMigrate, Reason: "migrated", Items: []command.RelocateItem{{Allocation: served.Allocation}}})
			fail(first())
		}},
		{"undo of a move: its name", "allocation.undo_dns", true, `demiurge_allocation_undos_total{step="undo_dns"}`, func() {
			s.apply(command.RecordEvents{Meta: s.meta(), Events: []command.Event{{Type: "allocation.undo_dns", At: s.now, Allocation: served.Allocation, Reason: "it did not move"}}})
		}},
		{"configuration change: a pool", "pool.changed", false, `demiurge_events_total{type="pool.changed"}`, func() {
			s.apply(command.PutPool{Meta: s.meta(), Pool: "default", MinReady: 1, Step: 3, Max: 40, MaxInFlight: 10, Isolation: "serve", ActivationTimeout: 10 * time.Second})
		}},
		{"configuration change: an organization", "organization.changed", false, `demiurge_events_total{type="organization.changed"}`, func() {
			s.apply(command.EditOrganization{Meta: s.meta(), Organization: first().Organization, PutProject: &command.Project{ID: "p"}})
		}},
		{"configuration change: nginx", "host.generation", false, `demiurge_nginx_generations_total{result="live"}`, func() {
			s.apply(command.ObserveHost{Meta: s.meta(), Host: "h1", Instance: "i", Report: &command.HostReport{Capacity: 50, NginxState: api.NginxServing, LiveGeneration: 7, DesiredGeneration: 7}})
		}},
		{"process death: a gateway", "gateway.died", true, `demiurge_events_total{type="gateway.died"}`, func() {
			a := first()
			report("h1", command.GatewayReport{
				Gateway: a.Gateway, Incarnation: 1, Phase: api.PhaseServing, Organization: a.Organization, Epoch: a.Epoch, BootID: "after", Restarts: 1, Message: "exit status 2",
			})
		}},
		{"process death: nginx", "host.nginx", false, `demiurge_events_total{type="host.nginx"}`, func() {
			s.apply(command.ObserveHost{Meta: s.meta(), Host: "h1", Instance: "i", Report: &command.HostReport{Capacity: 50, NginxState: api.NginxDown, LiveGeneration: 7, DesiredGeneration: 7}})
		}},
		{"process death: an agent", "host.silent", true, `demiurge_events_total{type="host.silent"}`, func() {
			s.apply(command.SetHostStatus{Meta: s.meta(), Host: "h1", Status: api.HostSilent, Reason: "its agent has not been heard of"})
		}},
		{"release", "allocation.released", false, `demiurge_allocations_total{code="",result="released",warm="true"}`, func() {
			a := first()
			s.apply(command.Release{Meta: s.meta(), Allocation: a.ID, Reason: "requested"})
			report("h1", command.GatewayReport{Gateway: a.Gateway, Incarnation: 2, Phase: api.PhaseReady, BootID: "d", Undo: recycled})
		}},
	} {
		before, last := s.scrape()[row.sample], s.told
		row.happen()
		events, _, _ := s.store.Events(last, state.KeptEvents)
		found := false
		for _, e := range events {
			found = found || e.Type == row.event && (e.Reason != "" || !row.reason)
		}
		if !found {
			t.Errorf("%s: no event %s (with a reason: %v) in %+v", row.kind, row.event, row.reason, events)
		}
		if now := s.scrape()[row.sample]; now != before+1 {
			t.Errorf("%s: %s went from %v to %v", row.kind, row.sample, before, now)
		}
	}
}
