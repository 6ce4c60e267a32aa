package coordinator_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// BenchmarkHundredThousandGateways runs the real program with 100,000 ready gateways on 100 hosts and prints
// its resident memory.
func BenchmarkHundredThousandGateways(b *testing.B) {
	const hosts, each = 100, 1000
	dir := b.TempDir()
	bin := filepath.Join(dir, "demiurge-coordinator")
	buildCoordinator(b, bin, "")
	address := coordtest.FreeAddr(b)
	text := fmt.Sprintf("node_id: c1\ndata_dir: %s/data\ndomain: example.org\napi: {listen: %q, plain: true}\nraft: {listen: %q}\ngossip: {listen: %q}\nlog: {level: warn}\n",
		dir, address, coordtest.FreeAddr(b), coordtest.FreeAddr(b))
	if err := os.WriteFile(filepath.Join(dir, "c.yaml"), []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(bin, "run", "--config", filepath.Join(dir, "c.yaml"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })

	ctx := context.Background()
	open := func(token string) *client.Client {
		c, err := client.New(client.Options{Addresses: []string{"http://" + address}, Token: token})
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	coordtest.Eventually(b, "the coordinator is ready", func() bool { return open("").Ready(ctx) == nil })
	secret, err := os.ReadFile(filepath.Join(dir, "data", "admin.token"))
	if err != nil {
		b.Fatal(err)
	}
	admin := open(strings.TrimSpace(string(secret)))
	for i := range hosts {
		host := fmt.Sprintf("h%d", i)
		speaker := coordtest.AgentClient(b, coordtest.Join(b, admin, host, address), address)
		agent := coordtest.NewAgent(b, speaker, host, each, coordtest.Script{})
		b.Cleanup(agent.Stop)
	}
	// A pool keeps at most 10,000 ready, so it takes ten of them.
	for i := range 10 {
		size, step := 10_000, 1000
		name := fmt.Sprintf("p%d", i)
		if _, err := admin.PutPool(ctx, name, api.PutPool{MinReady: &size, Max: &size, Step: &step, MaxInFlight: &step}); err != nil {
			b.Fatal(err)
		}
		coordtest.Eventually(b, "pool "+name+" is ready", func() bool {
			p, err := admin.Pool(ctx, name)
			return err == nil && p.Counts.Ready == size
		})
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(hosts*each, "gateways")
	b.ReportMetric(rss(b, cmd.Process.Pid), "RSS-MiB")
}

// rss is the resident memory of a process in MiB.
func rss(b *testing.B, pid int) float64 { return memory(b, pid, "VmRSS:") }

// peak is the most that it ever was.
func peak(b *testing.B, pid int) float64 { return memory(b, pid, "VmHWM:") }

func memory(b *testing.B, pid int, which string) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, which); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatal("no " + which)
	return 0
}
