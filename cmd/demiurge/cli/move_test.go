package cli_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/demiurge-platform/demiurge/cmd/demiurge/cli"
)

// TestInterruptLeavesTheDrainGoing: an interrupt ends the command, changes nothing on the coordinator, and the
// command says so.
func TestInterruptLeavesTheDrainGoing(t *testing.T) {
	ctx, interrupt := context.WithCancel(context.Background())
	defer interrupt()
	var mu sync.Mutex
	var calls []string // guarded by mu
	coordinator := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" { // a look whether somebody is there
			return
		}
		mu.Lock()
		calls = append(calls, r.Method+" "+r.URL.Path)
		n := len(calls)
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"host_id":"host-1","drain":{"state":"draining","since":"2026-01-02T03:04:05Z","total":3,"left":2,"moving":1,"closing":0}}`)
		if n == 3 {
			interrupt()
		}
	}))
	defer coordinator.Close()
	var out, errs bytes.Buffer
	code := cli.Run(ctx, cli.Options{Args: []string{"host", "drain", "host-1", "--address", coordinator.URL}, Stdout: &out, Stderr: &errs})
	if code != 1 || !strings.Contains(errs.String(), "host host-1: draining, 2 of 3 left, 1 moving") ||
		!strings.Contains(errs.String(), "the drain of host host-1 goes on") || !strings.Contains(errs.String(), "'demiurge host uncordon host-1' ends it") {
		t.Errorf("exit code %d, %s", code, errs.String())
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(calls, ", "); got != "POST /v1/hosts/host-1/drain, GET /v1/hosts/host-1, GET /v1/hosts/host-1" {
		t.Error(got)
	}
}
