package nginx

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
)

// P13 and P15: what a client says of itself does not reach a container, and its secrets not the log.
func TestP13_P15_AContainerIsToldWhoComes(t *testing.T) {
	t.Parallel()
	address, _ := program(t, echoHeaders)
	h, d, org := containers(t, address)
	name := containerName + orgHost(org)
	spoofed := []string{
		"X-Demiurge-User", "mallory", "X-Demiurge-User", "twice", "x-demiurge-project", "two", "X_Demiurge_User", "mallory", "X-Forwarded-User", "mallory",
		"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil.test", "X-Forwarded-Proto", "https", "Forwarded", "for=6.6.6.6", "X-Demiurge-Organization", "x",
		"X-Demiurge-Upstream", "127.0.0.1:1", "X-Demiurge-Label", "other", "X-Original-Url", "/admin",
		"Cookie", "__Host-demiurge-container=secret", "Authorization", "Bearer secret", "Accept", "text/html", "Origin", "https://evil.test",
	}
	for _, name := range strippedHeaders {
		spoofed = append(spoofed, name, "mallory")
	}
	status, header, body := h.ask(name+":8443", "/a%2Fb?x=1", spoofed...)
	if status != 200 || header.Get("X-Demiurge-Gateway") != "" || header.Get("X-Demiurge-User") != "" || header.Get("Set-Cookie") != "app=1" {
		t.Fatalf("%d %v %q", status, header, body)
	}
	for _, want := range []string{
		"host " + name + ":8443", "uri /a%2Fb?x=1", "X-Demiurge-User: paul", "X-Demiurge-Username: Paul%20P", "X-Demiurge-Project: one", "X-Demiurge-Container: abcdefghijklmnop",
		"X-Demiurge-Service: web", "X-Demiurge-Organization: " + string(org), "X-Forwarded-User: paul", "X-Forwarded-Preferred-Username: Paul%20P",
		"X-Forwarded-For: 127.0.0.1", "X-Real-Ip: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: " + name + ":8443", "Cookie: theme=dark", "Authorization: Basic x",
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
	asked := *d.access.asked.Load()
	for k, want := range map[string]string{
		"Method-And-Path": "GET /-/access", "X-Demiurge-Organization": string(org), "X-Demiurge-Label": "abcdefghijklmnop--web", "X-Demiurge-Method": "GET",
		"X-Demiurge-Uri": "/a%2Fb?x=1", "X-Forwarded-Proto": "http", "Cookie": "__Host-demiurge-container=secret",
		"Authorization": "Bearer secret", "Accept": "text/html", "Origin": "https://evil.test", "X-Demiurge-Upgrade": "", "X-Demiurge-User": "", "X-Demiurge-Upstream": "",
	} {
		if got := asked.Get(k); got != want || len(asked.Values(k)) > 1 {
			t.Errorf("the door is asked with %s: %q, want %q", k, asked.Values(k), want)
		}
	}
	// The passage is asked about the request itself.
	status, header, _ = h.ask(name+":8443", "/a%2Fb?x=2", append(spoofed, "Sec-Fetch-Dest", "document")...)
	if status != 200 || header.Get("X-Demiurge-Gateway") != "" || header.Get("X-Demiurge-User") != "" || header.Get("Set-Cookie") != "app=1" {
		t.Errorf("%d %v", status, header)
	}
	brought := *d.passage.asked.Load()
	for k, want := range map[string]string{
		"Method-And-Path": "GET /a%2Fb?x=2", "X-Demiurge-Organization": string(org), "X-Demiurge-Label": "abcdefghijklmnop--web", "X-Demiurge-Upgrade": "",
		"X-Forwarded-Proto": "http", "Cookie": "__Host-demiurge-container=secret", "Authorization": "Bearer secret", "Accept": "text/html", "Origin": "https://evil.test",
		"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Host": name + ":8443", "Sec-Fetch-Dest": "document",
	} {
		if got := brought.Get(k); got != want || len(brought.Values(k)) > 1 {
			t.Errorf("the passage is brought %s: %q, want %q", k, brought.Values(k), want)
		}
	}
	for k, values := range brought {
		if text := strings.Join(values, " "); strings.Contains(text, "mallory") || strings.Contains(text, "6.6.6.6") {
			t.Errorf("%s: %q came through", k, text)
		}
	}
	eventually(t, "the requests are in the log, without their queries", func() bool {
		b, err := os.ReadFile(h.layout().accessLog())
		return err == nil && strings.Contains(string(b), `"container":"abcdefghijklmnop--web","user":"paul","method":"GET","path":"/a/b"`) &&
			strings.Contains(string(b), `"container":"abcdefghijklmnop--web","user":"carol","method":"GET","path":"/a/b"`) && !strings.Contains(string(b), "x=")
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
	before := d.access.count.Load()
	for _, path := range []string{"/-/access", "/-/access?x", "/-/route", "/-/", "/-/x", "/%2d/access", "//-/access"} {
		if status, _, body := h.ask(containerName+name, path); status != 404 || strings.Contains(body, "uri") {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if n := d.access.count.Load(); n != before {
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
	plain, page := []string{"Accept", "*/*"}, []string{"Sec-Fetch-Dest", "document"}
	if status, _, _ := h.ask(name, "/", plain...); status != 200 || hits.Load() != 1 || d.access.count.Load() != 1 || d.passage.count.Load() != 0 {
		t.Fatalf("%d", status)
	}
	if status, _, _ := h.ask(name, "/", page...); status != 200 || hits.Load() != 2 || d.access.count.Load() != 1 || d.passage.count.Load() != 1 {
		t.Fatalf("%d", status)
	}
	hits.Store(0)
	login := "https://org.test/containers/x/enter?state=1"
	odd := func(status int, upstream string) func() {
		return func() {
			d.access.say(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/")
				w.Header().Set("X-Demiurge-Upstream", upstream)
				w.WriteHeader(status)
			})
			d.passage.say(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		}
	}
	for what, tt := range map[string]struct {
		script func()
		status int
		header map[string]string
	}{
		"nobody":      {func() { d.refuse(401, "WWW-Authenticate", "Bearer") }, 401, map[string]string{"WWW-Authenticate": "Bearer"}},
		"sent to log": {func() { d.refuse(303, "Location", login, "Set-Cookie", "k=v; Path=/") }, 303, map[string]string{"Location": login, "Set-Cookie": "k=v; Path=/"}},
		"refused":     {func() { d.refuse(403) }, 403, nil},
		"missing":     {func() { d.refuse(404) }, 404, nil},
		"down":        {func() { d.refuse(503, "Retry-After", "10") }, 503, map[string]string{"Retry-After": "10"}},
		"silent":      {func() { d.refuse(502) }, 502, nil},
		"broken":      {odd(500, ""), 503, map[string]string{"Retry-After": "2"}},
		"odd":         {odd(302, address), 503, nil},
		"not found":   {odd(404, address), 503, nil},
		"says no":     {odd(401, address), 503, nil},
		"no address":  {odd(204, ""), 503, nil},
		"hung up": {func() {
			odd(0, "")()
			d.access.say(*d.passage.answer.Load())
		}, 503, nil},
	} {
		tt.script()
		for _, headers := range [][]string{plain, page} {
			status, header, body := h.ask(name, "/", headers...)
			if status != tt.status || hits.Load() != 0 || body == "" {
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
	}
	d.access.say(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Demiurge-Upstream", "localhost.invalid:80")
		w.WriteHeader(http.StatusNoContent)
	})
	if status, _, _ := h.ask(name, "/", plain...); status != 502 || hits.Load() != 0 {
		t.Errorf("a name for an address: %d", status)
	}
	d.pass(address)
	// In this order: an agent that only lost its sockets' files still decides, on the connections that nginx keeps to it.
	for _, tt := range []struct {
		what string
		end  func()
	}{
		{"the agent is down", func() { _, _ = d.access.server.Close(), d.passage.server.Close() }},
		{"its sockets are gone", func() { _, _ = os.Remove(h.opts.AccessSocket), os.Remove(h.opts.PassSocket) }},
	} {
		what := tt.what
		tt.end()
		for _, headers := range [][]string{plain, page} {
			if status, header, _ := h.ask(name, "/", headers...); status != 503 || header.Get("Retry-After") == "" || hits.Load() != 0 {
				t.Errorf("%s: %d %v", what, status, header)
			}
		}
		if status, _, _ := h.ask(name, "/-/enter?ticket=x"); status != 503 {
			t.Errorf("entering while %s: %d", what, status)
		}
	}
	d.listen(h)
	for _, headers := range [][]string{plain, page} {
		if status, _, _ := h.ask(name, "/", headers...); status != 200 {
			t.Errorf("the agent is back: %d", status)
		}
	}
}

// nginx brings to the passage at once what lasts, and whatever the door says no to; it never asks the door about the
// former, nor goes to the container with it by itself.
func TestWhatMayLastIsBroughtAtOnce(t *testing.T) {
	t.Parallel()
	address, hits := program(t, echoHeaders)
	h, d, org := containers(t, address)
	d.passage.say(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "brought") })
	for request, brought := range map[string]bool{
		"GET": false, "HEAD": false, "GET Sec-Fetch-Dest=image": false, "GET Sec-Fetch-Dest=script": false, "GET Sec-Fetch-Dest=style": false, "GET Sec-Fetch-Dest=font": false,
		"GET Sec-Fetch-Dest=manifest": false, "GET Accept=*/*": false,
		"POST": true, "PUT": true, "DELETE": true, "GETS": true, "GET Upgrade=websocket": true, "GET Upgrade=x": true, "GET Sec-Fetch-Dest=empty": true,
		"GET Sec-Fetch-Dest=document": true, "GET Sec-Fetch-Dest=IMAGE": true, "GET Sec-Fetch-Dest=imagescript": true, "GET Accept=text/event-stream": true,
		"HEAD Sec-Fetch-Dest=video": true, "GET Accept=a/b, TEXT/event-stream;q=1": true, "GET Sec-Fetch-Dest=image\tAccept=text/event-stream": true,
	} {
		method, headers, _ := strings.Cut(request, " ")
		req, err := http.NewRequestWithContext(within(t), method, "http://"+h.opts.Listen[0].String()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = containerName + orgHost(org)
		for line := range strings.SplitSeq(headers, "\t") {
			if name, value, ok := strings.Cut(line, "="); ok {
				req.Header.Set(name, value)
			}
		}
		asked, came, reached := d.access.count.Load(), d.passage.count.Load(), hits.Load()
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		asked, came, reached = d.access.count.Load()-asked, d.passage.count.Load()-came, hits.Load()-reached
		if resp.StatusCode != 200 || brought != (came == 1) || brought == (asked == 1) || brought == (reached == 1) {
			t.Errorf("%s: %d, the door was asked %d times, it came to the passage %d times and to the container %d times", request, resp.StatusCode, asked, came, reached)
		}
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
	for _, own := range []int{401, 403, 418, 500, 502, 503, 504} {
		failing, _ := program(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "mine", own) })
		d.pass(failing)
		for _, destination := range []string{"image", "document"} {
			if status, _, body := h.ask(name, "/", "Sec-Fetch-Dest", destination); status != own || body != "mine\n" {
				t.Errorf("%s: %d %q", destination, status, body)
			}
		}
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
	if got := *d.passage.asked.Load(); got.Get("X-Demiurge-Upgrade") != "websocket" || got.Get("Upgrade") != "websocket" {
		t.Errorf("the passage is asked about an upgrade as %v", got)
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
	if asked, brought := d.access.count.Load(), d.passage.count.Load(); asked != 1 || brought != 2 {
		t.Errorf("the door was asked %d times and the passage %d times for three requests", asked, brought)
	}
	if err := echo("still here"); err != nil {
		t.Error(err)
	}
}

// What nginx writes to the passage, byte by byte: the passage takes no other heads.
func TestWhatIsBroughtIsWrittenAsThePassageReadsIt(t *testing.T) {
	t.Parallel()
	h, d, org := containers(t, "127.0.0.1:1")
	_ = d.passage.server.Close()
	l, err := net.Listen("unix", h.opts.PassSocket)
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
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Demiurge-User: paul\r\nContent-Length: 2\r\n\r\nhi")
			_ = c.Close()
		}
	}()
	status, header, body := h.ask(containerName+orgHost(org), "/a%2Fb?x=1", "Sec-Fetch-Dest", "document", "Cookie", "a=b", "Cookie", "c=d", "Authorization", "x")
	head := <-heads
	if status != 200 || body != "hi" || header.Get("X-Demiurge-User") != "" || !strings.HasPrefix(head, "GET /a%2Fb?x=1 HTTP/1.1\r\n") || !strings.HasSuffix(head, "\r\n\r\n") {
		t.Errorf("%d %q %v %q", status, body, header, head)
	}
	for _, line := range []string{
		"X-Demiurge-Organization: " + string(org), "X-Demiurge-Label: abcdefghijklmnop--web", "X-Forwarded-Proto: http", "Cookie: a=b; c=d", "Authorization: x", "Sec-Fetch-Dest: document",
	} {
		if strings.Count(head, "\r\n"+line+"\r\n") != 1 {
			t.Errorf("there is no %q in %q", line, head)
		}
	}
	for _, name := range []string{"X-Demiurge-User", "X-Demiurge-Method", "X-Demiurge-Uri", "X-Demiurge-Upgrade", "X-Forwarded-User", "\r\nConnection"} {
		if strings.Contains(head, name) {
			t.Errorf("there is %s in %q", name, head)
		}
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
			d.refuse(403)
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
	d.access.say(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Demiurge-Upstream", address)
		w.Header().Set("X-Demiurge-Cookie", r.Header.Get("Cookie"))
		w.WriteHeader(http.StatusNoContent)
	})
	for _, n := range []int{10, 15_000} {
		for _, destination := range []string{"image", "document"} {
			if status, _, body := h.ask(containerName+orgHost(org), "/", "Sec-Fetch-Dest", destination, "Cookie", "a="+strings.Repeat("x", n-2)); status != 200 || body != fmt.Sprint(n) {
				t.Errorf("%s, %d bytes: %d %.100q", destination, n, status, body)
			}
		}
	}
}
