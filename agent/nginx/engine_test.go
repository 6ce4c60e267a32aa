package nginx

import (
	"net/http"
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
