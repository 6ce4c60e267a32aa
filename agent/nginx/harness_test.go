package nginx

import (
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
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/porttest"
)

// longWait is for a busy machine; nothing waits for it when all is well.
const longWait = 30 * time.Second

const domain = "example.test"

// host is a directory with gateways, a nginx and an engine.
type host struct {
	t      testing.TB
	opts   Options
	faulty *fsxtest.Faulty
	engine *Engine
	nginx  *Process
	stop   context.CancelFunc
	ended  chan struct{}

	mu     sync.Mutex // guards events
	events []Event
}

// newHost makes options for a fresh directory with one listener. Nothing runs yet.
func newHost(t testing.TB) *host {
	t.Helper()
	dir, err := os.MkdirTemp(memory(), "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("DEMIURGE_TEST_LOG") != "" {
			b, _ := os.ReadFile(filepath.Join(dir, "data/log/error.log"))
			t.Logf("nginx:\n%s", b[max(0, len(b)-6000):])
		}
		_ = os.RemoveAll(dir)
	})
	h := &host{t: t}
	h.opts = Options{
		DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), SocketDir: filepath.Join(dir, "gw"),
		Domain: domain, Listen: []netip.AddrPort{freePort(t)}, Workers: 2, Logger: testLogger(), Events: h.note,
	}
	for _, d := range []string{h.opts.DataDir, h.opts.RunDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// memory is a directory in memory where there is one: these tests are about order, not about disks, and
// a sync of a busy disk waits for everybody. Benchmarks use the disk.
func memory() string {
	if os.Getenv("DEMIURGE_TEST_DISK") != "" {
		return ""
	}
	dir, err := os.MkdirTemp("/dev/shm", "dm")
	if err != nil {
		return ""
	}
	_ = os.Remove(dir)
	return "/dev/shm"
}

func testLogger() hclog.Logger {
	if os.Getenv("DEMIURGE_TEST_LOG") == "" {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Debug})
}

func (h *host) note(ev Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, ev)
}

func (h *host) saw(kind EventType, match func(Event) bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ev := range h.events {
		if ev.Type == kind && (match == nil || match(ev)) {
			return true
		}
	}
	return false
}

// freePort is an address of nginx that nobody listens on.
func freePort(t testing.TB) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(porttest.Free(t)))
}

func (h *host) layout() layout { return layout{data: h.opts.DataDir, run: h.opts.RunDir} }

// startNginx starts nginx under an owner that restarts it.
func (h *host) startNginx() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), longWait)
	defer cancel()
	opts := h.opts
	opts.FS = nil // nginx's owner is another program: it does not crash with the engine
	p, err := StartProcess(ctx, opts)
	if err != nil {
		h.t.Fatal(err)
	}
	h.nginx = p
	h.t.Cleanup(p.Stop)
}

// withFaults lets the engine's file system fail and crash.
func (h *host) withFaults() *fsxtest.Faulty {
	h.t.Helper()
	o, err := fsx.NewOS(h.opts.DataDir, h.opts.RunDir)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = o.Close() })
	h.faulty = fsxtest.New(o)
	h.opts.FS = h.faulty
	return h.faulty
}

// startEngine opens and runs an engine on the directory.
func (h *host) startEngine() *Engine {
	h.t.Helper()
	e, err := Open(h.opts)
	if err != nil {
		h.t.Fatal(err)
	}
	h.run(e)
	return e
}

func (h *host) run(e *Engine) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := e.Run(ctx); err != nil {
			h.t.Errorf("Run: %v", err)
		}
	}()
	h.engine, h.stop, h.ended = e, cancel, ended
	h.t.Cleanup(func() { cancel(); <-ended })
}

// stopEngine ends the engine as a crash does: whatever it was doing is left as it is.
func (h *host) stopEngine() {
	h.stop()
	<-h.ended
}

// eventually polls until the condition holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(longWait)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", longWait, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), longWait)
	t.Cleanup(cancel)
	return ctx
}

// gateway is a scripted gateway on its socket: it says who it is, with the epoch it was asked for.
type gateway struct {
	id     id.Gateway
	server *http.Server
}

func (h *host) gateway(handler http.Handler) *gateway {
	h.t.Helper()
	g := &gateway{id: id.NewGateway()}
	if handler == nil {
		handler = http.HandlerFunc(g.identify)
	}
	dir := filepath.Join(h.opts.SocketDir, string(g.id))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "http.sock"))
	if err != nil {
		h.t.Fatal(err)
	}
	g.server = &http.Server{Handler: handler}
	go func() { _ = g.server.Serve(l) }() // ended by Close
	h.t.Cleanup(func() { _ = g.server.Close() })
	return g
}

type identity struct {
	Gateway string
	Header  http.Header
	Host    string
	URI     string
}

func (g *gateway) identify(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(api.HeaderGateway, "forged-by-upstream")
	w.Header().Set(api.HeaderEpoch, "forged-by-upstream")
	_ = json.NewEncoder(w).Encode(identity{string(g.id), r.Header, r.Host, r.RequestURI})
}

// slots is a configuration with these gateways.
func slots(gs ...*gateway) Config {
	var cfg Config
	for _, g := range gs {
		cfg.Slots = append(cfg.Slots, Slot{Gateway: g.id})
	}
	return cfg
}

// apply sets a configuration and waits until every slot in it is live.
func (h *host) apply(cfg Config) {
	h.t.Helper()
	h.engine.SetConfig(cfg)
	for _, s := range cfg.Slots {
		if err := h.engine.WaitSlot(within(h.t), s.Gateway); err != nil {
			h.t.Fatal(err)
		}
	}
}

// settled waits until the engine has nothing left to do.
func (h *host) settled() {
	h.t.Helper()
	eventually(h.t, "the engine settles", func() bool {
		st := h.engine.snapshot()
		return st.j.Candidate == 0 && st.proven && st.lastError == "" && !h.engine.pending()
	})
}

func (h *host) route(org id.Organization, g *gateway, epoch id.Epoch) {
	h.t.Helper()
	if err := h.engine.Route(within(h.t), org, Target{g.id, epoch}); err != nil {
		h.t.Fatal(err)
	}
}

// ask sends one request as a client with the host name would, on a connection of its own.
func (h *host) ask(hostname, path string, headers ...string) (status int, header http.Header, body string) {
	h.t.Helper()
	status, header, body, err := h.tryAsk(hostname, path, headers...)
	if err != nil {
		h.t.Fatal(err)
	}
	return status, header, body
}

func (h *host) tryAsk(hostname, path string, headers ...string) (int, http.Header, string, error) {
	tr := &http.Transport{DisableKeepAlives: true}
	ctx, cancel := context.WithTimeout(context.Background(), longWait) // an nginx without workers answers nobody
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.opts.Listen[0].String()+path, nil)
	if err != nil {
		return 0, nil, "", err
	}
	req.Host = hostname
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b), err
}

func orgHost(org id.Organization) string { return id.Hostname(org, domain) }

// servedBy checks that the organization is answered by this gateway at this epoch.
func (h *host) servedBy(org id.Organization, g *gateway, epoch id.Epoch) error {
	status, header, body, err := h.tryAsk(orgHost(org), "/who")
	if err != nil {
		return err
	}
	var who identity
	if status != http.StatusOK || json.Unmarshal([]byte(body), &who) != nil || who.Gateway != string(g.id) ||
		header.Get(api.HeaderGateway) != string(g.id) || header.Get(api.HeaderEpoch) != epoch.String() {
		return fmt.Errorf("organization %s: status %d, %s=%q %s=%q, body %.200q; want gateway %s epoch %s", org, status,
			api.HeaderGateway, header.Get(api.HeaderGateway), api.HeaderEpoch, header.Get(api.HeaderEpoch), body, g.id, epoch)
	}
	return nil
}

func (h *host) mustServe(org id.Organization, g *gateway, epoch id.Epoch) {
	h.t.Helper()
	if err := h.servedBy(org, g, epoch); err != nil {
		h.t.Error(err)
	}
}

// routeOrSlot tells whether a name belongs among the routes: a route, or the slot of one.
func (h *host) routeOrSlot(name string) bool {
	target, slot := parseLink(name)
	if !slot {
		_, err := id.ParseOrganization(name)
		return err == nil
	}
	for _, t := range h.engine.Routes() {
		if t == target {
			return true
		}
	}
	return false
}

// clean checks that nothing is left over: no half-written or foreign file, no second socket. What is
// being cleared away gets the time for it.
func (h *host) clean() {
	h.t.Helper()
	waitUntilClean := func() (left []string) {
		end := time.Now().Add(longWait)
		for left = h.leftovers(); len(left) > 0 && time.Now().Before(end); left = h.leftovers() {
			time.Sleep(5 * time.Millisecond)
		}
		return left
	}
	for _, what := range waitUntilClean() {
		h.t.Error(what)
	}
}

func (h *host) leftovers() (out []string) {
	l := h.layout()
	live := h.engine.snapshot().j.Live
	checks := map[string]func(name string) bool{
		l.data:          func(n string) bool { return !fsx.IsTemp(n) && n != "scratch" },
		l.run:           func(n string) bool { return !strings.HasPrefix(n, "gen-") || n == filepath.Base(l.socket(live)) },
		l.generations(): func(n string) bool { num, ok := parseNumber(n); return ok && num <= live },
		l.routes():      h.routeOrSlot,
		l.quarantine():  func(n string) bool { return !fsx.IsTemp(n) },
	}
	for dir, ok := range checks {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return []string{err.Error()}
		}
		for _, e := range entries {
			if !ok(e.Name()) {
				out = append(out, fmt.Sprintf("left over: %s/%s (live generation %d)", dir, e.Name(), live))
			}
		}
	}
	b, err := os.ReadFile(l.pointer())
	if n, ok := parsePointer(b); err != nil || !ok || n != live {
		out = append(out, fmt.Sprintf("the pointer says %q, live is %d", b, live))
	}
	if _, _, err := readGeneration(h.engine.fs, l.generation(live)); err != nil {
		out = append(out, err.Error())
	}
	return out
}
