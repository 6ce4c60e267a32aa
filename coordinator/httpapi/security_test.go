package httpapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

const anObservation = `{"host_id":"h1","instance":"i1"}`

// raw is a certificate of this CA as crypto/tls presents it, without any look at its life.
func (o *ownTrust) raw(role pki.Role, name string, at time.Time) tls.Certificate {
	o.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		o.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		o.t.Fatal(err)
	}
	text, _, err := o.Issue(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), role, name, at)
	if err != nil {
		o.t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(text))
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
}

// refusedInTheHandshake calls with a certificate that must not get as far as an answer.
func (k *kit) refusedInTheHandshake(what string, certificate tls.Certificate, want string) {
	k.t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // the caller is the attacker
		Certificates:       []tls.Certificate{certificate},
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Post("https://"+k.web.Listener.Addr().String()+"/v1/agent/observations", "application/json", strings.NewReader(anObservation))
	if err == nil {
		resp.Body.Close()
		k.t.Errorf("%s: answered with %s", what, resp.Status)
	} else if !strings.Contains(err.Error(), want) {
		k.t.Errorf("%s: %v", what, err)
	}
	if k.agents.observed.Load() != nil {
		k.t.Errorf("%s: the report was taken", what)
	}
}

func TestSecurityExpiredCertificate(t *testing.T) {
	k := newKit(t)
	k.refusedInTheHandshake("expired", k.trust.raw(pki.RoleAgent, "h1", time.Now().Add(-2*pki.DefaultLeafLife)), "tls")
	// One that expires on an open connection counts no more either.
	agent := k.tokens[agentCaller]
	if got := k.call(post, "/v1/agent/observations", agent, anObservation); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	k.offset.Store(int64(pki.DefaultLeafLife))
	wantProblem(t, k.call(post, "/v1/agent/observations", agent, anObservation), fault.Unauthenticated)
}

func TestSecurityCertificateOfAnotherCA(t *testing.T) {
	k := newKit(t)
	k.refusedInTheHandshake("another cluster's CA", newTrust(t).raw(pki.RoleAgent, "h1", time.Now()), "tls")
}

func TestSecurityAnotherHostsCertificate(t *testing.T) {
	k := newKit(t)
	k.enroll("h2")
	other := k.certified(k.trust.credentials(pki.RoleAgent, "h2", k.now()))
	wantProblem(t, k.call(post, "/v1/agent/observations", other, anObservation), fault.Forbidden)
	wantProblem(t, k.call(get, "/v1/agent/stream?host=h1&instance=i1", other, ""), fault.Forbidden)
	wantProblem(t, k.renew(other, k.enrolment(), pki.RoleAgent, "h1"), fault.Forbidden)
	wantProblem(t, k.renew(other, k.enrolment(), pki.RoleCoordinator, "h2"), fault.Forbidden)
	if k.agents.observed.Load() != nil {
		t.Error("the report was taken")
	}
}

func TestSecurityCoordinatorsCertificateIsNoAgents(t *testing.T) {
	k := newKit(t)
	coordinator := k.certified(k.trust.credentials(pki.RoleCoordinator, "c1", k.now()))
	wantProblem(t, k.call(post, "/v1/agent/observations", coordinator, anObservation), fault.Forbidden)
	wantProblem(t, k.call(get, "/v1/agent/stream?host=h1&instance=i1", coordinator, ""), fault.Forbidden)
	wantProblem(t, k.renew(coordinator, k.enrolment(), pki.RoleAgent, "h1"), fault.Forbidden)
	wantProblem(t, k.call(get, "/v1/tokens", coordinator, ""), fault.Unauthenticated) // nor is it a token
}

// TestSecurityNotEnrolled: a certificate alone is not enough.
func TestSecurityNotEnrolled(t *testing.T) {
	k := newKit(t)
	stranger := k.certified(k.trust.credentials(pki.RoleAgent, "h7", k.now()))
	wantProblem(t, k.call(post, "/v1/agent/observations", stranger, `{"host_id":"h7","instance":"i1"}`), fault.Unauthenticated)
	k.cluster.leader.Store(false)
	wantProblem(t, k.call(post, "/v1/agent/observations", stranger, `{"host_id":"h7","instance":"i1"}`), fault.NoLeader)
}

// TestSecurityDeletedHost: from the moment of the deletion nothing is answered, and what is open ends.
func TestSecurityDeletedHost(t *testing.T) {
	k := newKit(t)
	k.withGateways(0)
	k.agents.frames = []api.AssignmentFrame{{Index: 1, Full: true}}
	agent := k.tokens[agentCaller]
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, get, k.url(agent)+"/v1/agent/stream?host=h1&instance=i1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := k.programs[agent].Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	k.apply(command.DeleteHost{Meta: k.meta(), Host: k.host})
	wantProblem(t, k.call(post, "/v1/agent/observations", agent, anObservation), fault.Unauthenticated)
	wantProblem(t, k.renew(agent, k.enrolment(), pki.RoleAgent, "h1"), fault.Unauthenticated)
	if _, err := io.ReadAll(resp.Body); err != nil || ctx.Err() != nil {
		t.Errorf("the open stream did not end: %v", err)
	}
	// Joined again, the old certificate stays what it is.
	k.offset.Store(int64(2 * time.Second)) // certificates count in seconds
	k.enroll(k.host)
	wantProblem(t, k.call(post, "/v1/agent/observations", agent, anObservation), fault.Unauthenticated)
	again := k.certified(k.trust.credentials(pki.RoleAgent, "h1", k.now()))
	if got := k.call(post, "/v1/agent/observations", again, anObservation); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestRenewCertificate(t *testing.T) {
	k := newKit(t)
	e := k.enrolment()
	got := k.accepted(k.renew(k.tokens[agentCaller], e, pki.RoleAgent, "h1"), e, pki.RoleAgent, "h1")
	if got.ClusterKey != "" || got.Trust != nil {
		t.Error("a host got the cluster key")
	}
	k.cluster.leader.Store(false)
	wantProblem(t, k.renew(k.tokens[agentCaller], e, pki.RoleAgent, "h1"), fault.NoLeader)
}

// TestSecurityPlainHTTPOnATLSPort: the answer says what is wrong, and nothing is done.
func TestSecurityPlainHTTPOnATLSPort(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Plain = false })
	for _, path := range []string{"/v1/status", "/healthz", "/nowhere"} {
		got := k.call(get, path, k.tokens[api.RoleAdmin], "")
		wantProblem(t, got, fault.InvalidRequest)
		if !strings.Contains(got.problem.Detail, "TLS only") || !strings.Contains(got.problem.Detail, "https://") {
			t.Errorf("%s: %s", path, got.body)
		}
	}
	if got := k.call(post, "/v1/agent/observations", k.tokens[agentCaller], anObservation); got.status != 200 {
		t.Errorf("over TLS: %d %s", got.status, got.body)
	}
}

// TestSecurityIdentityHeader: who a caller is comes from its handshake, whatever it writes; only on the port
// of the coordinators it is read, and there a coordinator wrote it.
func TestSecurityIdentityHeader(t *testing.T) {
	k := newKit(t)
	who := identity{k.trust.identity(pki.RoleAgent, "h1"), time.Now().Add(-time.Minute), time.Now().Add(time.Hour)}
	got := k.call(post, "/v1/agent/observations", "", anObservation, headerIdentity, who.header(), headerCaller, "192.0.2.7")
	wantProblem(t, got, fault.Unauthenticated)
	k.enroll("h2")
	other := k.certified(k.trust.credentials(pki.RoleAgent, "h2", k.now()))
	wantProblem(t, k.call(post, "/v1/agent/observations", other, anObservation, headerIdentity, who.header()), fault.Forbidden)

	peers := httptest.NewServer(k.server.PeerHandler())
	defer peers.Close()
	ask := func(headers ...string) int {
		req, err := http.NewRequest(post, peers.URL+"/v1/agent/observations", strings.NewReader(anObservation))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, c := range []struct {
		identity string
		want     int
	}{
		{who.header(), 200},
		{"", 401},
		{"x", 400},
		{"demiurge://x/agent/h1 1 y", 400},
		{identity{k.trust.identity(pki.RoleAgent, "h2"), who.from, who.until}.header(), 403},
		{identity{k.trust.identity(pki.RoleCoordinator, "h1"), who.from, who.until}.header(), 403},
		{identity{who.who, who.from, time.Now().Add(-time.Hour)}.header(), 401},
		{identity{who.who, time.Now().Add(-time.Hour), who.until}.header(), 401},
	} {
		if got := ask(headerCaller, "192.0.2.7", headerIdentity, c.identity); got != c.want {
			t.Errorf("identity %q: status %d, want %d", c.identity, got, c.want)
		}
	}
}

// TestListenerIsNotHeldUp: callers that say nothing do not keep others out, and end with the listener.
func TestListenerIsNotHeldUp(t *testing.T) {
	k := newKit(t)
	var silent []net.Conn
	for range 20 {
		conn, err := net.Dial("tcp", k.web.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	for _, caller := range []string{k.tokens[api.RoleAdmin], k.tokens[agentCaller]} {
		if got := k.call(get, "/healthz", caller, ""); got.status != 200 {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	if err := k.web.Listener.Close(); err != nil {
		t.Error(err)
	}
	for _, conn := range silent {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("it was answered")
		}
	}
}
