package nginx

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// serving is a host with nginx, engine, some gateways in the configuration and a route to the first.
func serving(t testing.TB, gateways int) (*host, []*gateway, id.Organization) {
	t.Helper()
	h := newHost(t)
	h.startNginx()
	h.startEngine()
	var gs []*gateway
	for range gateways {
		gs = append(gs, h.gateway(nil))
	}
	h.apply(slots(gs...))
	org := id.NewOrganization()
	h.route(org, gs[0], 7)
	return h, gs, org
}

func TestWhatAClientSees(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	name := orgHost(org)
	other := id.NewOrganization()

	t.Run("names", func(t *testing.T) {
		for host, want := range map[string]int{
			name: 200, strings.ToUpper(name): 200, name + ":8443": 200, strings.ToUpper(name) + ":80": 200, name + ".": 200,
			"uc-abc." + name: 200, "a.b." + name: 200,
			orgHost(other): 503, "x." + orgHost(other): 503,
			"x" + name: 404, domain: 404, "org-" + string(org): 404, "org-" + string(org) + ".other.test": 404,
			name + ".other.test": 404, "127.0.0.1": 404, "org-" + string(org)[:35] + "." + domain: 404,
			"org-" + string(org) + "x." + domain: 404, strings.Replace(name, ".example.", "xexample.", 1): 404,
		} {
			status, _, body := h.ask(host, "/")
			if status != want {
				t.Errorf("%s: %d, want %d", host, status, want)
			}
			if want != 200 && strings.Contains(body, string(gs[0].id)) {
				t.Errorf("%s reached a gateway", host)
			}
		}
	})

	t.Run("headers", func(t *testing.T) {
		status, header, body := h.ask(name+":7480", "/path?q=%2F", api.HeaderEpoch, "99", api.HeaderGateway, "gw-spoofedaaa", "X-Forwarded-For", "6.6.6.6",
			"X-Real-IP", "6.6.6.6", "X-Forwarded-Proto", "https", "X-Demiurge-Organization", string(other), "Upgrade", "h2c", "Connection", "Upgrade, HTTP2-Settings")
		var who identity
		if err := json.Unmarshal([]byte(body), &who); err != nil || status != 200 {
			t.Fatalf("%d %q", status, body)
		}
		if header.Get(api.HeaderEpoch) != "7" || len(header.Values(api.HeaderEpoch)) != 1 || header.Get(api.HeaderGateway) != string(gs[0].id) || len(header.Values(api.HeaderGateway)) != 1 {
			t.Errorf("the client sees %v", header)
		}
		for k, want := range map[string]string{
			api.HeaderEpoch: "7", api.HeaderGateway: "", "X-Demiurge-Organization": "", "X-Forwarded-For": "127.0.0.1",
			"X-Forwarded-Proto": "http", "X-Real-IP": "", "X-Forwarded-Host": name + ":7480", "Upgrade": "", "Connection": "",
		} {
			if got := strings.Join(who.Header.Values(k), ","); got != want {
				t.Errorf("the gateway sees %s: %q, want %q", k, got, want)
			}
		}
		if who.Host != name+":7480" || who.URI != "/path?q=%2F" {
			t.Errorf("the gateway sees host %q and URI %q", who.Host, who.URI)
		}
	})

	t.Run("private paths", func(t *testing.T) {
		for _, path := range []string{
			"/control/activate", "/control/", "/control", "/healthz", "//control/activate", "/./control/x", "/a/../control/x",
			"/%63ontrol/x", "/control%2factivate", "/healthz?x", "/%2e/healthz", "/oauth/token", "/permissions", "/permissions/x",
			"/roles", "/containers/1", "/.well-known/oauth-authorization-server", "/-/body/67108864",
		} {
			status, _, body := h.ask(name, path)
			if status != http.StatusNotFound || strings.Contains(body, string(gs[0].id)) {
				t.Errorf("%s: %d %.100q", path, status, body)
			}
		}
		for _, path := range []string{"/controls", "/healthzz", "/permission", "/x/control/", "/oauth"} {
			if status, _, body := h.ask(name, path); status != http.StatusOK && status != http.StatusMovedPermanently {
				t.Errorf("%s: %d %.100q; it belongs to the gateway", path, status, body)
			}
		}
	})

	t.Run("proof", func(t *testing.T) {
		if status, _, body := h.ask(name, "/-/route"); status != 200 || body != string(gs[0].id)+" 7\n" {
			t.Errorf("%d %q", status, body)
		}
		if status, _, _ := h.ask(orgHost(other), "/-/route"); status != 503 {
			t.Errorf("without a route: %d", status)
		}
	})

	t.Run("access log", func(t *testing.T) {
		h.ask(name, "/logged-path?token=hush")
		eventually(t, "the request is in the log", func() bool {
			b, err := os.ReadFile(h.layout().accessLog())
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(b), "hush") {
				t.Fatal("a query string is in the log")
			}
			for line := range strings.Lines(string(b)) {
				var entry struct{ Org, Gateway, Epoch, Path, Status string }
				if err := json.Unmarshal([]byte(line), &entry); err != nil {
					t.Fatalf("%v: %q", err, line)
				}
				if entry.Path == "/logged-path" && entry.Org == string(org) && entry.Gateway == string(gs[0].id) && entry.Epoch == "7" && entry.Status == "200" {
					return true
				}
			}
			return false
		})
	})

	t.Run("links that are no routes", func(t *testing.T) {
		// As somebody else would make them; the drift watch must not repair them first.
		h.stopEngine()
		for _, target := range []string{"/etc", "gw-aaaaaaaaaa", "../slot", ".", "gw-aaaaaaaaaa.07", "gw-aaaaaaaaaa.7/x", "nowhere", "../generations", "gw-aaaaaaaaaa.8"} {
			bad := id.NewOrganization()
			for _, name := range []string{"gw-aaaaaaaaaa", "gw-aaaaaaaaaa.07", "gw-aaaaaaaaaa.7/x"} {
				if err := os.MkdirAll(filepath.Join(h.layout().routes(), name), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink(target, h.layout().route(bad)); err != nil {
				t.Fatal(err)
			}
			if status, _, _ := h.ask(orgHost(bad), "/passwd"); status != 503 {
				t.Errorf("a link to %s answers %d", target, status)
			}
		}
	})
}

func TestGatewayThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	_ = gs[0].server.Close()
	status, header, body := h.ask(orgHost(org), "/")
	if status != http.StatusBadGateway || header.Get(api.HeaderGateway) != string(gs[0].id) || !strings.Contains(body, "Not answering") {
		t.Errorf("%d %v %q", status, header, body)
	}
}

// Whoever asks for names without route does not fill nginx's error log. What happens to requests that have one is logged,
// also on the same connection, whoever it is that does not answer.
func TestNamesWithoutRouteAreNotLogged(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opts.AgentSocket = filepath.Join(h.opts.RunDir, "agent.sock") // nobody listens there
	h.startNginx()
	h.startEngine()
	dead, large, site := h.gateway(nil), h.gateway(nil), id.NewOrganization()
	_ = dead.server.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	t.Cleanup(client.CloseIdleConnections)
	ask := func(org id.Organization, path string) int {
		req, err := http.NewRequest(http.MethodGet, "http://"+h.opts.Listen[0].String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = orgHost(org)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	// logged are the lines about requests for a name.
	logged := func(name string) (lines []string) {
		b, err := os.ReadFile(h.layout().errorLog())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "client: ") && strings.Contains(line, name) {
				lines = append(lines, line)
			}
		}
		return lines
	}
	for name, cfg := range map[string]Config{
		"one limit":   {Slots: []Slot{{dead.id, 1000}, {large.id, 1000}}, Sites: []Site{{Organization: site, MaxBody: 100}}},
		"two limits":  {Slots: []Slot{{dead.id, 1000}, {large.id, 5000}}, Sites: []Site{{Organization: site, MaxBody: 100}}},
		"common site": {Slots: []Slot{{dead.id, 1000}, {large.id, 1000}}, Sites: []Site{{Organization: site}}},
	} {
		t.Run(name, func(t *testing.T) {
			h.apply(cfg)
			h.settled()
			before := len(logged(""))
			if status := ask(site, "/"); status != http.StatusServiceUnavailable {
				t.Errorf("a site without route: %d", status)
			}
			for i := range 1000 {
				path := []string{"/", "/-/route", "/oauth/token", "/healthz"}[i%4]
				if status := ask(id.NewOrganization(), path); status != http.StatusServiceUnavailable {
					t.Fatalf("%s of a name without route: %d", path, status)
				}
			}
			if lines := logged("")[before:]; len(lines) > 0 {
				t.Errorf("%d lines of names without route, such as %s", len(lines), lines[0])
			}
			org := id.NewOrganization()
			h.route(org, dead, 1)
			h.route(site, dead, 2)
			defer func() {
				if err := h.engine.Unroute(within(t), site, Target{dead.id, 2}); err != nil {
					t.Error(err)
				}
			}()
			for _, of := range []id.Organization{org, site} {
				for path, want := range map[string]int{"/": http.StatusBadGateway, "/oauth/token": http.StatusServiceUnavailable} {
					seen := len(logged(orgHost(of)))
					if status := ask(of, path); status != want {
						t.Errorf("%s that nobody answers: %d", path, status)
					}
					if lines := logged(orgHost(of))[seen:]; len(lines) != 1 || !strings.Contains(lines[0], "[error]") && !strings.Contains(lines[0], "[crit]") {
						t.Errorf("%s that nobody answers: logged %q", path, lines)
					}
				}
			}
		})
	}
}

// A gateway must not be able to send a client to nginx's internal locations or to replace its headers.
func TestGatewayCannotSteerNginx(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.startNginx()
	h.startEngine()
	g := h.gateway(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Accel-Redirect", "/control/activate")
		_, _ = io.WriteString(w, "mine")
	}))
	h.apply(slots(g))
	org := id.NewOrganization()
	h.route(org, g, 3)
	if status, _, body := h.ask(orgHost(org), "/"); status != 200 || body != "mine" {
		t.Errorf("%d %q", status, body)
	}
}

func TestAgentPaths(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opts.AgentSocket = filepath.Join(h.opts.RunDir, "agent.sock")
	l, err := net.Listen("unix", h.opts.AgentSocket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "agent %s %s", r.URL.Path, r.Header.Get("X-Demiurge-Organization"))
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	h.startNginx()
	h.startEngine()
	g := h.gateway(nil)
	h.apply(slots(g))
	org := id.NewOrganization()
	h.route(org, g, 3)
	for _, path := range []string{"/oauth/token", "/.well-known/oauth-authorization-server", "/permissions", "/permissions/a", "/roles", "/roles/a", "/containers", "/containers/a"} {
		if status, header, body := h.ask(orgHost(org), path); status != 200 || body != "agent "+path+" "+string(org) || header.Get(api.HeaderEpoch) != "3" {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if status, _, _ := h.ask(orgHost(id.NewOrganization()), "/oauth/token"); status != 503 {
		t.Errorf("an organization without gateway: %d", status)
	}
	h.mustServe(org, g, 3)
	// While the agent is away its paths say so, in words for people; the gateway's go on.
	_ = srv.Close()
	for range 2 {
		status, header, body := h.ask(orgHost(org), "/oauth/authorize")
		if status != 503 || header.Get("Retry-After") == "" || header.Get("Cache-Control") != "no-store" || header.Get(api.HeaderEpoch) != "3" || !strings.Contains(body, "try again shortly") || strings.Contains(body, "nginx") {
			t.Errorf("the agent is away: %d %v %q", status, header, body)
		}
		_ = os.Remove(h.opts.AgentSocket)
	}
	h.mustServe(org, g, 3)
}

func TestBodyLimits(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.startNginx()
	h.startEngine()
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %d epoch %s", r.Method, r.RequestURI, n, r.Header.Get(api.HeaderEpoch))
	})
	small, large := h.gateway(echo), h.gateway(echo)
	limited := id.NewOrganization()
	cfg := Config{
		Slots: []Slot{{small.id, 1000}, {large.id, 5000}},
		Sites: []Site{{Organization: limited, MaxBody: 100}},
	}
	h.apply(cfg)
	a, b := id.NewOrganization(), id.NewOrganization()
	h.route(a, small, 1)
	h.route(b, large, 2)
	h.route(limited, large, 3)
	post := func(org id.Organization, n int, chunked bool) (int, string) {
		var body io.Reader = strings.NewReader(strings.Repeat("x", n))
		if chunked {
			body = struct{ io.Reader }{body}
		}
		req, err := http.NewRequest(http.MethodPost, "http://"+h.opts.Listen[0].String()+"/up%2Fload?a=%20b", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = orgHost(org)
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	for _, chunked := range []bool{false, true} {
		for _, c := range []struct {
			org  id.Organization
			n    int
			want int
			ep   id.Epoch
		}{{a, 1000, 200, 1}, {a, 1001, 413, 1}, {b, 1001, 200, 2}, {b, 5000, 200, 2}, {b, 5001, 413, 2}, {limited, 100, 200, 3}, {limited, 101, 413, 3}} {
			status, body := post(c.org, c.n, chunked)
			if status != c.want {
				t.Errorf("%d bytes, chunked %t: %d, want %d", c.n, chunked, status, c.want)
			}
			if want := fmt.Sprintf("POST /up%%2Fload?a=%%20b %d epoch %s", c.n, c.ep); status == 200 && body != want {
				t.Errorf("the gateway got %q, want %q", body, want)
			}
		}
	}
	if status, _, _ := h.ask(orgHost(a), "/-/body/1000"); status != 404 {
		t.Errorf("an internal location is reachable: %d", status)
	}
}

func TestOwnDomains(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 2)
	other := id.NewOrganization()
	h.route(other, gs[1], 8)
	cfg := slots(gs...)
	cfg.Sites = []Site{{Organization: org, Domains: []string{"shop.own.test"}}}
	h.engine.SetConfig(cfg)
	eventually(t, "the own domain serves", func() bool {
		status, header, _, err := h.tryAsk("Shop.Own.test:80", "/")
		return err == nil && status == 200 && header.Get(api.HeaderGateway) == string(gs[0].id)
	})
	h.mustServe(org, gs[0], 7)
	h.mustServe(other, gs[1], 8)
	if status, _, _ := h.ask("uc-1."+orgHost(org), "/"); status != 200 {
		t.Errorf("a name below: %d", status)
	}
	if status, _, _ := h.ask("own.test", "/"); status != 404 {
		t.Errorf("the parent of an own domain: %d", status)
	}
}

// P16: the caller's address behind two proxies is the inner proxy.
func TestP16_TrustedProxies(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opts.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	h.startNginx()
	h.startEngine()
	g := h.gateway(nil)
	h.apply(slots(g))
	org := id.NewOrganization()
	h.route(org, g, 3)
	// The client invents the first address; two proxies of ours add what they saw.
	_, _, body := h.ask(orgHost(org), "/", "X-Forwarded-For", "6.6.6.6, 203.0.113.9, 10.1.2.3", "X-Forwarded-Proto", "https")
	var who identity
	if err := json.Unmarshal([]byte(body), &who); err != nil {
		t.Fatal(err)
	}
	if got := who.Header.Get("X-Forwarded-For"); got != "203.0.113.9" {
		t.Errorf("client address %q", got)
	}
	if got := who.Header.Get("X-Forwarded-Proto"); got != "https" {
		t.Errorf("scheme %q", got)
	}
	if status, _, _ := h.ask(orgHost(org), "/-/route", "X-Forwarded-For", "203.0.113.9"); status != 404 {
		t.Errorf("the proof of a route answers a stranger: %d", status)
	}
	h.mustServe(org, g, 3)
}

// upgraded is a gateway that echoes lines after an upgrade.
func upgraded(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "upgrade" {
		http.Error(w, "not upgraded", http.StatusBadRequest)
		return
	}
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	_ = rw.Flush()
	_, _ = io.Copy(conn, rw)
}

// dialUpgrade opens an upgraded connection and returns a function that echoes one line.
func (h *host) dialUpgrade(org id.Organization) (echo func(line string) error) {
	h.t.Helper()
	return h.dialUpgradeAt(orgHost(org))
}

// dialUpgradeAt is dialUpgrade at any host name.
func (h *host) dialUpgradeAt(name string) (echo func(line string) error) {
	h.t.Helper()
	conn, err := net.Dial("tcp", h.opts.Listen[0].String())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * longWait))
	_, _ = fmt.Fprintf(conn, "GET /echo HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", name)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		h.t.Fatalf("no upgrade: %v %v", resp, err)
	}
	return func(line string) error {
		if _, err := fmt.Fprintln(conn, line); err != nil {
			return err
		}
		got, err := r.ReadString('\n')
		if err == nil && got != line+"\n" {
			err = fmt.Errorf("echo of %q is %q", line, got)
		}
		return err
	}
}

func TestOpenConnectionsSurviveRouteSwitches(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.startNginx()
	h.startEngine()
	ws, plain := h.gateway(http.HandlerFunc(upgraded)), h.gateway(nil)
	h.apply(slots(ws, plain))
	org, switched := id.NewOrganization(), id.NewOrganization()
	h.route(org, ws, 1)
	echo := h.dialUpgrade(org)

	// One connection is kept for ordinary requests; it must never be closed.
	var dials int
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}}
	for i := range 100 {
		epoch := id.Epoch(2 + i)
		h.route(switched, plain, epoch)
		h.route(org, ws, epoch)
		if err := echo(fmt.Sprint(i)); err != nil {
			t.Fatalf("after %d switches: %v", i, err)
		}
		req, err := http.NewRequest(http.MethodGet, "http://"+h.opts.Listen[0].String()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = orgHost(switched)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if got := resp.Header.Get(api.HeaderEpoch); got != epoch.String() {
			t.Fatalf("epoch %s after the switch to %s", got, epoch)
		}
	}
	if dials != 1 {
		t.Errorf("the kept connection was closed: %d dials", dials)
	}
	// A reload keeps the upgraded connection too, on a worker that drains.
	h.apply(slots(ws, plain, h.gateway(nil)))
	if err := echo("after a reload"); err != nil {
		t.Error(err)
	}
	eventually(t, "the draining worker is counted", func() bool { return h.engine.Status().DrainingWorkers == 1 })
}

// post sends n bytes on a connection of its own.
func (h *host) post(org id.Organization, n int) (int, error) {
	req, err := http.NewRequest(http.MethodPost, "http://"+h.opts.Listen[0].String()+"/", strings.NewReader(strings.Repeat("x", n)))
	if err != nil {
		return 0, err
	}
	req.Host = orgHost(org)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}
