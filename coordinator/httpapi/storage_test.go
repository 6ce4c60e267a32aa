package httpapi

import (
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// TestNothingNewIsTakenWithoutRoom walks every changing route with a disk that is nearly full: what is
// neither refused nor on the list of what goes on is a route that nobody thought of.
func TestNothingNewIsTakenWithoutRoom(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	k.tokens[joinCaller] = k.joinToken("agent", "").Secret
	k.cluster.full.Store(true)
	goesOn := map[string]bool{}
	for _, rt := range routes() {
		if rt.method == get {
			continue
		}
		caller := api.RoleAdmin
		switch {
		case rt.access&joiner != 0:
			caller = joinCaller
		case rt.access&agent != 0:
			caller = agentCaller
		}
		path := strings.NewReplacer("{id}", "x", "{name}", "_", "{user_id}", "u", "{project_id}", "p").Replace(rt.path)
		body := ""
		if rt.method != del {
			body = "{"
		}
		got := k.call(rt.method, path, k.tokens[caller], body)
		if strings.Contains(string(got.body), string(fault.StorageLow)) {
			wantProblem(t, got, fault.StorageLow)
			if got.header.Get("Retry-After") == "" || !strings.Contains(string(got.body), "3 MiB free") {
				t.Errorf("%s: %s", rt.name, got.body)
			}
			continue
		}
		goesOn[rt.name] = rt.method != del
	}
	for _, name := range []string{
		"gateway-stop", "release-allocation", "delete-pool", "delete-host", "delete-organization", "cordon-host", "recycle-gateway",
		"quarantine-gateway", "transfer-leadership", "restore-snapshot", "agent-observe", "renew-certificate",
	} {
		if _, ok := goesOn[name]; !ok {
			t.Errorf("%s is refused and would help", name)
		}
		delete(goesOn, name)
	}
	for name, adds := range goesOn {
		if adds {
			t.Errorf("%s is taken though there is no room", name)
		}
	}
	k.cluster.full.Store(false)
	if got := k.call(post, "/v1/allocations", k.tokens[api.RoleAdmin], "{"); strings.Contains(string(got.body), string(fault.StorageLow)) {
		t.Errorf("refused with room: %s", got.body)
	}
}
