package pki_test

import (
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

const overlap = 7 * 24 * time.Hour

// rotated is a cluster in the middle of a rotation.
type rotated struct {
	old, next             *pki.Authority
	oldBundle, nextBundle pki.Bundle
}

func rotate(t testing.TB) rotated {
	t.Helper()
	r := rotated{old: authority(t, clusterA)}
	r.oldBundle = pki.NewBundle(r.old.Root())
	var err error
	if r.next, r.nextBundle, err = r.old.Rotate(r.oldBundle, pki.RotateOptions{Overlap: overlap, Now: noon}); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRotationLeavesOfBothVerifyWithBothBundles(t *testing.T) {
	r := rotate(t)
	type side struct {
		ca     *pki.Authority
		bundle pki.Bundle
	}
	sides := map[string]side{
		"old leaf, old bundle": {r.old, r.oldBundle}, "old leaf, new bundle": {r.old, r.nextBundle},
		"new leaf, old bundle": {r.next, r.oldBundle}, "new leaf, new bundle": {r.next, r.nextBundle},
	}
	for serverName, s := range sides {
		for clientName, c := range sides {
			server := memberAt(t, s.ca, s.bundle, identity(t, clusterA, pki.RoleCoordinator, "c1"), noon)
			client := memberAt(t, c.ca, c.bundle, identity(t, clusterA, pki.RoleAgent, "host-1"), noon)
			m := meet(t, serverOf(t, live(server, noon), anyRole), clientOf(t, live(client, noon), anyRole))
			if m.server != nil || m.client != nil {
				t.Errorf("server %s, client %s: %v, %v", serverName, clientName, m.server, m.client)
			}
		}
	}
}

func TestOverlapEnds(t *testing.T) {
	r := rotate(t)
	end := noon.Add(overlap)
	late := end.Add(-time.Hour) // issued late, so that the leaves outlive the overlap
	c1, h1 := identity(t, clusterA, pki.RoleCoordinator, "c1"), identity(t, clusterA, pki.RoleAgent, "host-1")
	server := memberAt(t, r.next, r.nextBundle, c1, late)
	oldLeaf := memberAt(t, r.old, r.nextBundle, h1, late)
	oldBundle := memberAt(t, r.next, r.oldBundle, h1, late)
	for _, c := range []struct {
		now                     time.Time
		client                  *pki.Credentials
		serverSays, clientLooks pki.Reason
	}{
		{end.Add(-time.Second), oldLeaf, "", ""},
		{end, oldLeaf, pki.OtherCA, ""},
		{end.Add(-time.Second), oldBundle, "", ""},
		{end.Add(time.Second), oldBundle, "", pki.OtherCA}, // what chained the new CA to the old one has ended
	} {
		m := meet(t, serverOf(t, live(server, c.now), anyRole), clientOf(t, live(c.client, c.now), anyRole))
		if pki.ReasonOf(m.client) != c.clientLooks {
			t.Errorf("at %s the client says %v, want %q", c.now, m.client, c.clientLooks)
		}
		if c.clientLooks == "" && pki.ReasonOf(m.server) != c.serverSays {
			t.Errorf("at %s the server says %v, want %q", c.now, m.server, c.serverSays)
		}
	}
	if n := len(r.nextBundle.Prune(end).Roots()); n != 1 {
		t.Errorf("%d roots after the overlap", n)
	}
	if n := len(r.nextBundle.Prune(end.Add(-time.Second)).Roots()); n != 2 {
		t.Errorf("%d roots during the overlap", n)
	}
	if !r.nextBundle.Has(r.old.Root().Pin(), end.Add(-time.Second)) || r.nextBundle.Has(r.old.Root().Pin(), end) {
		t.Error("the old pin counts for another time than the old root")
	}
}

func TestBundleIsOneTextForAll(t *testing.T) {
	r := rotate(t)
	again := must[pki.Bundle](t)(pki.ParseBundle(r.nextBundle.PEM()))
	if !again.Equal(r.nextBundle) || again.Equal(r.oldBundle) || again.Pin() != r.next.Root().Pin() || again.Cluster() != clusterA {
		t.Errorf("read back as\n%s", again.PEM())
	}
	if got := again.Roots()[1].TrustedUntil(); !got.Equal(noon.Add(overlap)) {
		t.Errorf("the old root is trusted until %s", got)
	}
	if _, err := pki.ParseBundle("# by hand\n\n" + r.nextBundle.PEM() + "\n"); err != nil {
		t.Errorf("with a comment: %v", err)
	}
	newOnly := pki.NewBundle(r.next.Root()).PEM()
	oldOnly := r.oldBundle.PEM()
	foreign := pki.NewBundle(authority(t, clusterB).Root()).PEM()
	leaf := member(t, r.old, pki.RoleAgent, "host-1").Chain(t)
	until := "Trusted-Until: 2026-02-01T00:00:00Z\n"
	for name, text := range map[string]string{
		"empty": "", "words": "hello", "a leaf": leaf, "a root twice": newOnly + newOnly, "two clusters": newOnly + foreign,
		"an end for the one that signs": until + newOnly, "two ends": newOnly + until + until + oldOnly,
		"an end that is no time": newOnly + "Trusted-Until: soon\n" + oldOnly, "an unknown line": newOnly + "Trusted: yes\n" + oldOnly,
		"words behind": newOnly + "more", "a damaged one before": strings.Replace(newOnly, "M", "!", 1) + oldOnly,
		"a header": strings.Replace(newOnly, "-----\n", "-----\nA: b\n\n", 1), "too long": newOnly + strings.Repeat("#\n", 40<<10),
		"a cross-signed CA": crossOf(t, r),
	} {
		if b, err := pki.ParseBundle(text); err == nil {
			t.Errorf("%s: read as %d roots", name, len(b.Roots()))
		}
	}
}

// crossOf is the certificate that the old CA made for the new one.
func crossOf(t *testing.T, r rotated) string {
	t.Helper()
	chain := memberAt(t, r.next, r.nextBundle, identity(t, clusterA, pki.RoleAgent, "host-1"), noon).Chain(t)
	at := strings.LastIndex(chain, "-----BEGIN")
	if at <= 0 {
		t.Fatal("no cross-signed certificate travels with a leaf of the new CA")
	}
	return chain[at:]
}

func TestRotateRefuses(t *testing.T) {
	r := rotate(t)
	for name, c := range map[string]struct {
		bundle  pki.Bundle
		overlap time.Duration
	}{
		"the CA before": {r.nextBundle, overlap}, "no bundle": {pki.Bundle{}, overlap}, "no overlap": {r.oldBundle, 0},
		"too much": {r.oldBundle, pki.MaxLeafLife + 1},
	} {
		if _, _, err := r.old.Rotate(c.bundle, pki.RotateOptions{Overlap: c.overlap, Now: noon}); err == nil {
			t.Errorf("%s: rotated", name)
		}
	}
	// Rotations may follow each other faster than overlaps end; the roots add up and then go.
	ca, bundle, now := r.next, r.nextBundle, noon
	for n := range 5 {
		now = now.Add(time.Hour)
		var err error
		if ca, bundle, err = ca.Rotate(bundle, pki.RotateOptions{Overlap: overlap, Now: now}); err != nil {
			t.Fatalf("rotation %d: %v", n, err)
		}
	}
	memberAt(t, r.old, bundle, identity(t, clusterA, pki.RoleAgent, "host-1"), now)
	if _, _, err := ca.Rotate(bundle, pki.RotateOptions{Overlap: overlap, Now: now.Add(overlap)}); err != nil {
		t.Errorf("after the overlaps: %v", err)
	}
	// A CA that has expired can still be replaced, without an overlap that nobody would honour.
	dead := r.old.Root().Expires().Add(time.Hour)
	next, bundle, err := r.old.Rotate(r.oldBundle, pki.RotateOptions{Overlap: overlap, Now: dead})
	if err != nil {
		t.Fatal(err)
	}
	memberAt(t, next, bundle, identity(t, clusterA, pki.RoleAgent, "host-1"), dead)
}

func TestRenewAt(t *testing.T) {
	r := rotate(t)
	seen := map[time.Time]bool{}
	for range 20 {
		c := member(t, r.old, pki.RoleAgent, "host-1")
		renew := c.RenewAt()
		from, to := noon.Add(pki.DefaultLeafLife*2/3-pki.DefaultLeafLife/10), noon.Add(pki.DefaultLeafLife*2/3)
		if renew.Before(from) || renew.After(to) {
			t.Errorf("renewed at %s, want %s to %s", renew, from, to)
		}
		if again := c.RenewAt(); !again.Equal(renew) {
			t.Error("asked twice, answered differently")
		}
		seen[renew] = true
		// With the news of a rotation: in the first half of the overlap, and never later than without.
		moved := must[*pki.Credentials](t)(c.WithBundle(r.nextBundle, noon)).RenewAt()
		if moved.Before(noon) || moved.After(noon.Add(overlap/2)) || moved.After(renew) {
			t.Errorf("in a rotation renewed at %s", moved)
		}
		fresh := memberAt(t, r.next, r.nextBundle, identity(t, clusterA, pki.RoleAgent, "host-1"), noon)
		if got := fresh.RenewAt(); got.Before(from) || got.After(to) {
			t.Errorf("a new leaf is renewed at %s because of the rotation", got)
		}
	}
	if len(seen) < 15 {
		t.Errorf("20 certificates are renewed at only %d moments", len(seen))
	}
}

// talk keeps one connection in use until stop is closed, and returns the first error.
func talk(conn net.Conn, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
			if err := ask(conn); err != nil {
				return err
			}
		}
	}
}

// echoServer accepts until the test ends and answers every byte.
func echoServer(t testing.TB, conf *tls.Config) (address string) {
	t.Helper()
	listener := must[net.Listener](t)(tls.Listen("tcp", "127.0.0.1:0", conf))
	var all sync.WaitGroup
	var mu sync.Mutex // guards open
	var open []net.Conn
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			all.Go(func() {
				defer func() { _ = conn.Close() }()
				for echo(conn) == nil { //nolint:revive // until the other side ends it
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return listener.Addr().String()
}

func TestRotationWithOverlapWhileConnectionsGoOn(t *testing.T) {
	r := rotate(t)
	c1 := identity(t, clusterA, pki.RoleCoordinator, "c1")
	server := live(memberAt(t, r.old, r.oldBundle, c1, noon), noon)
	address := echoServer(t, serverOf(t, server, anyRole))
	clients := []*pki.Live{}
	for _, name := range []string{"host-1", "host-2", "host-3"} {
		clients = append(clients, live(memberAt(t, r.old, r.oldBundle, identity(t, clusterA, pki.RoleAgent, name), noon), noon))
	}
	stop := make(chan struct{})
	results := make(chan error, len(clients))
	dial := func(l *pki.Live) net.Conn {
		return must[*tls.Conn](t)(tls.Dial("tcp", address, clientOf(t, l, anyRole)))
	}
	conns := []net.Conn{}
	for _, l := range clients {
		conn := dial(l)
		conns = append(conns, conn)
		go func() { results <- talk(conn, stop) }() // waited for below
	}
	// The coordinator moves first, the hosts one by one; at every step all of them can connect anew.
	everybody := func(step string) {
		for n, l := range clients {
			conn := dial(l)
			if err := ask(conn); err != nil {
				t.Errorf("%s: client %d: %v", step, n, err)
			}
			_ = conn.Close()
		}
	}
	replace := func(l *pki.Live, ca *pki.Authority, bundle pki.Bundle) {
		if err := l.Replace(memberAt(t, ca, bundle, l.Current().Identity(), noon)); err != nil {
			t.Fatal(err)
		}
	}
	everybody("before")
	replace(server, r.next, r.oldBundle)
	everybody("new leaf of the coordinator")
	replace(server, r.next, r.nextBundle)
	everybody("new bundle of the coordinator")
	for _, l := range clients {
		replace(l, r.old, r.nextBundle)
		everybody("new bundle of a host")
		replace(l, r.next, r.nextBundle)
		everybody("new leaf of a host")
	}
	close(stop)
	for range conns {
		if err := <-results; err != nil {
			t.Errorf("an open connection ended: %v", err)
		}
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
}
