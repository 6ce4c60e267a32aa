package systemtest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// lie is a gateway program that keeps the contract until it is given an organization. Then it answers users
// in the name of another gateway.
func lie() int {
	listener, err := net.Listen("unix", os.Getenv("DEMIURGE_LISTEN"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var given atomic.Pointer[api.Activate]
	health := func(gateway string) api.GatewayHealth {
		h := api.GatewayHealth{GatewayID: gateway, BootID: fmt.Sprint(os.Getpid())}
		if a := given.Load(); a != nil {
			h.OrganizationID, h.Epoch = a.OrganizationID, a.Epoch
		}
		return h
	}
	answer := func(w http.ResponseWriter, gateway string) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(health(gateway))
	}
	own := os.Getenv("DEMIURGE_GATEWAY_ID")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, own) })
	mux.HandleFunc("POST /control/activate", func(w http.ResponseWriter, r *http.Request) {
		var a api.Activate
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		given.Store(&a)
		answer(w, own)
	})
	mux.HandleFunc("POST /control/deactivate", func(w http.ResponseWriter, _ *http.Request) {
		given.Store(nil)
		answer(w, own)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { answer(w, "gw-aaaaaaaaaa") })
	fmt.Fprintln(os.Stderr, http.Serve(listener, mux))
	return 1
}
