package nginx

import (
	"net/http"
	"os"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestRouteFromFirstStartToGateway(t *testing.T) {
	h := newHost(t)
	h.startNginx()
	h.startEngine()
	a, b := h.gateway(nil), h.gateway(nil)
	h.apply(slots(a, b))
	org := id.NewOrganization()
	if status, header, _ := h.ask(orgHost(org), "/"); status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
		t.Errorf("without a route: %d %v", status, header)
	}
	h.route(org, a, 7)
	h.mustServe(org, a, 7)
	h.route(org, b, 9)
	h.mustServe(org, b, 9)
	if err := h.engine.Unroute(within(t), org, Target{b.id, 9}); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := h.ask(orgHost(org), "/"); status != http.StatusServiceUnavailable {
		t.Errorf("after the route has ended: %d", status)
	}
	h.settled()
	h.clean()
	eventually(t, "nginx counts as serving", func() bool { return h.engine.Status().State == api.NginxServing })
}

// Routes and generations that come and go leave nothing open in the agent. It does not run beside other tests: it
// counts what this process has open.
func TestChangesLeaveNothingOpen(t *testing.T) {
	h, gs, org := serving(t, 2)
	epoch := id.Epoch(7)
	route := func() {
		epoch++
		h.route(org, gs[0], epoch)
		if err := h.engine.Unroute(within(t), org, Target{gs[0].id, epoch}); err != nil {
			t.Fatal(err)
		}
	}
	generation := func() {
		h.apply(slots(gs[0]))
		h.settled()
		h.apply(slots(gs...))
		h.settled()
	}
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	route()
	generation() // what is opened once is kept
	before := open()
	const times, spare = 60, 10 // connections come and go
	for range times {
		route()
	}
	for range times / 4 {
		generation()
	}
	eventually(t, "no more is open than before", func() bool { return open() <= before+spare })
}
