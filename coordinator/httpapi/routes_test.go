package httpapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/usertoken/usertokentest"
)

// openapi is what the tests read of the document.
type openapi struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		OperationID string                `json:"operationId"`
		Summary     string                `json:"summary"`
		Security    []map[string][]string `json:"security"`
		Roles       []string              `json:"x-roles"`
		Parameters  []struct{ Name, In string }
		Responses   map[string]struct {
			Codes   []string                   `json:"x-codes"`
			Content map[string]json.RawMessage `json:"content"`
		}
	}
	Components struct {
		Schemas map[string]json.RawMessage
	}
}

func (k *kit) document() openapi {
	k.t.Helper()
	var doc openapi
	if err := json.Unmarshal(k.call(get, "/openapi.json", "", "").body, &doc); err != nil {
		k.t.Fatal(err)
	}
	return doc
}

func TestRoutesEqualTheDocument(t *testing.T) {
	k := newKit(t)
	doc := k.document()
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("OpenAPI version %q", doc.OpenAPI)
	}
	documented := map[string]bool{}
	for path, operations := range doc.Paths {
		for method := range operations {
			documented[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, rt := range routes() {
		name := rt.method + " " + rt.path
		if !documented[name] {
			t.Errorf("%s is a route and not in the document", name)
			continue
		}
		delete(documented, name)
		op := doc.Paths[rt.path][strings.ToLower(rt.method)]
		if op.OperationID != rt.name || op.Summary == "" {
			t.Errorf("%s: operation %q, summary %q", name, op.OperationID, op.Summary)
		}
		if isPublic := len(op.Security) == 0; isPublic != (rt.access == public) {
			t.Errorf("%s: documented as public: %v, access %v", name, isPublic, rt.access)
		}
		if !slices.Equal(op.Roles, rt.access.names()) {
			t.Errorf("%s: documented for %v, is for %v", name, op.Roles, rt.access.names())
		}
		if rt.access == 0 {
			t.Errorf("%s is for nobody", name)
		}
		for _, status := range rt.statuses {
			if _, ok := op.Responses[strconv.Itoa(status)]; !ok {
				t.Errorf("%s: status %d is not documented", name, status)
			}
		}
		for _, code := range rt.allCodes() {
			status := strconv.Itoa(fault.New(code, "").Status())
			if r := op.Responses[status]; !slices.Contains(r.Codes, string(code)) || r.Content[api.ProblemContentType] == nil {
				t.Errorf("%s: code %s is not documented under %s", name, code, status)
			}
		}
	}
	if len(documented) > 0 {
		t.Errorf("in the document and no route: %v", slices.Sorted(maps.Keys(documented)))
	}
}

func TestEveryCodeIsDocumentedSomewhere(t *testing.T) {
	seen := map[fault.Code]bool{}
	for _, rt := range routes() {
		for _, c := range rt.allCodes() {
			seen[c] = true
		}
	}
	for code := range fault.Codes() {
		if !seen[code] && code != fault.StaleVersion { // of sections, which have no route here
			t.Errorf("no route answers %s", code)
		}
	}
}

func TestDocumentIsWhole(t *testing.T) {
	k := newKit(t)
	doc := k.document()
	raw := string(k.call(get, "/openapi.json", "", "").body)
	for _, part := range strings.Split(raw, `"$ref":"#/components/schemas/`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		if doc.Components.Schemas[name] == nil {
			t.Errorf("schema %s is referred to and missing", name)
		}
	}
	for _, name := range []string{"Allocation", "Problem", "StartAllocation", "Organization", "Pool", "Gateway", "Host", "Event", "Status", "AssignmentFrame", "Observation"} {
		if doc.Components.Schemas[name] == nil {
			t.Errorf("schema %s is missing", name)
		}
	}
	if topics := strings.Join(eventTopics, ", "); !strings.Contains(raw, "separated by commas: "+topics) {
		t.Errorf("the document does not name the topics of events: %s", topics)
	}
	yaml := k.call(get, "/openapi.yaml", "", "")
	if yaml.status != 200 || !strings.Contains(string(yaml.body), "openapi: 3.1.0") {
		t.Errorf("YAML: %d %.200s", yaml.status, yaml.body)
	}
}

// callers are all kinds of callers; the value is the token's role, empty for a refusal with 401.
func (k *kit) callers() map[string]string {
	out := map[string]string{"none": "", "bad": "", "expired": "", "unknown role": "nothing"}
	for role := range k.tokens {
		out[role] = role
	}
	k.tokens["none"] = ""
	k.tokens["bad"] = "0000"
	k.tokens["expired"] = k.makeToken(api.RoleAdmin, time.Now().Add(-time.Second))
	k.tokens["unknown role"] = k.makeToken("nothing", time.Time{})
	for what, signed := range map[string]string{
		"forged user":   usertokentest.Sign(k.t, usertokentest.NewKey(k.t, "k1"), usertokentest.For("alice", k.now())),
		"unsigned user": usertokentest.Unsigned(k.t, usertokentest.Claims{"alg": "none", "kid": "k1"}, usertokentest.For("alice", k.now())),
		"expired user":  usertokentest.Sign(k.t, k.issuer, usertokentest.For("alice", k.now().Add(-time.Hour))),
	} {
		out[what], k.tokens[what] = "", signed
	}
	out["user"], k.tokens["user"] = userCaller, k.user("alice")
	out["join token"] = joinCaller
	k.tokens["join token"] = k.joinToken(pki.RoleAgent, "").Secret
	return out
}

// Kinds of callers that have no API token.
const (
	joinCaller = "join token"
	userCaller = "user"
)

func TestEveryRouteForEveryCaller(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Limits.Failed = Rate{1e6, 1e6} })
	k.withGateways(1)
	cases := 0
	for caller, role := range k.callers() {
		for _, rt := range routes() {
			if rt.name == "agent-stream" && role == agentCaller {
				continue // it is held: TestAgentStream
			}
			name := fmt.Sprintf("%s as %s", rt.name, caller)
			path := strings.NewReplacer("{id}", "x", "{name}", "_", "{user_id}", "u", "{project_id}", "p").Replace(rt.path)
			body := ""
			if rt.method == post || rt.method == put {
				body = "{"
			}
			got := k.call(rt.method, path, k.tokens[caller], body)
			cases++
			switch {
			case rt.access == public:
				if got.status != http.StatusOK {
					t.Errorf("%s: %d %s", name, got.status, got.body)
				}
			case rt.access == forJoiners && role == joinCaller:
				wantProblem(t, got, fault.InvalidRequest)
			case role == "", role == joinCaller, rt.access == forJoiners, (role == agentCaller) != (rt.access == forHostsAgent):
				wantProblem(t, got, fault.Unauthenticated)
			case role == userCaller && rt.access&(aMember|aManager) != 0: // as whom: TestSecurityEveryRouteForMembersAndStrangers
				wantProblem(t, got, fault.InvalidRequest)
			case role != agentCaller && rt.access&roleOf(role) == 0:
				wantProblem(t, got, fault.Forbidden)
			case got.status == http.StatusUnauthorized || got.status == http.StatusForbidden:
				t.Errorf("%s: refused with %d %s", name, got.status, got.body)
			}
			if t.Failed() {
				t.Logf("%s: %d", name, got.status)
			}
		}
	}
	if cases < 300 {
		t.Errorf("only %d cases", cases)
	}
}

// TestRolesOfTheContract holds the table against the contract's words, independently of the sets.
func TestRolesOfTheContract(t *testing.T) {
	want := map[string]string{
		"start-allocation": "admin operator platform member of the organization", "start-allocations": "admin operator platform",
		"list-allocations": "admin operator platform reader", "explain-allocation": "admin operator platform reader",
		"release-allocation": "admin operator platform owner or admin of the organization", "put-organization": "admin operator platform",
		"put-pool": "admin operator", "list-pools": "admin operator", "list-gateways": "admin operator platform reader",
		"recycle-gateway": "admin operator", "list-hosts": "admin operator platform reader", "cordon-host": "admin operator",
		"drain-host": "admin operator", "migrate-allocation": "admin operator",
		"create-token": "admin", "list-tokens": "admin", "delete-token": "admin", "list-events": "admin operator platform reader",
		"get-status": "admin operator platform reader", "agent-stream": "agent", "agent-observe": "agent",
		"renew-certificate": "agent", "join": "join token", "create-join-token": "admin operator", "list-join-tokens": "admin operator",
		"delete-join-token":           "admin operator",
		"get-organization-allocation": "admin operator platform reader member of the organization", "get-organization": "admin operator platform",
		"gateway-start": "admin operator platform member of the organization",
		"gateway-stop":  "admin operator platform owner or admin of the organization", "healthz": "", "metrics": "",
	}
	for _, rt := range routes() {
		if names, ok := want[rt.name]; ok {
			if got := strings.Join(rt.access.names(), " "); got != names {
				t.Errorf("%s is for %q, want %q", rt.name, got, names)
			}
			delete(want, rt.name)
		}
	}
	if len(want) > 0 {
		t.Errorf("no such routes: %v", slices.Sorted(maps.Keys(want)))
	}
}
