package httpapi

import (
	"encoding/json"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

var placeholder = regexp.MustCompile(`\{[a-z_]+\}`)

// someID is an id of the kind that a path has.
func someID(path string) string {
	switch {
	case strings.HasPrefix(path, "/v1/organizations/"):
		return "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"
	case strings.HasPrefix(path, "/v1/allocations/"):
		return "al-abcdefghijklmnop"
	case strings.HasPrefix(path, "/v1/gateways/"):
		return "gw-abcdefghij"
	}
	return "x"
}

// garbage is no value of any parameter.
const garbage = "no such; thing/.."

// TestGarbageInAnyParameter: a parameter that cannot be taken for what it is, on any route, is refused and named, with
// what to send instead. A list that passes over a cursor, or takes it for the end, would look like an answer.
func TestGarbageInAnyParameter(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	checked := map[string]int{}
	for path, operations := range k.document().Paths {
		for method, op := range operations {
			secret := k.tokens[api.RoleAdmin]
			if strings.HasPrefix(path, "/v1/agent/") {
				secret = k.tokens[agentCaller]
			}
			at := placeholder.ReplaceAllString(path, someID(path))
			others := url.Values{} // that the route cannot do without
			if op.OperationID == "agent-stream" {
				others = url.Values{"host": {"h1"}, "instance": {"i1"}}
			}
			refused := func(what, query, location string) {
				t.Helper()
				rest := maps.Clone(others)
				rest.Del(strings.TrimPrefix(location, "query."))
				query += "&" + rest.Encode()
				got := k.call(strings.ToUpper(method), at+"?"+query, secret, "{}")
				wantProblem(t, got, fault.InvalidRequest)
				named := slices.ContainsFunc(got.problem.Errors, func(e fault.Location) bool {
					return e.Location == location && len(e.Message) > len("want x") && !strings.HasPrefix(e.Message, "invalid")
				})
				if !named {
					t.Errorf("%s: %s %s?%s: %s is not named: %s", what, method, at, query, location, got.body)
				}
			}
			public := strings.HasPrefix(op.OperationID, "openapi") || !strings.HasPrefix(path, "/v1") && !strings.HasPrefix(path, "/gateway")
			if public || op.OperationID == "join" { // whose caller has no token here
				continue
			}
			refused("a name that is none", "no_such=1", "query.no_such")
			refused("a query that cannot be read", "limit=%zz", "query")
			refused("a query that cannot be read", "a;b", "query")
			for _, p := range op.Parameters {
				if p.In != "query" {
					continue
				}
				checked[p.Name]++
				refused("garbage", p.Name+"="+url.QueryEscape(garbage), "query."+p.Name)
				refused("two values", p.Name+"=1&"+p.Name+"=1", "query."+p.Name)
			}
		}
	}
	for name, least := range map[string]int{
		"cursor": 9, "limit": 9, "index": 15, "wait": 15, "consistency": 18, "organization_id": 2, "pool": 2, "host_id": 2,
		"gateway_id": 1, "state": 2, "live": 1, "topic": 1, "role": 1, "status": 1, "drain": 3, "deadline": 1, "force": 2, "host": 1, "instance": 1,
	} {
		if checked[name] < least {
			t.Errorf("%s was a parameter of %d routes, want %d or more: this test looks in the wrong place", name, checked[name], least)
		}
	}
}

// TestCursorsLeadThroughEveryList: what a page answers as its cursor is one for the next, and the last has none.
func TestCursorsLeadThroughEveryList(t *testing.T) {
	k := newKit(t)
	k.withGateways(3)
	k.apply(command.PutPool{Meta: k.meta(), Pool: "other", Max: 1, Step: 1, MaxInFlight: 1, Isolation: "serve"})
	k.apply(command.ObserveHost{Meta: k.meta(), Host: "h2", Instance: "i", Full: true, Report: &command.HostReport{Address: "192.0.2.2", Capacity: 1}})
	for range 3 {
		k.apply(command.Reserve{Meta: k.meta(), Pool: "default", Items: []command.ReserveItem{{Organization: k.organization(), Allocation: id.NewAllocation()}}})
		k.apply(command.PutJoinToken{Meta: k.meta(), Token: id.NewJoinToken(), Role: "agent", Hash: strings.Repeat("a", 64), ExpiresAt: k.now().Add(time.Hour)})
	}
	walked := 0
	for path, operations := range k.document().Paths {
		op, ok := operations["get"]
		if !ok || !slices.ContainsFunc(op.Parameters, func(p struct{ Name, In string }) bool { return p.Name == "cursor" }) {
			continue
		}
		walked++
		var all api.List[json.RawMessage]
		if err := json.Unmarshal(k.call(get, path, k.tokens[api.RoleAdmin], "").body, &all); err != nil || len(all.Items) < 2 {
			t.Errorf("%s: %d items, want 2 or more: %v", path, len(all.Items), err)
		}
		var paged []json.RawMessage
		for cursor, pages := "", 1; pages <= len(all.Items)+1; pages++ {
			var one api.List[json.RawMessage]
			got := k.call(get, path+"?limit=1&cursor="+url.QueryEscape(cursor), k.tokens[api.RoleAdmin], "")
			if err := json.Unmarshal(got.body, &one); err != nil || got.status != 200 {
				t.Fatalf("%s after %q: %d %s: %v", path, cursor, got.status, got.body, err)
			}
			paged = append(paged, one.Items...)
			if cursor = one.Cursor; cursor == "" {
				break
			}
		}
		if !slices.EqualFunc(paged, all.Items, func(a, b json.RawMessage) bool { return string(a) == string(b) }) {
			t.Errorf("%s: page by page there are %d items, and %d at once", path, len(paged), len(all.Items))
		}
	}
	if walked < 9 {
		t.Errorf("only %d lists have a cursor", walked)
	}
}

// What cannot be read would be left out of a request that is passed on to the leader.
func TestUnreadableQueryIsNotPassedOn(t *testing.T) {
	k, e := newElections(t, patience)
	e.elect("c2:1")
	wantProblem(t, k.call(get, "/v1/gateways?cursor=%zz", k.tokens[api.RoleAdmin], ""), fault.InvalidRequest)
	if e.reached() != "" {
		t.Errorf("it came to %q", e.reached())
	}
}
