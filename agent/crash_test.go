package agent_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/failpoint"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/outputtest"
)

// process is the real agent program on the host.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	log  outputtest.Output
}

// file writes the host's agent.yaml.
func (h *host) file() string {
	h.t.Helper()
	c := h.config
	text := fmt.Sprintf("host_id: %s\ncoordinators: [%q]\ndata_dir: %s\nrun_dir: %s\ndomain: %s\naddress: %s\n"+
		"nginx:\n  listen: [%q]\n  workers: 2\ngateway:\n  program: %s\nlog:\n  level: debug\n",
		c.HostID, c.Coordinators[0], c.DataDir, c.RunDir, c.Domain, c.Address, c.Nginx.Listen[0], c.Gateway.Program)
	path := filepath.Join(filepath.Dir(c.DataDir), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// run starts the agent program; with a label it dies where that is reached.
func (h *host) run(label string) *process {
	h.t.Helper()
	p := &process{cmd: exec.Command(agentProgram, "run", "--config", h.file()), done: make(chan struct{})}
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), failpoint.Variable + "=" + label}
	p.cmd.Stderr = &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() { // ends with the process, which the cleanup kills
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	h.t.Cleanup(p.kill)
	h.t.Cleanup(func() {
		if h.t.Failed() {
			h.t.Logf("agent %s:\n%s", label, p.log.String())
		}
	})
	return p
}

// kill ends it with SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// died waits until it died of itself.
func (p *process) died(t *testing.T, label string) {
	t.Helper()
	agenttest.Wait(t, "the agent dies at "+label, func() bool {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	})
	if s, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Fatalf("it ended by itself: %s", p.cmd.ProcessState)
	}
}

func TestA4_KilledAgentIsAdoptedByTheNext(t *testing.T) {
	h := newHost(t)
	p := h.run("")
	gws := h.c.Run(3)
	for _, g := range gws {
		h.c.WaitPhase(t, g, api.PhaseReady, 1)
	}
	org := id.NewOrganization()
	epoch := h.c.Grant(gws[0], org)
	before := h.c.WaitServing(t, gws[0], epoch)
	p.kill()
	h.serves(org, gws[0], epoch) // nobody is there, and it is served

	// A gateway dies while no agent is there, and the coordinator ends another.
	if err := syscall.Kill(h.c.Report(gws[1]).PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.c.Drop(gws[2])
	bodies := len(h.c.Bodies())
	h.run("")
	h.c.WaitPhase(t, gws[2], api.PhaseGone, 1)
	for _, o := range h.c.Bodies()[bodies:] {
		if o.Host != nil && o.Host.Nginx.State != api.NginxServing {
			t.Fatalf("nginx, which serves, was reported %s by an agent that had not asked it yet", o.Host.Nginx.State)
		}
	}
	agenttest.Wait(t, "the dead gateway is back", func() bool {
		r := h.c.Report(gws[1])
		return r.Phase == api.PhaseReady && r.Restarts == 1
	})
	after := h.c.WaitServing(t, gws[0], epoch)
	if after.PID != before.PID || after.BootID != before.BootID || after.Restarts != 0 {
		t.Fatalf("the gateway was touched: before %+v, after %+v", before, after)
	}
	h.serves(org, gws[0], epoch)
	if n := len(h.gatewayPIDs()); n != 2 {
		t.Fatalf("%d gateways run", n)
	}
}

// TestKilledAtEveryStep kills the real program at the steps of an activation and of a recycling.
func TestKilledAtEveryStep(t *testing.T) {
	h := newHost(t)
	p := h.run("")
	g := h.c.Run(1)[0]
	incarnation := uint64(1)
	h.c.WaitPhase(t, g, api.PhaseReady, incarnation)
	p.kill()
	for _, label := range []string{
		"journal.append", "reconcile.activate", "reconcile.route", "nginx.route.symlink", "reconcile.verify", "journal.sync",
	} {
		p := h.run(label)
		org := id.NewOrganization()
		epoch := h.c.Grant(g, org)
		p.died(t, label)
		next := h.run("")
		h.c.WaitServing(t, g, epoch)
		h.serves(org, g, epoch)
		incarnation = h.c.Recycle(g)
		h.c.WaitPhase(t, g, api.PhaseReady, incarnation)
		if status, _ := h.get(org, "/"); status != http.StatusServiceUnavailable {
			t.Fatalf("%s: a released organization answers %d", label, status)
		}
		next.kill()
	}
	for _, label := range []string{
		"reconcile.unroute", "reconcile.deactivate", "reconcile.stop", "reconcile.wipe", "reconcile.start", "reconcile.started",
	} {
		first := h.run("")
		org := id.NewOrganization()
		epoch := h.c.Grant(g, org)
		pid := h.c.WaitServing(t, g, epoch).PID
		first.kill()
		p := h.run(label)
		incarnation = h.c.Recycle(g)
		p.died(t, label)
		next := h.run("")
		if r := h.c.WaitPhase(t, g, api.PhaseReady, incarnation); r.PID == pid {
			t.Fatalf("%s: the gateway was not recycled", label)
		}
		if status, _ := h.get(org, "/"); status != http.StatusServiceUnavailable {
			t.Fatalf("%s: a released organization answers %d", label, status)
		}
		if n := len(h.gatewayPIDs()); n != 1 {
			t.Fatalf("%s: %d gateways run", label, n)
		}
		next.kill()
	}
}

func TestSIGTERMLeavesEverythingServed(t *testing.T) {
	h := newHost(t)
	p := h.run("")
	g := h.c.Run(1)[0]
	h.c.WaitPhase(t, g, api.PhaseReady, 1)
	org := id.NewOrganization()
	epoch := h.c.Grant(g, org)
	h.c.WaitServing(t, g, epoch)
	// The level of the log changes while it runs; what needs a restart is said.
	path := h.file()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(b), "level: debug", "level: warn", 1) + "capacity: 5\n"
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	agenttest.Wait(t, "the reload", func() bool { return strings.Contains(p.log.String(), "need a restart") })
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.done
	if !p.cmd.ProcessState.Success() {
		t.Fatalf("it ended with %s", p.cmd.ProcessState)
	}
	h.serves(org, g, epoch)
}
