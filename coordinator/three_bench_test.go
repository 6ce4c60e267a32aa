package coordinator_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// BenchmarkThreeCoordinators measures durable allocate calls with three coordinators: every entry is synced by a
// majority, over mutual TLS on loopback. The two that follow are the real program, each a process. The one that leads
// runs in this process, with callers and scripted hosts that call it without HTTP, and their work is on the same cores.
// "most" is as many as 256 callers get, "at1000" is an open loop: 1,000 calls a second are made however slowly the
// answers come, and a latency counts from the moment at which the call was due; late-p99-ms is the part of it that
// passed before the call was made at all, for want of a processor. Of the processors others on the same machine had stolen-%; quiet-p99-ms is
// of the calls that were due while they had next to nothing, which quiet-% of all were.
func BenchmarkThreeCoordinators(b *testing.B) {
	b.Run("most", func(b *testing.B) {
		c := newThree(b)
		c.calls(func(n int, start func(int, time.Time)) {
			eachOf(256, n, func(i int) { start(i, time.Now()) })
		})
		b.ReportMetric(float64(c.made)/c.measured.Seconds(), "allocations/s")
	})
	b.Run("at1000", func(b *testing.B) {
		newThree(b).calls(func(n int, start func(int, time.Time)) { paced(1000, n, start) })
	})
}

// three is three coordinators and hosts of 200 gateways.
type three struct {
	b        *testing.B
	run      *coordinator.Coordinator // the one that leads
	admin    *client.Client           // asks it
	orgs     []id.Organization
	made     int // calls
	measured time.Duration
}

const threePool = 4000

func newThree(b *testing.B) *three {
	runtime.GOMAXPROCS(max(coordinator.LeastProcessors, runtime.NumCPU())) // set back by package testing
	p := startProcesses(b, 3, "", "default", "")
	first := p.all[0]
	c := &three{b: b, run: p.runHere(first), admin: first.admin}
	if p.leader() != first {
		if _, err := c.admin.TransferLeadership(context.Background(), first.id); err != nil {
			b.Fatal(err)
		}
	}
	coordtest.Eventually(b, "the coordinator in this process leads", func() bool {
		st, err := c.admin.Status(context.Background())
		return err == nil && st.Leader == first.id && p.write(c.admin) == nil
	})
	for i := range threePool / 200 {
		a := coordtest.NewAgent(b, inProcess{c.run}, fmt.Sprintf("h%d", i), 200, coordtest.Script{})
		b.Cleanup(a.Stop)
	}
	size, inFlight := threePool, 1000
	if _, err := c.admin.PutPool(context.Background(), "default", api.PutPool{MinReady: &size, Max: &size, MaxInFlight: &inFlight}); err != nil {
		b.Fatal(err)
	}
	c.ready()
	c.orgs = make([]id.Organization, threePool)
	eachOf(callers, threePool, func(i int) {
		c.orgs[i] = id.NewOrganization()
		if _, err := c.admin.PutOrganization(context.Background(), string(c.orgs[i]), api.PutOrganization{Name: "o"}); err != nil {
			b.Error(err)
		}
	})
	return c
}

func (c *three) ready() {
	coordtest.Eventually(c.b, "the pool is ready", func() bool {
		p, err := c.admin.Pool(context.Background(), "default")
		return err == nil && p.Counts.Ready == threePool
	})
}

// calls makes b.N calls, 20,000 at least, and at most one for each organization before all are released.
func (c *three) calls(each func(n int, start func(i int, due time.Time))) {
	b, ctx := c.b, context.Background()
	runner := c.run.Runner()
	var took, late, quiet []time.Duration
	var others processorTime
	b.ResetTimer()
	c.made = max(b.N, 20_000)
	for done := 0; done < c.made; {
		n := min(threePool, c.made-done)
		lat, ids, waited := make([]time.Duration, n), make([]id.Allocation, n), make([]time.Duration, n)
		at := make([]time.Time, n)
		beside := &neighbours{b: b}
		end := beside.watch()
		began := time.Now()
		each(n, func(i int, due time.Time) {
			at[i], waited[i] = due, time.Since(due)
			res, err := runner.Start(ctx, allocator.StartRequest{Organization: c.orgs[i], Pool: "default"})
			lat[i], ids[i] = time.Since(due), res.Allocation
			if err != nil {
				b.Error(err)
			}
		})
		c.measured += time.Since(began)
		end()
		for i, due := range at {
			if beside.quiet(due) {
				quiet = append(quiet, lat[i])
			}
		}
		others.stolen, others.all = others.stolen+beside.sum.stolen, others.all+beside.sum.all
		took, late, done = append(took, lat...), append(late, waited...), done+n
		b.StopTimer()
		eachOf(256, n, func(i int) {
			if err := runner.Release(ctx, allocator.ReleaseRequest{Allocation: ids[i]}); err != nil {
				b.Error(err)
			}
		})
		c.ready()
		b.StartTimer()
	}
	b.StopTimer()
	slices.Sort(took)
	slices.Sort(late)
	p50, p99 := c.run.LogWrites()
	b.ReportMetric(ms(p50), "log-write-p50-ms")
	b.ReportMetric(ms(p99), "log-write-p99-ms")
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	b.ReportMetric(ms(late[len(late)*99/100]), "late-p99-ms")
	b.ReportMetric(100*others.stolen/others.all, "stolen-%")
	if len(quiet) > 0 {
		slices.Sort(quiet)
		b.ReportMetric(ms(quiet[len(quiet)*99/100]), "quiet-p99-ms")
	}
	b.ReportMetric(100*float64(len(quiet))/float64(len(took)), "quiet-%")
	b.ReportMetric(fsyncP50(b), "fsync-p50-ms")
	b.ReportMetric(0, "ns/op")
}

// inProcess is a coordinator as agents in the same process call it.
type inProcess struct{ run *coordinator.Coordinator }

// AgentStream implements coordtest.Coordinator.
func (p inProcess) AgentStream(ctx context.Context, host, instance string, fn func(api.AssignmentFrame) error) error {
	return p.run.Receiver().Stream(ctx, id.Host(host), instance, "in-process", fn)
}

// Observe implements coordtest.Coordinator.
func (p inProcess) Observe(ctx context.Context, in api.Observation, _ ...client.CallOption) (api.Observed, error) {
	index, err := p.run.Receiver().Observe(ctx, id.Host(in.HostID), in)
	return api.Observed{Index: index}, err
}
