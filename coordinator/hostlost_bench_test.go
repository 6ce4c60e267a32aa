package coordinator_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// BenchmarkHostLost measures, with three coordinators and ten hosts on this machine, the time from the death of
// a host (its gossip ends, its connection stays open and silent) to the entry that says so.
func BenchmarkHostLost(b *testing.B) {
	const hosts = 10
	s := coordtest.StartSeveral(b, 3)
	agents := make([]*coordtest.Agent, hosts)
	for i := range agents {
		agents[i] = s.Agent(fmt.Sprintf("h%d", i+1), 10, coordtest.Script{})
		agents[i].EnterGossip(s.Cluster())
	}
	ctx, leader := context.Background(), s.Leader()
	await := func(host, state string) {
		coordtest.Eventually(b, host+" is "+state, func() bool {
			h, err := leader.Admin.Host(ctx, host)
			return err == nil && h.State == state
		})
	}
	var took []time.Duration
	b.ResetTimer()
	for i := range max(b.N, 2*hosts) {
		b.StopTimer()
		host, a := fmt.Sprintf("h%d", i%hosts+1), agents[i%hosts]
		await(host, api.HostAlive)
		coordtest.Eventually(b, "all are in the gossip", func() bool {
			for k := range agents {
				h, err := leader.Admin.Host(ctx, fmt.Sprintf("h%d", k+1))
				if err != nil || h.Member == nil || h.Member.Status != "alive" || h.State != api.HostAlive {
					return false
				}
			}
			return true
		})
		b.StartTimer()
		began := time.Now()
		a.Die()
		await(host, api.HostLost)
		took = append(took, time.Since(began))
		b.StopTimer()
		a.Thaw()
		a.EnterGossip(s.Cluster())
		b.StartTimer()
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds(), "p50-s")
	b.ReportMetric(took[(len(took)*95-1)/100].Seconds(), "p95-s")
	b.ReportMetric(took[len(took)-1].Seconds(), "max-s")
	b.ReportMetric(float64(fsyncTime(b).Microseconds())/1000, "fsync-p50-ms")
	b.ReportMetric(0, "ns/op")
}

// fsyncTime is the median of an fsync of a few bytes on the disk of the test.
func fsyncTime(b *testing.B) time.Duration {
	f, err := os.Create(filepath.Join(b.TempDir(), "x"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var took []time.Duration
	for range 100 {
		began := time.Now()
		if _, err := f.WriteString("x"); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2]
}
