package pki_test

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

// BenchmarkHandshake makes full mutual handshakes over loopback, one after the other: connect, both sides
// verified, one byte there and back, close. Both sides run on this machine.
func BenchmarkHandshake(b *testing.B) {
	ca := authority(b, clusterA)
	address := echoServer(b, serverOf(b, live(member(b, ca, pki.RoleCoordinator, "c1"), noon), only(pki.RoleAgent), "h2"))
	conf := clientOf(b, live(member(b, ca, pki.RoleAgent, "host-1"), noon), only(pki.RoleCoordinator), "h2")
	benchmarkDial(b, address, conf)
}

// BenchmarkHandshakeInRotation is BenchmarkHandshake with the longer chains of a rotation: new leaves, and
// a client that knows the old root only.
func BenchmarkHandshakeInRotation(b *testing.B) {
	r := rotate(b)
	c1, h1 := identity(b, clusterA, pki.RoleCoordinator, "c1"), identity(b, clusterA, pki.RoleAgent, "host-1")
	address := echoServer(b, serverOf(b, live(memberAt(b, r.next, r.nextBundle, c1, noon), noon), only(pki.RoleAgent), "h2"))
	conf := clientOf(b, live(memberAt(b, r.old, r.oldBundle, h1, noon), noon), only(pki.RoleCoordinator), "h2")
	benchmarkDial(b, address, conf)
}

func benchmarkDial(b *testing.B, address string, conf *tls.Config) {
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			conn, err := tls.Dial("tcp", address, conf)
			if err != nil {
				b.Error(err)
				return
			}
			if err := ask(conn); err != nil {
				b.Error(err)
			}
			// Without waiting in TIME_WAIT, of which a benchmark would have too many.
			_ = conn.NetConn().(*net.TCPConn).SetLinger(0)
			_ = conn.NetConn().Close()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
}

// BenchmarkIssue answers signing requests.
func BenchmarkIssue(b *testing.B) {
	ca := authority(b, clusterA)
	request := must[*pki.Enrolment](b)(pki.NewEnrolment()).Request()
	who := identity(b, clusterA, pki.RoleAgent, "host-1")
	for b.Loop() {
		if _, err := ca.Issue(request, pki.Grant{Identity: who, Now: noon}); err != nil {
			b.Fatal(err)
		}
	}
}
