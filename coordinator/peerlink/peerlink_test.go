package peerlink_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/peerlink"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// patience is how long a test waits for what must happen on a busy machine.
const patience = 30 * time.Second

// Protocols as coordinators of all versions speak them.
const (
	raftProtocol = "demiurge-raft/1"
	apiProtocol  = "h2"
)

// authority is the CA of a cluster with a key of its own.
func authority(t *testing.T) *pki.Authority {
	t.Helper()
	ca, err := pki.FoundingAuthority(pki.NewKey(), time.Now().Add(-400*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// member is the credentials of a program, made at a moment, with the CA that it trusts.
func member(t *testing.T, ca *pki.Authority, role pki.Role, name string, at time.Time) *pki.Live {
	t.Helper()
	who, err := pki.NewIdentity(ca.Root().Cluster(), role, name)
	if err != nil {
		t.Fatal(err)
	}
	e, err := pki.NewEnrolment()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(e.Request(), pki.Grant{Identity: who, Now: at})
	if err != nil {
		t.Fatal(err)
	}
	c, err := e.Accept(chain, pki.NewBundle(ca.Root()).PEM(), who, at)
	if err != nil {
		t.Fatal(err)
	}
	return pki.NewLive(c, pki.LiveOptions{Now: func() time.Time { return at }})
}

// end is a link with what came in over it.
type end struct {
	*peerlink.Link
	raft chan net.Conn
	api  chan net.Conn
}

// open makes the link of a coordinator.
func open(t *testing.T, live *pki.Live) *end {
	t.Helper()
	peer := pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}
	server, err := live.Server(peer)
	if err != nil {
		t.Fatal(err)
	}
	client, err := live.Client(peer)
	if err != nil {
		t.Fatal(err)
	}
	l, err := peerlink.Open(peerlink.Options{Listen: "127.0.0.1:0", Server: server, Client: client, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	e := &end{l, make(chan net.Conn, 16), make(chan net.Conn, 16)}
	var accepting sync.WaitGroup
	take := func(from net.Listener, to chan net.Conn) {
		for {
			conn, err := from.Accept()
			if err != nil {
				return
			}
			to <- conn
		}
	}
	accepting.Go(func() { take(l.Raft(), e.raft) })
	accepting.Go(func() { take(l.APIListener(), e.api) })
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		accepting.Wait()
	})
	return e
}

// taken is the connection that comes in next.
func taken(t *testing.T, from chan net.Conn) net.Conn {
	t.Helper()
	select {
	case conn := <-from:
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	case <-time.After(patience):
		t.Fatal("no connection came in")
		return nil
	}
}

// dial goes to a link's port as anybody may, and reports why it was not let in; "" when it was.
func (e *end) dial(t *testing.T, conf *tls.Config) string {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", e.Addr().String(), conf)
	if err == nil {
		// A client's half of the handshake is done before its certificate is looked at. Who is let in hears
		// nothing until the deadline.
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1))
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestCoordinatorsMeet(t *testing.T) {
	ca := authority(t)
	a, b := open(t, member(t, ca, pki.RoleCoordinator, "c1", time.Now())), open(t, member(t, ca, pki.RoleCoordinator, "c2", time.Now()))
	out, err := a.Raft().Dial(b.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in := taken(t, b.raft)
	if _, err := out.Write([]byte("vote")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(in, got); err != nil || string(got) != "vote" {
		t.Errorf("%q, %v", got, err)
	}
	if len(b.api) != 0 {
		t.Error("the API got a connection of Raft")
	}
	called := make(chan error, 1)
	go func() { // ends when b answers
		resp, err := (&http.Client{Transport: a.Transport()}).Get("https://" + b.Addr().String() + "/v1/status")
		if err == nil {
			err = resp.Body.Close()
		}
		called <- err
	}()
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	served := make(chan struct{})
	go func() { // ends with the server
		defer close(served)
		_ = server.Serve(&one{conn: taken(t, b.api), done: make(chan struct{})})
	}()
	select {
	case err := <-called:
		if err != nil {
			t.Errorf("a call: %v", err)
		}
	case <-time.After(patience):
		t.Error("a call was not answered")
	}
	_ = server.Close()
	<-served
}

// one is a listener with one connection.
type one struct {
	conn net.Conn
	done chan struct{}
	once sync.Once
}

func (o *one) Accept() (net.Conn, error) {
	if conn := o.conn; conn != nil {
		o.conn = nil
		return conn, nil
	}
	<-o.done
	return nil, net.ErrClosed
}

func (o *one) Close() error {
	o.once.Do(func() { close(o.done) })
	return nil
}

func (o *one) Addr() net.Addr { return &net.TCPAddr{} }

// TestSecurityTheCoordinatorsPort: nobody but a coordinator of this cluster, with a certificate that counts
// now, gets as far as Raft or the API.
func TestSecurityTheCoordinatorsPort(t *testing.T) {
	ca, now := authority(t), time.Now()
	e := open(t, member(t, ca, pki.RoleCoordinator, "c1", now))
	foreign := member(t, authority(t), pki.RoleCoordinator, "c1", now)
	for what, live := range map[string]*pki.Live{
		"an agent's certificate":            member(t, ca, pki.RoleAgent, "h1", now),
		"an agent that is named like one":   member(t, ca, pki.RoleAgent, "c1", now),
		"an expired certificate":            member(t, ca, pki.RoleCoordinator, "c2", now.Add(-2*pki.DefaultLeafLife)),
		"another cluster's coordinator":     foreign,
		"another CA's agent":                member(t, authority(t), pki.RoleAgent, "h1", now),
		"a certificate of a CA yet to come": member(t, authority(t), pki.RoleCoordinator, "c2", now.Add(time.Hour)),
	} {
		certificate := present(t, live)
		for _, protocol := range []string{raftProtocol, apiProtocol} {
			conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, Certificates: []tls.Certificate{certificate}} //nolint:gosec // the caller is the attacker
			if why := e.dial(t, conf); !strings.Contains(why, "remote error") && !strings.Contains(why, "EOF") && !strings.Contains(why, "reset") {
				t.Errorf("%s, %s: let in (%q)", what, protocol, why)
			}
		}
	}
	anonymous := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{raftProtocol}} //nolint:gosec // the caller is the attacker
	if why := e.dial(t, anonymous); !strings.Contains(why, "certificate required") {
		t.Errorf("without a certificate: %q", why)
	}
	own := present(t, member(t, ca, pki.RoleCoordinator, "c2", now))
	for what, protocols := range map[string][]string{"no protocol": nil, "another protocol": {"http/1.1"}} {
		conf := &tls.Config{InsecureSkipVerify: true, NextProtos: protocols, Certificates: []tls.Certificate{own}} //nolint:gosec // what is tested comes after
		if why := e.dial(t, conf); why == "" || strings.Contains(why, "timeout") {
			t.Errorf("%s: %q", what, why)
		}
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{raftProtocol}, Certificates: []tls.Certificate{own}} //nolint:gosec // what is tested
	if why := e.dial(t, old); !strings.Contains(why, "protocol version") {
		t.Errorf("TLS 1.2: %q", why)
	}
	if n := len(e.raft) + len(e.api); n != 0 {
		t.Errorf("%d connections were handed on", n)
	}
	if _, err := e.Raft().Dial(open(t, foreign).Addr().String(), patience); err == nil {
		t.Error("it speaks to a coordinator of another cluster")
	}
}

// present is the certificate of credentials as an attacker presents it who does not look at its life.
func present(t *testing.T, live *pki.Live) tls.Certificate {
	t.Helper()
	conf, err := live.Client(pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}, raftProtocol)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := conf.GetClientCertificate(&tls.CertificateRequestInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return *certificate
}

// TestThePortIsNotHeldUp: whoever says nothing, or nonsense, keeps nobody out, and goes with the link.
func TestThePortIsNotHeldUp(t *testing.T) {
	ca := authority(t)
	a, b := open(t, member(t, ca, pki.RoleCoordinator, "c1", time.Now())), open(t, member(t, ca, pki.RoleCoordinator, "c2", time.Now()))
	var silent []net.Conn
	for i := range 40 {
		conn, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			_, _ = conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		}
		silent = append(silent, conn)
	}
	conn, err := a.Raft().Dial(b.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	taken(t, b.raft)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	for _, conn := range silent {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, err := io.Copy(io.Discard, conn)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Error("a connection outlives the link")
		}
	}
	if _, err := a.Raft().Dial(b.Addr().String(), patience); err == nil {
		t.Error("the port is open after the end")
	}
}

// TestRaftEndsAlone: when Raft closes its side, calls still pass.
func TestRaftEndsAlone(t *testing.T) {
	ca := authority(t)
	a, b := open(t, member(t, ca, pki.RoleCoordinator, "c1", time.Now())), open(t, member(t, ca, pki.RoleCoordinator, "c2", time.Now()))
	if err := b.Raft().Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Raft().Dial(a.Addr().String(), patience); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed side dials: %v", err)
	}
	conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{apiProtocol}, Certificates: []tls.Certificate{present(t, member(t, ca, pki.RoleCoordinator, "c3", time.Now()))}} //nolint:gosec // not what is tested
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", b.Addr().String(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	taken(t, b.api)
}

func TestAddressesThatDoNotWork(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for listen, want := range map[string]string{taken.Addr().String(): "set raft.listen", "0.0.0.0:0": "set raft.advertise", "nowhere": "set raft.listen"} {
		l, err := peerlink.Open(peerlink.Options{Listen: listen, Server: &tls.Config{}, Client: &tls.Config{}, Logger: hclog.NewNullLogger()}) //nolint:gosec // never used
		if err == nil {
			_ = l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", listen, err)
		}
	}
}
