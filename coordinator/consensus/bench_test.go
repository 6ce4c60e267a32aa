package consensus_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
)

// counter is the cheapest state machine, so that the benchmark measures the node.
type counter struct {
	ledger // for Restore
	n      int
}

func (c *counter) Apply(*raft.Log) any { c.n++; return c.n }

func (c *counter) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i := range logs {
		out[i] = c.Apply(logs[i])
	}
	return out
}

// BenchmarkPropose measures proposals of 200 bytes on one node, every write synced, by callers at a time.
func BenchmarkPropose(b *testing.B) {
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			opts := options(b.TempDir(), &counter{})
			opts.SegmentSize = 16 << 20
			n := open(b, opts)
			leads(b, n)
			data := make([]byte, 200)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			begun := time.Now()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if _, _, err := n.Propose(context.Background(), data); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			report(b, n, time.Since(begun))
		})
	}
}

func report(b *testing.B, n *consensus.Node, took time.Duration) {
	p50, p99, writes := n.FsyncStats()
	b.ReportMetric(float64(b.N)/took.Seconds(), "proposals/s")
	b.ReportMetric(float64(p50.Microseconds()), "fsync-p50-µs")
	b.ReportMetric(float64(p99.Microseconds()), "fsync-p99-µs")
	b.ReportMetric(float64(b.N)/float64(writes), "proposals/write")
}
