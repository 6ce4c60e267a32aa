package pki_test

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

const (
	clusterA = "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"
	clusterB = "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b12"
)

// noon is when the tests happen.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func at(now time.Time) func() time.Time { return func() time.Time { return now } }

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func authority(t testing.TB, cluster string) *pki.Authority {
	t.Helper()
	return must[*pki.Authority](t)(pki.NewAuthority(pki.AuthorityOptions{Cluster: cluster, Now: noon.Add(-2000 * time.Hour)}))
}

func identity(t testing.TB, cluster string, role pki.Role, name string) pki.Identity {
	t.Helper()
	return must[pki.Identity](t)(pki.NewIdentity(cluster, role, name))
}

// member makes the credentials of one program at noon.
func member(t testing.TB, ca *pki.Authority, role pki.Role, name string) *pki.Credentials {
	t.Helper()
	return memberAt(t, ca, pki.NewBundle(ca.Root()), identity(t, ca.Root().Cluster(), role, name), noon)
}

// memberAt is member with another bundle and another time.
func memberAt(t testing.TB, ca *pki.Authority, bundle pki.Bundle, who pki.Identity, now time.Time) *pki.Credentials {
	t.Helper()
	e := must[*pki.Enrolment](t)(pki.NewEnrolment())
	chain := must[string](t)(ca.Issue(e.Request(), pki.Grant{Identity: who, Now: now}))
	return must[*pki.Credentials](t)(e.Accept(chain, bundle.PEM(), who, now))
}

func live(c *pki.Credentials, now time.Time) *pki.Live {
	return pki.NewLive(c, pki.LiveOptions{Now: at(now)})
}

func only(role pki.Role) pki.Peer { return pki.Peer{Roles: []pki.Role{role}} }

// met is what both sides of one connection say.
type met struct {
	server, client           error
	serverState, clientState tls.ConnectionState
}

// meet makes one connection over loopback and sends one byte there and back, because with TLS 1.3 a client
// learns only from the first read that it was refused.
func meet(t testing.TB, server, client *tls.Config) met {
	t.Helper()
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer func() { _ = listener.Close() }()
	done := make(chan met, 1)
	go func() { // waited for below
		var m met
		defer func() { done <- m }()
		raw, err := listener.Accept()
		if err != nil {
			m.server = err
			return
		}
		conn := tls.Server(raw, server)
		defer func() { _ = conn.Close() }()
		if m.server = conn.HandshakeContext(t.Context()); m.server == nil {
			m.server = echo(conn)
		}
		m.serverState = conn.ConnectionState()
	}()
	raw := must[net.Conn](t)(net.Dial("tcp", listener.Addr().String()))
	conn := tls.Client(raw, client)
	err := conn.HandshakeContext(t.Context())
	if err == nil {
		err = ask(conn)
	}
	clientState := conn.ConnectionState()
	_ = raw.Close()
	m := <-done
	m.client, m.clientState = err, clientState
	return m
}

// echo answers one byte.
func echo(conn io.ReadWriter) error {
	var b [1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return err
	}
	_, err := conn.Write(b[:])
	return err
}

// ask sends one byte and waits for it to come back.
func ask(conn io.ReadWriter) error {
	if _, err := conn.Write([]byte{7}); err != nil {
		return err
	}
	var b [1]byte
	_, err := io.ReadFull(conn, b[:])
	return err
}

func serverOf(t testing.TB, l *pki.Live, peer pki.Peer, protocols ...string) *tls.Config {
	t.Helper()
	return must[*tls.Config](t)(l.Server(peer, protocols...))
}

func clientOf(t testing.TB, l *pki.Live, peer pki.Peer, protocols ...string) *tls.Config {
	t.Helper()
	return must[*tls.Config](t)(l.Client(peer, protocols...))
}
