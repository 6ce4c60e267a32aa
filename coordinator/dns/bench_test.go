package dns_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	benchOrganizations = 10_000
	benchClients       = 16
)

// BenchmarkEmbedded asks for the addresses of 10,000 organizations by UDP. The clients run in the same
// process and take their part of the machine.
func BenchmarkEmbedded(b *testing.B) {
	src := &source{orgs: map[id.Organization][]netip.Addr{}}
	packets := make([][]byte, benchOrganizations)
	for i := range packets {
		org := numbered(i)
		src.set(id.Organization(org), fmt.Sprintf("192.0.2.%d", i%250+1))
		query := new(mdns.Msg).SetQuestion(host(org)+".", mdns.TypeA)
		query.SetEdns0(1232, false)
		packed, err := query.Pack()
		if err != nil {
			b.Fatal(err)
		}
		packets[i] = packed
	}
	addr := serve(b, src).Addr()
	var next, lost atomic.Int64
	took := make([][]time.Duration, benchClients)
	var clients sync.WaitGroup
	b.ResetTimer()
	for c := range benchClients {
		clients.Go(func() {
			conn, err := net.Dial("udp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			answer := make([]byte, 1232)
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				start := time.Now()
				if err := conn.SetDeadline(start.Add(time.Second)); err != nil {
					b.Error(err)
					return
				}
				if _, err := conn.Write(packets[i%benchOrganizations]); err != nil {
					b.Error(err)
					return
				}
				n, err := conn.Read(answer)
				switch {
				case err != nil:
					lost.Add(1)
				case n < 12 || answer[3]&0xf != mdns.RcodeSuccess || answer[7] != 1:
					b.Errorf("the answer is %x", answer[:n])
					return
				}
				took[c] = append(took[c], time.Since(start))
			}
		})
	}
	clients.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	if lost.Load() > int64(b.N/1000) {
		b.Errorf("%d of %d queries were not answered", lost.Load(), b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkPowerDNS makes the records of organizations in a real PowerDNS with SQLite, each with a look, a
// write and a look back: one after another, and many at once.
func BenchmarkPowerDNS(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("%d", callers), func(b *testing.B) {
			server := startPowerDNS(b)
			p := provider(b, server.config())
			var next atomic.Int64
			var all sync.WaitGroup
			b.ResetTimer()
			for range callers {
				all.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						if err := p.Ensure(b.Context(), record(host(numbered(int(i))), 7, "192.0.2.1")); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
