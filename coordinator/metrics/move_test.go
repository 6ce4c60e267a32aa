package metrics_test

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// TestMoves: who waits, how long moves took, and that they are no new allocations.
func TestMoves(t *testing.T) {
	s := newSystem(t)
	s.gateways(2)
	_, o := s.reserve()
	s.confirm(o)
	s.apply(command.LoseHost{Meta: s.meta(), Host: "h1", Reason: "test"})
	s.want(s.scrape(), map[string]float64{
		`demiurge_relocations_waiting{pool="default"}`:                    1,
		`demiurge_allocations{state="relocating"}`:                        1,
		`demiurge_allocations_total{code="",result="active",warm="true"}`: 1,
	})
	s.apply(command.ObserveHost{Meta: s.meta(), Host: "h2", Instance: "i", Full: true, Report: &command.HostReport{Capacity: 50, NginxState: api.NginxServing}})
	g := id.NewGateway()
	s.apply(command.CreateGateways{Meta: s.meta(), Pool: "default", Gateways: []command.NewGateway{{ID: g, Host: "h2"}}})
	s.apply(command.ObserveHost{Meta: s.meta(), Host: "h2", Instance: "i", Gateways: []command.GatewayReport{{Gateway: g, Incarnation: 1, Phase: api.PhaseReady, BootID: "b"}}})
	s.now = s.now.Add(2 * time.Second)
	s.confirm(o)
	s.apply(command.DrainHost{Meta: s.meta(), Host: "h2"})
	s.apply(command.NoteDrain{Meta: s.meta(), Host: "h2", State: api.DrainOverdue})
	s.want(s.scrape(), map[string]float64{
		`demiurge_relocations_waiting{pool="default"}`:                    0,
		`demiurge_relocations_total{cause="lost",result="moved"}`:         1,
		`demiurge_relocation_seconds_sum{cause="lost"}`:                   2,
		`demiurge_allocations_total{code="",result="active",warm="true"}`: 1,
		`demiurge_host_drain_left{host="h2"}`:                             1,
		`demiurge_host_drain_overdue{host="h2"}`:                          1,
	})
	if a := s.store.View().Allocation(nil, o.Allocation); a.State != state.AllocationActive {
		t.Fatalf("%+v", a)
	}
}
