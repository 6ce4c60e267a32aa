package agent_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/nginx"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// BenchmarkGrantToServed measures from the frame with the grant to the answer of the gateway through nginx
// on the organization's host name, one grant after the other on a host with 200 gateways, and the agent's
// memory. The gateways are recycled when all have served.
func BenchmarkGrantToServed(b *testing.B) {
	const gateways = 200
	h := newHost(b)
	p := h.run("")
	gws := h.c.Run(gateways)
	for _, g := range gws {
		h.c.WaitPhase(b, g, api.PhaseReady, 1)
	}
	idle := resident(b, p.cmd.Process.Pid)
	var took []time.Duration
	b.ResetTimer()
	for n := 0; n < b.N; {
		for _, g := range gws[:min(gateways, b.N-n)] {
			org := id.NewOrganization()
			begun := time.Now()
			epoch := h.c.Grant(g, org)
			pollServed(h, org, epoch)
			took = append(took, time.Since(begun))
			n++
		}
		b.StopTimer()
		for _, g := range gws {
			h.c.Recycle(g)
		}
		for _, g := range gws {
			h.c.WaitPhase(b, g, api.PhaseReady, h.c.Wanted(g).Incarnation)
		}
		b.StartTimer()
	}
	b.StopTimer()
	b.ReportMetric(idle, "MiB-idle")
	steps := make(map[string][]time.Duration)
	for _, g := range gws {
		for _, s := range h.c.Steps(g) {
			steps[s.Step.Step] = append(steps[s.Step.Step], s.Step.EndedAt.Sub(s.Step.StartedAt))
		}
	}
	for name, d := range steps {
		slices.Sort(d)
		b.ReportMetric(ms(d[len(d)/2]), name+"-p50-ms")
	}
	slices.Sort(took)
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	b.ReportMetric(resident(b, p.cmd.Process.Pid), "MiB-after")
	agenttest.Wait(b, "no route left", func() bool { return h.c.Host().Nginx.Routes == 0 })
}

// BenchmarkFirstByteByRoutes measures the host's part of an allocation on a host with 200 gateways and so many
// routes: from the frame with the grant to the first byte on the organization's host name, which is asked for
// when the coordinator has the report. Grants come at 100 a second, open loop, to gateways that are ready; it
// prints the medians of five such rounds. Routes without a gateway of their own lead to the first one.
func BenchmarkFirstByteByRoutes(b *testing.B) {
	for _, routes := range []int{100, 10000} {
		b.Run(fmt.Sprintf("routes=%d", routes), func(b *testing.B) {
			const gateways, rounds = 200, 5
			h := newHost(b)
			h.runWith(agent.Options{})
			gws := h.c.Run(gateways)
			more := make(map[id.Organization]nginx.Target)
			for _, g := range gws {
				h.c.WaitPhase(b, g, api.PhaseReady, 1)
			}
			for i := range routes {
				more[id.NewOrganization()] = nginx.Target{Gateway: gws[0], Epoch: id.Epoch(1_000_000 + i)}
			}
			h.agent.AddRoutes(more)
			agenttest.Wait(b, "all routes", func() bool { return h.c.Host().Nginx.Routes == routes })
			var p50, p99 []float64
			for range b.N {
				for range rounds {
					took := h.openLoop(gws, 100)
					p50 = append(p50, ms(took[len(took)/2]))
					p99 = append(p99, ms(took[len(took)*99/100]))
					for _, g := range gws {
						h.c.Recycle(g)
					}
					for _, g := range gws {
						h.c.WaitPhase(b, g, api.PhaseReady, h.c.Wanted(g).Incarnation)
					}
				}
			}
			slices.Sort(p50)
			slices.Sort(p99)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(p50[len(p50)/2], "p50-ms")
			b.ReportMetric(p99[len(p99)/2], "p99-ms")
		})
	}
}

// openLoop grants every gateway an organization at a rate and returns how long each took, sorted.
func (h *host) openLoop(gws []id.Gateway, rate int) []time.Duration {
	took := make([]time.Duration, len(gws))
	var turns sync.WaitGroup
	begun := time.Now()
	for i, g := range gws {
		due := begun.Add(time.Duration(i) * time.Second / time.Duration(rate))
		<-time.After(time.Until(due))
		org := id.NewOrganization()
		epoch := h.c.Grant(g, org)
		turns.Go(func() {
			pollReported(h, g, epoch)
			pollServed(h, org, epoch)
			took[i] = time.Since(due)
		})
	}
	turns.Wait()
	slices.Sort(took)
	return took
}

// pollReported waits until the coordinator knows that the gateway serves.
func pollReported(h *host, g id.Gateway, epoch uint64) {
	for h.c.Report(g).Epoch != epoch {
		time.Sleep(200 * time.Microsecond)
	}
}

// pollServed asks until the gateway answers. The parts that are measured need the processor as well, so it
// asks not too often.
func pollServed(h *host, org id.Organization, epoch uint64) {
	for {
		if status, got := h.get(org, "/collab/ping"); status == 200 && got.Epoch == epoch {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// resident is the memory of a process in MiB.
func resident(b *testing.B, pid int) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, l := range strings.Split(string(status), "\n") {
		if rest, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			var kib float64
			if _, err := fmt.Sscanf(rest, "%g kB", &kib); err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatal("no resident size")
	return 0
}
