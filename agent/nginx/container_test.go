package nginx

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// door is a scripted access check on its socket.
type door struct {
	answer atomic.Pointer[http.HandlerFunc]
	asked  atomic.Pointer[http.Header]
	count  atomic.Int64
	server *http.Server
}

const containerName = "uc-abcdefghijklmnop--web."

// containers is a host with nginx, engine and a door that lets everybody through to the upstream.
func containers(t *testing.T, upstream string) (*host, *door, id.Organization) {
	t.Helper()
	h := newHost(t)
	h.opts.AccessSocket = filepath.Join(h.opts.RunDir, "access.sock")
	d := &door{}
	d.pass(upstream)
	d.listen(h)
	h.startNginx()
	h.startEngine()
	org := id.NewOrganization()
	g := h.gateway(nil)
	h.apply(slots(g))
	h.route(org, g, 7)
	return h, d, org
}

func (d *door) listen(h *host) {
	h.t.Helper()
	_ = os.Remove(h.opts.AccessSocket)
	l, err := net.Listen("unix", h.opts.AccessSocket)
	if err != nil {
		h.t.Fatal(err)
	}
	d.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := r.Header.Clone()
		header.Set("Method-And-Path", r.Method+" "+r.RequestURI)
		d.asked.Store(&header)
		d.count.Add(1)
		(*d.answer.Load())(w, r)
	})}
	go func() { _ = d.server.Serve(l) }() // ended by Close
	h.t.Cleanup(func() { _ = d.server.Close() })
}

func (d *door) say(f http.HandlerFunc) { d.answer.Store(&f) }

func (d *door) pass(upstream string) {
	d.say(func(w http.ResponseWriter, r *http.Request) {
		for k, v := range map[string]string{
			"Upstream": upstream, "User": "paul", "Username": "Paul%20P", "Project": "one", "Container": "abcdefghijklmnop", "Service": "web", "Answer": "passed",
			"Cookie": "theme=dark", "Authorization": "Basic x", "Pass": "one-time",
		} {
			w.Header().Set("X-Demiurge-"+k, v)
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

func (d *door) refuse(status int, answer string, headers ...string) {
	d.say(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Demiurge-Answer", answer)
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
	})
}

// program is a container's own server, which says what it is told.
func program(t *testing.T, handler http.HandlerFunc) (address string, hits *atomic.Int64) {
	t.Helper()
	hits = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		handler(w, r)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), hits
}

func echoHeaders(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Demiurge-Gateway", "forged")
	w.Header().Set("Set-Cookie", "app=1")
	_, _ = fmt.Fprintf(w, "host %s\nuri %s\n", r.Host, r.RequestURI)
	for name, values := range r.Header {
		_, _ = fmt.Fprintf(w, "%s: %s\n", name, strings.Join(values, "|"))
	}
}

// P13 and P15: what a client says of itself does not reach a container, and its secrets not the log.
func TestP13_P15_AContainerIsToldWhoComes(t *testing.T) {
	t.Parallel()
	address, _ := program(t, echoHeaders)
	h, d, org := containers(t, address)
	name := containerName + orgHost(org)
	spoofed := []string{
		"X-Demiurge-User", "mallory", "X-Demiurge-User", "twice", "x-demiurge-project", "two", "X_Demiurge_User", "mallory", "X-Forwarded-User", "mallory",
		"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil.test", "X-Forwarded-Proto", "https", "Forwarded", "for=6.6.6.6", "X-Demiurge-Organization", "x",
		"X-Demiurge-Upstream", "127.0.0.1:1", "X-Demiurge-Pass", "mallory", "X-Demiurge-Label", "other", "X-Original-Url", "/admin",
		"Cookie", "__Host-demiurge-container=secret", "Authorization", "Bearer secret", "Accept", "text/html", "Origin", "https://evil.test",
	}
	for _, name := range strippedHeaders {
		spoofed = append(spoofed, name, "mallory")
	}
	status, header, body := h.ask(name+":8443", "/a%2Fb?x=1", spoofed...)
	if status != 200 || header.Get("X-Demiurge-Gateway") != "" || header.Get("Set-Cookie") != "app=1" {
		t.Fatalf("%d %v %q", status, header, body)
	}
	for _, want := range []string{
		"host " + name + ":8443", "uri /a%2Fb?x=1", "X-Demiurge-User: paul", "X-Demiurge-Username: Paul%20P", "X-Demiurge-Project: one", "X-Demiurge-Container: abcdefghijklmnop",
		"X-Demiurge-Service: web", "X-Demiurge-Organization: " + string(org), "X-Forwarded-User: paul", "X-Forwarded-Preferred-Username: Paul%20P",
		"X-Forwarded-For: 127.0.0.1", "X-Real-Ip: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: " + name + ":8443", "Cookie: theme=dark", "Authorization: Basic x", "X-Demiurge-Pass: one-time",
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("it is not told %q", want)
		}
	}
	for _, bad := range []string{"mallory", "secret", "evil.test/", "6.6.6.6", "127.0.0.1:1\n"} {
		if strings.Contains(body, bad) {
			t.Errorf("%q came through:\n%s", bad, body)
		}
	}
	asked := *d.asked.Load()
	for k, want := range map[string]string{
		"Method-And-Path": "GET /-/access", "X-Demiurge-Organization": string(org), "X-Demiurge-Label": "abcdefghijklmnop--web", "X-Demiurge-Method": "GET",
		"X-Demiurge-Uri": "/a%2Fb?x=1", "X-Forwarded-Proto": "http", "Cookie": "__Host-demiurge-container=secret",
		"Authorization": "Bearer secret", "Accept": "text/html", "Origin": "https://evil.test", "X-Demiurge-Upgrade": "", "X-Demiurge-User": "", "X-Demiurge-Upstream": "",
	} {
		if got := asked.Get(k); got != want || len(asked.Values(k)) > 1 {
			t.Errorf("the door is asked with %s: %q, want %q", k, asked.Values(k), want)
		}
	}
	eventually(t, "the request is in the log, without its query", func() bool {
		b, err := os.ReadFile(h.layout().accessLog())
		return err == nil && strings.Contains(string(b), `"container":"abcdefghijklmnop--web","user":"paul","method":"GET","path":"/a/b"`) && !strings.Contains(string(b), "x=1")
	})
}

func TestOnlyNamesOfContainersAreContainers(t *testing.T) {
	t.Parallel()
	address, hits := program(t, echoHeaders)
	h, d, org := containers(t, address)
	name := orgHost(org)
	for host, want := range map[string]bool{
		"uc-abcdefghijklmnop." + name: true, strings.ToUpper("uc-abcdefghijklmnop." + name): true, "uc-x." + name: true,
		name: false, "a.uc-abcdefghijklmnop." + name: false, "xuc-abcdefghijklmnop." + name: false, "uc-." + name: false,
	} {
		before := hits.Load()
		status, _, _ := h.ask(host, "/")
		if reached := hits.Load() > before; reached != want || status != 200 {
			t.Errorf("%s: %d, reached the container: %t", host, status, reached)
		}
	}
	before := d.count.Load()
	for _, path := range []string{"/-/access", "/-/access?x", "/-/route", "/-/", "/-/x", "/%2d/access", "//-/access"} {
		if status, _, body := h.ask(containerName+name, path); status != 404 || strings.Contains(body, "uri") {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if n := d.count.Load(); n != before {
		t.Errorf("the door was asked %d times by clients", n-before)
	}
	// What the agent answers on the organization's own name is the container's matter here.
	if status, _, body := h.ask(containerName+name, "/oauth/token"); status != 200 || !strings.Contains(body, "uri /oauth/token") {
		t.Errorf("%d %q", status, body)
	}
}

// P13: the guard fails open. Whatever becomes of the door, no request reaches the container.
func TestP13_WithoutADecisionNothingPasses(t *testing.T) {
	t.Parallel()
	address, hits := program(t, echoHeaders)
	h, d, org := containers(t, address)
	name := containerName + orgHost(org)
	if status, _, _ := h.ask(name, "/"); status != 200 || hits.Load() != 1 {
		t.Fatalf("%d", status)
	}
	hits.Store(0)
	login := "https://org.test/containers/x/enter?state=1"
	for what, tt := range map[string]struct {
		script func()
		status int
		header map[string]string
	}{
		"nobody": {func() { d.refuse(401, "anonymous", "WWW-Authenticate", "Bearer") }, 401, map[string]string{"WWW-Authenticate": "Bearer"}},
		"sent to log": {func() {
			d.refuse(401, "anonymous", "X-Demiurge-Login", login, "X-Demiurge-Login-Cookie", "k=v; Path=/")
		}, 303, map[string]string{"Location": login, "Set-Cookie": "k=v; Path=/"}},
		"refused":    {func() { d.refuse(403, "refused") }, 403, nil},
		"missing":    {func() { d.refuse(403, "missing") }, 404, nil},
		"down":       {func() { d.refuse(403, "away") }, 503, map[string]string{"Retry-After": "10"}},
		"broken":     {func() { d.refuse(500, "") }, 503, map[string]string{"Retry-After": "2"}},
		"odd":        {func() { d.refuse(302, "passed", "Location", "/", "X-Demiurge-Upstream", address) }, 503, nil},
		"not found":  {func() { d.refuse(404, "passed", "X-Demiurge-Upstream", address) }, 503, nil},
		"no address": {func() { d.refuse(204, "passed") }, 503, nil},
		"a name":     {func() { d.refuse(204, "passed", "X-Demiurge-Upstream", "localhost.invalid:80") }, 502, nil},
		"hung up": {func() {
			d.say(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		}, 503, nil},
	} {
		tt.script()
		status, header, body := h.ask(name, "/")
		if status != tt.status || hits.Load() != 0 {
			t.Errorf("%s: %d, %d requests passed: %.200q", what, status, hits.Load(), body)
		}
		if header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: others may keep the answer: %v", what, header)
		}
		for k, want := range tt.header {
			if header.Get(k) != want {
				t.Errorf("%s: %s is %q, want %q", what, k, header.Get(k), want)
			}
		}
	}
	_ = d.server.Close()
	if status, header, _ := h.ask(name, "/"); status != 503 || header.Get("Retry-After") == "" || hits.Load() != 0 {
		t.Errorf("the agent is down: %d %v", status, header)
	}
	if status, _, _ := h.ask(name, "/-/enter?ticket=x"); status != 503 {
		t.Errorf("entering while the agent is down: %d", status)
	}
	_ = os.Remove(h.opts.AccessSocket)
	if status, _, _ := h.ask(name, "/"); status != 503 || hits.Load() != 0 {
		t.Errorf("its socket is gone: %d", status)
	}
	d.pass(address)
	d.listen(h)
	if status, _, _ := h.ask(name, "/"); status != 200 {
		t.Errorf("the agent is back: %d", status)
	}
}

func TestADeadContainer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	h, d, org := containers(t, address)
	name := containerName + orgHost(org)
	if status, header, body := h.ask(name, "/"); status != 502 || header.Get("Retry-After") == "" || !strings.Contains(body, "container does not answer") {
		t.Errorf("%d %v %q", status, header, body)
	}
	// Its own errors are its own.
	failing, _ := program(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "mine", http.StatusInternalServerError) })
	d.pass(failing)
	if status, _, body := h.ask(name, "/"); status != 500 || body != "mine\n" {
		t.Errorf("%d %q", status, body)
	}
	denying, _ := program(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "mine", http.StatusForbidden) })
	d.pass(denying)
	if status, _, body := h.ask(name, "/"); status != 403 || body != "mine\n" {
		t.Errorf("%d %q", status, body)
	}
	// Nothing was loaded anew for any of this.
	if n := h.engine.Status().LiveGeneration; n > 2 {
		t.Errorf("the generation is %d", n)
	}
}

func TestAContainersWebSocketAndStreams(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	address, _ := program(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			upgraded(w, r)
		case "/events":
			for i := range 3 {
				_, _ = fmt.Fprintf(w, "event %d\n", i)
				w.(http.Flusher).Flush()
				<-next
			}
		case "/upload":
			in := bufio.NewReader(r.Body)
			_ = http.NewResponseController(w).EnableFullDuplex()
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = io.WriteString(w, "got "+line)
				w.(http.Flusher).Flush()
			}
		}
	})
	h, d, org := containers(t, address)
	echo := h.dialUpgradeAt(containerName + orgHost(org))
	if err := echo("hello"); err != nil {
		t.Error(err)
	}
	if got := (*d.asked.Load()).Get("X-Demiurge-Upgrade"); got != "websocket" {
		t.Errorf("the door is asked about an upgrade to %q", got)
	}
	do := func(method, path string, body io.Reader) *bufio.Reader {
		req, err := http.NewRequestWithContext(within(t), method, "http://"+h.opts.Listen[0].String()+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = containerName + orgHost(org)
		resp, err := new(http.Transport).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return bufio.NewReader(resp.Body)
	}
	stream := do(http.MethodGet, "/events", nil)
	for i := range 3 {
		if line, err := stream.ReadString('\n'); err != nil || line != fmt.Sprintf("event %d\n", i) {
			t.Fatalf("%q %v", line, err)
		}
		next <- struct{}{} // the next one comes only now
	}
	read, write := io.Pipe()
	go func() { _, _ = io.WriteString(write, "first\n") }()
	up := do(http.MethodPost, "/upload", read)
	for _, line := range []string{"first\n", "second\n"} {
		if line != "first\n" {
			_, _ = io.WriteString(write, line)
		}
		if got, err := up.ReadString('\n'); err != nil || got != "got "+line {
			t.Fatalf("%q %v", got, err)
		}
	}
	_ = write.Close()
	if n := d.count.Load(); n != 3 {
		t.Errorf("the door was asked %d times for three requests", n)
	}
	if err := echo("still here"); err != nil {
		t.Error(err)
	}
}

// The way to a container is a socket of the agent, with a pass that is in the head as the agent looks for it.
func TestAContainerBehindASocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pass.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	heads := make(chan string, 1)
	go func() { // ended by the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			head := make([]byte, 16<<10)
			n, _ := c.Read(head)
			heads <- string(head[:n])
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
			_ = c.Close()
		}
	}()
	h, _, org := containers(t, "unix:"+path)
	status, _, body := h.ask(containerName+orgHost(org), "/a%2Fb?x=1", "X-Demiurge-Pass", "mallory", "x-demiurge-pass", "mallory")
	head := <-heads
	if status != 200 || body != "hi" || !strings.HasPrefix(head, "GET /a%2Fb?x=1 HTTP/1.1\r\n") || strings.Count(head, "\r\nX-Demiurge-Pass: one-time\r\n") != 1 || strings.Contains(head, "mallory") {
		t.Errorf("%d %q %q", status, body, head)
	}
}

// A large body is not kept by nginx, and not limited by it.
func TestAContainersLargeBody(t *testing.T) {
	t.Parallel()
	address, _ := program(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprintf(w, "%d %v", n, err)
	})
	h, d, org := containers(t, address)
	for _, passes := range []bool{true, false} {
		if !passes {
			d.refuse(403, "refused")
		}
		req, err := http.NewRequestWithContext(within(t), http.MethodPut, "http://"+h.opts.Listen[0].String()+"/", io.LimitReader(zeros{}, 80<<20))
		if err != nil {
			t.Fatal(err)
		}
		req.Host, req.ContentLength = containerName+orgHost(org), 80<<20
		req.Header.Set("Expect", "100-continue")
		resp, err := (&http.Transport{ExpectContinueTimeout: longWait}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if passes != (string(body) == "83886080 <nil>") || passes != (resp.StatusCode == 200) {
			t.Errorf("%d %.100q", resp.StatusCode, body)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// The longest headers that nginx takes from a client reach the door and come back from it.
func TestTheDoorTakesLongCookies(t *testing.T) {
	t.Parallel()
	address, _ := program(t, func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(w, len(r.Header.Get("Cookie"))) })
	h, d, org := containers(t, address)
	d.say(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Demiurge-Upstream", address)
		w.Header().Set("X-Demiurge-Cookie", r.Header.Get("Cookie"))
		w.WriteHeader(http.StatusNoContent)
	})
	for _, n := range []int{10, 15_000} {
		if status, _, body := h.ask(containerName+orgHost(org), "/", "Cookie", "a="+strings.Repeat("x", n-2)); status != 200 || body != fmt.Sprint(n) {
			t.Errorf("%d bytes: %d %.100q", n, status, body)
		}
	}
}
