package dns_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func (p *pdns) addr() string { return fmt.Sprintf("127.0.0.1:%d", p.dnsPort) }

// sees asks PowerDNS itself, by DNS.
func (p *pdns) sees(name, kind string) string {
	p.t.Helper()
	var out []string
	for _, line := range dig(p.t, p.addr(), name, kind).answers {
		fields := strings.SplitN(line, " ", 4)
		out = append(out, fields[1]+" "+fields[2]+" "+fields[3])
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPowerDNSMakesAndRemovesRecords(t *testing.T) {
	server := startPowerDNS(t)
	p := provider(t, server.config())
	name := host(orgBoth)
	check := func(v4, v6 string) {
		t.Helper()
		for _, n := range []string{name, "uc-x." + name, "a.b." + name} {
			if a, aaaa := server.sees(n, "A"), server.sees(n, "AAAA"); a != v4 || aaaa != v6 {
				t.Errorf("%s is %q and %q, want %q and %q", n, a, aaaa, v4, v6)
			}
		}
	}
	must(t, p.Ensure(t.Context(), record(name, 7, "192.0.2.1", "2001:db8::1", "192.0.2.1")))
	check("5 A 192.0.2.1", "5 AAAA 2001:db8::1")
	serial := server.sees(zone, "SOA")
	must(t, p.Ensure(t.Context(), record(name, 7, "2001:db8::1", "192.0.2.1")))
	if again := server.sees(zone, "SOA"); again != serial {
		t.Errorf("making the record again changed the zone: %s, before %s", again, serial)
	}
	must(t, p.Ensure(t.Context(), record(name, 8, "192.0.2.2"))) // moved, and to a host without IPv6
	check("5 A 192.0.2.2", "")
	for range 2 {
		must(t, p.Remove(t.Context(), name, 8))
		check("", "")
	}
	if txt := server.sees(name, "TXT"); txt != "" {
		t.Errorf("left over: %s", txt)
	}
	if list, err := p.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left over: %v, %v", list, err)
	}
}

func TestPowerDNSTakesTheNameFromAnAlias(t *testing.T) {
	server := startPowerDNS(t)
	p := provider(t, server.config())
	server.put(host(orgBoth), "CNAME", "www.example.net.")
	server.put("*."+host(orgBoth), "CNAME", "www.example.net.")
	must(t, p.Ensure(t.Context(), record(host(orgBoth), 7, "192.0.2.1")))
	if a, below := server.sees(host(orgBoth), "A"), server.sees("x."+host(orgBoth), "A"); a != "5 A 192.0.2.1" || below != a {
		t.Errorf("it is %q, and %q below", a, below)
	}
	server.put(host(orgV4), "CNAME", "www.example.net.")
	must(t, p.Remove(t.Context(), host(orgV4), 7))
	if a := server.sees(host(orgV4), "CNAME"); a != "" {
		t.Errorf("left over: %s", a)
	}
}

// The undo of an old grant comes late, on this or another coordinator, also when the organization is back
// on the same host.
func TestPowerDNSKeepsTheRecordOfALaterGrant(t *testing.T) {
	server := startPowerDNS(t)
	former, present := provider(t, server.config()), provider(t, server.config())
	name := host(orgBoth)
	must(t, former.Ensure(t.Context(), record(name, 7, "192.0.2.1")))
	must(t, present.Ensure(t.Context(), record(name, 9, "192.0.2.1")))
	for _, p := range []dns.Provider{former, present} {
		must(t, p.Remove(t.Context(), name, 7))
		must(t, p.Remove(t.Context(), name, 8))
		if a := server.sees(name, "A"); a != "5 A 192.0.2.1" {
			t.Fatalf("an old grant took the record: %q", a)
		}
		err := p.Ensure(t.Context(), record(name, 8, "192.0.2.66"))
		if !fault.Is(err, fault.Superseded) || server.sees(name, "A") != "5 A 192.0.2.1" {
			t.Fatalf("an old grant took the record: %v, %s", err, server.sees(name, "A"))
		}
	}
	restored := record(name, 8, "192.0.2.8")
	restored.Instead = 10
	if err := present.Ensure(t.Context(), restored); !fault.Is(err, fault.Superseded) || server.sees(name, "A") != "5 A 192.0.2.1" {
		t.Fatalf("another record than the one that was seen was replaced: %v, %s", err, server.sees(name, "A"))
	}
	restored.Instead = 9
	must(t, present.Ensure(t.Context(), restored))
	if a := server.sees(name, "A"); a != "5 A 192.0.2.8" {
		t.Fatalf("the record of a grant that is lost took the place of one: %q", a)
	}
	must(t, present.Remove(t.Context(), name, 8))
	if a := server.sees(name, "A"); a != "" {
		t.Errorf("left over: %s", a)
	}
}

func TestPowerDNSOrdersRacingGrants(t *testing.T) {
	server := startPowerDNS(t)
	p := provider(t, server.config())
	name := host(orgBoth)
	for round := range 10 {
		epoch := id.Epoch(2*round + 1)
		must(t, p.Ensure(t.Context(), record(name, epoch, "192.0.2.1")))
		var racing sync.WaitGroup
		racing.Go(func() {
			if err := p.Remove(t.Context(), name, epoch); err != nil {
				t.Error(err)
			}
		})
		racing.Go(func() {
			if err := p.Ensure(t.Context(), record(name, epoch+1, "192.0.2.2")); err != nil {
				t.Error(err)
			}
		})
		racing.Wait()
		if a, below := server.sees(name, "A"), server.sees("x."+name, "A"); a != "5 A 192.0.2.2" || below != a {
			t.Fatalf("round %d: it is %q, and %q below", round, a, below)
		}
	}
}

func TestPowerDNSBearsManyAtOnce(t *testing.T) {
	server := startPowerDNS(t)
	p := provider(t, server.config())
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			if err := p.Ensure(t.Context(), record(host(numbered(i)), 7, fmt.Sprintf("192.0.2.%d", i+1))); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	list, err := p.List(t.Context())
	if err != nil || len(list) != 80 {
		t.Fatalf("%d names, want 80: %v", len(list), err)
	}
	for i := range 40 {
		want := record(host(numbered(i)), 7, fmt.Sprintf("192.0.2.%d", i+1))
		at := slices.IndexFunc(list, func(r dns.Record) bool { return r.Name == want.Name })
		if at < 0 || list[at].Epoch != 7 || list[at].TTL != want.TTL || !slices.Equal(list[at].Addresses, want.Addresses) {
			t.Errorf("%v is not listed", want)
		}
	}
}

func numbered(i int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", i) }

func TestPowerDNSTouchesOnlyOrganizations(t *testing.T) {
	server := startPowerDNS(t)
	p := provider(t, server.config())
	for _, name := range []string{zone, domain, "www." + domain, "org-x." + domain, "x" + host(orgBoth), host(orgBoth) + ".example.net", "_acme-challenge." + host(orgBoth)} {
		if err := p.Remove(t.Context(), name, 7); dns.KindOf(err) != dns.Refused {
			t.Errorf("removal of %s: %v", name, err)
		}
		if err := p.Ensure(t.Context(), record(name, 7, "192.0.2.1")); dns.KindOf(err) != dns.Refused {
			t.Errorf("making of %s: %v", name, err)
		}
	}
	half := record(host(orgBoth), 7, "192.0.2.1")
	half.TTL = 1500 * time.Millisecond
	for _, r := range []dns.Record{record("x."+host(orgBoth), 7, "192.0.2.1"), record(host(orgBoth), 7), half} {
		if err := p.Ensure(t.Context(), r); dns.KindOf(err) != dns.Refused {
			t.Errorf("making of %v: %v", r, err)
		}
	}
}

// The loop on the real thing: drift of every kind is repaired, and what is not ours stays.
func TestLoopRepairsPowerDNS(t *testing.T) {
	server := startPowerDNS(t)
	p := provider(t, server.config())
	kept, moved, orphan, halved := host(orgBoth), host(orgV4), host(orgMany), host(orgNone)
	for _, name := range []string{kept, moved, orphan, halved} {
		must(t, p.Ensure(t.Context(), record(name, 7, "192.0.2.1")))
	}
	server.put(moved, "A", "192.0.2.66")
	server.put("*."+halved, "A")
	server.put("*."+halved, "AAAA", "2001:db8::66")
	server.put("uc-1."+kept, "A", "192.0.2.66")
	server.put("uc-2."+kept, "CNAME", "www.example.net.")
	foreign := map[string]string{"www." + domain: "A", domain: "A", "org-x." + domain: "A", "www." + zone: "A"}
	for name, kind := range foreign {
		server.put(name, kind, "192.0.2.80")
	}
	server.put("_acme-challenge."+kept, "TXT", `"proof"`)

	changed := make(chan struct{})
	loop := dns.NewLoop(dns.LoopOptions{
		Provider: p, Domain: domain, Logger: hclog.NewNullLogger(), Now: time.Now, Interval: time.Second, Settle: 10 * time.Millisecond, Limit: 2,
		Wanted: func() ([]dns.Wanted, <-chan struct{}) {
			var out []dns.Wanted
			for _, name := range []string{kept, moved, halved} {
				out = append(out, dns.Wanted{Record: record(name, 7, "192.0.2.1")})
			}
			return out, changed
		},
		Current: func(context.Context) error { return nil },
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { loop.Run(ctx) })
	defer running.Wait()
	defer cancel()
	eventually(t, "a look that finds all right", func() bool { return !loop.Status().LastSuccess.IsZero() })
	for _, name := range []string{kept, moved, halved, "uc-1." + kept, "uc-2." + kept, "x." + moved, "x." + halved} {
		if a, aaaa := server.sees(name, "A"), server.sees(name, "AAAA"); a != "5 A 192.0.2.1" || aaaa != "" {
			t.Errorf("%s is %q and %q", name, a, aaaa)
		}
	}
	if a := server.sees(orphan, "A") + server.sees("x."+orphan, "A"); a != "" {
		t.Errorf("the orphan is still there: %s", a)
	}
	for name, kind := range foreign {
		if a := server.sees(name, kind); a != "5 A 192.0.2.80" {
			t.Errorf("%s, which is no organization's, is %q", name, a)
		}
	}
	if txt := server.sees("_acme-challenge."+kept, "TXT"); txt != `5 TXT "proof"` {
		t.Errorf("the proof of ownership is %q", txt)
	}

	server.stop()
	eventually(t, "a failure that is seen", func() bool { return dns.KindOf(loop.Status().Err) == dns.Temporary })
	must(t, server.start())
	server.put(kept, "A", "192.0.2.66")
	eventually(t, "the repair", func() bool { return server.sees(kept, "A") == "5 A 192.0.2.1" })
}
