package dns

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	mdns "github.com/miekg/dns"

	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestAnswersByUDPAreBounded(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := newRates(func() time.Time { return now })
	ask := func(address string, times int) (got map[verdict]int) {
		got = map[verdict]int{}
		for range times {
			got[r.take(&net.UDPAddr{IP: net.ParseIP(address), Port: 53})]++
		}
		return got
	}
	if got := ask("192.0.2.1", 3*udpBurst); got[answered] != udpBurst || got[shortened] != udpBurst || got[dropped] != udpBurst {
		t.Errorf("of three times the burst: %v", got)
	}
	if got := ask("192.0.2.200", 2); got[answered] != 0 {
		t.Errorf("another address of the same network: %v", got)
	}
	for _, other := range []string{"192.0.3.1", "2001:db8::1"} {
		if got := ask(other, 10); got[answered] != 10 {
			t.Errorf("another network: %v", got)
		}
	}
	if got := ask("2001:db8:0:ff::1", udpBurst); got[answered] != udpBurst-10 {
		t.Errorf("the same network of IPv6: %v", got)
	}
	if got := ask("127.0.0.1", 2*udpBurst); got[answered] != 2*udpBurst {
		t.Errorf("this machine: %v", got)
	}
	now = now.Add(time.Second)
	if got := ask("192.0.2.1", udpBurst); got[answered] != udpPerSecond {
		t.Errorf("a second later: %v", got)
	}
	for i := range 2 * networksKept { // each asks once, from an address that is nobody's
		ask(fmt.Sprintf("10.%d.%d.1", i/256, i%256), 1)
	}
	if n := len(r.all); n > networksKept {
		t.Errorf("%d networks are kept", n)
	}
}

// writer takes what is answered to one address.
type writer struct {
	mdns.ResponseWriter
	from    net.Addr
	replies []*mdns.Msg
}

func (w *writer) RemoteAddr() net.Addr { return w.from }

func (w *writer) WriteMsg(m *mdns.Msg) error {
	w.replies = append(w.replies, m)
	return nil
}

// nowhere serves nobody.
type nowhere struct{}

func (nowhere) Addresses(id.Organization) ([]netip.Addr, bool) { return nil, false }
func (nowhere) Index() uint64                                  { return 1 }

// Above the limit an answer by UDP is no longer than the query, and says that it be asked by TCP, where there is none.
func TestOneWhoAsksTooMuchIsSentToTCP(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Provider, cfg.Listen, cfg.Nameservers = ProviderEmbedded, "127.0.0.1:0", []string{"ns1.example.net"}
	s, err := Listen(ServerOptions{Config: cfg, Domain: "example.org", Source: nowhere{}, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	now := time.Now()
	s.rates.now = func() time.Time { return now }
	query := new(mdns.Msg).SetQuestion("example.org.", mdns.TypeNS)
	udp := &writer{from: &net.UDPAddr{IP: net.ParseIP("192.0.2.1"), Port: 5353}}
	for range udpBurst + 10 {
		s.handle(udp, query, true)
	}
	if n := len(udp.replies); n != udpBurst+5 || s.Stats().Limited != 10 {
		t.Fatalf("%d answers, %d limited", n, s.Stats().Limited)
	}
	for _, m := range udp.replies[udpBurst:] {
		if !m.Truncated || m.Len() > query.Len() || m.Id != query.Id {
			t.Errorf("%v", m)
		}
	}
	tcp := &writer{from: &net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 5353}}
	s.handle(tcp, query, false)
	if len(tcp.replies) != 1 || len(tcp.replies[0].Answer) != 1 {
		t.Errorf("by TCP: %v", tcp.replies)
	}
}
