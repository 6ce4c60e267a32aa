package systemtest

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkFirstByte measures what a caller sees on a host with 200 gateways: allocations at 100 a second,
// open loop, each followed by a request through nginx to the organization's host name. It also prints the
// resident memory of the programs after that load.
func BenchmarkFirstByte(b *testing.B) {
	s := start(b, setup{flavor: plain, gateways: 200})
	var report struct {
		Failed  int     `json:"failed"`
		Rate    float64 `json:"achieved_rate"`
		Latency map[string]struct {
			P50 float64 `json:"p50"`
			P99 float64 `json:"p99"`
		} `json:"latency_ms"`
		Errors map[string]int `json:"errors"`
	}
	for range b.N {
		stdout, stderr, code := s.command("bench", "allocate", "--organizations", "100", "--rate", "100", "--duration", "20s",
			"--http", s.file.HTTP, "-o", "json")
		if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 0 {
			b.Fatalf("exit code %d, %v\n%s", code, err, stderr)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(report.Rate, "allocations/s")
	b.ReportMetric(float64(report.Failed), "failed")
	for name, metric := range map[string]string{"commit to first byte": "commit-first-byte", "total": "total", "route": "route", "release": "release"} {
		b.ReportMetric(report.Latency[name].P50, metric+"-p50-ms")
		b.ReportMetric(report.Latency[name].P99, metric+"-p99-ms")
	}
	file, err := s.read()
	if err != nil {
		b.Fatal(err)
	}
	gateways, sum := 0.0, 0.0
	for _, p := range file.Processes {
		switch mib := resident(b, p.PID); {
		case p.Name == "agent-1":
			b.ReportMetric(mib, "agent-RSS-MiB")
		case p.Name == "coordinator-1":
			b.ReportMetric(mib, "coordinator-RSS-MiB")
		case strings.HasPrefix(p.Name, "gateway-"):
			gateways, sum = gateways+1, sum+mib
		}
	}
	b.ReportMetric(sum/gateways, "gateway-RSS-MiB")
}

// resident is the resident memory of a process in MiB; 0 when it has just ended.
func resident(b *testing.B, pid int) float64 {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	pages, err := strconv.Atoi(strings.Fields(string(data))[1])
	if err != nil {
		b.Fatal(err)
	}
	return float64(pages*os.Getpagesize()) / (1 << 20)
}
