package coordinator_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// BenchmarkTransfer measures a planned transfer of leadership among three coordinators on this machine: the
// longest time between two acknowledged writes around it, of a caller that asks one follower after the
// other without waiting in between.
func BenchmarkTransfer(b *testing.B) {
	for _, profile := range []string{"default", "fast"} {
		b.Run(profile, func(b *testing.B) {
			s := withProfile(b, profile)
			gaps(b, s, func(leader *coordtest.Node) {
				if _, err := leader.Admin.TransferLeadership(context.Background(), ""); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// withProfile runs three coordinators with these timers.
func withProfile(b *testing.B, profile string) *coordtest.Several {
	s := coordtest.StartSeveral(b, 3)
	for _, n := range s.Nodes {
		n.Stop()
	}
	for _, n := range s.Nodes {
		n.Config.Raft.Profile = profile
		n.Start()
	}
	s.Leader()
	return s
}

// gaps measures what change does to a caller, b.N times.
func gaps(b *testing.B, s *coordtest.Several, change func(leader *coordtest.Node)) {
	ctx, org := context.Background(), string(id.NewOrganization())
	var longest []time.Duration
	b.ResetTimer()
	for i := range b.N {
		leader := s.Leader()
		others := s.Followers()
		done := make(chan struct{})
		var changed atomic.Bool
		var gap time.Duration
		first := make(chan struct{})
		go func() { // waited for below
			defer close(done)
			last := time.Now()
			for n, more := 0, 20; more > 0; n++ {
				call, cancel := context.WithTimeout(ctx, 5*time.Second)
				_, err := others[n%len(others)].Admin.PutOrganization(call, org, api.PutOrganization{Name: fmt.Sprint(i, n)}, client.IdempotencyKey(id.Secret()))
				cancel()
				if err != nil {
					continue
				}
				now := time.Now()
				if n > 0 {
					gap = max(gap, now.Sub(last))
				} else {
					close(first)
				}
				if last = now; changed.Load() {
					more--
				}
			}
		}()
		<-first
		change(leader)
		changed.Store(true)
		<-done
		longest = append(longest, gap)
		b.StopTimer()
		s.Leader()
		b.StartTimer()
	}
	b.StopTimer()
	slices.Sort(longest)
	b.ReportMetric(ms(longest[len(longest)/2]), "p50-ms")
	b.ReportMetric(ms(longest[len(longest)*95/100]), "p95-ms")
	b.ReportMetric(fsyncP50(b), "fsync-p50-ms")
}
