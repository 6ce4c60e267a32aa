package agent_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
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
	b.ReportMetric(resident(b, p.cmd.Process.Pid), "MiB-idle")
	var took []time.Duration
	b.ResetTimer()
	for n := 0; n < b.N; {
		for _, g := range gws[:min(gateways, b.N-n)] {
			org := id.NewOrganization()
			begun := time.Now()
			epoch := h.c.Grant(g, org)
			for {
				if status, got := h.get(org, "/collab/ping"); status == 200 && got.Epoch == epoch {
					break
				}
			}
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
	slices.Sort(took)
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	b.ReportMetric(resident(b, p.cmd.Process.Pid), "MiB-after")
	agenttest.Wait(b, "no route left", func() bool { return h.c.Host().Nginx.Routes == 0 })
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
