package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/agent/syncer"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/porttest"
)

// The real programs, built once for all tests; the agent with failpoints.
var program, agentProgram string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "dm")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		program, agentProgram = filepath.Join(dir, "demiurge-gateway"), filepath.Join(dir, "demiurge-agent")
		for path, args := range map[string][]string{
			program:      {"github.com/demiurge-platform/demiurge/cmd/demiurge-gateway"},
			agentProgram: {"-tags", "failpoints", "github.com/demiurge-platform/demiurge/cmd/demiurge-agent"},
		} {
			build := exec.Command("go", append([]string{"build", "-trimpath", "-o", path}, args...)...)
			build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build has it
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "cannot build %s: %v\n%s", path, err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

const domain = "apps.example.test"

// host is a host with real parts: nginx, gateway processes, an agent in this process.
type host struct {
	t      testing.TB
	c      *agenttest.Coordinator
	config *agent.Config
	port   int
	agent  *agent.Agent
	fs     func(fsx.FS) fsx.FS
}

// newHost is a host whose nginx runs beside the agent, as its own unit does.
func newHost(t testing.TB) *host {
	t.Helper()
	h := prepareHost(t)
	h.startNginx()
	return h
}

// prepareHost is a host where nothing runs yet.
func prepareHost(t testing.TB) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm") // short: unix sockets lie below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &host{t: t, c: agenttest.NewCoordinator(t, domain), port: porttest.Free(t)}
	c := agent.DefaultConfig()
	c.HostID, c.Domain, c.Address = "host-1", domain, "127.0.0.1"
	c.Coordinators = []string{h.c.Address()}
	c.DataDir, c.RunDir = filepath.Join(dir, "data"), filepath.Join(dir, "run")
	h.c.Trust().Join(t, c.DataDir, c.HostID, time.Now())
	c.Nginx.Listen, c.Nginx.Workers = []string{fmt.Sprintf("127.0.0.1:%d", h.port)}, 2
	c.Gateway.Program = program
	c.Metrics.Listen = "127.0.0.1:0"
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	h.config = c
	t.Cleanup(h.endGateways) // runs after the agent has stopped
	return h
}

func logger() hclog.Logger {
	if os.Getenv("TEST_LOG") == "" {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: os.Stderr})
}

// start starts an agent on the host; it is stopped with the test.
func (h *host) start() {
	h.t.Helper()
	h.runWith(agent.Options{
		Timing: reconcile.Timing{HealthEvery: 100 * time.Millisecond, IdleEvery: 100 * time.Millisecond}, Sync: syncer.Timing{FullEvery: time.Second},
	})
}

// runWith is start with options; configuration, logger and file system are the host's.
func (h *host) runWith(o agent.Options) {
	h.t.Helper()
	o.Config, o.Logger, o.FS = h.config, logger(), h.fs
	a, err := agent.New(o)
	if err != nil {
		h.t.Fatal(err)
	}
	h.agent = a
	a.Start()
	h.t.Cleanup(func() {
		if h.agent == a {
			h.stop()
		}
	})
}

// stop ends the agent in order; what it runs stays.
func (h *host) stop() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	if err := h.agent.Stop(ctx); err != nil {
		h.t.Error(err)
	}
	h.agent = nil
}

// endGateways ends the processes that outlived the agent.
func (h *host) endGateways() {
	h.c.Disconnect()
	for _, pid := range h.gatewayPIDs() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	agenttest.Wait(h.t, "no gateway left", func() bool { return len(h.gatewayPIDs()) == 0 })
}

// gatewayPIDs finds the gateways of this host by their environment.
func (h *host) gatewayPIDs() []int {
	var out []int
	procs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !contains(b, "DEMIURGE_LISTEN="+h.config.RunDir+"/") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(p, "/proc/%d/environ", &pid); err == nil && !zombie(pid) {
			out = append(out, pid)
		}
	}
	return out
}

// get asks for a path of an organization's host name, as a browser would.
func (h *host) get(org id.Organization, path string) (int, api.GatewayHealth) {
	h.t.Helper()
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", h.port, path), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Host = id.Hostname(org, domain)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, api.GatewayHealth{}
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	var g api.GatewayHealth
	_ = json.Unmarshal(b, &g)
	return resp.StatusCode, g
}

// serves checks that an organization is served by that gateway at that epoch.
func (h *host) serves(org id.Organization, g id.Gateway, epoch uint64) {
	h.t.Helper()
	status, got := h.get(org, "/collab/ping")
	if status != http.StatusOK || got.GatewayID != string(g) || got.Epoch != epoch || got.OrganizationID != string(org) {
		h.t.Fatalf("status %d, %+v; want gateway %s, epoch %d, organization %s", status, got, g, epoch, org)
	}
}

func TestA7_TheStepIsDoneOnlyWhenNginxServes(t *testing.T) {
	h := newHost(t)
	h.start()
	gws := h.c.Run(3)
	for _, g := range gws {
		h.c.WaitPhase(t, g, api.PhaseReady, 1)
	}
	org := id.NewOrganization()
	if status, _ := h.get(org, "/"); status != http.StatusServiceUnavailable {
		t.Fatalf("an organization without gateway answers %d", status)
	}
	epoch := h.c.Grant(gws[0], org)
	h.c.WaitServing(t, gws[0], epoch)
	h.serves(org, gws[0], epoch)
	if got := agenttest.Names(h.c.Steps(gws[0])); got != "activate done, route done, verify done" {
		t.Fatalf("steps: %s", got)
	}
	// "Already allocated" is answered only after another look.
	h.c.Verify(api.VerifyRequest{Nonce: "n1", GatewayID: string(gws[0]), OrganizationID: string(org), Epoch: epoch})
	agenttest.Wait(t, "the answer to the question", func() bool { return len(h.c.Steps(gws[0])) == 4 })
	if s := h.c.Steps(gws[0])[3]; s.Nonce != "n1" || s.Step.State != api.StepDone {
		t.Fatalf("answer: %+v", s)
	}
	pid := h.c.Report(gws[0]).PID
	recycled := h.c.Recycle(gws[0])
	r := h.c.WaitPhase(t, gws[0], api.PhaseReady, recycled)
	if status, _ := h.get(org, "/"); status != http.StatusServiceUnavailable {
		t.Fatalf("a released organization answers %d", status)
	}
	if r.PID == pid {
		t.Fatal("the gateway was not recycled")
	}
}

func TestA10_AKilledGatewayServesTheSameEpochAgain(t *testing.T) {
	h := newHost(t)
	h.start()
	g := h.c.Run(1)[0]
	h.c.WaitPhase(t, g, api.PhaseReady, 1)
	org := id.NewOrganization()
	epoch := h.c.Grant(g, org)
	before := h.c.WaitServing(t, g, epoch)
	for range 2 {
		if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		agenttest.Wait(t, "another process serves", func() bool {
			r := h.c.Report(g)
			return r.Phase == api.PhaseServing && r.BootID != before.BootID
		})
		h.serves(org, g, epoch)
		after := h.c.Report(g)
		if after.Restarts != before.Restarts+1 || after.Epoch != epoch {
			t.Fatalf("before %+v, after %+v", before, after)
		}
		before = after
	}
	if events := h.c.Events(reconcile.EventExited); len(events) != 2 || events[0].OrganizationID != string(org) {
		t.Fatalf("events: %+v", events)
	}
}

func TestMetrics(t *testing.T) {
	h := newHost(t)
	h.start()
	g := h.c.Run(1)[0]
	h.c.WaitPhase(t, g, api.PhaseReady, 1)
	epoch := h.c.Grant(g, id.NewOrganization())
	h.c.WaitServing(t, g, epoch)
	resp, err := http.Get("http://" + h.agent.MetricsAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"demiurge_routes 1", `demiurge_nginx_generations_total{result="live"}`, `demiurge_nginx_generation{kind="live"}`,
		`demiurge_host_gateways{phase="serving"} 1`, "demiurge_agent_connected 1", "demiurge_nginx_up 1", "demiurge_nginx_generation_seconds_bucket",
		`demiurge_oauth_objects{kind="access_token"} 0`, `demiurge_oauth_expired_total{kind="code"} 0`, `demiurge_oauth_removed_total{kind="refresh_token"} 0`,
		"demiurge_tenant_sessions 0",
	} {
		if !strings.Contains(string(b), "\n"+line) {
			t.Errorf("no line %s", line)
		}
	}
}

// An agent that is told of a rotation of the CA shows a certificate of the new one before the old one counts no more.
func TestARotationOfTheCAIsFollowed(t *testing.T) {
	t.Parallel()
	h := prepareHost(t)
	h.start()
	agenttest.Wait(t, "an observation", func() bool { return h.c.Certificate() != nil })
	before := h.c.Certificate()
	h.c.Trust().Rotate(t, 20*time.Second) // the agent asks in the first half, and has the other one on a slow machine
	h.c.TellCA()
	agenttest.Wait(t, "another certificate", func() bool { return !h.c.Certificate().Equal(before) })
}
