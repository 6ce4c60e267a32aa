package pki_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// door is a coordinator as far as joining goes: it keeps one token's hash and spends it.
type door struct {
	ca     *pki.Authority
	bundle pki.Bundle
	grants pki.Identity // whom the token is for

	mu     sync.Mutex // guards what follows
	hash   pki.TokenHash
	spent  bool
	seen   []api.JoinRequest
	change func(*api.JoinAnswer) // spoils the answer
	lose   int                   // answers that are lost on the way
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	token, err := pki.ParseJoinToken(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	var request api.JoinRequest
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if e := dec.Decode(&request); e != nil || r.URL.Path != pki.JoinPath || r.Method != http.MethodPost {
		problem(w, fault.InvalidRequest, "not a join request")
		return
	}
	again := len(d.seen) > 0 && d.seen[0].CSR == request.CSR
	d.seen = append(d.seen, request)
	if err != nil || !d.hash.Matches(token) || d.spent && !again {
		problem(w, fault.Unauthenticated, "the join token is unknown, expired or spent")
		return
	}
	d.spent = true
	chain, err := d.ca.Issue(request.CSR, pki.Grant{Identity: d.grants, Now: noon})
	if err != nil {
		problem(w, fault.InvalidRequest, err.Error())
		return
	}
	answer := api.JoinAnswer{Certificate: chain, CA: d.bundle.PEM(), Cluster: api.JoinCluster{
		ClusterID: d.grants.Cluster(), APIAddresses: []string{"192.0.2.1:7400"}, SerfAddresses: []string{"192.0.2.1:7402"}, GossipKey: "a2V5",
	}}
	if d.change != nil {
		d.change(&answer)
	}
	if d.lose > 0 {
		d.lose--
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func problem(w http.ResponseWriter, code fault.Code, detail string) {
	e := fault.New(code, "%s", detail)
	w.Header().Set("Content-Type", api.ProblemContentType)
	w.WriteHeader(e.Status())
	_ = json.NewEncoder(w).Encode(api.Problem{Status: e.Status(), Title: string(code), Detail: detail, Code: string(code)})
}

// newDoor is a door that lets host-1 in.
func newDoor(t testing.TB, ca *pki.Authority, bundle pki.Bundle) (*door, pki.JoinToken) {
	t.Helper()
	token := pki.NewJoinToken(bundle.Pin())
	return &door{ca: ca, bundle: bundle, grants: identity(t, clusterA, pki.RoleAgent, "host-1"), hash: token.Hash()}, token
}

// serve runs a handler with a TLS configuration until the test ends.
func serve(t testing.TB, conf *tls.Config, handler http.Handler) (address string) {
	t.Helper()
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	server := &http.Server{TLSConfig: conf, Handler: handler, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(listener, "", "") }() // waited for by the cleanup
	t.Cleanup(func() { _ = server.Close(); <-done })
	return listener.Addr().String()
}

// open serves a door as a coordinator with a certificate of its CA would.
func (d *door) open(t testing.TB) (address string) {
	t.Helper()
	c := memberAt(t, d.ca, d.bundle, identity(t, d.ca.Root().Cluster(), pki.RoleCoordinator, "c1"), noon)
	return serve(t, serverOf(t, live(c, noon), pki.Peer{Roles: anyRole.Roles, Anonymous: true}, "h2", "http/1.1"), d)
}

func joining(t testing.TB, token pki.JoinToken, addresses ...string) pki.JoinOptions {
	t.Helper()
	return pki.JoinOptions{Addresses: addresses, Token: token, Role: pki.RoleAgent, Name: "host-1", Store: openStore(t, t.TempDir()), Now: at(noon)}
}

func TestJoin(t *testing.T) {
	ca := authority(t, clusterA)
	d, token := newDoor(t, ca, pki.NewBundle(ca.Root()))
	o := joining(t, token, d.open(t))
	joined := must[*pki.Joined](t)(pki.Join(t.Context(), o))
	if joined.Credentials.Identity() != d.grants || joined.Cluster.ClusterID != clusterA || joined.Cluster.GossipKey != "a2V5" {
		t.Errorf("joined as %s in %+v", joined.Credentials, joined.Cluster)
	}
	if got := must[*pki.Credentials](t)(o.Store.Load(noon)); !got.Equal(joined.Credentials) {
		t.Errorf("stored %s", got)
	}
	if s := d.seen[0]; s.Name != "host-1" || s.Role != "agent" || s.Version == "" || strings.Contains(s.CSR, "PRIVATE") {
		t.Errorf("asked with %+v", s)
	}
	// The certificate works.
	m := meet(t, serverOf(t, live(member(t, ca, pki.RoleCoordinator, "c1"), noon), only(pki.RoleAgent)), clientOf(t, live(joined.Credentials, noon), only(pki.RoleCoordinator)))
	if m.server != nil || m.client != nil {
		t.Errorf("server: %v, client: %v", m.server, m.client)
	}
}

func TestReplayedJoinToken(t *testing.T) {
	ca := authority(t, clusterA)
	d, token := newDoor(t, ca, pki.NewBundle(ca.Root()))
	address := d.open(t)
	must[*pki.Joined](t)(pki.Join(t.Context(), joining(t, token, address)))
	o := joining(t, token, address, address)
	if _, err := pki.Join(t.Context(), o); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("the token was good twice: %v", err)
	}
	if len(d.seen) != 2 {
		t.Errorf("%d requests: a coordinator's decision was asked for again", len(d.seen))
	}
	if _, err := o.Store.Load(noon); !errors.Is(err, pki.ErrEmpty) {
		t.Errorf("something was stored: %v", err)
	}
}

// The answer of the first coordinator is lost after the token was spent; the second one answers the same
// signing request again.
func TestJoinAfterALostAnswer(t *testing.T) {
	ca := authority(t, clusterA)
	d, token := newDoor(t, ca, pki.NewBundle(ca.Root()))
	d.lose = 1
	must[*pki.Joined](t)(pki.Join(t.Context(), joining(t, token, d.open(t), d.open(t))))
}

// The leader takes the request and is lost before it can say so; the next one answers the same signing request again.
func TestJoinWhileTheLeaderChanges(t *testing.T) {
	ca := authority(t, clusterA)
	d, token := newDoor(t, ca, pki.NewBundle(ca.Root()))
	c := memberAt(t, ca, d.bundle, identity(t, clusterA, pki.RoleCoordinator, "c1"), noon)
	first := true
	address := serve(t, serverOf(t, live(c, noon), pki.Peer{Roles: anyRole.Roles, Anonymous: true}, "h2", "http/1.1"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !first {
			d.ServeHTTP(w, r)
			return
		}
		first = false
		d.ServeHTTP(httptest.NewRecorder(), r)
		problem(w, fault.NoLeader, "it is not known whether the change took effect")
	}))
	must[*pki.Joined](t)(pki.Join(t.Context(), joining(t, token, address)))
	if len(d.seen) != 2 || d.seen[0].CSR != d.seen[1].CSR {
		t.Errorf("%d requests, or not the same", len(d.seen))
	}
}

func TestJoinTriesTheNextAddress(t *testing.T) {
	ca := authority(t, clusterA)
	d, token := newDoor(t, ca, pki.NewBundle(ca.Root()))
	busy := serverOf(t, live(member(t, ca, pki.RoleCoordinator, "c2"), noon), pki.Peer{Roles: anyRole.Roles, Anonymous: true}, "http/1.1")
	noLeader := serve(t, busy, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { problem(w, fault.NoLeader, "no leader") }))
	o := joining(t, token, "127.0.0.1:1", noLeader, d.open(t))
	o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "127.0.0.1:1" {
			return nil, errors.New("nobody is there")
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	must[*pki.Joined](t)(pki.Join(t.Context(), o))

	// And says of each one what was wrong.
	o = joining(t, token, "127.0.0.1:1", noLeader)
	o.Dial = func(_ context.Context, _, address string) (net.Conn, error) {
		return nil, errors.New("no way to " + address)
	}
	_, err := pki.Join(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), noLeader) {
		t.Errorf("said %v", err)
	}
}

// A token of before a rotation is good as long as its CA is trusted, at a coordinator that has moved on.
func TestJoinDuringARotation(t *testing.T) {
	r := rotate(t)
	for name, pin := range map[string]pki.Pin{"the old CA": r.old.Root().Pin(), "the new CA": r.next.Root().Pin()} {
		d, _ := newDoor(t, r.next, r.nextBundle)
		token := pki.NewJoinToken(pin)
		d.hash = token.Hash()
		joined, err := pki.Join(t.Context(), joining(t, token, d.open(t)))
		if err != nil {
			t.Errorf("a token of %s: %v", name, err)
		} else if joined.Credentials.Bundle().Pin() != r.next.Root().Pin() {
			t.Errorf("a token of %s: joined with %s", name, joined.Credentials.Bundle().Pin())
		}
	}
}

// recorder is a server that keeps every byte that it can decrypt.
func recorder(t *testing.T, conf *tls.Config) (address string, decrypted func() []byte) {
	t.Helper()
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	var all []byte
	done := make(chan struct{})
	go func() { // waited for by decrypted
		defer close(done)
		raw, err := listener.Accept()
		if err != nil {
			return
		}
		conn := tls.Server(raw, conf)
		defer func() { _ = conn.Close() }()
		all, _ = io.ReadAll(conn) // handshakes first, and ends when the other side closes
	}()
	return listener.Addr().String(), func() []byte {
		_ = listener.Close()
		<-done
		return all
	}
}

func TestWrongPinSendsNotOneByteOfTheSecret(t *testing.T) {
	ca, foreign := authority(t, clusterA), authority(t, clusterA)
	_, token := newDoor(t, ca, pki.NewBundle(ca.Root()))
	c1 := identity(t, clusterA, pki.RoleCoordinator, "c1")
	own, theirs := pki.NewBundle(ca.Root()), pki.NewBundle(foreign.Root())
	impostor := member(t, foreign, pki.RoleCoordinator, "c1")
	raw := func(c *pki.Credentials, more ...*x509.Certificate) *tls.Config {
		chain := *must[*tls.Certificate](t)(attacker(t, c).GetClientCertificate(nil))
		for _, cert := range more {
			chain.Certificate = append(chain.Certificate, cert.Raw)
		}
		return &tls.Config{Certificates: []tls.Certificate{chain}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	}
	self := func() *pki.Credentials { // a leaf that is signed by the attacker and says that the genuine CA did
		e := must[*pki.Enrolment](t)(pki.NewEnrolment())
		template := &x509.Certificate{NotBefore: noon, NotAfter: noon.Add(time.Hour), ExtKeyUsage: bothUses, URIs: []*url.URL{must[*url.URL](t)(url.Parse(c1.String()))}}
		return pki.Unchecked(t, e, foreign.Forge(t, template, e.Public()), theirs)
	}
	for name, c := range map[string]struct {
		server *tls.Config
		reason pki.Reason
	}{
		"another CA": {serverOf(t, live(impostor, noon), pki.Peer{Roles: anyRole.Roles, Anonymous: true}, "h2"), pki.WrongPin},
		"another CA with the genuine root beside": {raw(impostor, ca.Root().Certificate()), pki.OtherCA},
		"and both roots":                          {raw(impostor, foreign.Root().Certificate(), ca.Root().Certificate()), pki.OtherCA},
		"a leaf of its own":                       {raw(self(), ca.Root().Certificate()), pki.OtherCA},
		"the genuine leaf without its root":       {raw(member(t, ca, pki.RoleCoordinator, "c1")), pki.WrongPin},
		"the pinned key in a root made up around": {raw(member(t, ca, pki.RoleCoordinator, "c1"), rewrapped(t, ca, foreign)), pki.WrongPin},
		"a genuine agent that plays coordinator":  {raw(member(t, ca, pki.RoleAgent, "host-2"), ca.Root().Certificate()), pki.WrongRole},
		"a coordinator's expired certificate":     {raw(memberAt(t, ca, own, c1, noon.Add(-1000*time.Hour)), ca.Root().Certificate()), pki.Expired},
		"a coordinator's certificate of tomorrow": {raw(memberAt(t, ca, own, c1, noon.Add(24*time.Hour)), ca.Root().Certificate()), pki.NotYetValid},
		"the root itself as leaf":                 {raw(pki.Unchecked(t, must[*pki.Enrolment](t)(pki.NewEnrolment()), own.PEM(), own)), pki.WrongPin},
		"a server that speaks no TLS 1.3":         {&tls.Config{Certificates: raw(member(t, ca, pki.RoleCoordinator, "c1"), ca.Root().Certificate()).Certificates, MaxVersion: tls.VersionTLS12}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			address, decrypted := recorder(t, c.server)
			o := joining(t, token, address)
			_, err := pki.Join(t.Context(), o)
			if err == nil || pki.ReasonOf(err) != c.reason {
				t.Errorf("refused as %q (%v), want %q", pki.ReasonOf(err), err, c.reason)
			}
			if got := decrypted(); len(got) != 0 {
				t.Errorf("%d bytes arrived: %q", len(got), got)
			}
			if _, err := o.Store.Load(noon); !errors.Is(err, pki.ErrEmpty) {
				t.Errorf("something was stored: %v", err)
			}
		})
	}
	// The recorder does see the secret where all is right, or the test above proves nothing.
	address, decrypted := recorder(t, raw(member(t, ca, pki.RoleCoordinator, "c1"), ca.Root().Certificate()))
	ctx, cancel := context.WithCancel(t.Context())
	o := joining(t, token, address)
	o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &closesAfterWriting{Conn: conn, cancel: cancel}, err
	}
	if _, err := pki.Join(ctx, o); err == nil {
		t.Error("joined at a recorder")
	}
	if len(decrypted()) == 0 {
		t.Error("the recorder records nothing")
	}
}

// closesAfterWriting gives up after the third record of a client: hello, finished, request. It closes the
// connection too: one that was given up may be kept for the next call, and the other side would wait.
type closesAfterWriting struct {
	net.Conn
	cancel func()
	writes int
}

func (c *closesAfterWriting) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if c.writes++; c.writes == 3 {
		c.cancel()
		_ = c.Close()
	}
	return n, err
}

// rewrapped is a certificate with the key, the name and the pin of a CA and without its constraints. The
// CA has not signed it: whoever makes it does not have the private key.
func rewrapped(t *testing.T, ca, by *pki.Authority) *x509.Certificate {
	t.Helper()
	template := *ca.Root().Certificate()
	template.PermittedURIDomains = []string{clusterB}
	template.RawSubject = template.RawIssuer
	return first(t, by.Forge(t, &template, ca.Root().Certificate().PublicKey))
}

func TestJoinRefusesAnswers(t *testing.T) {
	ca := authority(t, clusterA)
	own := pki.NewBundle(ca.Root())
	other := must[*pki.Enrolment](t)(pki.NewEnrolment())
	foreign := authority(t, clusterA)
	for name, c := range map[string]struct {
		change func(*testing.T, *door) // before the join
		reason pki.Reason
	}{
		"another host": {func(t *testing.T, d *door) { d.grants = identity(t, clusterA, pki.RoleAgent, "host-2") }, pki.WrongName},
		"another role": {func(t *testing.T, d *door) { d.grants = identity(t, clusterA, pki.RoleCoordinator, "host-1") }, pki.WrongRole},
		"a certificate for another key": {func(t *testing.T, d *door) {
			chain := must[string](t)(ca.Issue(other.Request(), pki.Grant{Identity: d.grants, Now: noon}))
			d.change = func(a *api.JoinAnswer) { a.Certificate = chain }
		}, pki.Mismatch},
		"a bundle of another CA": {func(_ *testing.T, d *door) {
			d.change = func(a *api.JoinAnswer) { a.CA = pki.NewBundle(foreign.Root()).PEM() }
		}, pki.OtherCA},
		"no bundle":      {func(_ *testing.T, d *door) { d.change = func(a *api.JoinAnswer) { a.CA = "" } }, pki.Malformed},
		"no certificate": {func(_ *testing.T, d *door) { d.change = func(a *api.JoinAnswer) { a.Certificate = "" } }, pki.Malformed},
		"a bundle without the pinned CA": {func(t *testing.T, d *door) {
			next, _, err := ca.Rotate(own, pki.RotateOptions{Overlap: overlap, Now: noon})
			if err != nil {
				t.Fatal(err)
			}
			d.change = func(a *api.JoinAnswer) {
				a.Certificate = must[string](t)(next.Issue(d.seen[0].CSR, pki.Grant{Identity: d.grants, Now: noon}))
				a.CA = pki.NewBundle(next.Root()).PEM()
			}
		}, pki.WrongPin},
		"something endless": {func(_ *testing.T, d *door) {
			d.change = func(a *api.JoinAnswer) { a.CA = strings.Repeat("x", 2<<20) }
		}, pki.Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			d, token := newDoor(t, ca, own)
			c.change(t, d)
			o := joining(t, token, d.open(t))
			_, err := pki.Join(t.Context(), o)
			if pki.ReasonOf(err) != c.reason {
				t.Errorf("refused as %q (%v), want %q", pki.ReasonOf(err), err, c.reason)
			}
			if _, err := o.Store.Load(noon); !errors.Is(err, pki.ErrEmpty) {
				t.Errorf("something was stored: %v", err)
			}
		})
	}
}

func TestJoinFollowsNoRedirect(t *testing.T) {
	ca := authority(t, clusterA)
	d, token := newDoor(t, ca, pki.NewBundle(ca.Root()))
	target := d.open(t)
	conf := serverOf(t, live(member(t, ca, pki.RoleCoordinator, "c2"), noon), pki.Peer{Roles: anyRole.Roles, Anonymous: true}, "http/1.1")
	elsewhere := serve(t, conf, http.RedirectHandler("https://"+target+pki.JoinPath, http.StatusTemporaryRedirect))
	if _, err := pki.Join(t.Context(), joining(t, token, elsewhere)); err == nil || len(d.seen) != 0 {
		t.Errorf("the token was taken elsewhere (%d requests, %v)", len(d.seen), err)
	}
}

func TestJoinRefusesOptions(t *testing.T) {
	_, token := newDoor(t, authority(t, clusterA), pki.NewBundle(authority(t, clusterA).Root()))
	for name, change := range map[string]func(*pki.JoinOptions){
		"no token": func(o *pki.JoinOptions) { o.Token = pki.JoinToken{} }, "no address": func(o *pki.JoinOptions) { o.Addresses = nil },
		"no role": func(o *pki.JoinOptions) { o.Role = "" }, "a bad name": func(o *pki.JoinOptions) { o.Name = "../etc" },
		"no store": func(o *pki.JoinOptions) { o.Store = nil }, "a bad address": func(o *pki.JoinOptions) { o.Addresses = []string{"a b"} },
	} {
		o := joining(t, token, "127.0.0.1:1")
		change(&o)
		if _, err := pki.Join(t.Context(), o); err == nil || !strings.HasPrefix(err.Error(), "cannot ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A coordinator that does not answer holds nobody up for longer than the attempt may take.
func TestJoinGivesUp(t *testing.T) {
	ca := authority(t, clusterA)
	d, token := newDoor(t, ca, pki.NewBundle(ca.Root()))
	dead := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0")) // accepts by its backlog and says nothing
	t.Cleanup(func() { _ = dead.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pki.Join(ctx, joining(t, token, dead.Addr().String(), d.open(t))); !errors.Is(err, context.Canceled) || len(d.seen) != 0 {
		t.Errorf("cancelled: %v, %d requests", err, len(d.seen))
	}
	o := joining(t, token, dead.Addr().String())
	o.Timeout = time.Millisecond
	if _, err := pki.Join(t.Context(), o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the time is up: %v", err)
	}
}

// TestRequestKeyIsOfTheKey: the same request has the same key, another one has another, and without proof
// there is none.
func TestRequestKeyIsOfTheKey(t *testing.T) {
	first, second := must[*pki.Enrolment](t)(pki.NewEnrolment()), must[*pki.Enrolment](t)(pki.NewEnrolment())
	key := must[string](t)(pki.RequestKey(first.Request()))
	if len(key) != 64 || key != must[string](t)(pki.RequestKey(first.Request())) {
		t.Errorf("the key is %q", key)
	}
	if key == must[string](t)(pki.RequestKey(second.Request())) {
		t.Error("two requests have one key")
	}
	if _, err := pki.RequestKey("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"); err == nil {
		t.Error("what is no request has a key")
	}
}
