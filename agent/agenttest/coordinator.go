// Package agenttest is a test kit for the agent: a coordinator that says what a test wants of the host
// and keeps what the host reports, and a host whose nginx and gateway processes are scripted, so that
// every part of it can be made to fail.
package agenttest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Patience is how long the kit waits for a condition: long, because the machine may be busy.
const Patience = 60 * time.Second

// Wait polls until done says so.
func Wait(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", Patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Coordinator is the other side of the agent protocol, told by a test what to want.
type Coordinator struct {
	Domain string

	trust    *Trust
	mu       sync.Mutex
	server   *httptest.Server
	index    uint64
	wanted   map[string]api.GatewayAssignment
	streams  map[chan api.AssignmentFrame]bool
	reports  map[string]api.GatewayReport
	history  []api.GatewayReport
	steps    []api.StepReport
	events   []api.AgentEvent
	host     api.HostReport
	bodies   []api.Observation
	requests int
	// certificate is what the last observation came with.
	certificate *x509.Certificate
	refusing    bool // observations are answered 503
	mute        bool // streams send nothing any more
}

// NewCoordinator starts one on loopback; it ends with the test.
func NewCoordinator(t testing.TB, domain string) *Coordinator {
	t.Helper()
	return NewTrust(t).Coordinator(t, domain)
}

// Coordinator starts one of this cluster on loopback; it ends with the test.
func (o *Trust) Coordinator(t testing.TB, domain string) *Coordinator {
	t.Helper()
	c := &Coordinator{
		trust:  o,
		Domain: domain, index: 100, wanted: make(map[string]api.GatewayAssignment),
		streams: make(map[chan api.AssignmentFrame]bool), reports: make(map[string]api.GatewayReport),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/agent/stream", c.stream)
	mux.HandleFunc("POST /v1/agent/observations", c.observe)
	mux.HandleFunc("POST /v1/agent/certificate", c.renew)
	c.server = httptest.NewUnstartedServer(mux)
	c.server.Listener = tls.NewListener(c.server.Listener, o.server(t))
	c.server.Start()
	t.Cleanup(func() {
		c.Disconnect()
		c.server.CloseClientConnections()
		c.server.Close()
	})
	return c
}

// Address is where agents find it.
func (c *Coordinator) Address() string { return c.server.Listener.Addr().String() }

// Certificate is what the last observation came with; nil before there was one.
func (c *Coordinator) Certificate() *x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.certificate
}

// Trust is the CA of its cluster.
func (c *Coordinator) Trust() *Trust { return c.trust }

// authorized lets agents in; the handshake let nobody in without a certificate of the cluster.
func authorized(w http.ResponseWriter, r *http.Request) bool {
	if who, ok := pki.PeerOf(r.TLS); ok && who.Role() == pki.RoleAgent {
		return true
	}
	w.WriteHeader(http.StatusUnauthorized)
	_ = json.NewEncoder(w).Encode(api.Problem{Status: 401, Code: "unauthenticated", Detail: "this takes the certificate of a host"})
	return false
}

// renew answers with the next certificate of the caller.
func (c *Coordinator) renew(w http.ResponseWriter, r *http.Request) {
	var rq api.JoinRequest
	if err := json.NewDecoder(r.Body).Decode(&rq); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := c.trust.Answer(rq, time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (c *Coordinator) stream(w http.ResponseWriter, r *http.Request) {
	if !authorized(w, r) {
		return
	}
	frames := make(chan api.AssignmentFrame, 10000)
	c.mu.Lock()
	c.streams[frames] = true
	full := c.full()
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.streams, frames)
		c.mu.Unlock()
	}()
	rc := http.NewResponseController(w)
	send := func(f api.AssignmentFrame) bool {
		return json.NewEncoder(w).Encode(f) == nil && rc.Flush() == nil
	}
	ok := send(full)
	for ok {
		select {
		case f, more := <-frames:
			ok = more && send(f)
		case <-time.After(200 * time.Millisecond):
			c.mu.Lock()
			beat, mute := api.AssignmentFrame{Index: c.index}, c.mute
			c.mu.Unlock()
			ok = mute || send(beat)
		case <-r.Context().Done():
			return
		}
	}
}

func (c *Coordinator) observe(w http.ResponseWriter, r *http.Request) {
	if !authorized(w, r) {
		return
	}
	var o api.Observation
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests++
	c.certificate = r.TLS.PeerCertificates[0]
	if c.refusing {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	c.bodies = append(c.bodies, o)
	if o.Full {
		clear(c.reports)
	}
	for _, g := range o.Gateways {
		c.reports[g.GatewayID] = g
		c.history = append(c.history, g)
	}
	c.steps = append(c.steps, o.Steps...)
	c.events = append(c.events, o.Events...)
	if o.Host != nil {
		c.host = *o.Host
	}
	_ = json.NewEncoder(w).Encode(api.Observed{Index: c.index})
}

// Assign wants these gateways in this form.
func (c *Coordinator) Assign(gs ...api.GatewayAssignment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index++
	for _, g := range gs {
		c.wanted[g.GatewayID] = g
	}
	c.push(api.AssignmentFrame{Index: c.index, Gateways: gs})
}

// Drop forgets a gateway: only the next full frame tells an agent.
func (c *Coordinator) Drop(g id.Gateway) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index++
	delete(c.wanted, string(g))
}

// full is everything that is wanted. mu is held.
func (c *Coordinator) full() api.AssignmentFrame {
	f := api.AssignmentFrame{Index: c.index, Full: true, Domain: c.Domain, CA: c.trust.Bundle().PEM()}
	for _, g := range c.wanted {
		f.Gateways = append(f.Gateways, g)
	}
	return f
}

// Again says everything that is wanted once more on every stream, as after a restore.
func (c *Coordinator) Again() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.push(c.full())
}

// TellCA tells all agents whom the cluster trusts now.
func (c *Coordinator) TellCA() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.push(api.AssignmentFrame{Index: c.index, CA: c.trust.Bundle().PEM()})
}

// push sends a frame on every stream. mu is held.
func (c *Coordinator) push(f api.AssignmentFrame) {
	for s := range c.streams {
		s <- f
	}
}

// Run wants n new gateways and returns their ids.
func (c *Coordinator) Run(n int) []id.Gateway {
	ids := make([]id.Gateway, n)
	gs := make([]api.GatewayAssignment, n)
	for i := range ids {
		ids[i] = id.NewGateway()
		gs[i] = api.GatewayAssignment{GatewayID: string(ids[i]), Pool: "default", Target: api.TargetRun, Incarnation: 1}
	}
	c.Assign(gs...)
	return ids
}

// Wanted is what is wanted of a gateway.
func (c *Coordinator) Wanted(g id.Gateway) api.GatewayAssignment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wanted[string(g)]
}

// Grant gives a gateway an organization and returns the epoch.
func (c *Coordinator) Grant(g id.Gateway, org id.Organization) uint64 {
	w := c.Wanted(g)
	c.mu.Lock()
	epoch := c.index + 1
	c.mu.Unlock()
	w.Grant = &api.Grant{
		OrganizationID: string(org), AllocationID: string(id.NewAllocation()), Epoch: epoch, Name: "Example",
		Hostname: id.Hostname(org, c.Domain), Version: epoch,
		Members: []api.Member{{UserID: "ada", Role: "owner"}},
	}
	c.Assign(w)
	return epoch
}

// Members changes who belongs to the organization of a gateway, and its projects.
func (c *Coordinator) Members(g id.Gateway, members []api.Member, projects ...api.Project) {
	w := c.Wanted(g)
	grant := *w.Grant
	c.mu.Lock()
	grant.Version = c.index + 1
	c.mu.Unlock()
	grant.Members, grant.Projects = members, projects
	w.Grant = &grant
	c.Assign(w)
}

// Recycle takes the organization away and wants the next incarnation.
func (c *Coordinator) Recycle(g id.Gateway) uint64 {
	w := c.Wanted(g)
	w.Grant = nil
	w.Incarnation++
	c.Assign(w)
	return w.Incarnation
}

// Verify asks the agent to verify.
func (c *Coordinator) Verify(r api.VerifyRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.push(api.AssignmentFrame{Index: c.index, Verify: []api.VerifyRequest{r}})
}

// Disconnect ends every stream.
func (c *Coordinator) Disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.streams {
		close(s)
		delete(c.streams, s)
	}
}

// Refuse makes observations fail, or not any more.
func (c *Coordinator) Refuse(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusing = yes
}

// Mute keeps streams open and silent, or not any more.
func (c *Coordinator) Mute(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = yes
}

// Streams is how many are open.
func (c *Coordinator) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// Requests is how many observations came, taken or not.
func (c *Coordinator) Requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests
}

// Report is the last one of a gateway.
func (c *Coordinator) Report(g id.Gateway) api.GatewayReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reports[string(g)]
}

// Reports is every report of a gateway in order.
func (c *Coordinator) Reports(g id.Gateway) []api.GatewayReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []api.GatewayReport
	for _, r := range c.history {
		if r.GatewayID == string(g) {
			out = append(out, r)
		}
	}
	return out
}

// Host is the last report of the host.
func (c *Coordinator) Host() api.HostReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.host
}

// Bodies is every observation that was taken.
func (c *Coordinator) Bodies() []api.Observation {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.bodies)
}

// Steps is every step of a gateway, as "name state", in order.
func (c *Coordinator) Steps(g id.Gateway) []api.StepReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []api.StepReport
	for _, s := range c.steps {
		if s.GatewayID == string(g) {
			out = append(out, s)
		}
	}
	return out
}

// Events is every event of a type.
func (c *Coordinator) Events(typ string) []api.AgentEvent {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []api.AgentEvent
	for _, e := range c.events {
		if e.Type == typ {
			out = append(out, e)
		}
	}
	return out
}

// WaitPhase waits until a gateway is reported in a phase of an incarnation.
func (c *Coordinator) WaitPhase(t testing.TB, g id.Gateway, phase string, incarnation uint64) api.GatewayReport {
	t.Helper()
	var last api.GatewayReport
	defer func() {
		if t.Failed() {
			t.Logf("the last report of %s: %+v; the host: %+v", g, c.Report(g), c.Host())
		}
	}()
	Wait(t, fmt.Sprintf("gateway %s %s in incarnation %d", g, phase, incarnation), func() bool {
		last = c.Report(g)
		return last.Phase == phase && last.Incarnation == incarnation
	})
	return last
}

// WaitServing waits until a gateway is reported to serve an epoch.
func (c *Coordinator) WaitServing(t testing.TB, g id.Gateway, epoch uint64) api.GatewayReport {
	t.Helper()
	var last api.GatewayReport
	Wait(t, fmt.Sprintf("gateway %s serving epoch %d", g, epoch), func() bool {
		last = c.Report(g)
		return last.Phase == api.PhaseServing && last.Epoch == epoch
	})
	return last
}

// Names puts steps on one line, for comparing.
func Names(steps []api.StepReport) string {
	var out []string
	for _, s := range steps {
		out = append(out, s.Step.Step+" "+s.Step.State)
	}
	return strings.Join(out, ", ")
}
