package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func TestAgentStream(t *testing.T) {
	k := newKit(t)
	k.agents.frames = []api.AssignmentFrame{{Index: 1, Full: true, Domain: "example.test"}, {Index: 2}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, get, k.url(k.tokens[agentCaller])+"/v1/agent/stream?host=h1&instance=i1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := k.programs[k.tokens[agentCaller]].Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != jsonLines {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	lines := bufio.NewScanner(resp.Body)
	for i, want := range k.agents.frames { // each arrives although the stream goes on
		var got api.AssignmentFrame
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &got) != nil || got.Index != want.Index || got.Full != want.Full {
			t.Fatalf("frame %d is %q", i, lines.Text())
		}
	}
	k.server.Drain()
	if lines.Scan() {
		t.Errorf("after the end: %q", lines.Text())
	}
	if ctx.Err() != nil {
		t.Error("the stream did not end with the server")
	}
}

func TestAnAgentSpeaksForItsOwnHostOnly(t *testing.T) {
	k := newKit(t)
	agent := k.tokens[agentCaller]
	wantProblem(t, k.call(get, "/v1/agent/stream?host=h2&instance=i1", agent, ""), fault.Forbidden)
	wantProblem(t, k.call(post, "/v1/agent/observations", agent, `{"host_id":"h2","instance":"i1"}`), fault.Forbidden)
	if k.agents.observed.Load() != nil {
		t.Error("a report for another host came through")
	}
	if n := k.metrics.refused.Load(); n != 2 {
		t.Errorf("%d refusals counted, want 2", n)
	}
	for _, role := range []string{api.RoleAdmin, api.RoleOperator} {
		wantProblem(t, k.call(post, "/v1/agent/observations", k.tokens[role], `{"host_id":"h1","instance":"i1"}`), fault.Unauthenticated)
	}
	for _, bad := range []string{"?host=h1", "?instance=i1", "?host=..&instance=i1", "?host=h1&instance=a%0ab", "?host=h1&instance=" + strings.Repeat("i", 65)} {
		wantProblem(t, k.call(get, "/v1/agent/stream"+bad, agent, ""), fault.InvalidRequest)
	}
	k.cluster.leader.Store(false)
	wantProblem(t, k.call(get, "/v1/agent/stream?host=h1&instance=i1", agent, ""), fault.NoLeader)
	wantProblem(t, k.call(post, "/v1/agent/observations", agent, `{"host_id":"h1","instance":"i1"}`), fault.NoLeader)
}

func TestAgentObservations(t *testing.T) {
	k := newKit(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	sent := api.Observation{
		HostID: "h1", Instance: "i1", Full: true,
		Host: &api.HostReport{Address: "192.0.2.1", Capacity: 10, Version: "1", Nginx: api.NginxStatus{State: api.NginxServing, LiveGeneration: 3}},
		Gateways: []api.GatewayReport{{
			GatewayID: "gw-abcdefghij", Incarnation: 2, Phase: api.PhaseServing, Epoch: 7, BootID: "b",
			Undo: []api.Step{{Step: api.StepUnroute, State: api.StepDone, StartedAt: at, EndedAt: &at}},
		}},
		Steps:  []api.StepReport{{AllocationID: "al-abcdefghijklmnop", GatewayID: "gw-abcdefghij", Epoch: 7, Step: api.Step{Step: api.StepRoute, State: api.StepDone, StartedAt: at}}},
		Events: []api.AgentEvent{{Type: "config.drift", At: at, Reason: "changed by hand"}},
	}
	got, err := k.client(agentCaller).Observe(context.Background(), sent)
	if err != nil || got.Index != 42 {
		t.Fatalf("%+v, %v", got, err)
	}
	want, _ := json.Marshal(sent)
	if have, _ := json.Marshal(k.agents.observed.Load()); string(have) != string(want) {
		t.Errorf("arrived %s\nsent    %s", have, want)
	}
	if _, err := k.client(agentCaller).Observe(context.Background(), api.Observation{HostID: "h1", Instance: "i1"}); err != nil {
		t.Errorf("an empty report: %v", err)
	}
	large := sent
	large.Gateways = make([]api.GatewayReport, 8_000) // a full report of a large host is longer than other bodies
	for i := range large.Gateways {
		large.Gateways[i] = sent.Gateways[0]
	}
	if _, err := k.client(agentCaller).Observe(context.Background(), large); err != nil {
		t.Errorf("a large report: %v", err)
	}
}
