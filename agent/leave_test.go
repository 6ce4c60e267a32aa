package agent_test

import (
	"testing"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// An agent that ends says that its machine goes only when somebody has noted that, as a shutdown does. A restart
// moves nothing, and the next start takes it back.
func TestOnlyAShutdownIsAFarewell(t *testing.T) {
	h := newHost(t)
	said := func() (last bool, times int) {
		for _, o := range h.c.Bodies() {
			if last = o.Leaving; last {
				times++
			}
		}
		return last, times
	}
	g := h.c.Run(1)[0]
	start := func() {
		t.Helper()
		h.start()
		agenttest.Wait(t, "the agent to connect", h.agent.Connected)
		h.c.WaitPhase(t, g, api.PhaseReady, 1)
	}
	start()
	h.stop()
	if _, times := said(); times != 0 {
		t.Fatal("a plain end of the agent is taken for the end of the machine")
	}
	start()
	if err := agent.Leave(h.config); err != nil {
		t.Fatal(err)
	}
	h.stop()
	if last, times := said(); !last || times != 1 {
		t.Fatalf("a shutdown: %d farewells, the last word is one: %t", times, last)
	}
	if len(h.gatewayPIDs()) != 1 {
		t.Errorf("%d gateways run: the agent ends none, whatever it says", len(h.gatewayPIDs()))
	}
	start()
	h.stop()
	if last, times := said(); last || times != 1 {
		t.Errorf("after the next start: %d farewells, the last word is one: %t", times, last)
	}
}

// Nobody waits long for coordinators that are not there.
func TestAFarewellThatNobodyHearsHoldsNothingUp(t *testing.T) {
	h := newHost(t)
	h.start()
	agenttest.Wait(t, "the agent to connect", h.agent.Connected)
	h.c.Refuse(true)
	if err := agent.Leave(h.config); err != nil {
		t.Fatal(err)
	}
	h.stop() // within agenttest.Patience
}
