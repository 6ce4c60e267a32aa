package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// FuzzControl: whatever comes to the private routes is refused whole, or it is an organization that could be served;
// and whatever comes through nginx does not reach them.
func FuzzControl(f *testing.F) {
	f.Add("/control/activate", `{"organization_id":"6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11","allocation_id":"al-aaaaaaaaaaaaaaaa","epoch":7,"hostname":"org-6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11.example.test"}`)
	f.Add("/control/activate", `{"organization_id":"x","members":[{"user_id":"../x"}],"sections":{"oauth":""}} {}`)
	f.Add("/control/deactivate", `{"epoch":18446744073709551616,"drain":"-1s"}`)
	f.Add("/project/%2e%2e", ``)
	f.Fuzz(func(t *testing.T, path, body string) {
		g := &Gateway{opts: Options{Gateway: "gw-aaaaaaaaaa", MaxBody: 1 << 16, Logger: hclog.NewNullLogger()}, log: hclog.NewNullLogger(), guard: newGuard(""), sockets: newSockets()}
		g.page = &page{}
		g.table = g.routes()
		ask := func(header ...string) int {
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
			r.URL.Path = path
			for _, epoch := range header {
				r.Header.Add(api.HeaderEpoch, epoch)
			}
			w := httptest.NewRecorder()
			g.serve(w, r)
			return w.Code
		}
		if status := ask("7"); status < 400 || g.tenant.holding() != nil {
			t.Fatalf("through nginx: %d", status)
		}
		if status := ask(); status == http.StatusInternalServerError {
			t.Fatalf("%d", status)
		}
		if held := g.tenant.holding(); held != nil {
			_, err := id.ParseOrganization(string(held.Organization))
			if err != nil || held.Epoch == 0 || !strings.HasPrefix(held.Hostname, "org-"+string(held.Organization)+".") {
				t.Fatalf("%+v was taken", held)
			}
		}
	})
}
