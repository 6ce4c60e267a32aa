package coordinator_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// callers is how many allocate calls are under way at the same time.
const callers = 128

// BenchmarkAllocateHTTP measures durable allocate calls over HTTP on one coordinator, with callers and
// scripted agents on the same cores. coordinator/allocator has the same without HTTP. Releases are not
// counted.
func BenchmarkAllocateHTTP(b *testing.B) {
	const pool = 4000
	c := coordtest.Start(b)
	fleet(c, pool)
	orgs := organizations(b, c, pool)
	ctx := context.Background()
	var took []time.Duration
	var measured time.Duration
	b.ResetTimer()
	total := max(b.N, 3*pool)
	for done := 0; done < total; {
		n := min(pool, total-done)
		ids := make([]string, n)
		lat := make([]time.Duration, n)
		began := time.Now()
		each(n, func(i int) {
			t0 := time.Now()
			a, _, err := c.Admin.Start(ctx, api.StartAllocation{OrganizationID: orgs[i]})
			lat[i], ids[i] = time.Since(t0), a.AllocationID
			if err != nil {
				b.Error(err)
			}
		})
		measured += time.Since(began)
		took = append(took, lat...)
		done += n
		b.StopTimer()
		each(n, func(i int) {
			if _, err := c.Admin.Release(ctx, ids[i], 0); err != nil {
				b.Error(err)
			}
		})
		c.Ready("default", pool)
		b.StartTimer()
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(total)/measured.Seconds(), "allocations/s")
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	b.ReportMetric(fsyncP50(b), "fsync-p50-ms")
}

// fleet makes a pool of n gateways on hosts of 200.
func fleet(c *coordtest.Cluster, n int) {
	for i := range n / 200 {
		c.Agent(fmt.Sprintf("h%d", i), 200, coordtest.Script{})
	}
	c.Pool("default", n)
}

// organizations puts n organizations with many calls at a time.
func organizations(b *testing.B, c *coordtest.Cluster, n int) []string {
	out := make([]string, n)
	each(n, func(i int) { out[i] = c.Organizations(1)[0] })
	return out
}

// each calls fn for 0 … n-1, callers at a time.
func each(n int, fn func(i int)) { eachOf(callers, n, fn) }

// eachOf calls fn for 0 … n-1, so many at a time.
func eachOf(callers, n int, fn func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(callers, n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				fn(i)
			}
		})
	}
	wg.Wait()
}

// paced calls fn for 0 … n-1 with the moment at which the call was due, so many a second, and waits for all.
func paced(perSecond, n int, fn func(i int, due time.Time)) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var wg sync.WaitGroup
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
		for time.Now().Before(due) {
			<-tick.C
		}
		wg.Go(func() { fn(i, due) })
	}
	wg.Wait()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// fsyncP50 is the median of 200 small synced writes on the same disk, to judge the figures by.
func fsyncP50(b *testing.B) float64 {
	f, err := os.Create(filepath.Join(b.TempDir(), "fsync"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	took := make([]time.Duration, 200)
	for i := range took {
		_, _ = fmt.Fprintln(f, i)
		t0 := time.Now()
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		took[i] = time.Since(t0)
	}
	slices.Sort(took)
	return ms(took[len(took)/2])
}
