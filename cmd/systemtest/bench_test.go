package systemtest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// latencies are what `demiurge bench allocate -o json` prints, in milliseconds.
type latencies struct {
	Failed  int `json:"failed"`
	Latency map[string]struct {
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
	} `json:"latency_ms"`
	Errors map[string]int `json:"errors"`
}

// BenchmarkFirstByte measures what a caller sees on a host with 200 gateways: allocations at 100 a second,
// open loop, each followed by a request through nginx to the organization's host name. The pool is not
// refilled and nothing is released meanwhile: starting 100 processes a second is another measurement, and
// takes both cores by itself. It prints the medians of five such rounds, the processor time of coordinator and agent for
// each allocation with its organization, its release and the new gateway, and the resident memory of the programs after
// them.
func BenchmarkFirstByte(b *testing.B) { benchmarkFirstByte(b, shortDir(b)) }

// BenchmarkFirstByteAsInstalled is the same with the run directory in memory, where /run of an installed system
// is. What must survive stays on the disk.
func BenchmarkFirstByteAsInstalled(b *testing.B) { benchmarkFirstByte(b, memoryRun(b)) }

// memoryRun is a directory for a system with what need not survive in memory.
func memoryRun(b *testing.B) string {
	run, err := os.MkdirTemp("/dev/shm", "dm")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(run) })
	dir := shortDir(b)
	// As demiurge dev leaves a directory of its own, with the one below it elsewhere.
	if err := os.WriteFile(filepath.Join(dir, "demiurge-dev"), []byte("demiurge dev 1\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Symlink(run, filepath.Join(dir, "run")); err != nil {
		b.Fatal(err)
	}
	return dir
}

func benchmarkFirstByte(b *testing.B, dir string) {
	const gateways, allocations, rounds = 200, 190, 5
	s := start(b, setup{flavor: plain, gateways: gateways, dir: dir})
	most, none := gateways, 0
	if _, err := s.client.PutPool(b.Context(), "default", api.PutPool{MinReady: &none, Max: &most}); err != nil {
		b.Fatal(err)
	}
	var seen []latencies
	failed, used := 0, map[string]float64{}
	for range b.N {
		for range rounds {
			waitFor(b, "all gateways to be ready", func() string {
				p, err := s.client.Pool(b.Context(), "default")
				if err != nil || p.Counts.Ready != gateways {
					return fmt.Sprintf("%+v, %v", p.Counts, err)
				}
				return ""
			})
			var report latencies
			before := s.processorTime(b)
			stdout, stderr, code := s.command("bench", "allocate", "--organizations", strconv.Itoa(allocations), "--rate", "100", "--duration", "1900ms",
				"--hold", "3s", "--http", s.file.HTTP, "-o", "json")
			if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 0 {
				b.Fatalf("exit code %d, %v\n%s", code, err, stderr)
			}
			for name, after := range s.processorTime(b) {
				used[name] += after - before[name]
			}
			seen = append(seen, report)
			failed += report.Failed
		}
	}
	for name, ms := range used {
		b.ReportMetric(ms/float64(len(seen)*allocations), name+"-cpu-ms/allocation")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(failed), "failed")
	median := func(of func(latencies) float64) float64 {
		var all []float64
		for _, r := range seen {
			all = append(all, of(r))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	for name, metric := range map[string]string{"commit to first byte": "commit-first-byte", "total": "total", "activate": "activate", "route": "route", "verify": "verify"} {
		b.ReportMetric(median(func(r latencies) float64 { return r.Latency[name].P50 }), metric+"-p50-ms")
		b.ReportMetric(median(func(r latencies) float64 { return r.Latency[name].P99 }), metric+"-p99-ms")
	}
	file, err := s.read()
	if err != nil {
		b.Fatal(err)
	}
	count, sum := 0.0, 0.0
	for _, p := range file.Processes {
		switch mib := resident(b, p.PID); {
		case p.Name == "agent-1":
			b.ReportMetric(mib, "agent-RSS-MiB")
		case p.Name == "coordinator-1":
			b.ReportMetric(mib, "coordinator-RSS-MiB")
		case strings.HasPrefix(p.Name, "gateway-"):
			count, sum = count+1, sum+mib
		}
	}
	b.ReportMetric(sum/count, "gateway-RSS-MiB")
}

// processorTime is what coordinator and agent have used so far, in milliseconds.
func (s *system) processorTime(b *testing.B) map[string]float64 {
	file, err := s.read()
	if err != nil {
		b.Fatal(err)
	}
	used := map[string]float64{}
	for _, p := range file.Processes {
		if p.Name != "agent-1" && p.Name != "coordinator-1" {
			continue
		}
		stat, err := procfs.Read(p.PID)
		if err != nil {
			b.Fatal(err)
		}
		used[strings.TrimSuffix(p.Name, "-1")] += float64(stat.Used.Milliseconds())
	}
	return used
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
