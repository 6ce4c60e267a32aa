package tenantapi

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// described is the OpenAPI document, as far as answers are checked with it.
type described struct {
	Components struct {
		Schemas map[string]schema `json:"schemas"`
	} `json:"components"`
	Paths map[string]map[string]struct {
		Responses map[string]struct {
			Codes   []string                           `json:"x-codes"`
			Headers map[string]any                     `json:"headers"`
			Content map[string]struct{ Schema schema } `json:"content"`
		} `json:"responses"`
	} `json:"paths"`
}

type schema struct {
	Ref        string            `json:"$ref"`
	Type       any               `json:"type"`
	Properties map[string]schema `json:"properties"`
	Required   []string          `json:"required"`
	Items      *schema           `json:"items"`
	Additional any               `json:"additionalProperties"`
}

var theDocument = sync.OnceValue(func() *described {
	d := new(described)
	if err := json.Unmarshal(document, d); err != nil {
		panic(err)
	}
	return d
})

// misfits says how a value does not fit a schema.
func (d *described) misfits(at string, s schema, value any) []string {
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		s = d.Components.Schemas[name]
	}
	var out []string
	switch v := value.(type) {
	case map[string]any:
		for _, name := range s.Required {
			if _, there := v[name]; !there {
				out = append(out, at+"."+name+" is missing")
			}
		}
		for name, one := range v {
			if of, known := s.Properties[name]; known {
				out = append(out, d.misfits(at+"."+name, of, one)...)
			} else if s.Additional == nil || s.Additional == false {
				out = append(out, at+"."+name+" is not in the document")
			}
		}
	case []any:
		if s.Items == nil {
			return append(out, at+" is no list in the document")
		}
		for i, one := range v {
			out = append(out, d.misfits(fmt.Sprintf("%s[%d]", at, i), *s.Items, one)...)
		}
	default:
		kind := map[bool]string{true: "null"}[v == nil]
		switch v.(type) {
		case string:
			kind = "string"
		case bool:
			kind = "boolean"
		case float64:
			kind = "integer"
		}
		if s.Type != kind && !(kind == "null" && slices.Contains(kinds(s.Type), "null")) {
			out = append(out, fmt.Sprintf("%s is %s and in the document %v", at, kind, s.Type))
		}
	}
	return out
}

func kinds(of any) []string {
	var out []string
	if list, ok := of.([]any); ok {
		for _, one := range list {
			out = append(out, fmt.Sprint(one))
		}
	}
	return out
}

// conform checks what came back with what the document says of the row, so that every test of this package is a
// test of the document.
func (k *kit) conform(method, path string, got reply) {
	k.t.Helper()
	row, _, _ := k.server.table.find(method, path)
	if row == nil {
		return
	}
	d := theDocument()
	wrong := func(format string, args ...any) {
		k.t.Helper()
		k.t.Errorf("%s %s: the document does not say what is answered: %s (%d %s)", method, row.Path, fmt.Sprintf(format, args...), got.status, got.body)
	}
	said, ok := d.Paths[row.Path][strings.ToLower(method)].Responses[strconv.Itoa(got.status)]
	if !ok {
		wrong("not this status")
		return
	}
	if (got.header.Get("Location") != "") && said.Headers["Location"] == nil {
		wrong("no Location")
	}
	if got.body == "" {
		if len(said.Content) > 0 {
			wrong("a body")
		}
		return
	}
	kind, _, _ := mime.ParseMediaType(got.header.Get("Content-Type"))
	content, ok := said.Content[kind]
	if !ok {
		wrong("not the type %s", kind)
		return
	}
	if !strings.HasSuffix(kind, "json") || kind == "application/openapi+json" {
		return
	}
	var value any
	if err := json.Unmarshal([]byte(got.body), &value); err != nil {
		wrong("%v", err)
		return
	}
	for _, misfit := range d.misfits("body", content.Schema, value) {
		wrong("%s", misfit)
	}
	if kind == "application/problem+json" {
		if code, _ := value.(map[string]any)["code"].(string); !slices.Contains(said.Codes, code) {
			wrong("not the code %s", code)
		}
	}
}

// Every row, well and badly asked: what the document says of it is what comes (conform).
func TestTheDocumentSaysWhatIsAnswered(t *testing.T) {
	k := newKit(t)
	ada := bearer(k.jwt("ada"))
	form := func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }
	want := func(status int, method, path, body string, edit ...func(*http.Request)) reply {
		t.Helper()
		got := k.do(ours, method, path, body, edit...)
		if got.status != status {
			t.Errorf("%s %s: %d %s", method, path, got.status, got.body)
		}
		return got
	}
	member := func(body string, into any) {
		t.Helper()
		if err := json.Unmarshal([]byte(body), into); err != nil {
			t.Fatal(err)
		}
	}
	var c struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	member(want(201, "POST", "/oauth/clients", `{"name":"x","service":true,"redirects":["`+redirect+`"],"scope":["room:read"]}`, ada).body, &c)
	as := func(r *http.Request) { form(r); r.SetBasicAuth(c.ID, c.Secret) }
	want(200, "GET", "/oauth/clients", "", ada)
	want(200, "GET", "/oauth/clients/"+c.ID, "", ada)
	want(413, "POST", "/oauth/clients", `{"name":"`+strings.Repeat("x", maxBody)+`"}`, ada)
	want(400, "POST", "/oauth/clients", `{"nonsense":1}`, ada)
	want(200, "GET", "/.well-known/oauth-authorization-server", "")
	want(200, "GET", "/oauth/openapi.json", "")
	ask := "/oauth/authorize?response_type=code&state=s&client_id=" + c.ID + "&redirect_uri=" + redirect
	back := want(303, "GET", ask, "", ada)
	code := must[*http.Response](t)(&http.Response{Header: back.header}, nil)
	at, err := code.Location()
	if err != nil {
		t.Fatal(err)
	}
	want(200, "GET", ask, "", k.session(ours, "ada")) // the page of consent
	want(503, "GET", ask, "")                         // no provider here
	want(400, "GET", "/oauth/authorize", "")
	want(401, "GET", ask, "", bearer("garbage"))
	var given struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	member(want(200, "POST", "/oauth/token", "grant_type=authorization_code&redirect_uri="+redirect+"&code="+at.Query().Get("code"), as).body, &given)
	want(200, "POST", "/oauth/token", "grant_type=client_credentials", as)
	want(400, "POST", "/oauth/token", "grant_type=password", as)
	want(401, "POST", "/oauth/token", "grant_type=client_credentials", form)
	want(413, "POST", "/oauth/token", strings.Repeat("x", 20<<10), as)
	for _, method := range []string{"GET", "POST"} {
		want(200, method, "/oauth/authenticate", "", bearer(given.Access))
		want(401, method, "/oauth/authenticate", "")
	}
	for _, token := range []string{given.Access, given.Refresh, "garbage"} {
		want(200, "POST", "/oauth/introspect", "token="+token, as)
	}
	want(400, "POST", "/oauth/introspect", "", as)
	want(401, "POST", "/oauth/introspect", "token=x", form)
	want(200, "POST", "/oauth/revoke", "token="+given.Access, as)
	want(400, "POST", "/oauth/revoke", "", as)
	want(401, "POST", "/oauth/revoke", "token=x", form)
	want(503, "GET", "/oauth/login", "")
	want(400, "GET", "/oauth/login?to=evil", "")
	want(404, "GET", "/oauth/callback", "")
	want(401, "POST", "/oauth/consent", "")
	want(400, "POST", "/oauth/consent", "ask=x", k.session(ours, "ada"))
	want(403, "POST", "/oauth/logout", "")
	want(204, "POST", "/oauth/logout", "", k.session(ours, "ada"))
	var made struct {
		ID    string `json:"container_id"`
		Token string `json:"hosting_token"`
	}
	member(want(201, "POST", "/containers", `{"project_id":"drawing","name":"x","services":[{"name":"web","redirect_paths":["/back"]}]}`, ada).body, &made)
	path, itself := "/containers/"+made.ID, bearer(made.Token)
	want(200, "GET", "/containers", "", ada)
	want(200, "GET", path, "", ada)
	want(503, "GET", path+"/access", "", ada) // it is down
	want(404, "GET", path+"/access?service=none", "", ada)
	want(401, "POST", path+"/announce", `{}`)
	want(400, "POST", path+"/announce", `{}`, itself)
	want(404, "POST", "/containers/none/announce", `{}`, itself)
	want(400, "POST", path+"/announce", `{"services":[{"name":"web","port":80}]}`, itself) // in no network
	want(200, "POST", path+"/token", "", ada)
	want(200, "POST", path+"/token", "", itself)
	want(401, "POST", path+"/token", "", bearer(made.Token+"x"))
	want(400, "GET", path+"/enter", "", k.session(ours, "ada"))
	want(503, "GET", path+"/enter", "")
	want(303, "GET", path+"/enter?state="+strings.Repeat("0", 64), "", k.session(ours, "ada"))
	want(403, "GET", path+"/enter?state="+strings.Repeat("0", 64), "", k.session(ours, "bob"))
	want(204, "DELETE", path, "", ada)
	want(404, "DELETE", path, "", ada)
	want(200, "PUT", "/roles/guest", `{"level":"project","permissions":["room:read"]}`, ada)
	want(409, "PUT", "/roles/guest", `{"level":"organization","permissions":["room:read"]}`, ada)
	want(200, "PUT", "/permissions/projects/drawing/users/bob/grants/guest", "", ada)
	want(409, "PUT", "/permissions/projects/drawing/users/nobody/grants/guest", "", ada)
	want(200, "GET", "/permissions/users/bob/grants", "", ada)
	want(404, "GET", "/permissions/users/nobody/grants", "", ada)
	want(409, "DELETE", "/roles/guest", "", ada)
	want(200, "DELETE", "/permissions/projects/drawing/users/bob/grants/guest", "", ada)
	want(204, "DELETE", "/roles/guest", "", ada)
	for _, path := range []string{"/roles", "/permissions", "/permissions/check/room:read", "/permissions/projects/drawing/check/room:read"} {
		want(200, "GET", path, "", ada)
	}
	want(400, "GET", "/permissions/check/nonsense", "", ada)
	for _, row := range k.server.Routes() { // what nginx would not have sent
		k.do(ours, row.Method, strings.Replace(parameters.Replace(row.Path), "{container}", made.ID, 1), "", func(r *http.Request) { r.Header.Set("X-Demiurge-Epoch", "6") })
		k.do(ours, row.Method, strings.Replace(parameters.Replace(row.Path), "{container}", made.ID, 1), "", func(r *http.Request) { r.Header.Set("X-Forwarded-Proto", "http") })
		k.do(ours, row.Method, strings.Replace(parameters.Replace(row.Path), "{container}", made.ID, 1), "", func(r *http.Request) { r.Host = "x." + r.Host })
	}
	for range 40 {
		if k.do(ours, "POST", "/oauth/token", "grant_type=client_credentials&client_id=x", form).status == http.StatusTooManyRequests {
			return
		}
	}
	t.Error("tries without end")
}
