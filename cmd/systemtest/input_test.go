package systemtest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// call sends a request as it is.
func (s *system) call(method, path, body string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.file.API+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.file.Token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (s *system) post(path, body string) (int, string) { return s.call(http.MethodPost, path, body) }

// wantProblem fails the test unless a request is refused with the code, and the words say why.
func (s *system) wantProblem(method, path, body string, code fault.Code, words ...string) {
	s.t.Helper()
	status, answer := s.call(method, path, body)
	var p api.Problem
	if err := json.Unmarshal([]byte(answer), &p); err != nil {
		s.t.Errorf("%s %s %.200q: %d %.300s", method, path, body, status, answer)
		return
	}
	text := p.Detail
	for _, l := range p.Errors {
		text += " " + l.Location + " " + l.Message
	}
	if p.Code != string(code) || p.Status != status || status != fault.Codes()[code] {
		s.t.Errorf("%s %s %.200q: %d %s %q, want %s", method, path, body, status, p.Code, text, code)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			s.t.Errorf("%s %s %.200q says %q, want something with %q", method, path, body, text, w)
		}
	}
}

func (d *days) badBodies() {
	const start = "/v1/allocations"
	for _, path := range []string{start, "/gateway/start", "/gateway/stop"} {
		d.wantProblem("POST", path, `{"organization_id":`, fault.InvalidRequest)
		d.wantProblem("POST", path, ``, fault.InvalidRequest)
		d.wantProblem("POST", path, `[]`, fault.InvalidRequest)
		d.wantProblem("POST", path, `{"organization_id":"`+d.other+`"} {}`, fault.InvalidRequest)
		d.wantProblem("POST", path, `{"organization_id":"`+d.other+`","colour":"red"}`, fault.InvalidRequest, "colour")
		d.wantProblem("POST", path, `{"organization_id":7}`, fault.InvalidRequest, "organization_id")
		d.wantProblem("POST", path, `{"organization_id":"6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b1"}`, fault.InvalidRequest, "organization_id", "hexadecimal")
		d.wantProblem("POST", path, `{"organization_id":"not-a-uuid"}`, fault.InvalidRequest, "organization_id", "hexadecimal")
		d.wantProblem("POST", path, `{"organization_id":"`+strings.Repeat("x", 2<<20)+`"}`, fault.TooLarge, "send less")
	}
	d.wantProblem("POST", start+"/batch", `{"organization_ids":["`+d.other+`","x"]}`, fault.InvalidRequest, "organization_ids[1]")
	d.wantProblem("POST", start, `{"organization_id":"`+d.other+`","wait":"soon"}`, fault.InvalidRequest, "as a duration")
	d.wantProblem("POST", start, `{"organization_id":"`+d.other+`","wait_for":"luck"}`, fault.InvalidRequest, "wait_for")
	d.wantProblem("PUT", "/v1/organizations/"+d.other, `{"name":"`+strings.Repeat("n", 300)+`"}`, fault.InvalidRequest, "name")
	d.wantProblem("PUT", "/v1/pools/p", `{"min_ready":-1}`, fault.InvalidRequest, "min_ready")
	d.wantProblem("GET", "/v1/nothing", ``, fault.NotFound, "/openapi.json")
}

// nasty are names that mean something to nginx, to a shell, to a path or to a log.
var nasty = []string{"a;b", "{ a }", "$host", "a\nb", "../../etc/passwd", "..", `a"b`, "a b", "a\x00b", "ä", "-a", strings.Repeat("a", 300)}

func (d *days) badNames() {
	for _, name := range nasty {
		quoted, err := json.Marshal(name)
		if err != nil {
			d.t.Fatal(err)
		}
		q, escaped := string(quoted), url.PathEscape(name)
		d.wantProblem("POST", "/v1/allocations", `{"organization_id":`+q+`}`, fault.InvalidRequest, "organization_id")
		d.wantProblem("POST", "/v1/allocations", `{"organization_id":"`+d.other+`","pool":`+q+`}`, fault.InvalidRequest, "pool")
		d.wantProblem("PUT", "/v1/organizations/"+d.other, `{"name":"x","members":[{"user_id":`+q+`,"role":"member"}]}`, fault.InvalidRequest, "user_id")
		d.wantProblem("PUT", "/v1/organizations/"+d.other, `{"name":"x","projects":[{"project_id":`+q+`}]}`, fault.InvalidRequest, "project_id")
		d.wantProblem("PUT", "/v1/pools/p", `{"release":`+q+`}`, fault.InvalidRequest, "release")
		if name == ".." {
			escaped = "%2e%2e"
		}
		d.wantProblem("PUT", "/v1/pools/"+escaped, `{}`, fault.InvalidRequest)
		d.wantProblem("PUT", "/v1/organizations/"+escaped, `{"name":"x"}`, fault.InvalidRequest)
		d.wantProblem("DELETE", "/v1/allocations/"+escaped, ``, fault.InvalidRequest)
	}
	for _, name := range []string{`"a;b"`, `"{ a }"`, `"$host"`, `"a\nb"`, `"../../etc/passwd"`, `""`} {
		d.wantProblem("PUT", "/v1/organizations/"+d.other, `{"name":`+name+`}`, fault.InvalidRequest, "name")
	}
	// What is only shown may have other signs, and is shown as text.
	name := `<script>alert("x")</script>`
	if _, err := d.client.PutOrganization(d.t.Context(), d.other, api.PutOrganization{Name: name}); err != nil {
		d.t.Fatal(err)
	}
	a := d.allocate(d.other, "")
	d.mustServe(a)
	got, err := d.get(d.other, "/")
	if err != nil || got.status != http.StatusOK || strings.Contains(got.body, "<script>alert") || !strings.Contains(got.body, "&lt;script&gt;") {
		d.t.Errorf("the page is %d, %v:\n%s", got.status, err, got.body)
	}
	d.release(a)
}

func (d *days) badNamesInCommands() {
	for _, name := range nasty {
		if strings.ContainsRune(name, 0) || name == "-a" {
			continue // not an argument, and an option
		}
		for _, args := range [][]string{
			{"alloc", "start", name},
			{"alloc", "stop", name},
			{"alloc", "start", d.other, "--pool", name},
			{"org", "put", name, "--name", "x"},
			{"org", "put", d.other, "--name", "x", "--member", name + "=member"},
			{"pool", "set", name},
			{"gateway", "recycle", name},
		} {
			stdout, stderr, code := d.command(args...)
			if code != 1 && code != 2 || strings.TrimSpace(stderr) == "" || strings.Contains(stderr, "panic") {
				d.t.Errorf("%q: exit %d\n%s%s", args, code, stdout, stderr)
			}
		}
	}
}

func (d *days) noGateway() {
	ctx := d.t.Context()
	_, _, err := d.client.Start(ctx, api.StartAllocation{OrganizationID: d.other, Pool: "nowhere"})
	wantFault(d.t, err, fault.NotFound, "nowhere")
	none := 0
	if _, err := d.client.PutPool(ctx, "empty", api.PutPool{MinReady: &none, Max: &none}); err != nil {
		d.t.Fatal(err)
	}
	_, _, err = d.client.Start(ctx, api.StartAllocation{OrganizationID: d.other, Pool: "empty"})
	if f := wantFault(d.t, err, fault.PoolExhausted, "empty"); f.RetryAfter <= 0 {
		d.t.Errorf("the refusal says nothing of when to come back: %v", f)
	}
	_, stderr, code := d.command("alloc", "start", d.other, "--pool", "empty")
	if code != 1 || !strings.Contains(stderr, "pool_exhausted") {
		d.t.Errorf("the command: exit %d\n%s", code, stderr)
	}
	if err := d.client.DeletePool(ctx, "empty"); err != nil {
		d.t.Fatal(err)
	}
}
