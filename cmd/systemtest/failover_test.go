package systemtest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// cluster is a system of several coordinators and hosts, and what it has to keep.
type cluster struct {
	*system
	held []api.Allocation
}

func (c *cluster) on(t *testing.T) *cluster { return &cluster{c.system.on(t), c.held} }

// Three coordinators and two hosts, as one command starts them, with which somebody tries what happens when one of
// them fails.
func TestSeveralCoordinatorsAndHosts(t *testing.T) {
	t.Parallel()
	temp := shortDir(t)
	c := &cluster{system: start(t, setup{flavor: raced, gateways: 2, env: []string{"TMPDIR=" + temp}, args: []string{"--coordinators", "3", "--hosts", "2"}})}
	if f := c.file; len(f.Servers) != 3 || len(f.Hosts) != 2 || f.Servers[0] != f.API || f.Hosts[0].HTTP != f.HTTP || f.DNS == "" {
		t.Fatalf("dev.json = %+v", f)
	}
	for _, org := range append(c.organizations(2), c.file.OrganizationID) {
		wait := api.Duration(patience)
		a, _, err := c.client.Start(t.Context(), api.StartAllocation{OrganizationID: org, Wait: &wait})
		if err != nil {
			t.Fatal(err)
		}
		c.held = append(c.held, a)
	}
	t.Run("organizations are served at the told place", func(t *testing.T) { c.on(t).served() })
	t.Run("the leader is killed", func(t *testing.T) { c.on(t).leaderKilled() })
	t.Run("an agent is killed", func(t *testing.T) { c.on(t).agentKilled() })
	t.Run("a machine is copied", func(t *testing.T) { c.on(t).copied() })
	t.Run("a host is lost and comes back", func(t *testing.T) { c.on(t).hostLost() })
	t.Run("what the README says", func(t *testing.T) { c.on(t).readme() })
	t.Run("it ends and starts again, with another host", func(t *testing.T) { c.on(t).again(temp) })
}

// served looks for each organization on its host and on the other one, and for its name in the DNS.
func (c *cluster) served() {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, c.file.DNS)
	}}
	for _, a := range c.held {
		c.mustServe(a)
		for _, h := range c.file.Hosts {
			if got, err := c.getAt(h.HTTP, a.OrganizationID, "/"); h.HostID != a.HostID && (err != nil || got.status != http.StatusServiceUnavailable) {
				c.t.Errorf("%s is on %s, and %s answers %+v, %v", a.OrganizationID, a.HostID, h.HostID, got, err)
			}
		}
		want, _, _ := net.SplitHostPort(strings.TrimPrefix(c.at(a.HostID), "http://"))
		waitFor(c.t, "the name of "+a.OrganizationID, func() string {
			got, err := resolver.LookupHost(c.t.Context(), c.host(a.OrganizationID)+".")
			if err != nil || !slices.Equal(got, []string{want}) {
				return fmt.Sprintf("%v, %v; want %s", got, err, want)
			}
			return ""
		})
	}
}

func (c *cluster) leaderKilled() {
	status, err := c.client.Status(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	before := c.pid(status.Leader)
	c.kill(before)
	org := c.organizations(1)[0] // a write, as soon as somebody leads
	c.stay()
	if now := c.pid(status.Leader); now == before {
		c.t.Errorf("%s was not started again", status.Leader)
	}
	if _, err := c.client.Organization(c.t.Context(), org); err != nil {
		c.t.Errorf("what was written after the leader's end: %v", err)
	}
}

func (c *cluster) agentKilled() {
	before := c.pid("agent-2")
	c.kill(before)
	c.stay()
	if now := c.pid("agent-2"); now == before {
		c.t.Error("agent-2 was not started again")
	}
}

// hostLost stops an agent for a while, which nobody starts again: what its host serves goes to the other one.
func (c *cluster) hostLost() {
	was := c.held[0]
	agent := c.pid("agent-" + strings.TrimPrefix(was.HostID, "host-"))
	if err := syscall.Kill(agent, syscall.SIGSTOP); err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(agent, syscall.SIGCONT) }()
	waitFor(c.t, "the organizations to move", func() string {
		for _, held := range c.held {
			a, err := c.client.Allocation(c.t.Context(), held.AllocationID)
			if err != nil || a.State != api.AllocationActive || a.HostID == was.HostID || held.HostID == was.HostID && a.Epoch <= held.Epoch {
				return fmt.Sprintf("%+v, %v", a, err)
			}
			if m := c.unserved(a); m != "" {
				return m
			}
		}
		return ""
	})
	if out, _, _ := c.command("status"); !strings.Contains(out, "host "+was.HostID+": lost") {
		c.t.Errorf("the status does not tell that %s is lost:\n%s", was.HostID, out)
	}
	if err := syscall.Kill(agent, syscall.SIGCONT); err != nil {
		c.t.Fatal(err)
	}
	waitFor(c.t, "the system to be whole", c.intact)
}

var (
	leaderLine = regexp.MustCompile(`kill -STOP ([0-9]+) +# coordinator-`)
	agentLine  = regexp.MustCompile(`kill -STOP ([0-9]+) +# agent-`)
)

// readme runs the commands that the README gives for this, with the process numbers that were printed. Those that
// were killed meanwhile have others now.
func (c *cluster) readme() {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		c.t.Fatal(err)
	}
	_, block, found := strings.Cut(string(text), "\nLEADER=… AGENT=…\n")
	block, _, whole := strings.Cut(block, "```")
	if !found || !whole || strings.Count(block, "\n") < 8 {
		c.t.Fatal("the README has no commands for this")
	}
	for name, line := range map[string]*regexp.Regexp{"LEADER": leaderLine, "AGENT": agentLine} {
		if !line.MatchString(c.out.String()) {
			c.t.Errorf("the process number for %s was not printed:\n%s", name, c.out)
		}
	}
	status, err := c.client.Status(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	leader, agent := c.pid(status.Leader), c.pid("agent-2")
	defer func() { // also when it breaks off between the two
		for _, pid := range []int{leader, agent} {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}()
	stdout, stderr, code := run(c.t, "/bin/sh", []string{
		"PATH=" + c.bin + ":" + os.Getenv("PATH"), "DEMIURGE_ADDR=" + strings.Join(c.file.Servers, ","), "DEMIURGE_TOKEN=" + c.file.Token,
		"ORG=" + c.file.OrganizationID, fmt.Sprint("LEADER=", leader), fmt.Sprint("AGENT=", agent),
	}, "-e", "-c", block)
	if code != 0 || strings.Count(stdout, "active") < 2 || !strings.Contains(stdout, "Other") {
		c.t.Fatalf("exit %d\n%s%s", code, stdout, stderr)
	}
	waitFor(c.t, "the system to be whole", c.intact)
	if c.pid("agent-2") == agent || c.pid(status.Leader) == leader {
		c.t.Error("what was killed runs on")
	}
}

// again ends the system as a terminal does, and looks at what can be started on its directory.
func (c *cluster) again(temp string) {
	if err := c.cmd.Process.Signal(syscall.SIGINT); err != nil {
		c.t.Fatal(err)
	}
	waitTrue(c.t, "the end", func() bool {
		select {
		case <-c.ended:
			return true
		default:
			return false
		}
	})
	c.stop() // looks for processes
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		c.t.Errorf("files are left elsewhere: %v, %v", left, err)
	}
	for option, want := range map[string]string{"--coordinators": "cannot run 1 coordinator on", "--hosts": "cannot run 1 host on"} {
		_, stderr, code := run(c.t, filepath.Join(c.bin, "demiurge"), nil, "dev", "--data-dir", c.dir, option, "1")
		if code != 1 || !strings.Contains(stderr, want) || !strings.Contains(stderr, "leave "+option+" out") {
			c.t.Errorf("%s 1: exit %d\n%s", option, code, stderr)
		}
	}
	next := &cluster{start(c.t, setup{flavor: raced, gateways: 2, dir: c.dir, args: []string{"--hosts", "3"}}), c.held}
	if f := next.file; len(f.Servers) != 3 || len(f.Hosts) != 3 || !slices.Equal(f.Servers, c.file.Servers) || !slices.Equal(f.Hosts[:2], c.file.Hosts) {
		c.t.Errorf("dev.json = %+v, before %+v", f, c.file)
	}
	next.stay()
}

// intact says what is wrong with the system or with what it has to keep, or "".
func (c *cluster) intact() string {
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	status, err := c.client.Status(ctx)
	if err != nil {
		return err.Error()
	}
	if !status.Healthy || len(status.Problems) > 0 || len(status.Peers) != len(c.file.Servers) || len(status.Hosts) != len(c.file.Hosts) {
		return fmt.Sprintf("the status is %+v", status)
	}
	live, err := c.client.ListAllocations(ctx, client.AllocationFilter{Live: true})
	if err != nil {
		return err.Error()
	}
	if len(live) != len(c.held) {
		return fmt.Sprintf("%d of %d allocations are there", len(live), len(c.held))
	}
	for i, was := range c.held {
		n := slices.IndexFunc(live, func(a api.Allocation) bool { return a.AllocationID == was.AllocationID })
		if n < 0 || live[n].State != api.AllocationActive {
			return fmt.Sprintf("allocation %+v is %+v", was, live)
		}
		if m := c.unserved(live[n]); m != "" {
			return m
		}
		c.held[i] = live[n]
	}
	return ""
}

// stay waits until all is well and fails the test when anything of the allocations changed.
func (c *cluster) stay() {
	c.t.Helper()
	before := slices.Clone(c.held)
	waitFor(c.t, "the system to be whole", c.intact)
	for i, now := range c.held {
		if was := before[i]; now.GatewayID != was.GatewayID || now.Epoch != was.Epoch {
			c.t.Errorf("the allocation %+v became %+v", was, now)
		}
	}
}
