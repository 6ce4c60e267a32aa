package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// book is a Source that never changes.
type book map[id.Organization][]netip.Addr

func (b book) Addresses(org id.Organization) ([]netip.Addr, bool) {
	addresses, ok := b[org]
	return addresses, ok
}

func (book) Index() uint64 { return 1<<32 + 42 }

const (
	uuidA    = id.Organization("00000000-0000-4000-8000-00000000000a") // served on both families
	uuid4    = id.Organization("00000000-0000-4000-8000-000000000004") // IPv4 only
	uuidMany = id.Organization("00000000-0000-4000-8000-0000000000ff") // more addresses than fit into a datagram
)

func testBook() book {
	b := book{
		uuidA: {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		uuid4: {netip.MustParseAddr("::ffff:192.0.2.4")},
	}
	for i := range 60 {
		b[uuidMany] = append(b[uuidMany], netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1)), netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", i+1)))
	}
	return b
}

func embedded() Config {
	cfg := DefaultConfig()
	cfg.Provider = ProviderEmbedded
	cfg.Listen = "127.0.0.1:0"
	cfg.NegativeTTL = 3 * time.Second
	cfg.Nameservers = []string{"ns1." + testDomain + " 192.0.2.53 2001:db8::53", "ns.deep." + testDomain + " 192.0.2.54", "ns.example.net"}
	cfg.Hostmaster = "dns.admin@example.org"
	cfg.Apex = []string{"192.0.2.80"}
	return cfg
}

func testAuthority(t testing.TB) *authority {
	t.Helper()
	cfg := embedded()
	if err := cfg.Validate("dns", testDomain); err != nil {
		t.Fatal(err)
	}
	a, err := newAuthority(cfg, testDomain, testBook())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// summary is a reply in one line: code, flags, answers, authority and additional records.
func summary(m *mdns.Msg) string {
	out := []string{mdns.RcodeToString[m.Rcode]}
	for _, flag := range []struct {
		name string
		set  bool
	}{{"aa", m.Authoritative}, {"tc", m.Truncated}, {"ra", m.RecursionAvailable}} {
		if flag.set {
			out = append(out, flag.name)
		}
	}
	for i, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if _, opt := rr.(*mdns.OPT); !opt {
				out = append(out, []string{"", "~", "+"}[i]+strings.NewReplacer("\t", " ", testDomain, "$").Replace(rr.String()))
			}
		}
	}
	return strings.Join(out, " | ")
}

const testSOA = "~$. 3 IN SOA ns1.$. dns\\.admin.example.org. 42 60 30 3600 3"

func TestAnswers(t *testing.T) {
	nx, nodata, refused := "NXDOMAIN | aa | "+testSOA, "NOERROR | aa | "+testSOA, "REFUSED"
	a, mixed := "org-"+string(uuidA)+".$", "oRg-"+strings.ToUpper(string(uuidA))+".$"
	for _, c := range []struct{ name, kind, want string }{
		{a, "A", "NOERROR | aa | " + a + ". 5 IN A 192.0.2.1"},
		{a, "AAAA", "NOERROR | aa | " + a + ". 5 IN AAAA 2001:db8::1"},
		{mixed, "A", "NOERROR | aa | " + mixed + ". 5 IN A 192.0.2.1"},
		{"uc-1." + a, "A", "NOERROR | aa | uc-1." + a + ". 5 IN A 192.0.2.1"},
		{"x.y.uc-1." + a, "AAAA", "NOERROR | aa | x.y.uc-1." + a + ". 5 IN AAAA 2001:db8::1"},
		{"*." + a, "A", "NOERROR | aa | *." + a + ". 5 IN A 192.0.2.1"},
		{`a\.b\\.` + a, "A", `NOERROR | aa | a\.b\\.` + a + ". 5 IN A 192.0.2.1"},
		{"org-" + string(uuid4) + ".$", "A", "NOERROR | aa | org-" + string(uuid4) + ".$. 5 IN A 192.0.2.4"},
		{"org-" + string(uuid4) + ".$", "AAAA", nodata},
		{"x.org-" + string(uuid4) + ".$", "AAAA", nodata},
		{a, "TXT", nodata},
		{a, "CNAME", nodata},
		{a, "NS", nodata},
		{a, "SOA", nodata},
		{a, "ANY", "NOERROR | aa | " + a + `. 5 IN HINFO "RFC8482" ""`},
		{"org-00000000-0000-4000-8000-0000000000aa.$", "A", nx},
		{"org-00000000-0000-4000-8000-0000000000aa.$", "ANY", nx},
		{"uc-1.org-00000000-0000-4000-8000-0000000000aa.$", "A", nx},
		{`x\.` + a, "A", nx}, // a label of its own, which is no organization's
		{"x" + a, "A", nx},
		{"orf-" + string(uuidA) + ".$", "A", nx},
		{"org-.$", "A", nx},
		{"www.$", "TXT", nx},
		{"$", "SOA", "NOERROR | aa | " + strings.Replace(testSOA[1:], "$. 3", "$. 5", 1)},
		{"$", "NS", "NOERROR | aa | $. 5 IN NS ns1.$. | $. 5 IN NS ns.deep.$. | $. 5 IN NS ns.example.net. | " +
			"+ns.deep.$. 5 IN A 192.0.2.54 | +ns1.$. 5 IN AAAA 2001:db8::53 | +ns1.$. 5 IN A 192.0.2.53"},
		{"$", "A", "NOERROR | aa | $. 5 IN A 192.0.2.80"},
		{"$", "AAAA", nodata},
		{"$", "MX", nodata},
		{"$", "ANY", `NOERROR | aa | $. 5 IN HINFO "RFC8482" ""`},
		{"ns1.$", "A", "NOERROR | aa | ns1.$. 5 IN A 192.0.2.53"},
		{"NS1.$", "AAAA", "NOERROR | aa | NS1.$. 5 IN AAAA 2001:db8::53"},
		{"ns1.$", "TXT", nodata},
		{"deep.$", "A", nodata}, // there is something below it
		{"x.ns1.$", "A", nx},
		{"$", "AXFR", refused},
		{"$", "IXFR", refused},
		{"example.org", "SOA", refused},
		{"example.net", "A", refused},
		{".", "NS", refused},
		{"x$", "A", refused},
		{`x\.$`, "A", refused}, // "x.gateways" is one label there
	} {
		name := mdns.Fqdn(strings.ReplaceAll(c.name, "$", testDomain))
		query := new(mdns.Msg).SetQuestion(name, mdns.StringToType[c.kind])
		reply := testAuthority(t).answer(query, false)
		if got := summary(reply); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.name, c.kind, got, c.want)
		}
		if reply.Id != query.Id || !reply.Response || reply.Question[0] != query.Question[0] {
			t.Errorf("%s %s: the reply is to %v", c.name, c.kind, reply.Question)
		}
		if _, err := reply.Pack(); err != nil {
			t.Errorf("%s %s: %v", c.name, c.kind, err)
		}
	}
}

func TestAnswersToOddQueries(t *testing.T) {
	ours := "org-" + string(uuidA) + "." + testDomain + "."
	opt := func(version uint8) *mdns.OPT {
		o := &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
		o.SetVersion(version)
		o.SetUDPSize(4096)
		return o
	}
	for name, c := range map[string]struct {
		change func(*mdns.Msg)
		want   int
	}{
		"chaos class":    {func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }, mdns.RcodeRefused},
		"any class":      {func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassANY }, mdns.RcodeRefused},
		"no question":    {func(m *mdns.Msg) { m.Question = nil }, mdns.RcodeFormatError},
		"two questions":  {func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }, mdns.RcodeFormatError},
		"two OPT":        {func(m *mdns.Msg) { m.Extra = []mdns.RR{opt(0), opt(0)} }, mdns.RcodeFormatError},
		"EDNS version 1": {func(m *mdns.Msg) { m.Extra = []mdns.RR{opt(1)} }, mdns.RcodeBadVers},
		"EDNS version 0": {func(m *mdns.Msg) { m.Extra = []mdns.RR{opt(0)} }, mdns.RcodeSuccess},
		"type 0":         {func(m *mdns.Msg) { m.Question[0].Qtype = 0 }, mdns.RcodeSuccess},
	} {
		query := new(mdns.Msg).SetQuestion(ours, mdns.TypeA)
		c.change(query)
		reply := testAuthority(t).answer(query, true)
		packed, err := reply.Pack()
		if err != nil || reply.Rcode != c.want {
			t.Errorf("%s: %s, want %s; %v", name, mdns.RcodeToString[reply.Rcode], mdns.RcodeToString[c.want], err)
		}
		back := new(mdns.Msg)
		if err := back.Unpack(packed); err != nil || back.Rcode&0xf != c.want&0xf {
			t.Errorf("%s: read back as %v, %v", name, back, err)
		}
		if asked, answered := query.IsEdns0() != nil, back.IsEdns0(); asked != (answered != nil) || asked && (answered.UDPSize() != maxUDP || answered.Version() != 0) {
			t.Errorf("%s: answered with OPT %v", name, answered)
		}
	}
}

func TestAnswersFitTheWayBack(t *testing.T) {
	for _, c := range []struct {
		udp       bool
		bufsize   uint16 // 0: no EDNS
		most      int
		truncated bool
	}{
		{true, 0, 512, true},
		{true, 100, 512, true}, // a size below 512 means 512
		{true, 1232, 1232, true},
		{true, 4096, 1232, true},
		{false, 0, mdns.MaxMsgSize, false},
		{false, 512, mdns.MaxMsgSize, false}, // the size is for UDP
	} {
		query := new(mdns.Msg).SetQuestion("org-"+string(uuidMany)+"."+testDomain+".", mdns.TypeAAAA)
		if c.bufsize > 0 {
			query.SetEdns0(c.bufsize, false)
		}
		reply := testAuthority(t).answer(query, c.udp)
		packed, err := reply.Pack()
		if err != nil || len(packed) > c.most || reply.Truncated != c.truncated || !c.truncated && len(reply.Answer) != 60 {
			t.Errorf("%+v: %d bytes, truncated %t, %d answers, %v", c, len(packed), reply.Truncated, len(reply.Answer), err)
		}
	}
}

// FuzzAnswer takes bytes as they come from the network through what the server does to them.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"org-" + string(uuidA) + "." + testDomain + ".", testDomain + ".", `x\.y.` + testDomain + ".", "."} {
		for _, kind := range []uint16{mdns.TypeA, mdns.TypeANY, mdns.TypeNS, mdns.TypeAXFR} {
			query := new(mdns.Msg).SetQuestion(name, kind)
			packed, _ := query.Pack()
			f.Add(packed)
			query.SetEdns0(4096, true)
			packed, _ = query.Pack()
			f.Add(packed)
			f.Add(packed[:len(packed)-3])
		}
	}
	f.Add([]byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01")) // a name that points to itself
	a := testAuthority(f)
	f.Fuzz(func(t *testing.T, packet []byte) {
		query := new(mdns.Msg)
		if err := query.Unpack(packet); err != nil {
			return
		}
		for _, udp := range []bool{true, false} {
			reply := a.answer(query, udp)
			packed, err := reply.Pack()
			if err != nil {
				t.Fatalf("the reply to %q cannot be sent: %v", packet, err)
			}
			if udp && len(packed) > maxUDP {
				t.Fatalf("%d bytes by UDP", len(packed))
			}
			if !reply.Response || reply.Id != query.Id || reply.RecursionAvailable {
				t.Fatalf("the reply to %q is %v", packet, reply)
			}
			if reply.Authoritative && !mdns.IsSubDomain(testDomain+".", query.Question[0].Name) {
				t.Fatalf("authority claimed for %q", query.Question[0].Name)
			}
		}
	})
}
