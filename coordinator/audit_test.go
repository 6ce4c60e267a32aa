package coordinator_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// audited makes the calls of TestEveryChangingCallIsAnEvent.
type audited struct {
	t    *testing.T
	c    *coordtest.Cluster
	left map[string]string // operations that change something and were not called yet: their method and path
}

// operations reads the document for the calls that are not mere readings.
func (a *audited) operations() {
	a.t.Helper()
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
		}
	}
	_, body := a.send(http.MethodGet, "/openapi.json", "", nil)
	if err := json.Unmarshal(body, &doc); err != nil {
		a.t.Fatal(err)
	}
	a.left = map[string]string{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			if method != "get" {
				a.left[op.OperationID] = strings.ToUpper(method) + " " + path
			}
		}
	}
	if len(a.left) < 25 {
		a.t.Fatalf("the document has only %v", a.left)
	}
}

func (a *audited) send(method, path, token string, body []byte) (int, []byte) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.c.Context(), method, a.c.URL+path, bytes.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		if !json.Valid(body) {
			req.Header.Set("Content-Type", "application/octet-stream")
		}
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode, out
}

// call makes a call by its operation; elements replace those in braces of its path, in order. Then there is
// an event of it with this actor and the caller's address. It returns the answer's body.
func (a *audited) call(operation, token, actor, body string, elements ...string) []byte {
	a.t.Helper()
	method, path, ok := strings.Cut(a.left[operation], " ")
	if !ok {
		a.t.Fatalf("there is no operation %s, or it was called before", operation)
	}
	delete(a.left, operation)
	for _, e := range elements {
		from, to := strings.Index(path, "{"), strings.Index(path, "}")
		path = path[:from] + e + path[to+1:]
	}
	last := a.last()
	var sent []byte
	if body != "" {
		sent = []byte(body)
	}
	status, answer := a.send(method, path, token, sent)
	if status/100 != 2 && operation != "transfer-leadership" { // there is nobody to take it; the attempt is told all the same
		a.t.Errorf("%s: %d %s", operation, status, answer)
	}
	events, err := a.c.Admin.ListEvents(a.c.Context(), client.EventQuery{})
	if err != nil {
		a.t.Fatal(err)
	}
	if !slices.ContainsFunc(events, func(e api.Event) bool {
		return (e.Index > last || operation == "restore-snapshot") && e.Actor == actor && e.Source == "127.0.0.1"
	}) {
		a.t.Errorf("%s: no event of %s from 127.0.0.1 after %d", operation, actor, last)
	}
	return answer
}

// last is the index of the newest event.
func (a *audited) last() uint64 {
	a.t.Helper()
	events, err := a.c.Admin.ListEvents(a.c.Context(), client.EventQuery{})
	if err != nil || len(events) == 0 {
		a.t.Fatalf("%d events, %v", len(events), err)
	}
	return events[len(events)-1].Index
}

// ready is a gateway of a pool that is.
func (a *audited) ready() string {
	a.t.Helper()
	found := ""
	coordtest.Eventually(a.t, "a gateway is ready", func() bool {
		gateways, err := a.c.Admin.ListGateways(a.c.Context(), client.GatewayFilter{State: "ready"})
		if err == nil && len(gateways) > 0 {
			found = gateways[0].GatewayID
		}
		return found != ""
	})
	return found
}

// TestEveryChangingCallIsAnEvent: whatever the API can be asked to change, the events tell who asked, and from
// where. The calls come from the document, so that a new one cannot be forgotten here.
func TestEveryChangingCallIsAnEvent(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	a := &audited{t: t, c: c}
	a.operations()
	delete(a.left, "agent-observe")     // what an agent saw is no call for a change: its events name the host
	delete(a.left, "renew-certificate") // changes nothing that the coordinators keep
	delete(a.left, "remove-raft-peer")  // takes several coordinators: TestRemovingACoordinator
	tokens, err := c.Admin.ListTokens(c.Context())
	if err != nil || len(tokens) != 1 {
		t.Fatalf("%+v, %v", tokens, err)
	}
	me := tokens[0].TokenID
	as := func(operation, body string, elements ...string) []byte {
		t.Helper()
		return a.call(operation, c.Token, me, body, elements...)
	}
	org, other := string(id.NewOrganization()), string(id.NewOrganization())
	of := func(o string) string { return `{"organization_id":"` + o + `","wait":"30s"}` }

	c.Agent("h1", 8, coordtest.Script{})
	h2 := c.Agent("h2", 8, coordtest.Script{})
	as("put-pool", `{"min_ready":6,"max":12}`, "default")
	as("put-organization", `{"name":"o"}`, org)
	as("put-member", `{"role":"member"}`, org, "alice")
	as("delete-member", "", org, "alice")
	as("put-project", `{"name":"p"}`, org, "p1")
	as("delete-project", "", org, "p1")
	coordtest.Eventually(t, "gateways are ready on both hosts", func() bool {
		on := map[string]bool{}
		gateways, _ := c.Admin.ListGateways(c.Context(), client.GatewayFilter{State: "ready"})
		for _, g := range gateways {
			on[g.HostID] = true
		}
		return len(on) == 2
	})
	var started api.Allocation
	if err := json.Unmarshal(as("start-allocation", of(org)), &started); err != nil {
		t.Fatal(err)
	}
	as("migrate-allocation", `{}`, started.AllocationID)
	as("release-allocation", "", started.AllocationID)
	a.ready()
	as("gateway-start", `{"organization_id":"`+org+`"}`)
	as("gateway-stop", `{"organization_id":"`+org+`"}`)
	as("delete-organization", "", org)
	as("start-allocations", `{"organization_ids":["`+other+`"],"wait":"30s"}`)
	as("recycle-gateway", "", a.ready())
	as("quarantine-gateway", "", a.ready())
	as("cordon-host", "", "h2")
	as("uncordon-host", "", "h2")
	as("drain-host", `{}`, "h2")
	coordtest.Eventually(t, "nothing is served on the drained host", func() bool { return len(h2.Serving()) == 0 })
	if _, err := c.Admin.PutPool(c.Context(), "empty", api.PutPool{}); err != nil {
		t.Fatal(err)
	}
	as("delete-pool", "", "empty")
	var token api.CreatedToken
	if err := json.Unmarshal(as("create-token", `{"role":"reader"}`), &token); err != nil {
		t.Fatal(err)
	}
	as("delete-token", "", token.TokenID)
	var join api.CreatedJoinToken
	if err := json.Unmarshal(as("create-join-token", `{"role":"agent","name":"h3"}`), &join); err != nil {
		t.Fatal(err)
	}
	e, err := pki.NewEnrolment()
	if err != nil {
		t.Fatal(err)
	}
	request, err := json.Marshal(api.JoinRequest{CSR: e.Request(), Role: "agent", Name: "h3", Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	a.call("join", join.Secret, join.JoinTokenID, string(request))
	as("delete-join-token", "", join.JoinTokenID)
	as("transfer-leadership", `{}`)
	as("rotate-ca", `{}`)
	as("rotate-gossip", "")
	var saved bytes.Buffer
	if err := c.Admin.SaveSnapshot(c.Context(), &saved); err != nil {
		t.Fatal(err)
	}
	as("restore-snapshot", saved.String())
	as("delete-host", "", "h2")
	for operation, call := range a.left {
		t.Errorf("this test does not know %s (%s): make it, and see that its event tells who asked and from where", operation, call)
	}
}
