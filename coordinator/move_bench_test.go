package coordinator_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// BenchmarkLostHost measures, with three coordinators and ten hosts, how long the organizations of a lost host are
// served by nobody: from the log entry that gives the host up until another gateway was confirmed, for each of ten
// organizations on it. Agents are scripted, so this is the coordinators' part; finding out that the host is dead
// comes before it, and nginx within it.
func BenchmarkLostHost(b *testing.B) {
	ctx := context.Background()
	s := coordtest.StartSeveral(b, 3, func(c *coordinator.Config) { c.Hosts.SilentAfter, c.Hosts.LostAfter = time.Second, time.Second })
	agents := map[string]*coordtest.Agent{}
	for i := range 10 {
		name := fmt.Sprintf("h%d", i+1)
		agents[name] = s.Agent(name, 100, coordtest.Script{})
	}
	ready, largest := 20, 400
	if _, err := s.Leader().Admin.PutPool(ctx, "default", api.PutPool{MinReady: &ready, Max: &largest, MaxInFlight: &largest}); err != nil {
		b.Fatal(err)
	}
	for range 100 {
		org := string(id.NewOrganization())
		if _, err := s.Leader().Admin.PutOrganization(ctx, org, api.PutOrganization{Name: "o"}); err != nil {
			b.Fatal(err)
		}
		if _, _, err := s.Leader().Admin.Start(ctx, api.StartAllocation{OrganizationID: org, Wait: seconds(20)}); err != nil {
			b.Fatal(err)
		}
	}
	var took []time.Duration
	b.ResetTimer()
	for i := range max(b.N, 10) {
		host := fmt.Sprintf("h%d", i%10+1)
		on, err := s.Leader().Admin.ListAllocations(ctx, client.AllocationFilter{HostID: host, Live: true})
		if err != nil {
			b.Fatal(err)
		}
		agents[host].Stop()
		coordtest.Eventually(b, "all are served elsewhere", func() bool {
			left, err := s.Leader().Admin.ListAllocations(ctx, client.AllocationFilter{Live: true})
			return err == nil && !slices.ContainsFunc(left, func(a api.Allocation) bool { return a.HostID == host || a.State != api.AllocationActive })
		})
		for _, was := range on {
			a, err := s.Leader().Admin.Allocation(ctx, was.AllocationID)
			if err != nil {
				b.Fatal(err)
			}
			last := a.Moves[len(a.Moves)-1]
			took = append(took, last.EndedAt.Sub(last.Since))
		}
		agents[host].Return()
		coordtest.Eventually(b, "the host is back", func() bool {
			h, err := s.Leader().Admin.Host(ctx, host)
			return err == nil && h.State == api.HostAlive
		})
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(took[len(took)*95/100])/1e6, "p95-ms")
	b.ReportMetric(float64(len(took)), "moves")
}
