package fsm_test

import (
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// What changed since an index is what a scan of all gateways finds, as long as it is known; what is too far
// back is said to be unknown.
func TestDesiredSince(t *testing.T) {
	m := small(t, 3)
	host := m.gateway(gwID(1)).Host
	var marks []uint64
	unknown := 0
	for round := range 1500 {
		gw := gwID(1 + round%3)
		if round%7 == 0 {
			marks = append(marks, m.store.View().Index())
		}
		m.ok(command.QuarantineGateway{Meta: m.meta(), Gateway: gw})
		m.ok(command.RecycleGateway{Meta: m.meta(), Gateway: gw})
		if round%50 != 0 {
			continue
		}
		view := m.store.View()
		for _, since := range append(marks, view.Index()) {
			got, known := view.DesiredSince(nil, host, since)
			if !known {
				unknown++
				continue
			}
			want := map[id.Gateway]bool{}
			for g := range view.GatewaysOfHost(nil, host) {
				if g.Desired.Index > since {
					want[g.ID] = true
				}
			}
			if len(got) != len(want) {
				t.Fatalf("round %d, since %d: %d gateways, a scan finds %d", round, since, len(got), len(want))
			}
			for _, g := range got {
				if !want[g.ID] {
					t.Fatalf("round %d, since %d: %s did not change", round, since, g.ID)
				}
			}
		}
	}
	if unknown == 0 {
		t.Error("changes are kept for ever")
	}
	if _, known := m.store.View().DesiredSince(nil, host, m.store.View().Index()); !known {
		t.Error("the present is unknown")
	}
}
