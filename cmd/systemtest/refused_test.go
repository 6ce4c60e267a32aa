package systemtest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/outputtest"
)

// refusal is a program that cannot be started as it is configured.
type refusal struct {
	name    string
	program string // coordinator or agent
	change  func(t *testing.T, dir, config string) string
	words   []string // of what was wrong, and of what to do
	nobody  bool     // as a user to whom nothing belongs
}

// replace is a change of one key of a configuration.
func replace(pattern, text string) func(*testing.T, string, string) string {
	return func(t *testing.T, _, config string) string {
		t.Helper()
		out := regexp.MustCompile(pattern).ReplaceAllString(config, text)
		if out == config {
			t.Fatalf("nothing matches %s in\n%s", pattern, config)
		}
		return out
	}
}

// write is a change of a file, and not of the configuration.
func write(name, text string) func(*testing.T, string, string) string {
	return func(t *testing.T, dir, config string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(path, old, 0o600); err != nil {
				t.Error(err)
			}
		})
		return config
	}
}

// Programs that cannot work say why and what to do, and end at once. The data that they were pointed at is
// as it was: at the end it runs again.
func TestRefusedStarts(t *testing.T) {
	t.Parallel()
	s := start(t, setup{flavor: raced, gateways: 1})
	a := s.allocate(s.file.OrganizationID, "")
	s.mustServe(a)
	s.stop()

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().String()
	foreign := shortDir(t)
	for _, r := range []refusal{
		{name: "API address taken", program: "coordinator", change: replace(`(api:\n  listen: ).*`, `${1}"`+port+`"`), words: []string{port, "address already in use", "api.listen"}},
		{name: "Raft address taken", program: "coordinator", change: replace(`(raft:\n  listen: ).*`, `${1}"`+port+`"`), words: []string{port, "address already in use", "raft.listen"}},
		{name: "metrics address taken", program: "agent", change: func(_ *testing.T, _, c string) string { return c + "metrics:\n  listen: " + port + "\n" }, words: []string{port, "address already in use", "metrics.listen"}},
		{name: "another node's data", program: "coordinator", change: replace(`node_id: .*`, `node_id: coordinator-9`), words: []string{`belongs to node "coordinator-1"`, "choose another directory"}},
		{name: "another host's data", program: "agent", change: replace(`host_id: .*`, `host_id: host-9`), words: []string{`belongs to host "host-1"`, "set another data_dir"}},
		{name: "another version of the coordinator's data", program: "coordinator", change: write("coordinator/raft/VERSION", `{"format":99,"node_id":"coordinator-1"}`), words: []string{"has format 99", "run the program version that wrote it"}},
		{name: "another version of the agent's data", program: "agent", change: write("agent/VERSION", "demiurge-agent 99 host-1\n"), words: []string{"was written by another version", "run that version"}},
		{name: "a directory of something else", program: "coordinator", change: func(t *testing.T, _, c string) string {
			if err := os.MkdirAll(filepath.Join(foreign, "raft", "thesis"), 0o755); err != nil {
				t.Fatal(err)
			}
			return replace(`data_dir: .*`, "data_dir: "+foreign)(t, "", c)
		}, words: []string{"thesis", "choose an empty directory"}},
		{name: "nginx missing", program: "agent", change: replace(`binary: .*`, `binary: /nowhere/nginx`), words: []string{"cannot find nginx at /nowhere/nginx", "install nginx"}},
		{name: "gateway program missing", program: "agent", change: replace(`program: .*`, `program: /nowhere/gateway`), words: []string{"/nowhere/gateway", "install the gateway program"}},
		{name: "unknown key", program: "agent", change: replace(`capacity: .*`, "capacitty: 3"), words: []string{"capacitty", "capacity"}},
		{name: "coordinator's directory not writable", program: "coordinator", nobody: true, words: []string{"permission denied", "give it to the user"}},
		{name: "agent's directory not writable", program: "agent", nobody: true, words: []string{"permission denied", "make it writable"}},
	} {
		t.Run(r.name, func(t *testing.T) { r.try(t, s) })
	}
	t.Run("addresses of demiurge dev taken", func(t *testing.T) { devAddresses(t, s.bin, port) })

	again := start(t, setup{flavor: raced, gateways: 1, dir: s.dir})
	again.mustServe(again.allocate(a.OrganizationID, ""))
	if got, err := again.client.OrganizationAllocation(t.Context(), a.OrganizationID); err != nil || got.AllocationID != a.AllocationID || got.Epoch != a.Epoch {
		t.Errorf("the allocation is %+v, %v; it was %+v", got, err, a)
	}
}

// try starts the program and looks at how it ends.
func (r refusal) try(t *testing.T, s *system) {
	b, err := os.ReadFile(filepath.Join(s.dir, r.program+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config := string(b)
	dir := shortDir(t)
	if r.nobody {
		config = notWritable(t, dir, config)
	} else {
		config = r.change(t, s.dir, config)
	}
	path := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(s.bin, "demiurge-"+r.program), "run", "--config", path)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if r.nobody && os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	said := waitEnd(t, cmd)
	for _, w := range r.words {
		if !strings.Contains(said, w) {
			t.Errorf("it said, without %q:\n%s", w, said)
		}
	}
	if strings.Contains(said, "panic:") || strings.Contains(said, "DATA RACE") {
		t.Errorf("it said:\n%s", said)
	}
}

// waitEnd runs a program that must end by itself, with a failure.
func waitEnd(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var out outputtest.Output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends at the latest when it is killed
	defer func() { _ = cmd.Process.Kill() }()
	waitTrue(t, "the program to refuse its start", func() bool {
		select {
		case err := <-ended:
			ended <- err
			return true
		default:
			return false
		}
	})
	if err := <-ended; err == nil {
		t.Errorf("it ended well:\n%s", &out)
	}
	return out.String()
}

// notWritable moves all directories of a configuration below one that its user can read and not write.
func notWritable(t *testing.T, dir, config string) string {
	t.Helper()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(dir, "locked")
	if err := os.Mkdir(locked, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		if err := os.Chmod(locked, 0o555); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(locked, 0o755) })
	}
	return regexp.MustCompile(`(data_dir|run_dir): .*`).ReplaceAllString(config, "$1: "+locked)
}

func devAddresses(t *testing.T, bin, port string) {
	_, number, err := net.SplitHostPort(port)
	if err != nil {
		t.Fatal(err)
	}
	for flag, args := range map[string][]string{
		"--address":    {"--address", port, "--nginx-port", "0"},
		"--nginx-port": {"--address", "127.0.0.1:0", "--nginx-port", number},
	} {
		dir := filepath.Join(shortDir(t), "data")
		_, stderr, code := run(t, filepath.Join(bin, "demiurge"), nil, append([]string{"dev", "--data-dir", dir}, args...)...)
		if code != 1 || !strings.Contains(stderr, port+": another program does") || !strings.Contains(stderr, flag) {
			t.Errorf("%s: exit %d\n%s", args, code, stderr)
		}
	}
}
