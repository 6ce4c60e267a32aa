package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/gateway"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/hashicorp/go-hclog"
)

const (
	gw     = "gw-aaaaaaaaaa"
	orgA   = "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"
	orgB   = "0b8f4a52-7d7e-4c6a-8f0e-2d1c3b4a5968"
	allocA = "al-aaaaaaaaaaaaaaaa"
)

// running is a gateway with a client that talks to its socket.
type running struct {
	*testing.T
	*gateway.Gateway
	client *http.Client
	opts   gateway.Options
}

func options(t *testing.T) gateway.Options {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return gateway.Options{Gateway: gw, Listen: filepath.Join(dir, "gw.sock"), StateDir: dir, Release: "r1", Logger: hclog.NewNullLogger()}
}

func start(t *testing.T) *running {
	t.Helper()
	return startWith(t, options(t))
}

func startWith(t *testing.T, opts gateway.Options) *running {
	t.Helper()
	g, err := gateway.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	g.Start()
	r := &running{T: t, Gateway: g, opts: opts, client: clientOf(opts.Listen)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := g.Stop(ctx); err != nil {
			t.Error(err)
		}
		r.client.CloseIdleConnections()
	})
	return r
}

func clientOf(socket string) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		ExpectContinueTimeout: time.Minute,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) problem(t *testing.T) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("no problem: %v: %s", err, a.body)
	}
	if a.header.Get("Content-Type") != api.ProblemContentType || p.Status != a.status || p.Detail == "" || p.Title == "" {
		t.Errorf("not a whole problem: %s %+v", a.header.Get("Content-Type"), p)
	}
	return p
}

func (r *running) do(method, path, body string, header ...string) answer {
	r.Helper()
	req, err := http.NewRequest(method, "http://gateway"+path, strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header[header[i]] = append(req.Header[header[i]], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.Fatal(err)
	}
	a := answer{resp.StatusCode, resp.Header, string(b)}
	if a.header.Get(api.HeaderGateway) != gw || a.header.Get(api.HeaderEpoch) == "" {
		r.Errorf("%s %s: the answer does not say who answered: %v", method, path, a.header)
	}
	return a
}

// get asks as nginx does, for an epoch.
func (r *running) get(path, epoch string, header ...string) answer {
	r.Helper()
	return r.do(http.MethodGet, path, "", append([]string{api.HeaderEpoch, epoch}, header...)...)
}

func activation(org string, epoch uint64) api.Activate {
	return api.Activate{
		OrganizationID: org, AllocationID: allocA, Epoch: epoch, Name: "Pottery", Hostname: "org-" + org + ".example.test",
		Members: []api.Member{{UserID: "u1", Role: "owner"}}, Projects: []api.Project{{ProjectID: "p1"}},
	}
}

func (r *running) post(path string, body any) answer {
	r.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		r.Fatal(err)
	}
	return r.do(http.MethodPost, path, string(b))
}

func (r *running) activate(org string, epoch uint64) {
	r.Helper()
	if a := r.post("/control/activate", activation(org, epoch)); a.status != http.StatusOK {
		r.Fatalf("activate: %d %s", a.status, a.body)
	}
}

func (a answer) expect(t *testing.T, what string, status int, code fault.Code) {
	t.Helper()
	if a.status != status {
		t.Errorf("%s: %d %s, want %d", what, a.status, a.body, status)
		return
	}
	if code != "" {
		if p := a.problem(t); p.Code != string(code) {
			t.Errorf("%s: code %s, want %s", what, p.Code, code)
		}
	}
}

func TestLifeOfAnOrganization(t *testing.T) {
	r := start(t)
	var h api.GatewayHealth
	health := func() api.GatewayHealth {
		a := r.do(http.MethodGet, "/healthz", "")
		a.expect(t, "healthz", http.StatusOK, "")
		h = api.GatewayHealth{}
		if err := json.Unmarshal([]byte(a.body), &h); err != nil {
			t.Fatal(err)
		}
		return h
	}
	boot := health().BootID
	if h != (api.GatewayHealth{GatewayID: gw, BootID: boot, Release: "r1"}) || len(boot) < 16 {
		t.Errorf("idle: %+v", h)
	}
	r.get("/collab/ping", "7").expect(t, "no organization", http.StatusConflict, fault.StaleEpoch)

	r.activate(orgA, 7)
	if health() != (api.GatewayHealth{GatewayID: gw, BootID: boot, Release: "r1", OrganizationID: orgA, Epoch: 7}) {
		t.Errorf("active: %+v", h)
	}
	ping := r.get("/collab/ping", "7")
	ping.expect(t, "ping", http.StatusOK, "")
	if want := `{"gateway_id":"` + gw + `","boot_id":"` + boot + `","organization_id":"` + orgA + `","epoch":7,"release":"r1","connections":0}`; strings.TrimSpace(ping.body) != want {
		t.Errorf("ping = %s\nwant  %s", ping.body, want)
	}
	if ping.header.Get(api.HeaderEpoch) != "7" {
		t.Errorf("epoch of the answer = %q", ping.header.Get(api.HeaderEpoch))
	}
	for _, epoch := range []string{"6", "8", "07", "+7", "7 ", "x", ""} {
		for _, path := range []string{"/", "/collab/ping", "/echo", "/nothing"} {
			if epoch == "7 " {
				continue // HTTP takes the space away
			}
			r.get(path, epoch).expect(t, "epoch "+epoch+" on "+path, http.StatusConflict, fault.StaleEpoch)
		}
	}
	r.do(http.MethodGet, "/", "").expect(t, "no epoch", http.StatusConflict, fault.StaleEpoch)
	r.get("/", "7", api.HeaderEpoch, "8").expect(t, "two epochs", http.StatusConflict, fault.StaleEpoch)

	r.post("/control/deactivate", api.Deactivate{Epoch: 6}).expect(t, "deactivate another", http.StatusConflict, fault.StaleEpoch)
	r.get("/collab/ping", "7").expect(t, "still there", http.StatusOK, "")
	r.post("/control/deactivate", api.Deactivate{Epoch: 7}).expect(t, "deactivate", http.StatusOK, "")
	r.post("/control/deactivate", api.Deactivate{Epoch: 7}).expect(t, "deactivate again", http.StatusOK, "")
	if health() != (api.GatewayHealth{GatewayID: gw, BootID: boot, Release: "r1"}) {
		t.Errorf("over: %+v", h)
	}
	r.get("/collab/ping", "7").expect(t, "after it", http.StatusConflict, fault.StaleEpoch)
}

func TestOneOrganizationPerProcess(t *testing.T) {
	r := start(t)
	activate := func(what string, a api.Activate, status int, code fault.Code) {
		t.Helper()
		r.post("/control/activate", a).expect(t, what, status, code)
	}
	r.post("/control/deactivate", api.Deactivate{Epoch: 7}).expect(t, "deactivate nothing", http.StatusConflict, fault.StaleEpoch)
	activate("first", activation(orgA, 7), http.StatusOK, "")
	activate("another organization", activation(orgB, 8), http.StatusConflict, fault.Conflict)
	activate("another organization, same epoch", activation(orgB, 7), http.StatusConflict, fault.Conflict)
	activate("another organization, older", activation(orgB, 6), http.StatusConflict, fault.StaleEpoch)
	activate("older epoch", activation(orgA, 6), http.StatusConflict, fault.StaleEpoch)
	activate("newer epoch", activation(orgA, 8), http.StatusConflict, fault.Conflict)
	other := activation(orgA, 7)
	other.AllocationID = "al-bbbbbbbbbbbbbbbb"
	activate("another allocation", other, http.StatusConflict, fault.Conflict)
	if h := r.Health(); h.OrganizationID != orgA || h.Epoch != 7 {
		t.Errorf("after refusals: %+v", h)
	}

	changed := activation(strings.ToUpper(orgA), 7) // a UUID has one meaning in both cases
	changed.Hostname = "org-" + orgA + ".example.test"
	changed.Name = "Pottery & Sons"
	activate("same epoch", changed, http.StatusOK, "")
	if a := r.get("/", "7", "Accept", "application/json"); !strings.Contains(a.body, `Pottery \u0026 Sons`) {
		t.Errorf("the update is not seen: %s", a.body)
	}

	r.post("/control/deactivate", api.Deactivate{Epoch: 7}).expect(t, "deactivate", http.StatusOK, "")
	activate("the one that is over", activation(orgA, 7), http.StatusConflict, fault.StaleEpoch)
	activate("not recycled", activation(orgB, 9), http.StatusConflict, fault.Conflict)
}

// P3: an unauthenticated start or initialise route.
func TestP3_PrivateRoutesAreNotReachedThroughNginx(t *testing.T) {
	r := start(t)
	r.activate(orgA, 7)
	body, err := json.Marshal(api.Deactivate{Epoch: 7})
	if err != nil {
		t.Fatal(err)
	}
	for _, epoch := range []string{"7", "8", ""} {
		r.get("/healthz", epoch).expect(t, "healthz", http.StatusForbidden, fault.Forbidden)
		for _, path := range []string{"/control/activate", "/control/deactivate"} {
			r.do(http.MethodPost, path, string(body), api.HeaderEpoch, epoch).expect(t, path, http.StatusForbidden, fault.Forbidden)
		}
	}
	r.get("/collab/ping", "7").expect(t, "still there", http.StatusOK, "")
}

func TestP3_WhatIsNotInTheTableIsDenied(t *testing.T) {
	r := start(t)
	r.activate(orgA, 7)
	for _, path := range []string{"/nothing", "//", "/healthz/", "/collab/ping/", "/collab/../healthz", "/control/", "/%2e%2e/healthz", "/echo/x"} {
		r.get(path, "7").expect(t, path, http.StatusNotFound, fault.NotFound)
		r.do(http.MethodPost, path, "{}").expect(t, path+" without an epoch", http.StatusConflict, fault.StaleEpoch)
	}
	for path, allow := range map[string]string{"/": "GET", "/collab/ping": "GET", "/echo": "GET"} {
		a := r.do(http.MethodDelete, path, "", api.HeaderEpoch, "7")
		a.expect(t, "DELETE "+path, http.StatusMethodNotAllowed, fault.InvalidRequest)
		if a.header.Get("Allow") != allow {
			t.Errorf("%s: Allow = %q", path, a.header.Get("Allow"))
		}
	}
	r.do(http.MethodGet, "/control/activate", "").expect(t, "GET activate", http.StatusMethodNotAllowed, fault.InvalidRequest)
	r.do(http.MethodHead, "/", "", api.HeaderEpoch, "7").expect(t, "HEAD", http.StatusOK, "")
}

func TestBadActivationsAreRefusedWhole(t *testing.T) {
	r := start(t)
	tests := map[string]func(*api.Activate){
		"body.organization_id":        func(a *api.Activate) { a.OrganizationID = "not a uuid" },
		"body.allocation_id":          func(a *api.Activate) { a.AllocationID = "al-../../etc" },
		"body.epoch":                  func(a *api.Activate) { a.Epoch = 0 },
		"body.name":                   func(a *api.Activate) { a.Name = strings.Repeat("ä", 201) },
		"body.hostname":               func(a *api.Activate) { a.Hostname = "org-" + orgB + ".example.test" },
		"body.members[0].user_id":     func(a *api.Activate) { a.Members[0].UserID = "a;b{}" },
		"body.members[0].role":        func(a *api.Activate) { a.Members[0].Role = "god" },
		"body.projects[0].project_id": func(a *api.Activate) { a.Projects[0].ProjectID = "../x" },
		"body.sections":               func(a *api.Activate) { a.Sections = map[string][]byte{"room/p1": {1}} },
	}
	for where, change := range tests {
		body := activation(orgA, 7)
		change(&body)
		a := r.post("/control/activate", body)
		a.expect(t, where, http.StatusBadRequest, fault.InvalidRequest)
		if p := a.problem(t); len(p.Errors) == 0 || p.Errors[0].Location != where {
			t.Errorf("%s: errors = %+v", where, p.Errors)
		}
	}
	names := activation(orgA, 7)
	names.Name = "a\nb"
	r.post("/control/activate", names).expect(t, "line break in the name", http.StatusBadRequest, fault.InvalidRequest)

	good, err := json.Marshal(activation(orgA, 7))
	if err != nil {
		t.Fatal(err)
	}
	for what, body := range map[string]string{
		"nothing": "", "not JSON": "{", "unknown field": strings.Replace(string(good), "{", `{"surprise":1,`, 1),
		"two values": string(good) + "{}", "another type": `[]`, "wrong type": strings.Replace(string(good), `"epoch":7`, `"epoch":"7"`, 1),
		"negative": strings.Replace(string(good), `"epoch":7`, `"epoch":-7`, 1),
	} {
		r.do(http.MethodPost, "/control/activate", body).expect(t, what, http.StatusBadRequest, fault.InvalidRequest)
	}
	r.do(http.MethodPost, "/control/activate", string(good), "Content-Type", "text/plain").expect(t, "content type", http.StatusBadRequest, fault.InvalidRequest)
	if h := r.Health(); h.OrganizationID != "" {
		t.Errorf("a refused activation left %+v", h)
	}
}

func TestControlBodyIsLimited(t *testing.T) {
	opts := options(t)
	opts.MaxBody = 1000
	r := startWith(t, opts)
	body := `{"name":"` + strings.Repeat("x", 1000) + `"}`
	r.do(http.MethodPost, "/control/activate", body).expect(t, "too long, as said before", http.StatusRequestEntityTooLarge, fault.TooLarge)
	resp, err := r.client.Post("http://gateway/control/activate", "application/json", struct{ io.Reader }{strings.NewReader(body)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge || !bytes.Contains(b, []byte(fault.TooLarge)) {
		t.Errorf("too long, in chunks: %d %s, %v", resp.StatusCode, b, err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://gateway/control/activate", strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	req.Body = io.NopCloser(zeros{})
	req.ContentLength = 64<<20 + 1
	r = start(t)
	req.Header.Set("Expect", "100-continue") // the refusal comes before the body
	resp, err = r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("64 MiB and a byte: %d", resp.StatusCode)
	}
}

// zeros is an endless text.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

func TestPage(t *testing.T) {
	r := start(t)
	evil := activation(orgA, 7)
	evil.Name = `</style><script>alert("1")</script>`
	r.post("/control/activate", evil).expect(t, "activate", http.StatusOK, "")
	html := r.get("/", "7", "Accept", "text/html,application/json;q=0.9")
	html.expect(t, "page", http.StatusOK, "")
	for _, want := range []string{orgA, gw, `id="epoch">7<`, "&lt;script&gt;", "body{font"} {
		if !strings.Contains(html.body, want) {
			t.Errorf("the page lacks %q:\n%s", want, html.body)
		}
	}
	for _, bad := range []string{"<script", "src=", "href=", "http:", "https:", "ZgotmplZ"} {
		if strings.Contains(html.body, bad) {
			t.Errorf("the page has %q:\n%s", bad, html.body)
		}
	}
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
		"X-Frame-Options": "DENY", "Cache-Control": "no-store", "Vary": "Accept",
	} {
		if got := html.header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if csp := html.header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") || strings.Contains(csp, "unsafe") {
		t.Errorf("policy = %q", csp)
	}
	a := r.get("/", "7", "Accept", "application/json")
	var front gateway.Front
	if err := json.Unmarshal([]byte(a.body), &front); err != nil {
		t.Fatal(err)
	}
	want := gateway.Front{OrganizationID: orgA, Name: evil.Name, Hostname: evil.Hostname, GatewayID: gw, Epoch: 7, BootID: r.Health().BootID}
	if front != want || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("front = %+v, want %+v", front, want)
	}
}
