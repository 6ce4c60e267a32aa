package agent_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

const goodConfig = `
host_id: host-1
coordinators: ["coordinator-1:7400", "https://coordinator-2:7400"]
domain: apps.example.test
address: 192.0.2.1
nginx:
  listen: ["0.0.0.0:80", "[::]:80"]
  listen_tls: ["0.0.0.0:443"]
  certificate_file: /etc/demiurge/tls.pem
  trusted_proxies: ["10.0.0.0/8"]
gateway:
  releases_dir: /opt/demiurge/releases
metrics:
  listen: 127.0.0.1:9464
`

func TestConfiguration(t *testing.T) {
	if _, err := config.Decode("agent.yaml", []byte(goodConfig), agent.DefaultConfig(), nil); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ old, new, want string }{
		{"host_id: host-1", "host_id: Host_1", `"host_id"`},
		{`coordinators: ["coordinator-1:7400", "https://coordinator-2:7400"]`, "coordinators: []", "there is none"},
		{"https://coordinator-2:7400", "coordinator-2", `"coordinators"`},
		{"https://coordinator-2:7400", "http://coordinator-2:7400", "agents speak TLS only"},
		{"domain: apps.example.test", "domain: apps.example.test:7480", `"domain"`},
		{"domain: apps.example.test", "domain: x; include /etc/passwd", `"domain"`},
		{"address: 192.0.2.1", "address: ''", `"address"`},
		{"address: 192.0.2.1", "capacity: 0", `"capacity"`},
		{"address: 192.0.2.1", "driver: docker", `no driver "docker"`},
		{"address: 192.0.2.1", "run_dir: /" + strings.Repeat("d", 90), "allows 107"},
		{"address: 192.0.2.1", "data_dir: /var/lib/../x", `"data_dir"`},
		{`listen: ["0.0.0.0:80", "[::]:80"]`, `listen: ["localhost:80"]`, `"nginx.listen"`},
		{`listen: ["0.0.0.0:80", "[::]:80"]`, `listen: ["0.0.0.0:0"]`, `"nginx.listen"`},
		{"certificate_file: /etc/demiurge/tls.pem", "workers: 2", `"nginx.certificate_file"`},
		{"10.0.0.0/8", "10.0.0.0", `"nginx.trusted_proxies"`},
		{`trusted_proxies: ["10.0.0.0/8"]`, "workers: -1", `"nginx.workers"`},
		{"releases_dir: /opt/demiurge/releases", "stop_grace: 1ms", `"gateway.stop_grace"`},
		{"releases_dir: /opt/demiurge/releases", "program: gateway", `"gateway.program"`},
		{"listen: 127.0.0.1:9464", "listen: '9464'", `"metrics.listen"`},
		{"metrics:", "gossip:\n  listen: :7402\nmetrics:", `"gossip.listen"`},
		{"metrics:", "gossip:\n  listen: 0.0.0.0:0\nmetrics:", `"gossip.listen"`},
		{"metrics:", "gossip:\n  advertise: host-1:7402\nmetrics:", `"gossip.advertise"`},
		{"metrics:", "gossip:\n  advertise: 0.0.0.0:7402\nmetrics:", `"gossip.advertise"`},
		{"metrics:", "gossip:\n  profile: fast\nmetrics:", `"gossip.profile"`},
		{"metrics:", "gossip:\n  allowed: [192.0.2.1]\nmetrics:", `"gossip.allowed"`},
		{"metrics:", "log:\n  level: loud\nmetrics:", `"log.level"`},
		{"metrics:", "log:\n  format: xml\nmetrics:", `"log.format"`},
		{"metrics:", "typo: 1\nmetrics:", "typo"},
	} {
		text := strings.Replace(goodConfig, tt.old, tt.new, 1)
		if text == goodConfig {
			t.Fatalf("%q is not in the sample", tt.old)
		}
		_, err := config.Decode("agent.yaml", []byte(text), agent.DefaultConfig(), nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.new, err)
		}
	}
}

// TestWhatIsInTheWayIsSaid: every one names the thing and the remedy, and leaves nothing locked.
func TestWhatIsInTheWayIsSaid(t *testing.T) {
	h := newHost(t)
	h.start()
	other := *h.config
	other.Nginx.DataDir, other.RunDir = other.DataDir+"/nginx2", other.RunDir+"2"
	fails := func(what string, c agent.Config, want ...string) {
		t.Helper()
		a, err := agent.New(agent.Options{Config: &c, Logger: logger()})
		if err == nil {
			_ = a.Stop(t.Context())
			t.Fatalf("%s: it was taken", what)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	fails("second agent", other, "another agent runs on it", "data_dir")
	h.stop()

	c := *h.config
	c.HostID = "host-2"
	fails("another host's directory", c, `belongs to host "host-1"`, "correct host_id")
	version := filepath.Join(h.config.DataDir, "VERSION")
	if err := os.WriteFile(version, []byte("demiurge-agent 99 host-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("another format", *h.config, "another version", "demiurge-agent 99")
	if err := os.WriteFile(version, []byte("demiurge-agent 1 host-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	c = *h.config
	c.DataDir = filepath.Join(file, "data")
	fails("directory that cannot be", c, "cannot make", "writable")
	c = *h.config
	c.Gateway.Program = filepath.Join(t.TempDir(), "none")
	fails("no gateway program", c, "gateway.program")
	c.Gateway.Program = file
	fails("gateway program that is none", c, "not a program")
	c = *h.config
	c.DataDir = filepath.Join(t.TempDir(), "data")
	fails("host that has not joined", c, "demiurge host join-token --host host-1", "demiurge-agent join")
	h.c.Trust().Join(t, c.DataDir, "host-2", time.Now())
	fails("certificate of another host", c, "host-2", "correct host_id")
	c.DataDir = filepath.Join(t.TempDir(), "data")
	h.c.Trust().Join(t, c.DataDir, c.HostID, time.Now())
	a, err := agent.New(agent.Options{Config: &c, Logger: logger(), Now: func() time.Time { return time.Now().Add(pki.DefaultLeafLife) }})
	if err == nil {
		_ = a.Stop(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), "has expired") || !strings.Contains(err.Error(), "demiurge-agent join") {
		t.Errorf("certificate that has expired: %v", err)
	}
	c = *h.config
	c = *h.config
	c.Nginx.Binary = "/nowhere/nginx"
	fails("no nginx", c, "cannot find nginx")
	c = *h.config
	c.Metrics.Listen = h.c.Address()
	fails("address that is taken", c, "address already in use", "metrics.listen")
	journal := filepath.Join(h.config.DataDir, "journal")
	if err := os.WriteFile(journal, []byte("something else entirely, not a journal"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("journal that is none", *h.config, "move it away")
	if err := os.Remove(journal); err != nil {
		t.Fatal(err)
	}
	h.start() // nothing of all that is left over
}

func TestAnotherDomainMakesTheHostIneligible(t *testing.T) {
	h := newHost(t)
	h.c.Domain = "other.example.test"
	h.start()
	g := h.c.Run(1)[0]
	agenttest.Wait(t, "the event", func() bool { return len(h.c.Events("host.domain_mismatch")) == 1 })
	agenttest.Wait(t, "the host's report", func() bool {
		n := h.c.Host().Nginx
		return n.State == api.NginxDown && strings.Contains(n.LastError, `"other.example.test"`)
	})
	if r := h.c.Report(g); r.Phase != "" {
		t.Fatalf("a gateway of another domain's cluster was started: %+v", r)
	}
}

func TestNginxAsAChildOfTheAgent(t *testing.T) {
	h := prepareHost(t)
	h.config.Nginx.Manage = true
	h.start()
	g := h.c.Run(1)[0]
	h.c.WaitPhase(t, g, api.PhaseReady, 1)
	h.stop()
	if status, _ := h.get("6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11", "/"); status != 0 {
		t.Fatalf("the agent's own nginx outlived it: %d", status)
	}
}

func TestCommandLine(t *testing.T) {
	h := prepareHost(t)
	path := h.file()
	run := func(args ...string) (string, error) {
		out, err := exec.Command(agentProgram, args...).CombinedOutput()
		return string(out), err
	}
	if out, err := run("validate", "--config", path); err != nil || !strings.Contains(out, "is valid") {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := run("nginx-prepare", "--config", path); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(h.config.DataDir, "nginx", "nginx.conf")); err != nil {
		t.Fatal(err)
	}
	if out, err := run("--version"); err != nil || !strings.Contains(out, "demiurge-agent") {
		t.Fatalf("%v: %s", err, out)
	}
	for _, command := range []string{"validate", "run", "nginx-prepare"} {
		if out, err := run(command, "--config", path+".none"); err == nil || !strings.Contains(out, "cannot read the configuration") {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
}
