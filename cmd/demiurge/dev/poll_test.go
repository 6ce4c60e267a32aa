package dev

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// A start that does not get on says what it waits for, and not only at its very end.
func TestALongWaitSaysWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := &system{opts: Options{Stderr: &out}}
		over := time.Now().Add(2*tellEvery + time.Second)
		err := s.poll(t.Context(), func(context.Context) string {
			if time.Now().After(over) {
				return ""
			}
			return "0 of 3 gateways are ready"
		})
		if err != nil || strings.Count(out.String(), "still waiting: 0 of 3 gateways are ready\n") != 2 {
			t.Errorf("%v, and it said %q", err, out.String())
		}
	})
}

// What gateways fail of stands where the start is waited for, and not in a log alone.
func TestAStartSaysWhatItsGatewaysFailOf(t *testing.T) {
	coordinator := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.List[api.Gateway]{Items: []api.Gateway{
			{GatewayID: "gw-aaaaaaaaaa"}, {GatewayID: "gw-bbbbbbbbbb", Message: "exited with code 3: no license"},
		}})
	}))
	defer coordinator.Close()
	admin, err := client.New(client.Options{Addresses: []string{coordinator.URL}})
	if err != nil {
		t.Fatal(err)
	}
	s := &system{admin: admin}
	if got := s.notReady(t.Context(), api.Pool{}); got != ": gw-bbbbbbbbbb exited with code 3: no license" {
		t.Errorf("%q", got)
	}
	if got := s.notReady(t.Context(), api.Pool{BreakerReason: "3 gateways in a row did not become ready"}); got != ": 3 gateways in a row did not become ready" {
		t.Errorf("%q", got)
	}
}
