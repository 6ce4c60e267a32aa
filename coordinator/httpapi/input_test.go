package httpapi

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestBadInput(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := string(k.organization())
	orgPath := "/v1/organizations/" + org
	for name, c := range map[string]struct {
		method, path, body string
		location           string // of one of the errors
	}{
		"malformed JSON":               {post, "/v1/allocations", `{"organization_id": `, "body"},
		"trailing data":                {post, "/v1/allocations", `{"organization_id":"` + org + `"} x`, "body"},
		"not an object":                {post, "/v1/allocations", `[]`, "body"},
		"null":                         {post, "/v1/allocations", `null`, "body"},
		"unknown field":                {post, "/v1/allocations", `{"organization_id":"` + org + `","orgnaization":1}`, "body.orgnaization"},
		"field in another case":        {post, "/v1/allocations", `{"organization_id":"` + org + `","Pool":"default"}`, "body.Pool"},
		"missing field":                {post, "/v1/allocations", `{}`, "body"},
		"wrong type":                   {post, "/v1/allocations", `{"organization_id":7}`, "body.organization_id"},
		"wrong UUID":                   {post, "/v1/allocations", `{"organization_id":"6f1c0a2e"}`, "body.organization_id"},
		"UUID with a path":             {post, "/v1/allocations", `{"organization_id":"../../../../etc/passwd/././././././././"}`, "body.organization_id"},
		"wrong pool":                   {post, "/v1/allocations", `{"organization_id":"` + org + `","pool":"a;b"}`, "body.pool"},
		"duration without unit":        {post, "/v1/allocations", `{"organization_id":"` + org + `","wait":"30"}`, "body"},
		"duration as a number":         {post, "/v1/allocations", `{"organization_id":"` + org + `","wait":30}`, "body.wait"},
		"negative wait":                {post, "/v1/allocations", `{"organization_id":"` + org + `","wait":"-1s"}`, "body.wait"},
		"wait too long":                {post, "/v1/allocations", `{"organization_id":"` + org + `","wait":"6m"}`, "body.wait"},
		"wrong wait_for":               {post, "/v1/allocations", `{"organization_id":"` + org + `","wait_for":"soon"}`, "body.wait_for"},
		"metadata too long":            {post, "/v1/allocations", `{"organization_id":"` + org + `","metadata":{"k":"` + strings.Repeat("x", 257) + `"}}`, "body.metadata"},
		"too much metadata":            {post, "/v1/allocations", `{"organization_id":"` + org + `","metadata":{` + pairs(17) + `}}`, "body.metadata"},
		"deep JSON":                    {post, "/v1/allocations", strings.Repeat("[", 20_000), "body"},
		"batch of none":                {post, "/v1/allocations/batch", `{"organization_ids":[]}`, "body.organization_ids"},
		"batch with one twice":         {post, "/v1/allocations/batch", `{"organization_ids":["` + org + `","` + strings.ToUpper(org) + `"]}`, "body.organization_ids[1]"},
		"batch with a wrong one":       {post, "/v1/allocations/batch", `{"organization_ids":["` + org + `","x"]}`, "body.organization_ids[1]"},
		"allocation id":                {get, "/v1/allocations/al-UPPER", "", "path.id"},
		"allocation id with path":      {get, "/v1/allocations/..%2f..%2fetc", "", "path.id"},
		"negative drain":               {del, "/v1/allocations/al-abcdefghijklmnop?drain=-1s", "", "query.drain"},
		"organization id":              {put, "/v1/organizations/" + org + "x", `{"name":"n"}`, "path.id"},
		"organization without name":    {put, orgPath, `{"name":""}`, "body.name"},
		"name too long":                {put, orgPath, `{"name":"` + strings.Repeat("x", 201) + `"}`, "body.name"},
		"wrong role":                   {put, orgPath, `{"name":"n","members":[{"user_id":"u","role":"root"}]}`, "body.members[0].role"},
		"wrong user":                   {put, orgPath, `{"name":"n","members":[{"user_id":"a b","role":"owner"}]}`, "body.members[0].user_id"},
		"member in the path":           {put, orgPath + "/members/a%0ab", `{"role":"owner"}`, "path.user_id"},
		"wrong project":                {put, orgPath, `{"name":"n","projects":[{"project_id":"../x"}]}`, "body.projects[0].project_id"},
		"project in the path":          {put, orgPath + "/projects/..%2fx", `{}`, "path.project_id"},
		"pool with a dot":              {put, "/v1/pools/a.b", `{}`, "path.name"},
		"pool as a path":               {put, "/v1/pools/..%2f..", `{}`, "path.name"},
		"pool too long":                {put, "/v1/pools/" + strings.Repeat("a", 33), `{}`, "path.name"},
		"pool with a negative size":    {put, "/v1/pools/p", `{"max":-1}`, "body.max"},
		"pool with a broken rule":      {put, "/v1/pools/p", `{"max":1,"min_ready":2}`, "body.min_ready"},
		"release as a path":            {put, "/v1/pools/p", `{"release":"../../bin/sh"}`, "body.release"},
		"activation timeout":           {put, "/v1/pools/p", `{"activation_timeout":"1ms"}`, "body.activation_timeout"},
		"activation timeout too long":  {put, "/v1/pools/p", `{"activation_timeout":"1000h"}`, "body.activation_timeout"},
		"gateway id":                   {get, "/v1/gateways/gw-1", "", "path.id"},
		"host id":                      {get, "/v1/hosts/h_1", "", "path.id"},
		"unknown parameter":            {get, "/v1/gateways?hots_id=h1", "", "query.hots_id"},
		"wrong filter":                 {get, "/v1/gateways?pool=a%3Bb", "", "query.pool"},
		"wrong state":                  {get, "/v1/gateways?state=happy", "", "query.state"},
		"limit of none":                {get, "/v1/gateways?limit=0", "", "query.limit"},
		"limit too large":              {get, "/v1/gateways?limit=10001", "", "query.limit"},
		"negative index":               {get, "/v1/gateways?index=-1", "", "query.index"},
		"wait in words":                {get, "/v1/gateways?wait=long", "", "query.wait"},
		"wait for ever":                {get, "/v1/gateways?wait=5m1s", "", "query.wait"},
		"wrong consistency":            {get, "/v1/gateways?consistency=strong", "", "query.consistency"},
		"event id":                     {get, "/v1/events?cursor=7", "", "query.cursor"},
		"topic":                        {get, "/v1/events?topic=a%0ab", "", "query.topic"},
		"topic that is none":           {get, "/v1/events?topic=allocation,hosts", "", "query.topic"},
		"token role":                   {post, "/v1/tokens", `{"role":"root"}`, "body.role"},
		"token of a role that is none": {post, "/v1/tokens", `{"role":"agent"}`, "body.role"},
		"reader token for a host":      {post, "/v1/tokens", `{"role":"reader","host_id":"h1"}`, "body.host_id"},
		"token that is dead":           {post, "/v1/tokens", `{"role":"reader","ttl":"0s"}`, "body.ttl"},
		"token id":                     {del, "/v1/tokens/tk-1", "", "path.id"},
		"old start":                    {post, "/gateway/start", `{"organization_id":"x"}`, "body.organization_id"},
		"old stop":                     {post, "/gateway/stop", `{"organization_id":"x"}`, "body.organization_id"},
		"no body":                      {post, "/v1/allocations", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := k.call(c.method, c.path, k.tokens[api.RoleAdmin], c.body)
			wantProblem(t, got, fault.InvalidRequest)
			found := 0
			for _, e := range got.problem.Errors {
				if e.Location == c.location && e.Message != "" {
					found++
				}
			}
			if found != 1 && c.location != "" {
				t.Errorf("%d errors at %s, want 1: %s", found, c.location, got.body)
			}
		})
	}
	if n := k.allocs.started.Load(); n != 0 {
		t.Errorf("%d starts came through", n)
	}
}

func pairs(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(`"k%d":"v"`, i))
	}
	return strings.Join(out, ",")
}

func TestNamesWithMeaning(t *testing.T) {
	k := newKit(t)
	org := string(id.NewOrganization())
	for _, bad := range []string{";", "{", "}", "$", `\n`, `\r`, `\u0000`, "../", `\u2028`, `\u202e`, `\u2066`, `\u200b`, `\u200f`, `\ufeff`, `\u00ad`, `\u0085`} {
		for _, body := range []string{
			`{"name":"a` + bad + `b"}`,
			`{"name":"ok","members":[{"user_id":"u","username":"a` + bad + `b","role":"owner"}]}`,
			`{"name":"ok","members":[{"user_id":"a` + bad + `b","role":"owner"}]}`,
			`{"name":"ok","projects":[{"project_id":"p","name":"a` + bad + `b"}]}`,
			`{"name":"ok","projects":[{"project_id":"a` + bad + `b"}]}`,
		} {
			wantProblem(t, k.call(put, "/v1/organizations/"+org, k.tokens[api.RolePlatform], body), fault.InvalidRequest)
		}
		wantProblem(t, k.call(post, "/v1/tokens", k.tokens[api.RoleAdmin], `{"role":"reader","name":"a`+bad+`b"}`), fault.InvalidRequest)
		wantProblem(t, k.call(put, "/v1/pools/p", k.tokens[api.RoleAdmin], `{"release":"a`+bad+`b"}`), fault.InvalidRequest)
	}
	for _, bad := range []string{"%3B", "%7B", "%7D", "%24", "%0A", "..%2F", "%00", "%20"} {
		for _, path := range []string{"/v1/pools/a" + bad, "/v1/hosts/a" + bad, "/v1/gateways/gw-" + bad, "/v1/allocations/al-" + bad, "/v1/organizations/" + bad} {
			wantProblem(t, k.call(get, path, k.tokens[api.RoleAdmin], ""), fault.InvalidRequest)
		}
	}
	for _, good := range []string{"Müller & Söhne (Köln) <3", "نرم\u200cافزار", "👩\u200d💻"} {
		got := k.call(put, "/v1/organizations/"+string(id.NewOrganization()), k.tokens[api.RolePlatform], `{"name":"`+good+`"}`)
		if got.status != http.StatusCreated {
			t.Errorf("a good name: %d %s", got.status, got.body)
		}
	}
}

func TestBodyLimit(t *testing.T) {
	k := newKit(t)
	org := string(id.NewOrganization())
	body := func(size int) string {
		head, tail := `{"name":"n"`, "}"
		return head + strings.Repeat(" ", size-len(head)-len(tail)) + tail
	}
	path := "/v1/organizations/" + org
	if got := k.call(put, path, k.tokens[api.RolePlatform], body(bodyLimit)); got.status != http.StatusCreated {
		t.Errorf("a body of the limit: %d %s", got.status, got.body)
	}
	wantProblem(t, k.call(put, path, k.tokens[api.RolePlatform], body(bodyLimit+1)), fault.TooLarge)
	wantProblem(t, k.call(put, path, k.tokens[api.RolePlatform], body(3*bodyLimit)), fault.TooLarge)
}

// The rest of a body that is refused for its length is not taken for another request.
func TestTheRestOfALongBodyIsNotARequest(t *testing.T) {
	k := newKit(t)
	conn, err := net.Dial("tcp", k.web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	inner := "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	const rest = 20_000 // more than the server reads away after an answer
	size := bodyLimit + 1 + rest*len(inner)
	go func() { // fails when the server closes, which is what is wanted
		_, _ = fmt.Fprintf(conn, "PUT /v1/pools/p HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
			k.tokens[api.RoleAdmin], size)
		_, _ = io.WriteString(conn, strings.Repeat(" ", bodyLimit+1)+strings.Repeat(inner, rest))
	}()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answers, err := io.ReadAll(conn)
	if n := strings.Count(string(answers), "HTTP/1.1 "); n != 1 || !strings.HasPrefix(string(answers), "HTTP/1.1 413") {
		t.Errorf("%d answers: %.300s (%v)", n, answers, err)
	}
}

func TestContentTypeAndCharset(t *testing.T) {
	k := newKit(t)
	path := "/v1/organizations/" + string(id.NewOrganization())
	if got := k.call(put, path, k.tokens[api.RolePlatform], `{"name":"n"}`, "Content-Type", "application/json; charset=utf-8"); got.status != http.StatusCreated {
		t.Errorf("with charset: %d %s", got.status, got.body)
	}
	for _, ct := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "a/b;+"} {
		got := k.call(put, path, k.tokens[api.RolePlatform], `{"name":"n"}`, "Content-Type", ct)
		wantProblem(t, got, fault.InvalidRequest)
		if !strings.Contains(got.problem.Detail, "Content-Type: application/json") {
			t.Errorf("%q: no word of what to send instead: %s", ct, got.body)
		}
	}
}

func TestPaths(t *testing.T) {
	k := newKit(t)
	for _, path := range []string{"/v1/../v1/status", "//v1/status", "/v1//status", "/v1/status/", "/v1/./status", "/v1/pools/.."} {
		got := k.call(get, path, k.tokens[api.RoleAdmin], "")
		wantProblem(t, got, fault.InvalidRequest)
	}
	for _, path := range []string{"/", "/v1", "/v2/status", "/v1/statuses", "/docs", "/schemas/Pool.json", "/openapi-3.0.json"} {
		wantProblem(t, k.call(get, path, k.tokens[api.RoleAdmin], ""), fault.NotFound)
	}
	got := k.call(http.MethodPatch, "/v1/status", k.tokens[api.RoleAdmin], "")
	if got.status != http.StatusMethodNotAllowed || got.problem.Code != string(fault.InvalidRequest) {
		t.Errorf("another method: %d %s", got.status, got.body)
	}
}

// deadlines records the time limits that a handler sets on its connection.
type deadlines struct {
	*httptest.ResponseRecorder
	read []time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	d.read = append(d.read, at)
	return nil
}

func (d *deadlines) SetWriteDeadline(time.Time) error { return nil }

// A body has a time limit, and the request that is then worked on for long has none: a limit that stayed
// would cancel it.
func TestBodyTimeLimitEndsWithTheBody(t *testing.T) {
	k := newKit(t)
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequest(put, "/v1/organizations/"+string(id.NewOrganization()), strings.NewReader(`{"name":"n"}`))
	r.Header.Set("Authorization", "Bearer "+k.tokens[api.RoleAdmin])
	k.server.ServeHTTP(w, r)
	if w.Code != http.StatusCreated {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	limited := false
	for _, at := range w.read {
		limited = limited || !at.IsZero()
	}
	if n := len(w.read); !limited || !w.read[n-1].IsZero() {
		t.Errorf("read limits %v: want one that is taken away at the end", w.read)
	}
}

// peer is the server's end of a connection in memory, whose limits count by the virtual clock.
type peer struct{ net.Conn }

func (peer) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50000} }

// single is a listener with one connection.
type single struct {
	net.Listener
	conns chan net.Conn
}

func (l single) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l single) Close() error { return nil }

// Whoever does not send the body that was announced is answered when its time is over, and loses the connection:
// also who has no token, and a path that is none.
func TestABodyThatNeverComesEnds(t *testing.T) {
	k := newKit(t)
	for name, c := range map[string]struct{ method, path, token, status string }{
		"known caller": {post, "/v1/allocations", k.tokens[api.RolePlatform], "HTTP/1.1 4"},
		"no caller":    {post, "/v1/allocations", "", "HTTP/1.1 401"},
		"no path":      {post, "/v1/nothing", "", "HTTP/1.1 404"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				here, there := net.Pipe()
				l := single{conns: make(chan net.Conn, 1)}
				l.conns <- peer{there}
				srv := k.server.HTTPServer()
				ended := make(chan error)
				go func() { ended <- srv.Serve(l) }()
				defer func() {
					_ = here.Close()
					close(l.conns)
					<-ended
				}()
				go func() { // ends when the server does no longer read
					_, _ = fmt.Fprintf(here, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n", c.method, c.path)
					if c.token != "" {
						_, _ = fmt.Fprintf(here, "Authorization: Bearer %s\r\n", c.token)
					}
					_, _ = io.WriteString(here, "\r\n{")
				}()
				began := time.Now()
				if err := here.SetReadDeadline(began.Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
				answer, err := io.ReadAll(here)
				if took := time.Since(began); err != nil || !strings.HasPrefix(string(answer), c.status) || took > bodyTime+time.Second {
					t.Errorf("after %s: %.80q, %v", took, answer, err)
				}
			})
		})
	}
}
