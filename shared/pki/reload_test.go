package pki_test

import (
	"crypto/tls"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Both sides get other certificates, of both CAs of a rotation, while 100 connections are made. Every one
// of them works.
func TestReloadWhile100ConnectionsAreMade(t *testing.T) {
	r := rotate(t)
	c1, h1 := identity(t, clusterA, pki.RoleCoordinator, "c1"), identity(t, clusterA, pki.RoleAgent, "host-1")
	servers := []*pki.Credentials{memberAt(t, r.old, r.oldBundle, c1, noon), memberAt(t, r.old, r.nextBundle, c1, noon), memberAt(t, r.next, r.nextBundle, c1, noon)}
	hosts := []*pki.Credentials{memberAt(t, r.old, r.oldBundle, h1, noon), memberAt(t, r.old, r.nextBundle, h1, noon), memberAt(t, r.next, r.nextBundle, h1, noon)}
	server, host := live(servers[0], noon), live(hosts[0], noon)
	address := echoServer(t, serverOf(t, server, only(pki.RoleAgent)))
	conf := clientOf(t, host, pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}, Name: "c1"})

	var made atomic.Int64
	var dialling sync.WaitGroup
	for range 10 {
		dialling.Go(func() {
			for range 10 {
				conn, err := tls.Dial("tcp", address, conf)
				if err != nil {
					t.Errorf("connection: %v", err)
					return
				}
				if err := ask(conn); err != nil {
					t.Errorf("connection: %v", err)
				}
				_ = conn.Close()
				made.Add(1)
			}
		})
	}
	done := make(chan struct{})
	go func() { dialling.Wait(); close(done) }() // waited for below
	swaps := 0
	for running := true; running; swaps++ {
		select {
		case <-done:
			running = false
		default:
		}
		if err := server.Replace(servers[swaps%len(servers)]); err != nil {
			t.Fatal(err)
		}
		if err := host.Replace(hosts[(swaps/2)%len(hosts)]); err != nil {
			t.Fatal(err)
		}
	}
	if made.Load() != 100 || swaps < 2 {
		t.Errorf("%d connections, %d changes", made.Load(), swaps)
	}
	// What counts in the end is what new connections present.
	if err := server.Replace(servers[2]); err != nil {
		t.Fatal(err)
	}
	conn := must[*tls.Conn](t)(tls.Dial("tcp", address, conf))
	defer func() { _ = conn.Close() }()
	if leaf := conn.ConnectionState().PeerCertificates[0]; !leaf.Equal(servers[2].Leaf()) {
		t.Error("a new connection presents an old certificate")
	}
}

func TestReplaceRefusesAnotherProgram(t *testing.T) {
	ca := authority(t, clusterA)
	l := live(member(t, ca, pki.RoleCoordinator, "c1"), noon)
	changed := l.Changed()
	for want, next := range map[pki.Reason]*pki.Credentials{
		pki.WrongName: member(t, ca, pki.RoleCoordinator, "c2"), pki.WrongRole: member(t, ca, pki.RoleAgent, "c1"),
		pki.OtherCluster: member(t, authority(t, clusterB), pki.RoleCoordinator, "c1"),
	} {
		expectReason(t, l.Replace(next), want)
	}
	select {
	case <-changed:
		t.Error("a refused change is announced")
	default:
	}
	if err := l.Replace(member(t, ca, pki.RoleCoordinator, "c1")); err != nil {
		t.Fatal(err)
	}
	<-changed
}
