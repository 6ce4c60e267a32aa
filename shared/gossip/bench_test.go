package gossip_test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// BenchmarkDetection measures from the moment that a member closes its sockets without a word until all
// the others hold it for failed.
func BenchmarkDetection(b *testing.B) {
	for _, count := range []int{3, 5, 16} {
		b.Run(fmt.Sprintf("n=%d", count), func(b *testing.B) {
			p := newPool(b)
			nodes := p.of(count)
			var took []time.Duration
			for i := 0; i < 10 || b.Loop(); i++ {
				victim := nodes[count-1]
				began := time.Now()
				stop(b, victim)
				for _, n := range nodes[:count-1] {
					waitStatus(b, n, fmt.Sprintf("h%d", count), gossip.StatusFailed)
				}
				took = append(took, time.Since(began))
				nodes[count-1] = p.add(fmt.Sprintf("h%d", count))
				waitAll(b, nodes, count)
			}
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2].Seconds(), "p50-s")
			b.ReportMetric(took[len(took)*95/100].Seconds(), "p95-s")
			b.ReportMetric(took[len(took)-1].Seconds(), "max-s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkIdle measures what a member of a quiet pool costs.
func BenchmarkIdle(b *testing.B) {
	for _, count := range []int{5, 32} {
		b.Run(fmt.Sprintf("n=%d", count), func(b *testing.B) {
			p := newPool(b)
			nodes := p.of(count)
			stats := func() (packets, bytes uint64) {
				for _, n := range nodes {
					s := n.Stats()
					packets, bytes = packets+s.PacketsSent, bytes+s.BytesSent
				}
				return packets, bytes
			}
			packets, bytes := stats()
			cpu, began := used(b), time.Now()
			for i := 0; i < 10 || b.Loop(); i++ {
				waitFor(time.Second)
			}
			seconds := time.Since(began).Seconds() * float64(count)
			after, afterBytes := stats()
			b.ReportMetric((used(b)-cpu).Seconds()*1000/seconds, "cpu-ms/member/s")
			b.ReportMetric(float64(after-packets)/seconds, "packets/member/s")
			b.ReportMetric(float64(afterBytes-bytes)/seconds, "bytes/member/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func waitFor(d time.Duration) { time.Sleep(d) }

// used is the processor time of this process.
func used(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
