package agent

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/demiurge-platform/demiurge/shared/api"
)

type sunk []api.Observation

func (s *sunk) Observe(o api.Observation) { *s = append(*s, o) }

// What a gateway's actor saw is looked at at once and not with the next look of the rhythm; what says nothing of
// a gateway wakes nobody.
func TestAGatewaysChangeIsLookedAtAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var passed sunk
		routed := make(chan struct{}, 1)
		sink := routedSink{&passed, routed}
		looks := 0
		go watch(ctx, routed, func() { looks++ })
		synctest.Wait()
		sink.Observe(api.Observation{Events: []api.AgentEvent{{Type: "host.drift_repaired"}}})
		synctest.Wait()
		if looks != 1 || len(passed) != 1 {
			t.Fatalf("%d looks, %d observations after an event", looks, len(passed))
		}
		sink.Observe(api.Observation{Gateways: []api.GatewayReport{{GatewayID: "gw-aaaaaaaaaa", Phase: api.PhaseServing}}})
		synctest.Wait()
		if looks != 2 || len(passed) != 2 {
			t.Errorf("%d looks, %d observations after a report, with a clock that stands", looks, len(passed))
		}
	})
}
