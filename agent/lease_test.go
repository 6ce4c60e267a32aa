package agent_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// With real nginx and processes: a host that no coordinator answers stops serving what it must not serve
// then, goes on with the rest, and brings the former back when a coordinator answers again.
func TestACutOffHostStopsServing(t *testing.T) {
	h := newHost(t)
	h.start()
	gws := h.c.Run(2)
	for _, g := range gws {
		h.c.WaitPhase(t, g, api.PhaseReady, 1)
	}
	leased := h.c.Wanted(gws[0])
	leased.Lease = api.Duration(6 * time.Second) // a word to the coordinator may take a third of it, on a busy machine too
	h.c.Assign(leased)
	org, other := id.NewOrganization(), id.NewOrganization()
	epoch, otherEpoch := h.c.Grant(gws[0], org), h.c.Grant(gws[1], other)
	h.c.WaitServing(t, gws[0], epoch)
	h.c.WaitServing(t, gws[1], otherEpoch)
	h.serves(org, gws[0], epoch)

	h.c.Refuse(true)
	agenttest.Wait(t, "the organization is closed", func() bool {
		status, _ := h.get(org, "/collab/ping")
		return status == http.StatusServiceUnavailable
	})
	h.serves(other, gws[1], otherEpoch)
	h.c.Refuse(false)
	t.Cleanup(func() {
		if t.Failed() {
			status, got := h.get(org, "/collab/ping")
			t.Logf("the name answers %d, %+v; the host's reports: %+v, %+v", status, got, h.c.Reports(gws[0]), h.c.Host())
		}
	})
	agenttest.Wait(t, "the organization is back", func() bool {
		status, got := h.get(org, "/collab/ping")
		return status == http.StatusOK && got.Epoch == epoch
	})
	agenttest.Wait(t, "it was told", func() bool { return len(h.c.Events(reconcile.EventFenced)) > 0 })
	h.serves(other, gws[1], otherEpoch)
}
