package tenantapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// may is what the system roles and scopes of the callers below allow, written down once more by hand.
var may = map[string][]string{
	"organization:read": {"owner", "admin", "member", "owner by token", "reader by token"},
	"role:read":         {"owner", "admin", "member", "owner by token"},
	"role:write":        {"owner", "admin", "owner by token"},
	"grant:read":        {"owner", "admin", "owner by token"},
	"grant:write":       {"owner", "admin", "owner by token"},
	"client:read":       {"owner", "admin", "owner by token"},
	"client:create":     {"owner", "admin", "owner by token"},
	"client:delete":     {"owner", "admin", "owner by token"},
	"project:list":      {"owner", "admin", "member", "owner by token"},
	"container:create":  {"owner", "admin", "owner by token"},
	"container:read":    {"owner", "admin", "owner by token"},
	"container:delete":  {"owner", "admin", "owner by token"},
	"container:token":   {"owner", "admin", "owner by token"},
	"container:access":  {"owner", "admin", "owner by token"},
}

// body is what is sent to rows that take one.
var bodies = map[string]string{
	"PUT /roles/{role}":   `{"level":"project","permissions":["room:read"]}`,
	"POST /containers":    `{"project_id":"drawing","name":"x","services":[{"name":"web"}]}`,
	"POST /oauth/clients": `{"name":"x","service":true,"scope":["room:read"]}`,
}

var parameters = strings.NewReplacer(
	"/roles/{role}", "/roles/drafter", "{project_id}", "drawing", "{user_id}", "bob", "{role}", "project:member", "{permission}", "room:read", "{client_id}", "cl-aaaaaaaaaaaaaaaaaaaaaaaaaa",
)

func TestP3_EveryRowAsEveryCaller(t *testing.T) {
	k := newKit(t)
	callers := k.everybody()
	for _, row := range k.server.Routes() {
		key := row.Method + " " + row.Path
		if row.Caller != Member {
			continue
		}
		allowed, known := may[row.Action.String()]
		if !known {
			t.Errorf("%s: the test does not know who may %s", key, row.Action)
		}
		for name, as := range callers {
			of := ""
			if strings.Contains(row.Path, "{container}") {
				of = string(k.container(ours).Container.ID)
			}
			path := strings.Replace(parameters.Replace(row.Path), "{container}", of, 1)
			got := k.do(ours, row.Method, path, bodies[key], as)
			let := got.status != http.StatusUnauthorized && got.status != http.StatusForbidden
			want := slices.Contains(allowed, name) || name == "another page" && row.Method == http.MethodGet && slices.Contains(allowed, "owner")
			if name == "admin" && got.status == http.StatusForbidden && strings.Contains(got.body, "allows more than") {
				continue // the row let him in; that he hands on more than he holds is refused by the policy
			}
			if let != want {
				t.Errorf("%s as %s: %d %s", key, name, got.status, got.body)
			}
		}
	}
}

// everybody is all kinds of callers.
func (k *kit) everybody() map[string]func(*http.Request) {
	whole, refresh := k.tokens(ours, "ada", "*:*")
	narrow, _ := k.tokens(ours, "ada", "organization:read")
	service, _ := k.tokens(ours, "", "*:*")
	foreign, _ := k.tokens(theirs, "mallory", "*:*")
	return map[string]func(*http.Request){
		"owner": k.session(ours, "ada"), "admin": k.session(ours, "eve"), "member": bearer(k.jwt("bob")),
		"owner by token": bearer(whole), "reader by token": bearer(narrow),
		// Nobody below may do anything that is for members.
		"anonymous":               func(*http.Request) {},
		"a client for itself":     bearer(service),
		"a refresh token":         bearer(refresh),
		"another organization":    bearer(foreign),
		"a foreign session":       k.session(theirs, "mallory"),
		"a stranger with a token": bearer(k.jwt("mallory")),
		"garbage":                 bearer("garbage"),
		"two credentials":         func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer " + whole, "Bearer " + whole} },
		"Basic":                   func(r *http.Request) { r.SetBasicAuth("ada", "x") },
		"another page": func(r *http.Request) {
			k.session(ours, "ada")(r)
			r.Header.Set("Origin", "https://evil.example")
			r.Header.Set("Sec-Fetch-Site", "same-site")
		},
	}
}

// The rows whose handlers have their callers prove who they are let nobody further than this, by what he shows alone.
func TestP3_EveryOtherRowAsEveryCaller(t *testing.T) {
	k := newKit(t)
	tokens := []string{"owner by token", "reader by token", "a client for itself"}
	further := map[string][]string{
		"GET /oauth/authenticate": tokens, "POST /oauth/authenticate": tokens,
		"POST /oauth/logout":   {"owner", "admin", "a foreign session"}, // which ends nothing
		"GET /oauth/authorize": nil, "POST /oauth/token": nil, "POST /oauth/revoke": nil, "POST /oauth/introspect": nil, "GET /oauth/callback": nil,
		"POST /oauth/consent": nil, "POST /containers/{container}/announce": nil, "GET /containers/{container}/enter": nil,
	}
	open := map[string]bool{"GET /.well-known/oauth-authorization-server": true, "GET /oauth/openapi.json": true, "GET /oauth/login": false} // no provider here
	of := string(k.container(ours).Container.ID)
	for _, row := range k.server.Routes() {
		key := row.Method + " " + row.Path
		allowed, known := further[key]
		_, anyone := open[key]
		if row.Caller == Member {
			continue
		}
		if known == anyone || anyone != (row.Caller == Anyone) {
			t.Errorf("%s: the test does not know who may call it", key)
		}
		for name, as := range k.everybody() {
			got := k.do(ours, row.Method, strings.Replace(row.Path, "{container}", of, 1), "", as)
			if let := got.status < 400; let != (open[key] || slices.Contains(allowed, name)) {
				t.Errorf("%s as %s: %d %s", key, name, got.status, got.body)
			}
		}
	}
}

func TestWhatDoesNotComeThroughNginxIsRefused(t *testing.T) {
	k := newKit(t)
	owner := bearer(k.jwt("ada"))
	if got := k.do(ours, http.MethodGet, "/permissions", "", owner); got.status != http.StatusOK {
		t.Fatalf("at first: %d %s", got.status, got.body)
	}
	for what, c := range map[string]struct {
		edit func(*http.Request)
		want int
	}{
		"no organization":      {func(r *http.Request) { r.Header.Del("X-Demiurge-Organization") }, 403},
		"an old epoch":         {func(r *http.Request) { r.Header.Set("X-Demiurge-Epoch", "6") }, 409},
		"a new epoch":          {func(r *http.Request) { r.Header.Set("X-Demiurge-Epoch", "8") }, 409},
		"another organization": {func(r *http.Request) { r.Header.Set("X-Demiurge-Organization", string(theirs)) }, 404},
		"a name below":         {func(r *http.Request) { r.Host = "x." + r.Host }, 404},
		"without TLS":          {func(r *http.Request) { r.Header.Set("X-Forwarded-Proto", "http") }, 403},
		"no such path":         {func(r *http.Request) { r.URL.Path = "/permissions/x" }, 404},
		"another method":       {func(r *http.Request) { r.Method = http.MethodPatch }, 405},
	} {
		if got := k.do(ours, http.MethodGet, "/permissions", "", owner, c.edit); got.status != c.want || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
}

func TestP5_ARoleInOneProjectIsNothingInAnother(t *testing.T) {
	k := newKit(t)
	owner, bob := bearer(k.jwt("ada")), bearer(k.jwt("bob"))
	grant := func(project, user, role string, as func(*http.Request)) reply {
		return k.do(ours, http.MethodPut, "/permissions/projects/"+project+"/users/"+user+"/grants/"+role, "", as)
	}
	if got := grant("drawing", "bob", "project:admin", owner); got.status != http.StatusOK || !strings.Contains(got.body, `"project_id":"drawing"`) {
		t.Fatalf("the grant: %d %s", got.status, got.body)
	}
	if got := grant("drawing", "eve", "project:member", bob); got.status != http.StatusOK {
		t.Errorf("in his project: %d %s", got.status, got.body)
	}
	for what, path := range map[string]string{"another project": "other", "no project": "none", "a project of no form": "a%20b", "a way out": "drawing%2F..%2Fother"} {
		if got := grant(path, "eve", "project:member", bob); got.status != http.StatusForbidden && got.status != http.StatusNotFound {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	if got := k.do(ours, http.MethodPut, "/permissions/users/eve/grants/project:member", "", bob); got.status != http.StatusForbidden {
		t.Errorf("in the whole organization: %d %s", got.status, got.body)
	}
	allowed := func(path string) bool {
		got := k.do(ours, http.MethodGet, path, "", bob)
		return got.status == http.StatusOK && strings.Contains(got.body, `"allowed":true`)
	}
	if !allowed("/permissions/projects/drawing/check/room:write") || allowed("/permissions/projects/other/check/room:write") || allowed("/permissions/check/room:write") {
		t.Error("the answers of check do not fit the grant")
	}
}

func TestP7_NobodyGrantsMoreThanHeHolds(t *testing.T) {
	k := newKit(t)
	admin := bearer(k.jwt("eve"))
	for what, c := range map[string]struct{ method, path, body string }{
		"owner to herself":     {http.MethodPut, "/permissions/users/eve/grants/owner", ""},
		"a role with all":      {http.MethodPut, "/roles/god", `{"level":"organization","permissions":["*:*"]}`},
		"what is the owners'":  {http.MethodPut, "/roles/thief", `{"level":"organization","permissions":["owner:write"]}`},
		"a client for all":     {http.MethodPost, "/oauth/clients", `{"name":"x","service":true,"scope":["*:*"]}`},
		"a system role, again": {http.MethodPut, "/roles/admin", `{"level":"organization","permissions":["room:read"]}`},
	} {
		if got := k.do(ours, c.method, c.path, c.body, admin); got.status != http.StatusForbidden && got.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	if got := k.do(ours, http.MethodGet, "/roles", "", admin); strings.Contains(got.body, "god") || strings.Contains(got.body, "thief") {
		t.Errorf("roles: %s", got.body)
	}
}
