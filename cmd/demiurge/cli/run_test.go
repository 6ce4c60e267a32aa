package cli_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/demiurge/cli"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/outputtest"
)

// command is a command line that runs.
type command struct {
	stdout, stderr outputtest.Output
	interrupt      context.CancelFunc
	hurry          chan struct{}
	code           chan int
}

func start(t *testing.T, server *httptest.Server, args ...string) *command {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &command{interrupt: cancel, hurry: make(chan struct{}), code: make(chan int, 1)}
	go func() { // ends with the command, which the test waits for
		c.code <- cli.Run(ctx, cli.Options{
			Args: args, Stdout: &c.stdout, Stderr: &c.stderr, Hurry: c.hurry,
			Environ: []string{"DEMIURGE_ADDR=http://first", "DEMIURGE_ADDR=" + server.URL},
		})
	}()
	return c
}

// exit waits for the command's end and checks its code.
func (c *command) exit(t *testing.T, want int) {
	t.Helper()
	select {
	case got := <-c.code:
		if got != want {
			t.Fatalf("exit code %d, want %d\n%s%s", got, want, c.stdout.String(), c.stderr.String())
		}
	case <-time.After(time.Minute):
		t.Fatalf("the command does not end\n%s%s", c.stdout.String(), c.stderr.String())
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// platform is a coordinator and an nginx in one: it grants, serves and releases.
type platform struct {
	server *httptest.Server

	mu          sync.Mutex
	before      func(r *http.Request) error // called for every start, outside the lock
	impostor    bool                        // nginx answers with another gateway
	epoch       uint64
	orgs        map[string]bool
	allocations map[string]api.Allocation // live, by organization
	starts      int
}

func newPlatform(t *testing.T) *platform {
	p := &platform{orgs: map[string]bool{}, allocations: map[string]api.Allocation{}}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/organizations/{id}", p.put)
	mux.HandleFunc("DELETE /v1/organizations/{id}", p.delete)
	mux.HandleFunc("GET /v1/organizations/{id}/allocation", p.find)
	mux.HandleFunc("POST /v1/allocations", p.start)
	mux.HandleFunc("DELETE /v1/allocations/{id}", p.release)
	mux.HandleFunc("GET /collab/ping", p.ping)
	p.server = httptest.NewServer(mux)
	t.Cleanup(p.server.Close)
	return p
}

func refuse(w http.ResponseWriter, code fault.Code) {
	err := fault.New(code, "the text of %s", code)
	w.Header().Set("Content-Type", api.ProblemContentType)
	w.WriteHeader(err.Status())
	_ = json.NewEncoder(w).Encode(api.Problem{Status: err.Status(), Code: string(code), Detail: err.Message})
}

func (p *platform) put(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.orgs[r.PathValue("id")] = true
	_ = json.NewEncoder(w).Encode(api.Organization{OrganizationID: r.PathValue("id")})
}

func (p *platform) delete(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	org := r.PathValue("id")
	switch _, live := p.allocations[org]; {
	case live:
		refuse(w, fault.OrganizationActive)
	case !p.orgs[org]:
		refuse(w, fault.NotFound)
	default:
		delete(p.orgs, org)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (p *platform) find(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x, ok := p.allocations[r.PathValue("id")]
	if !ok {
		refuse(w, fault.NotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(x)
}

func (p *platform) start(w http.ResponseWriter, r *http.Request) {
	var in api.StartAllocation
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, fault.InvalidRequest)
		return
	}
	p.mu.Lock()
	p.starts++
	before := p.before
	p.mu.Unlock()
	if before != nil {
		if err := before(r); err != nil {
			refuse(w, fault.CodeOf(err))
			return
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch++
	x := api.Allocation{
		AllocationID: fmt.Sprintf("al-%d", p.epoch), OrganizationID: in.OrganizationID, GatewayID: "gw-" + in.OrganizationID[:8], Epoch: p.epoch,
		Hostname: "org-" + in.OrganizationID + ".test", State: api.AllocationActive, Timings: api.Timings{Reserve: 0.5, Total: 1},
	}
	p.allocations[in.OrganizationID] = x
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(x)
}

func (p *platform) release(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for org, x := range p.allocations {
		if x.AllocationID == r.PathValue("id") {
			delete(p.allocations, org)
			x.State = api.AllocationReleased
			_ = json.NewEncoder(w).Encode(x)
			return
		}
	}
	refuse(w, fault.NotFound)
}

func (p *platform) ping(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	org := strings.TrimSuffix(strings.TrimPrefix(r.Host, "org-"), ".test")
	x, ok := p.allocations[org]
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	gateway := x.GatewayID
	if p.impostor {
		gateway = "gw-other"
	}
	w.Header().Set(api.HeaderGateway, gateway)
	w.Header().Set(api.HeaderEpoch, fmt.Sprint(x.Epoch))
	_ = json.NewEncoder(w).Encode(api.GatewayHealth{GatewayID: gateway, OrganizationID: org, Epoch: x.Epoch})
}

func (p *platform) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *platform) left() (orgs, allocations, starts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.orgs), len(p.allocations), p.starts
}

func (p *platform) wantNothingLeft(t *testing.T) {
	t.Helper()
	if orgs, allocations, _ := p.left(); orgs != 0 || allocations != 0 {
		t.Errorf("%d organizations and %d allocations are left", orgs, allocations)
	}
}

func TestInterruptedStartSaysWhatBecomesOfIt(t *testing.T) {
	p := newPlatform(t)
	asked := make(chan struct{})
	p.set(func() {
		p.before = func(r *http.Request) error {
			close(asked)
			<-r.Context().Done()
			return fault.New(fault.ActivationTimeout, "gone")
		}
	})
	c := start(t, p.server, "alloc", "start", "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11")
	<-asked
	c.interrupt()
	c.exit(t, 1)
	if got := c.stderr.String(); !strings.Contains(got, "interrupted: a place in line is given up, and an activation that was begun goes on") ||
		!strings.Contains(got, "demiurge alloc stop 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11") {
		t.Errorf("said %q", got)
	}
}

func TestSlowStartShowsWhereItIs(t *testing.T) {
	p := newPlatform(t)
	const org = "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"
	p.set(func() {
		p.allocations[org] = api.Allocation{AllocationID: "al-1", State: api.AllocationQueued, Position: 3}
	})
	answer := make(chan struct{})
	p.set(func() { p.before = func(*http.Request) error { <-answer; return nil } })
	c := start(t, p.server, "alloc", "start", org)
	waitFor(t, "the place in line", func() bool {
		return strings.Contains(c.stderr.String(), "allocation al-1 is queued, place 3 in line\n")
	})
	close(answer)
	c.exit(t, 0)
}

func TestFollowGoesOnUntilTheInterrupt(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept") != "text/event-stream" || r.URL.Query().Get("topic") != "pool" {
			refuse(w, fault.InvalidRequest)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		if r.Header.Get("Last-Event-ID") == "" { // the first stream breaks after one event
			fmt.Fprint(w, "id: 1.0\ndata: {\"id\":\"1.0\",\"type\":\"pool.created\",\"pool\":\"a\"}\n\n")
			return
		}
		fmt.Fprintf(w, "data: {\"id\":\"2.0\",\"type\":\"pool.grown\",\"reason\":%q}\n\n", "after "+r.Header.Get("Last-Event-ID"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer server.Close()
	c := start(t, server, "events", "-f", "--topic", "pool", "-o", "json")
	waitFor(t, "both events", func() bool { return strings.Count(c.stdout.String(), "\n") == 2 })
	c.interrupt()
	c.exit(t, 0)
	lines := strings.Split(c.stdout.String(), "\n")
	if !strings.Contains(lines[0], `"pool":"a"`) || !strings.Contains(lines[1], `"after 1.0"`) {
		t.Errorf("printed\n%s", c.stdout.String())
	}
}

func TestFollowEndsWithARefusal(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { refuse(w, fault.Forbidden) }))
	defer server.Close()
	c := start(t, server, "events", "--follow")
	c.exit(t, 1)
	if got := c.stderr.String(); got != "Error: forbidden: the text of forbidden\n" {
		t.Errorf("said %q", got)
	}
}

// Whom a command cannot reach, or not trust, is told with what to do; an interrupt is not an error of the network.
func TestWhatToDoAboutACoordinatorThatIsNotReached(t *testing.T) {
	asked := make(chan struct{}, 1)
	over := make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			return
		}
		asked <- struct{}{}
		select {
		case <-over:
		case <-r.Context().Done():
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // who does not trust it says so there
	server.StartTLS()
	defer server.Close()
	defer close(over) // before the server is closed, which waits for its calls
	stranger := start(t, server, "status")
	stranger.exit(t, 1)
	if text := stranger.stderr.String(); !strings.Contains(text, "give the cluster's CA with --ca-cert or DEMIURGE_CACERT") {
		t.Errorf("an unknown CA: %s", text)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	waits := start(t, server, "status", "--ca-cert", ca)
	<-asked
	waits.interrupt()
	waits.exit(t, 1)
	if text := waits.stderr.String(); text != "Error: interrupted before the coordinator had answered\n" {
		t.Errorf("interrupted: %s", text)
	}
}
