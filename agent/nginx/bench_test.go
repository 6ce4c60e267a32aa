package nginx

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// benchHost is a host as it is in earnest: data on a disk, the run directory in memory as /run is, and on
// the same disk only where there is no directory in memory. where() is in the benchmark's name.
func benchHost(b *testing.B) *host {
	run := memory()
	b.Setenv("DEMIURGE_TEST_DISK", "1")
	h := newHost(b)
	if run != "" {
		dir, err := os.MkdirTemp(run, "dm")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		h.opts.RunDir = dir
	}
	return h
}

func where() string {
	if memory() == "" {
		return "run=disk"
	}
	return "run=memory"
}

// percentiles reports p50 and p99 in milliseconds, and the fsync p50 of the same disk beside them.
func percentiles(b *testing.B, h *host, took []time.Duration) {
	slices.Sort(took)
	at := func(p float64) float64 { return float64(took[int(p*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(fsyncMedian(b, h.opts.DataDir), "fsync-p50-ms")
	b.ReportMetric(0, "ns/op")
}

func fsyncMedian(b *testing.B, dir string) float64 {
	f, err := os.CreateTemp(dir, "fsync")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close(); _ = os.Remove(f.Name()) }()
	var took []time.Duration
	for range 100 {
		begin := time.Now()
		if _, err := f.Write([]byte("x")); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return float64(took[50].Microseconds()) / 1000
}

// BenchmarkRouteSwitch measures Route: rename and proof through nginx.
func BenchmarkRouteSwitch(b *testing.B) {
	for _, n := range []int{100, 10000, 50000} {
		b.Run(fmt.Sprintf("routes=%d/%s", n, where()), func(b *testing.B) {
			h := benchHost(b)
			h.startNginx()
			gs := []*gateway{h.gateway(nil), h.gateway(nil)}
			e, err := Open(h.opts)
			if err != nil {
				b.Fatal(err)
			}
			keep := map[id.Organization]Target{}
			var orgs []id.Organization
			for i := range n {
				org := id.NewOrganization()
				orgs = append(orgs, org)
				keep[org] = Target{gs[0].id, id.Epoch(i + 1)}
			}
			e.Retain(keep)
			h.run(e)
			h.apply(slots(gs...))
			h.settled()
			epoch := id.Epoch(n)
			var took []time.Duration
			for b.Loop() {
				epoch++
				begin := time.Now()
				h.route(orgs[rand.IntN(n)], gs[int(epoch)%2], epoch)
				took = append(took, time.Since(begin))
			}
			percentiles(b, h, took)
		})
	}
}

// BenchmarkGeneration measures a configuration change from the first byte written to its proof.
func BenchmarkGeneration(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("slots=%d/%s", n, where()), func(b *testing.B) {
			h := benchHost(b)
			live := make(chan Event, 64)
			h.opts.Events = func(ev Event) {
				if ev.Type == GenerationLive {
					live <- ev
				}
			}
			h.startNginx()
			h.startEngine()
			var cfg Config
			for range n {
				cfg.Slots = append(cfg.Slots, Slot{Gateway: id.NewGateway()})
			}
			var took []time.Duration
			size := int64(1000)
			for i := 0; i < 100 || b.Loop(); i++ {
				size++
				next := Config{Slots: slices.Clone(cfg.Slots)}
				next.Slots[0].MaxBody = size
				h.engine.SetConfig(next)
				took = append(took, (<-live).Took)
			}
			percentiles(b, h, took)
		})
	}
}
