package cli_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// Whoever sees a start fail is told where its journal is, and finds it there by the organization's id: it has no
// live allocation any more.
func TestAFailedStartLeadsToItsJournal(t *testing.T) {
	const org = "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"
	at := time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC)
	answer := func(status int, body any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(body)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/allocations", answer(504, api.Problem{Status: 504, Code: string(fault.ActivationTimeout), Detail: "step activate failed"}))
	mux.HandleFunc("GET /v1/organizations/{id}/allocation", answer(404, api.Problem{Status: 404, Code: string(fault.NotFound), Detail: "no live allocation"}))
	mux.HandleFunc("GET /v1/allocations", func(w http.ResponseWriter, r *http.Request) {
		list := api.List[api.Allocation]{Items: []api.Allocation{}}
		if r.URL.Query().Get("organization_id") == org {
			list.Items = []api.Allocation{
				// By the clock of the one that led then, which was wrong, the earlier one is the later.
				{AllocationID: "al-bbbbbbbbbbbbbbbb", CreatedAt: at, Index: 20}, {AllocationID: "al-aaaaaaaaaaaaaaaa", CreatedAt: at.Add(time.Minute), Index: 10},
			}
		}
		answer(200, list)(w, r)
	})
	mux.HandleFunc("GET /v1/allocations/al-bbbbbbbbbbbbbbbb/steps", answer(200, api.List[api.Step]{Items: []api.Step{{Step: "activate", State: "failed", StartedAt: at}}}))
	server := httptest.NewServer(mux)
	defer server.Close()

	c := start(t, server, "alloc", "start", org)
	c.exit(t, 1)
	if want := "activation_timeout: step activate failed; 'demiurge alloc steps " + org + "' shows its steps"; !strings.Contains(c.stderr.String(), want) {
		t.Errorf("%q, want %q", c.stderr.String(), want)
	}
	c = start(t, server, "alloc", "steps", org)
	c.exit(t, 0)
	if !strings.Contains(c.stdout.String(), "activate  failed") {
		t.Errorf("%q", c.stdout.String())
	}
	c = start(t, server, "alloc", "steps", "7f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11") // never had one
	c.exit(t, 1)
	c = start(t, server, "alloc", "stop", org) // nothing that has ended is stopped
	c.exit(t, 1)
	if !strings.Contains(c.stderr.String(), "no live allocation") {
		t.Errorf("%q", c.stderr.String())
	}
}
