package dns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	mdns "github.com/miekg/dns"

	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	orgBoth  = "00000000-0000-4000-8000-00000000000a"
	orgV4    = "00000000-0000-4000-8000-000000000004"
	orgMany  = "00000000-0000-4000-8000-0000000000ff"
	orgPanic = "00000000-0000-4000-8000-00000000dead"
	orgNone  = "00000000-0000-4000-8000-0000000000aa"
)

// source is a state that a test changes.
type source struct {
	mu    sync.RWMutex
	orgs  map[id.Organization][]netip.Addr
	index uint64
}

func newSource() *source {
	s := &source{orgs: map[id.Organization][]netip.Addr{}}
	s.set(orgBoth, "192.0.2.1", "2001:db8::1")
	s.set(orgV4, "192.0.2.4")
	var many []string
	for i := range 60 {
		many = append(many, fmt.Sprintf("2001:db8::%d", i+1))
	}
	s.set(orgMany, many...)
	return s
}

func (s *source) set(org id.Organization, addresses ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	delete(s.orgs, org)
	for _, a := range addresses {
		s.orgs[org] = append(s.orgs[org], netip.MustParseAddr(a))
	}
}

func (s *source) Addresses(org id.Organization) ([]netip.Addr, bool) {
	if org == orgPanic {
		panic("a fault")
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	addresses, ok := s.orgs[org]
	return addresses, ok
}

func (s *source) Index() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index
}

func embeddedConfig() dns.Config {
	cfg := dns.DefaultConfig()
	cfg.Provider = dns.ProviderEmbedded
	cfg.Listen = "127.0.0.1:0"
	cfg.NegativeTTL = 3 * time.Second
	cfg.Nameservers = []string{"ns1." + domain + " 192.0.2.53", "ns2.example.net"}
	cfg.Apex = []string{"192.0.2.80"}
	return cfg
}

// serve runs an embedded server for the time of a test.
func serve(t testing.TB, src dns.Source) *dns.Server {
	t.Helper()
	s, err := dns.Listen(dns.ServerOptions{Config: embeddedConfig(), Domain: domain, Source: src, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }() // waited for below
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return s
}

func TestDigEmbedded(t *testing.T) {
	addr := serve(t, newSource()).Addr()
	both, v4, many, none := host(orgBoth), host(orgV4), host(orgMany), host(orgNone)
	upper := strings.ToUpper(both[:20]) + both[20:]
	soa := domain + ". 3 ns1." + domain + ". hostmaster." + domain + ". 3 60 30 3600 3"
	for name, c := range map[string]struct {
		args    string
		status  string
		answers []string
		soa     bool
		flags   string
	}{
		"A":                    {both + " A", "NOERROR", []string{both + ". 5 A 192.0.2.1"}, false, "qr aa"},
		"AAAA":                 {both + " AAAA", "NOERROR", []string{both + ". 5 AAAA 2001:db8::1"}, false, "qr aa"},
		"A by TCP":             {both + " A +tcp", "NOERROR", []string{both + ". 5 A 192.0.2.1"}, false, "qr aa"},
		"A without EDNS":       {both + " A +noedns", "NOERROR", []string{both + ". 5 A 192.0.2.1"}, false, "qr aa"},
		"recursion asked for":  {both + " A +recurse", "NOERROR", []string{both + ". 5 A 192.0.2.1"}, false, "qr aa rd"},
		"letter case is kept":  {upper + " A", "NOERROR", []string{upper + ". 5 A 192.0.2.1"}, false, "qr aa"},
		"wildcard":             {"uc-x." + both + " A", "NOERROR", []string{"uc-x." + both + ". 5 A 192.0.2.1"}, false, "qr aa"},
		"wildcard, deeper":     {"a.b.c." + both + " AAAA", "NOERROR", []string{"a.b.c." + both + ". 5 AAAA 2001:db8::1"}, false, "qr aa"},
		"SOA":                  {domain + " SOA", "NOERROR", []string{domain + ". 5 SOA ns1." + domain + ". hostmaster." + domain + ". 3 60 30 3600 3"}, false, "qr aa"},
		"NS":                   {domain + " NS", "NOERROR", []string{domain + ". 5 NS ns1." + domain + ".", domain + ". 5 NS ns2.example.net."}, false, "qr aa"},
		"apex":                 {domain + " A", "NOERROR", []string{domain + ". 5 A 192.0.2.80"}, false, "qr aa"},
		"name server":          {"ns1." + domain + " A", "NOERROR", []string{"ns1." + domain + ". 5 A 192.0.2.53"}, false, "qr aa"},
		"NXDOMAIN":             {none + " A", "NXDOMAIN", nil, true, "qr aa"},
		"NXDOMAIN below":       {"uc-x." + none + " A", "NXDOMAIN", nil, true, "qr aa"},
		"NODATA":               {v4 + " AAAA", "NOERROR", nil, true, "qr aa"},
		"NODATA of a type":     {both + " MX", "NOERROR", nil, true, "qr aa"},
		"ANY":                  {both + " ANY", "NOERROR", []string{both + `. 5 HINFO "RFC8482" ""`}, false, "qr aa"},
		"another zone":         {"www.example.net A", "REFUSED", nil, false, "qr"},
		"the zone above":       {zone + " SOA", "REFUSED", nil, false, "qr"},
		"chaos":                {"version.bind CH TXT", "REFUSED", nil, false, "qr"},
		"notify":               {domain + " SOA +opcode=notify", "NOTIMP", nil, false, "qr"},
		"update":               {domain + " SOA +opcode=update", "NOTIMP", nil, false, "qr"},
		"EDNS of the future":   {both + " A +edns=1 +noednsnegotiation", "BADVERS", nil, false, "qr"},
		"cut, and seen as cut": {many + " AAAA +ignore +bufsize=4096", "NOERROR", nil, false, "qr aa tc"},
		"a fault":              {host(orgPanic) + " A", "SERVFAIL", nil, false, "qr"},
	} {
		t.Run(name, func(t *testing.T) {
			r := dig(t, addr, strings.Fields(c.args)...)
			if r.status != c.status || strings.Join(r.flags, " ") != c.flags || (r.soa == soa) != c.soa {
				t.Errorf("status %s, flags %v, SOA %q: %s", r.status, r.flags, r.soa, r.text)
			}
			if !strings.Contains(c.flags, "tc") && !slices.Equal(r.answers, c.answers) {
				t.Errorf("answers %q, want %q", r.answers, c.answers)
			}
		})
	}
	t.Run("cut, and asked for again by TCP", func(t *testing.T) {
		if r := dig(t, addr, many, "AAAA"); len(r.answers) != 60 || !strings.Contains(r.text, "(TCP)") {
			t.Errorf("%d answers: %s", len(r.answers), r.text)
		}
	})
	t.Run("transfer", func(t *testing.T) {
		if r := dig(t, addr, domain, "AXFR"); len(r.answers) != 0 || !strings.Contains(r.text, "Transfer failed") {
			t.Error(r.text)
		}
	})
}

func TestEmbeddedFollowsTheState(t *testing.T) {
	src := newSource()
	addr := serve(t, src).Addr()
	if r := dig(t, addr, host(orgNone), "A"); r.status != "NXDOMAIN" {
		t.Fatal(r.text)
	}
	src.set(orgNone, "192.0.2.9")
	if r := dig(t, addr, host(orgNone), "A"); !slices.Equal(r.answers, []string{host(orgNone) + ". 5 A 192.0.2.9"}) {
		t.Fatal(r.text)
	}
	if r := dig(t, addr, domain, "SOA"); len(r.answers) != 1 || !strings.Contains(r.answers[0], " 4 60 30 ") {
		t.Fatalf("the serial number did not rise: %s", r.text)
	}
}

func TestServerSurvivesFaultsAndGarbage(t *testing.T) {
	s := serve(t, newSource())
	good, _ := new(mdns.Msg).SetQuestion(host(orgBoth)+".", mdns.TypeA).Pack()
	for _, packet := range [][]byte{{}, {0}, good[:11], good[:12], good[:len(good)-1], make([]byte, 4096), []byte(strings.Repeat("\xff", 600))} {
		garbage(t, s.Addr(), packet)
	}
	for range 3 {
		dig(t, s.Addr(), host(orgPanic), "A")
	}
	if r := dig(t, s.Addr(), host(orgBoth), "A"); r.status != "NOERROR" {
		t.Error(r.text)
	}
	if st := s.Stats(); st.Crashed != 3 || st.Queries == 0 {
		t.Errorf("stats %+v", st)
	}
}

// garbage sends bytes by UDP and by TCP, with the right and with a wrong length.
func garbage(t testing.TB, addr string, packet []byte) {
	t.Helper()
	udp, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = udp.Close() }()
	_, _ = udp.Write(packet) // what becomes of it is no matter
	for _, length := range []int{len(packet), len(packet) + 7} {
		tcp, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = tcp.Write(append(binary.BigEndian.AppendUint16(nil, uint16(length)), packet...))
		_ = tcp.Close()
	}
}

// FuzzServer sends bytes to a server, which must go on answering.
func FuzzServer(f *testing.F) {
	good, _ := new(mdns.Msg).SetQuestion(host(orgBoth)+".", mdns.TypeA).Pack()
	f.Add(good)
	f.Add(good[:13])
	f.Add([]byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x29\x00\x00"))
	addr := serve(f, newSource()).Addr()
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) > 4096 {
			return
		}
		garbage(t, addr, packet)
		client := mdns.Client{Timeout: 10 * time.Second}
		for try := 1; ; try++ { // a datagram may be lost where the machine is busy
			reply, _, err := client.ExchangeContext(t.Context(), new(mdns.Msg).SetQuestion(host(orgBoth)+".", mdns.TypeA), addr)
			if err == nil && len(reply.Answer) == 1 {
				return
			}
			if try == 3 {
				t.Fatalf("no answer after %q: %v, %v", packet, reply, err)
			}
		}
	})
}

func TestServerBoundsConnections(t *testing.T) {
	const each = 32
	s := serve(t, newSource())
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for range each {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	// Those that say nothing are closed after a while, so the limit is only sure to be seen as a refusal.
	eventually(t, "a refused connection", func() bool {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		return s.Stats().RefusedConns > 0
	})
	if n := s.Stats().OpenConnections; n > each {
		t.Errorf("%d connections of one address are open", n)
	}
	// The silent ones go by themselves, and others are heard again.
	for _, c := range open {
		if err := c.SetReadDeadline(time.Now().Add(generous)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a silent connection ended with %v", err)
		}
	}
	eventually(t, "an answer by TCP", func() bool {
		client := mdns.Client{Net: "tcp", Timeout: generous}
		reply, _, err := client.ExchangeContext(t.Context(), new(mdns.Msg).SetQuestion(host(orgBoth)+".", mdns.TypeA), s.Addr())
		return err == nil && len(reply.Answer) == 1
	})
}

func TestListenNamesAddressAndRemedy(t *testing.T) {
	s := serve(t, newSource())
	cfg := embeddedConfig()
	cfg.Listen = s.Addr()
	_, err := dns.Listen(dns.ServerOptions{Config: cfg, Domain: domain, Source: newSource(), Logger: hclog.NewNullLogger()})
	if err == nil || !strings.Contains(err.Error(), s.Addr()) || !strings.Contains(err.Error(), "dns.listen") || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the address is taken: %v", err)
	}
	cfg.Nameservers = nil
	if _, err := dns.Listen(dns.ServerOptions{Config: cfg, Domain: domain, Source: newSource(), Logger: hclog.NewNullLogger()}); err == nil {
		t.Error("a server without names listens")
	}
}

func TestServerFreesItsAddress(t *testing.T) {
	s, err := dns.Listen(dns.ServerOptions{Config: embeddedConfig(), Domain: domain, Source: newSource(), Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("a closed server runs")
	}
	cfg := embeddedConfig()
	cfg.Listen = s.Addr()
	for _, cancelled := range []bool{true, false} {
		again, err := dns.Listen(dns.ServerOptions{Config: cfg, Domain: domain, Source: newSource(), Logger: hclog.NewNullLogger()})
		if err != nil {
			t.Fatalf("the address is not free: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if cancelled {
			cancel() // before it has started
		}
		done := make(chan error, 1)
		go func() { done <- again.Run(ctx) }() // waited for below
		if !cancelled {
			if r := dig(t, again.Addr(), host(orgBoth), "A", "+tcp"); r.status != "NOERROR" {
				t.Error(r.text)
			}
			cancel()
		}
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}
