// Package packaging holds what is installed beside the programs, and tests that it fits them.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// read returns a file of the tree.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// units lists the units by name.
func units(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../systemd/*.service")
	if err != nil || len(found) != 4 {
		t.Fatalf("found the units %v, %v", found, err)
	}
	return found
}

// The programs themselves must accept the examples, also with everything that is commented out.
func TestExamplesAreValid(t *testing.T) {
	commentedKey := regexp.MustCompile(`(?m)^( *)# ( *(?:- )?[a-z_]+:( .*)?)$`)
	bin := t.TempDir()
	for _, program := range []string{"coordinator", "agent"} {
		path := filepath.Join(bin, "demiurge-"+program)
		build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "../cmd/demiurge-"+program)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("cannot build: %v\n%s", err, out)
		}
		example := read(t, "packaging/config/"+program+".yaml")
		for what, text := range map[string]string{
			"as it is":                          example,
			"with all that is commented out in": commentedKey.ReplaceAllString(example, "$1$2"),
		} {
			file := filepath.Join(t.TempDir(), program+".yaml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			validate := exec.CommandContext(t.Context(), path, "validate", "--config", file)
			validate.Env = []string{"PATH=" + os.Getenv("PATH")}
			if out, err := validate.CombinedOutput(); err != nil {
				t.Errorf("the example of the %s is refused %s: %v\n%s", program, what, err, out)
			}
		}
	}
}

// Each of these closes a door that none of the programs needs.
var hardening = []string{
	"NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes",
	"ProtectClock=yes", "ProtectControlGroups=yes", "ProtectHostname=yes", "ProtectKernelLogs=yes",
	"ProtectKernelModules=yes", "ProtectKernelTunables=yes", "ProtectProc=invisible", "RestrictNamespaces=yes",
	"RestrictRealtime=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes", "MemoryDenyWriteExecute=yes",
	"SystemCallArchitectures=native", "SystemCallFilter=@system-service", "User=demiurge", "UMask=0077",
}

func TestUnitsAreHardened(t *testing.T) {
	for _, unit := range units(t) {
		text := strings.Split(read(t, strings.TrimPrefix(unit, "../")), "\n")
		for _, directive := range hardening {
			if !slices.Contains(text, directive) {
				t.Errorf("%s has no %s", unit, directive)
			}
		}
	}
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // a machine without systemd: the list above stands
	}
	for _, unit := range units(t) {
		// The exposure is at most 2.0; the threshold is in tenths.
		out, err := exec.CommandContext(t.Context(), tool, "security", "--offline=true", "--threshold=20", "--no-pager", unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s is too exposed: %v\n%s", unit, err, out)
		}
	}
}

// The agent's program reads /proc/sys: nginx-prepare tells one boot of the machine from another by it, and an
// nginx that is not prepared never starts.
func TestTheAgentsProgramSeesWhatItReads(t *testing.T) {
	checked := 0
	for _, unit := range units(t) {
		text := read(t, strings.TrimPrefix(unit, "../"))
		if !strings.Contains(text, "=/usr/bin/demiurge-agent ") {
			continue
		}
		checked++
		if slices.Contains(strings.Split(text, "\n"), "ProcSubset=pid") {
			t.Errorf("%s runs demiurge-agent, and ProcSubset=pid hides /proc/sys from it", unit)
		}
	}
	if checked < 3 {
		t.Errorf("%d units run demiurge-agent: this test looks in the wrong place", checked)
	}
}

// What the units are about, in the words of systemd. A change here is a change of behaviour.
func TestUnitsKeepTheirPromises(t *testing.T) {
	for unit, wanted := range map[string]map[string]string{
		"systemd/demiurge-coordinator.service": {
			"Type=notify":            "its start is over when it serves",
			"Restart=always":         "one that ended is started again",
			"WatchdogSec=30s":        "one that hangs is started again",
			"TimerSlackNSec=1ms":     "Go's watchman wakes up no more often than it has to",
			"CapabilityBoundingSet=": "it needs no capability",
			"ReadWritePaths=/var/lib/demiurge/coordinator": "it writes nowhere else",
		},
		"systemd/demiurge-agent.service": {
			"Type=notify":        "its start is over when it runs",
			"Restart=always":     "one that ended is started again",
			"WatchdogSec=30s":    "one that hangs is started again",
			"KillMode=process":   "gateways outlive a restart of the agent",
			"OOMPolicy=continue": "a gateway without memory does not end the agent and all other gateways",
			"TimerSlackNSec=1ms": "Go's watchman wakes up no more often than it has to, here and in the gateways",
			"CapabilityBoundingSet=CAP_NET_BIND_SERVICE": "nginx -t binds the ports, and nginx is seen only by equals",
		},
		"systemd/demiurge-leave.service": {
			"After=demiurge-agent.service": "a shutdown stops it before the agent",
			"RefuseManualStop=yes":         "only a shutdown stops it",
			"RemainAfterExit=yes":          "there is something to stop",
			"ExecStop=/usr/bin/demiurge-agent leave --config /etc/demiurge/agent.yaml": "the agent that ends next takes leave",
		},
		"systemd/demiurge-nginx.service": {
			"Restart=always":                "one that ended is started again",
			"Before=demiurge-agent.service": "the data plane starts first",
			"ExecStartPre=/usr/bin/demiurge-agent nginx-prepare --config /etc/demiurge/agent.yaml": "nginx starts only with a proven configuration",
			"CapabilityBoundingSet=CAP_NET_BIND_SERVICE":                                           "ports 80 and 443 are all that it needs",
			"KillMode=mixed": "workers of a dead master are ended: they hold the ports",
			`ExecStop=-/bin/sh -c 'kill -QUIT $MAINPID && exec timeout 2 tail -s 0.1 -f --pid=$MAINPID /dev/null'`: "requests may end, and open WebSockets hold nothing up",
		},
	} {
		lines := strings.Split(read(t, unit), "\n")
		for directive, why := range wanted {
			if !slices.Contains(lines, directive) {
				t.Errorf("%s has no %s: %s", unit, directive, why)
			}
		}
	}
	for _, dependency := range []string{"Requires=", "BindsTo=", "PartOf="} {
		if strings.Contains(read(t, "systemd/demiurge-leave.service"), dependency) {
			t.Errorf("demiurge-leave.service has %s: a restart of the agent would move everything", dependency)
		}
	}
	nginx := read(t, "systemd/demiurge-nginx.service")
	for _, dependency := range []string{"Requires=", "BindsTo=", "PartOf=", "After=demiurge-agent"} {
		if strings.Contains(nginx, dependency) {
			t.Errorf("demiurge-nginx.service has %s: it must start and run without an agent", dependency)
		}
	}
	if !strings.Contains(read(t, "packaging/config/agent.yaml"), "\n  data_dir: /var/lib/demiurge/nginx\n") || !strings.Contains(nginx, "-c /var/lib/demiurge/nginx/nginx.conf ") {
		t.Error("the example configuration of the agent and the unit of nginx name different directories")
	}
	if !strings.Contains(nginx, " -p ./ ") {
		t.Error("nginx would look for the routes of organizations elsewhere")
	}
}

// `make install` into an empty directory puts everything where the units look for it; `make uninstall`
// leaves the configuration alone. A copy of what is installed is enough, with empty programs.
func TestInstallAndUninstall(t *testing.T) {
	tree, dir := t.TempDir(), t.TempDir()
	for _, part := range []string{"systemd", "packaging"} {
		if err := os.CopyFS(filepath.Join(tree, part), os.DirFS(filepath.Join("..", part))); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(tree, "Makefile"), read(t, "Makefile"))
	for _, program := range []string{"demiurge", "demiurge-coordinator", "demiurge-agent", "demiurge-gateway"} {
		write(filepath.Join(tree, "bin", program), "")
	}
	run := func(target string) {
		t.Helper()
		command := exec.CommandContext(t.Context(), "make", "-s", target, "DESTDIR="+dir, "PREFIX=/opt/demiurge", "GO=true")
		command.Dir = tree
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
	}
	run("install")
	unit, err := os.ReadFile(filepath.Join(dir, "opt/demiurge/lib/systemd/system/demiurge-agent.service"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(unit), "ExecStart=/opt/demiurge/bin/demiurge-agent run") {
		t.Errorf("the installed unit does not start the installed program:\n%s", unit)
	}
	for _, path := range []string{
		"opt/demiurge/bin/demiurge", "opt/demiurge/bin/demiurge-gateway", "opt/demiurge/lib/sysusers.d/demiurge.conf",
		"opt/demiurge/lib/tmpfiles.d/demiurge.conf", "opt/demiurge/share/demiurge/prometheus/demiurge.rules.yml", "etc/demiurge/agent.yaml",
	} {
		if _, err := os.Stat(filepath.Join(dir, path)); err != nil {
			t.Errorf("not installed: %v", err)
		}
	}
	config := filepath.Join(dir, "etc/demiurge/agent.yaml")
	write(config, "# mine\n")
	run("install")
	run("uninstall")
	if text, err := os.ReadFile(config); err != nil || string(text) != "# mine\n" {
		t.Errorf("the configuration was touched: %q, %v", text, err)
	}
	err = filepath.WalkDir(filepath.Join(dir, "opt"), func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			t.Errorf("left over: %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
