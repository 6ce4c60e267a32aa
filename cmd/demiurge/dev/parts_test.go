package dev

import (
	"bytes"
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

	"github.com/demiurge-platform/demiurge/shared/lifecycle"
	"github.com/demiurge-platform/demiurge/shared/processors"
	"github.com/demiurge-platform/demiurge/shared/procfs"
)

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// shortDir is a directory whose path leaves room for unix sockets, whatever the test is called.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func valid() Options {
	return Options{Address: "127.0.0.1:7400", NginxPort: 7480, Gateways: 3, Hosts: 1, Coordinators: 1, Domain: "dev.localhost"}
}

func TestOptionsAreChecked(t *testing.T) {
	if err := valid().Check(); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	for name, change := range map[string]func(*Options){
		"cannot use \"7400\" as --address":               func(o *Options) { o.Address = "7400" },
		"serves loopback only":                           func(o *Options) { o.Address = "10.0.0.1:7400" },
		"cannot use \"localhost:7400\"":                  func(o *Options) { o.Address = "localhost:7400" },
		"want a port from 0 to 65535":                    func(o *Options) { o.Address = "127.0.0.1:http" },
		"cannot use -1 as --nginx-port":                  func(o *Options) { o.NginxPort = -1 },
		"cannot use 1001 as --gateways":                  func(o *Options) { o.Gateways = 1001 },
		"cannot use -1 as --hosts: want 1 to 20":         func(o *Options) { o.Hosts = -1 },
		"cannot use 21 as --hosts: want 1 to 20":         func(o *Options) { o.Hosts = 21 },
		"cannot use 7 as --coordinators: want 1, 3 or 5": func(o *Options) { o.Coordinators = 7 },
		"2 of 2 have to be there, so that it bears the loss of no more than with 1; want 1, 3 or 5":                 func(o *Options) { o.Coordinators = 2 },
		"cannot use 4 as --coordinators: 3 of 4 have to be there, so that it bears the loss of no more than with 3": func(o *Options) { o.Coordinators = 4 },
		"cannot use \"[::1]:7400\" as --address of several coordinators":                                            func(o *Options) { o.Address, o.Coordinators = "[::1]:7400", 3 },
		"cannot use \"127.255.255.254:0\" as --address of several coordinators: each takes a loopback":              func(o *Options) { o.Address, o.Coordinators = "127.255.255.254:0", 3 },
		"--domain: cannot use \"a b\" as domain":                                                                    func(o *Options) { o.Domain = "a b" },
		"--domain: cannot use \"x;\\n\" as domain":                                                                  func(o *Options) { o.Domain = "x;\n" },
	} {
		o := valid()
		change(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Check = %v, want %q", err, name)
		}
	}
}

func TestHomeRefusesWhatIsNotItsOwn(t *testing.T) {
	used := shortDir(t)
	if err := os.WriteFile(filepath.Join(used, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := shortDir(t)
	if err := os.WriteFile(filepath.Join(other, marker), []byte("demiurge dev 99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(shortDir(t), strings.Repeat("x", 80))
	odd := filepath.Join(shortDir(t), "a b;c")
	for dir, want := range map[string]string{
		used:                              "it has files that demiurge dev did not make",
		other:                             "another version of demiurge dev wrote it",
		long:                              "the system allows 107; choose one of at most",
		odd:                               "nginx wants a path of letters, digits",
		filepath.Join(used, "thesis.txt"): "cannot make the data directory",
	} {
		before, _ := os.ReadDir(used)
		h, err := openHome(dir)
		if err == nil {
			t.Fatalf("%s was taken: %v", dir, h)
		}
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--data-dir") {
			t.Errorf("%s: %v, want %q and --data-dir", dir, err, want)
		}
		if dir == long || dir == odd {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s was made, and refused", dir)
			}
		}
		if after, _ := os.ReadDir(used); len(after) != len(before) {
			t.Errorf("a refused directory was changed")
		}
	}
}

func TestHomeIsHeldByOneAndKept(t *testing.T) {
	dir := shortDir(t)
	first, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openHome(dir); err == nil || !strings.Contains(err.Error(), "another demiurge dev runs on it") {
		t.Fatalf("a second one: %v", err)
	}
	for _, path := range []string{first.devFile(), first.recordFile(), first.agentConfig(0)} {
		if err := writeFile(path, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	again, err := openHome(dir)
	if err != nil {
		t.Fatalf("again: %v", err)
	}
	defer again.close()
	for path, kept := range map[string]bool{again.devFile(): false, again.recordFile(): false, again.agentConfig(0): true} {
		if _, err := os.Stat(path); (err == nil) != kept {
			t.Errorf("%s: %v, want kept %v", path, err, kept)
		}
	}
}

func TestTemporaryHomeIsRemoved(t *testing.T) {
	t.Setenv("TMPDIR", shortDir(t))
	h, err := openHome("")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(h.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("temporary directory: %v, %v", info, err)
	}
	if err := h.close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	dir := shortDir(t)
	self := filepath.Join(dir, "demiurge")
	script(t, self, "exit 0")
	script(t, filepath.Join(dir, "demiurge-agent"), "exit 0")
	_, err := findPrograms(self)
	if err == nil || !strings.Contains(err.Error(), "cannot find demiurge-coordinator, demiurge-gateway in "+dir) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("findPrograms = %v", err)
	}
	script(t, filepath.Join(dir, "demiurge-coordinator"), "exit 0")
	script(t, filepath.Join(dir, "demiurge-gateway"), "exit 0")
	link := filepath.Join(shortDir(t), "demiurge")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	if p, err := findPrograms(link); err != nil || p.agent != filepath.Join(dir, "demiurge-agent") || !filepath.IsAbs(p.nginx) {
		t.Errorf("findPrograms through a link = %+v, %v", p, err)
	}
}

func script(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestEnvironmentOfTheProgramsIsClean(t *testing.T) {
	got := cleanEnvironment([]string{"PATH=/bin", "DEMIURGE_TOKEN=x", "DEMIURGE_API_LISTEN=y", "NOTIFY_SOCKET=z", "WATCHDOG_USEC=1", "LISTEN_FDS=1", "NGINX=3;", "HOME=/h"})
	if want := []string{"PATH=/bin", "HOME=/h"}; !slices.Equal(got, want) {
		t.Errorf("environment = %v, want %v", got, want)
	}
}

// Orphans are reaped, and the exit status of the family's own children is theirs.
func TestFamilyReapsOnlyOrphans(t *testing.T) {
	var stack lifecycle.Stack
	f := newFamily()
	if err := f.adopt(&stack); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stack.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	pidFile := filepath.Join(t.TempDir(), "pid")
	for i := range 20 {
		cmd := exec.Command("sh", "-c", fmt.Sprintf("sleep 1000 & echo $! >%s; exit %d", pidFile, i))
		child, err := f.start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the end of the child", func() bool { p, err := procfs.Read(child.PID); return err == nil && !p.Running() })
		f.reap() // sees the zombie, and must leave it
		var exit *exec.ExitError
		if err := f.wait(cmd); i > 0 && (!errors.As(err, &exit) || exit.ExitCode() != i) || i == 0 && err != nil {
			t.Fatalf("child ended with %v, want code %d", err, i)
		}
		b, err := os.ReadFile(pidFile)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		orphan, err := procfs.Read(pid)
		if err != nil || orphan.Parent != os.Getpid() {
			t.Fatalf("the orphan is %+v, want it to be a child of this process", orphan)
		}
		if !slices.Contains(orphansOf(child.PID), identityOf(orphan)) || !slices.Contains(descendants(os.Getpid()), identityOf(orphan)) {
			t.Error("the orphan is not found by its group or as a descendant")
		}
		identityOf(orphan).signal(syscall.SIGKILL)
		waitFor(t, "the orphan to be reaped", func() bool { _, err := procfs.Read(pid); return err != nil })
	}
}

// The programs have the timer slack that their units give them.
func TestTheFamilyHasTheSlackOfTheUnits(t *testing.T) {
	f := newFamily()
	cmd := exec.Command("cat", "/proc/self/timerslack_ns")
	var said strings.Builder
	cmd.Stdout = &said
	if _, err := f.start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := f.wait(cmd); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintln(processors.Slack.Nanoseconds()); said.String() != want {
		t.Errorf("the slack is %q, want %q", said.String(), want)
	}
}

// deaf is a child that does not listen to SIGTERM.
func deaf(t *testing.T, f *family) (*exec.Cmd, identity) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "trap '' TERM; echo armed; exec sleep 1000") // what is ignored stays ignored
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	child, err := f.start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd, child
}

func TestEndKillsWhatDoesNotListen(t *testing.T) {
	f := newFamily()
	cmd, child := deaf(t, f)
	find := func() []identity { return descendants(os.Getpid()) }
	hurry := make(chan struct{})
	close(hurry)
	if err := end(find, time.Hour, hurry); err != nil {
		t.Fatal(err)
	}
	if child.alive() {
		t.Error("it is alive")
	}
	_ = f.wait(cmd) // killed: the error is what was wanted
}

func TestEndWaitsForWhatIsFoundNoMore(t *testing.T) {
	f := newFamily()
	cmd, child := deaf(t, f)
	found := []identity{child}
	find := func() (now []identity) {
		now, found = found, nil // like one that ends: what it is found by goes before its files and ports
		return now
	}
	if err := end(find, 10*time.Millisecond, nil); err != nil {
		t.Fatal(err)
	}
	if child.alive() {
		t.Error("it is alive")
		child.signal(syscall.SIGKILL)
	}
	_ = f.wait(cmd) // killed: the error is what was wanted
}

func TestLeftoversAreThoseOfThisDirectory(t *testing.T) {
	dir, elsewhere := shortDir(t), shortDir(t)
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	f := newFamily()
	run := func(argv []string, env ...string) identity {
		t.Helper()
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = env
		i, err := f.start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = f.wait(cmd); close(ended) }()
		t.Cleanup(func() { i.signal(syscall.SIGKILL); <-ended })
		waitFor(t, "the program to be loaded", func() bool {
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", i.PID))
			want, _ := filepath.EvalSymlinks(argv[0])
			return err == nil && exe == want
		})
		return i
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	gateway := filepath.Join(elsewhere, "demiurge-gateway")
	if err := os.WriteFile(gateway, program, 0o755); err != nil {
		t.Fatal(err)
	}
	recorded := run([]string{sleep, "1000"})
	reused := run([]string{sleep, "1000"})
	mine := run([]string{gateway, "1000"}, "DEMIURGE_STATE_DIR="+h.path("agent", "state"))
	foreign := run([]string{gateway, "1000"}, "DEMIURGE_STATE_DIR="+h.dir+"-2/state")
	unrelated := run([]string{sleep, "1000"}, "DEMIURGE_STATE_DIR="+h.path("agent", "state"))
	err = h.writeRecord(map[string]identity{"agent-1": recorded, "nginx-1": {PID: reused.PID, Start: reused.Start - 1}})
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	if err := h.cleanLeftovers(&said); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		identity
		alive bool
	}{"recorded": {recorded, false}, "by environment": {mine, false}, "number used again": {reused, true}, "of another directory": {foreign, true}, "of another program": {unrelated, true}} {
		if c.identity.alive() != c.alive {
			t.Errorf("%s: alive is %v", name, !c.alive)
		}
	}
	if !strings.Contains(said.String(), "ending 2 processes") {
		t.Errorf("said %q", said.String())
	}
	if _, err := os.Stat(h.recordFile()); err == nil {
		t.Error("the record is still there")
	}
}

func TestKilledTemporaryRunsAreRemoved(t *testing.T) {
	t.Setenv("TMPDIR", shortDir(t))
	killed, err := openHome("")
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.lock.Close(); err != nil { // as the system does for a killed process
		t.Fatal(err)
	}
	running, err := openHome("")
	if err != nil {
		t.Fatal(err)
	}
	defer running.close()
	foreign := filepath.Join(os.TempDir(), tempPattern+"notes")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cleanTemporary(&said)
	for dir, kept := range map[string]bool{killed.dir: false, running.dir: true, foreign: true} {
		if _, err := os.Stat(dir); (err == nil) != kept {
			t.Errorf("%s: %v, want kept %v; said %q", dir, err, kept, said.String())
		}
	}
}
