package coordinator_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/failpoint"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/processors"
)

// processes are coordinators as the real program, each a process and a directory of its own.
type processes struct {
	b     *testing.B
	bin   string
	key   pki.Key // that they share
	token string
	all   []*process
}

// process is one of them.
type process struct {
	id, dir, url string
	disk         string // while this file is there, writes of the log go as it says
	cmd          *exec.Cmd
	here         bool           // it runs in this process
	admin        *client.Client // asks this one alone, and does not ask again
}

// buildCoordinator builds the program as make build does.
func buildCoordinator(b *testing.B, bin, tags string) {
	build := exec.Command("go", "build", "-trimpath", "-tags", tags, "-o", bin, "../cmd/demiurge-coordinator")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
}

// startProcesses builds the program and runs n of it as one cluster. Tags are for the build, extra is more lines
// of each one's configuration.
func startProcesses(b *testing.B, n int, tags, profile, extra string) *processes {
	p := &processes{b: b, bin: filepath.Join(b.TempDir(), "demiurge-coordinator"), key: pki.NewKey()}
	buildCoordinator(b, p.bin, tags)
	gossip := make([]string, n)
	for i := range gossip {
		gossip[i] = strconv.Quote(coordtest.FreeAddr(b))
	}
	for i := range n {
		address := coordtest.FreeAddr(b)
		c := &process{id: fmt.Sprintf("c%d", i+1), dir: b.TempDir(), url: "http://" + address}
		c.disk = filepath.Join(c.dir, "disk")
		text := fmt.Sprintf(`node_id: %s
data_dir: %s/data
domain: example.org
api: {listen: %q, plain: true, rate_limit: 1000000, rate_burst: 1000000}
cluster: {bootstrap_expect: %d, join: [%s]}
gossip: {listen: %s}
log: {level: warn}
raft: {listen: %q, profile: %s}
%s
`, c.id, c.dir, address, n, strings.Join(gossip, ", "), gossip[i], coordtest.FreeAddr(b), profile, extra)
		if err := errors.Join(
			os.WriteFile(filepath.Join(c.dir, "c.yaml"), []byte(text), 0o600),
			os.Mkdir(filepath.Join(c.dir, "data"), 0o700),
			os.WriteFile(filepath.Join(c.dir, "data", "cluster.key"), []byte(p.key.Reveal()), 0o600),
		); err != nil {
			b.Fatal(err)
		}
		p.all = append(p.all, c)
		b.Cleanup(func() {
			p.kill(c)
			if said, err := os.ReadFile(filepath.Join(c.dir, "log")); b.Failed() && err == nil {
				b.Logf("%s said last:\n%s", c.id, said[max(0, len(said)-2000):])
			}
		})
		p.start(c)
	}
	coordtest.Eventually(b, "there is a first token", func() bool {
		for _, c := range p.all {
			if data, err := os.ReadFile(filepath.Join(c.dir, "data", "admin.token")); err == nil && len(data) > 64 {
				p.token = strings.TrimSpace(string(data))
				return true
			}
		}
		return false
	})
	for _, c := range p.all {
		c.admin = p.client(-1, c)
	}
	p.leader()
	return p
}

// start runs one on its directory and addresses. What it says goes to a file beside its data.
func (p *processes) start(c *process) {
	out, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.b.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	c.cmd = exec.Command(p.bin, "run", "--config", filepath.Join(c.dir, "c.yaml"))
	c.cmd.Env = append(os.Environ(), failpoint.FullVariable+"="+c.disk)
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := processors.Start(c.cmd); err != nil { // as its unit does
		p.b.Fatal(err)
	}
}

// runHere ends one and runs it in this process instead, on its directory and addresses, until the benchmark ends.
func (p *processes) runHere(c *process) *coordinator.Coordinator {
	p.kill(c)
	cfg := coordinator.DefaultConfig()
	if _, err := config.Load(filepath.Join(c.dir, "c.yaml"), cfg, nil); err != nil {
		p.b.Fatal(err)
	}
	run, err := coordinator.New(coordinator.Options{
		Config: cfg, Logger: hclog.NewNullLogger(),
		Fence: func(reason string) { p.b.Errorf("%s fenced itself: %s", c.id, reason) },
	})
	if err != nil {
		p.b.Fatal(err)
	}
	run.Start()
	p.b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), coordtest.Patience)
		defer cancel()
		if err := run.Stop(ctx); err != nil {
			p.b.Errorf("cannot stop %s: %v", c.id, err)
		}
	})
	c.here = true
	return run
}

// kill ends one with SIGKILL and takes leave of it; one that has ended already stays ended.
func (p *processes) kill(c *process) {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	c.cmd = nil
}

// client asks these, for so long when there is no leader.
func (p *processes) client(patience time.Duration, of ...*process) *client.Client {
	var addresses []string
	for _, c := range of {
		addresses = append(addresses, c.url)
	}
	made, err := client.New(client.Options{Addresses: addresses, Token: p.token, RetryFor: patience})
	if err != nil {
		p.b.Fatal(err)
	}
	return made
}

// leader waits until all that run name the same leader and have everything that it has.
func (p *processes) leader() *process {
	p.b.Helper()
	var leader *process
	coordtest.Eventually(p.b, "one coordinator leads and the others have what it has", func() bool {
		leader = nil
		var name string
		var least, most uint64
		for _, c := range p.all {
			if c.cmd == nil && !c.here {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			st, err := c.admin.Status(ctx, client.Consistency("stale"))
			cancel()
			if err != nil || st.Leader == "" || name != "" && st.Leader != name {
				return false
			}
			name = st.Leader
			if least == 0 || st.Applied < least {
				least = st.Applied
			}
			most = max(most, st.Applied)
			if c.id == st.Leader {
				leader = c
			}
		}
		return leader != nil && most-least < 100 && p.write(leader.admin) == nil
	})
	return leader
}

// others are those that run, without one.
func (p *processes) others(than *process) []*process {
	return slices.DeleteFunc(slices.Clone(p.all), func(c *process) bool { return c == than || c.cmd == nil })
}

// write changes something durably.
func (p *processes) write(by *client.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), coordtest.Patience)
	defer cancel()
	_, err := by.PutOrganization(ctx, string(id.NewOrganization()), api.PutOrganization{Name: "written"})
	return err
}

// gone measures how long a caller that knows the other coordinators waits for its next write after the leader
// was taken away, as often as least at least. The leader comes back before the next time.
func (p *processes) gone(least int, take func(leader *process)) {
	var took []time.Duration
	for range max(p.b.N, least) {
		leader := p.leader()
		caller := p.client(0, p.others(leader)...)
		if err := p.write(caller); err != nil {
			p.b.Fatal(err)
		}
		began := time.Now()
		take(leader)
		if err := p.write(caller); err != nil {
			p.b.Fatal(err)
		}
		took = append(took, time.Since(began))
		p.kill(leader)
		_ = os.Remove(leader.disk)
		p.start(leader)
	}
	slices.Sort(took)
	p.b.ReportMetric(took[len(took)/2].Seconds(), "p50-s")
	p.b.ReportMetric(took[(len(took)*95-1)/100].Seconds(), "p95-s")
	p.b.ReportMetric(took[len(took)-1].Seconds(), "max-s")
	p.b.ReportMetric(fsyncP50(p.b), "fsync-p50-ms")
	p.b.ReportMetric(0, "ns/op")
}

// BenchmarkLeaderKilled measures, with three coordinators as the real program on this machine, the time from
// kill -9 of the one that leads to the next acknowledged write of a caller that asks the other two.
func BenchmarkLeaderKilled(b *testing.B) {
	for _, profile := range []string{"default", "fast"} {
		b.Run(profile, func(b *testing.B) {
			p := startProcesses(b, 3, "", profile, "")
			p.gone(15, func(leader *process) {
				if err := leader.cmd.Process.Kill(); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// BenchmarkLeaderStalled measures the same for a leader whose disk hangs: its log is written, and the fsync does not
// come back. It is the real program, built with failpoints.
func BenchmarkLeaderStalled(b *testing.B) {
	p := startProcesses(b, 3, "failpoints", "default", "")
	p.gone(10, func(leader *process) {
		if err := os.WriteFile(leader.disk, []byte("raft.log.fsync=1h"), 0o600); err != nil {
			b.Fatal(err)
		}
	})
}
