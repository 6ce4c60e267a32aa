package drivertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/procfs"
	"golang.org/x/sys/unix"
)

// patience is how long a condition may take on a busy machine.
const patience = 60 * time.Second

// Run is the suite. A driver's tests call O1, O2 and O6 beside it, each from a test of that name.
func Run(t *testing.T, factory Factory) {
	for _, tt := range []struct {
		name string
		test func(*host)
	}{
		{"what the program is given", given},
		{"stop escalates when SIGTERM is ignored", escalates},
		{"stop ends grandchildren", endsGrandchildren},
		{"a crash ends grandchildren", crashEndsGrandchildren},
		{"stop can be repeated", stopRepeats},
		{"a cancelled stop says so and kills nothing", stopCancelled},
		{"a cancelled wait leaves the process alone", waitCancelled},
		{"adopted after its agent is gone", adopted},
		{"an adopted process that ignores SIGTERM is ended", adoptedStubborn},
		{"another process of the same number is not mistaken", reuse},
		{"gone processes are not adopted", goneIsGone},
		{"list finds what no journal knows", listed},
		{"list leaves alone what runs elsewhere with the same paths", elsewhere},
		{"list finds what a gateway left behind", orphans},
		{"missing program", missing},
		{"wrong specification", wrongSpec},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(newHost(t, factory))
		})
	}
}

// host is a driver on a directory of its own.
type host struct {
	*testing.T
	driver.Driver
	ctx     context.Context
	factory Factory
	dir     string
}

func newHost(t *testing.T, factory Factory) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	d, err := factory(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{T: t, Driver: d, ctx: ctx, factory: factory, dir: dir}
	t.Cleanup(func() {
		cancel()
		left, err := d.List(context.Background())
		if err != nil {
			t.Error(err)
		}
		for _, p := range left {
			if err := d.Stop(context.Background(), p, 0); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return h
}

// spec is a gateway that is one of the programs.
func (h *host) spec(mode string, args ...string) driver.Spec {
	h.Helper()
	exe, err := os.Executable()
	h.check(err)
	gw := id.NewGateway()
	return driver.Spec{
		Gateway: gw, Program: exe, Args: args, Env: []string{envMode + "=" + mode},
		Listen: filepath.Join(h.dir, string(gw)+".sock"), Control: filepath.Join(h.dir, string(gw)+"-c.sock"),
		StateDir: filepath.Join(h.dir, "state", string(gw)), LogFile: filepath.Join(h.dir, "log", string(gw)+".log"),
	}
}

func (h *host) check(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *host) start(spec driver.Spec) driver.Process {
	h.Helper()
	p, err := h.Start(h.ctx, spec)
	h.check(err)
	if p.Gateway != spec.Gateway || p.PID <= 0 || p.StartTime == 0 || p.MachineBoot == "" {
		h.Fatalf("process is not identified: %+v", p)
	}
	return p
}

// ready waits until the program has said so n times.
func (h *host) ready(spec driver.Spec, n int) {
	h.Helper()
	h.until("the program to be ready", func() bool { return strings.Count(h.log(spec), "ready\n") == n })
}

func (h *host) log(spec driver.Spec) string {
	b, err := os.ReadFile(spec.LogFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.Fatal(err)
	}
	return string(b)
}

func (h *host) until(what string, cond func() bool) {
	h.Helper()
	for !cond() {
		if h.ctx.Err() != nil {
			h.Fatalf("waited too long for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// running reports whether a process runs; a zombie does not.
func running(pid int) bool {
	s, err := procfs.Read(pid)
	return err == nil && s.Running()
}

func (h *host) wait(p driver.Process) driver.Exit {
	h.Helper()
	exit, err := h.Wait(h.ctx, p)
	h.check(err)
	return exit
}

// leave starts a gateway from a process that goes away, as an agent does that is upgraded or dies.
func (h *host) leave(spec driver.Spec) driver.Process {
	h.Helper()
	in, err := json.Marshal(spec)
	h.check(err)
	exe, err := os.Executable()
	h.check(err)
	agent := exec.CommandContext(h.ctx, exe)
	agent.Env = append(os.Environ(), envMode+"="+modeAgent, envRunDir+"="+h.dir)
	agent.Stdin = bytes.NewReader(in)
	agent.Stderr = os.Stderr
	out, err := agent.Output()
	h.check(err)
	var p driver.Process
	h.check(json.Unmarshal(out, &p))
	return p
}

// O1 shows that a clean exit and a crash are told apart, and that both are told: what starts a gateway
// again needs to hear of each.
func O1(t *testing.T, factory Factory) {
	tests := []struct {
		name, mode string
		args       []string
		want       driver.Exit
		clean      bool
	}{
		{"clean exit", modeExit, []string{"0"}, driver.Exit{Known: true}, true},
		{"exit with a code", modeExit, []string{"7"}, driver.Exit{Known: true, Code: 7}, false},
		{"crash", modeCrash, nil, driver.Exit{Known: true, Code: -1, Signal: "SIGKILL"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, factory)
			spec := h.spec(tt.mode, tt.args...)
			p := h.start(spec)
			if got := h.wait(p); got != tt.want || got.Clean() != tt.clean {
				t.Errorf("exit = %+v (clean %v), want %+v", got, got.Clean(), tt.want)
			}
			if got := h.wait(p); got != tt.want {
				t.Errorf("asked again: %+v, want %+v", got, tt.want)
			}
			if got := h.log(spec); got != "last words\n" {
				t.Errorf("log = %q", got)
			}
			if err := h.Adopt(h.ctx, p); !errors.Is(err, driver.ErrGone) {
				t.Errorf("Adopt = %v, want ErrGone", err)
			}
		})
	}
}

// O2 shows that SIGTERM reaches the gateway's own process and that it has its time to save.
func O2(t *testing.T, factory Factory) {
	h := newHost(t, factory)
	spec := h.spec(modeServe)
	p := h.start(spec)
	h.ready(spec, 1)
	h.check(h.Stop(h.ctx, p, patience))
	if b, err := os.ReadFile(filepath.Join(spec.StateDir, "saved")); err != nil || string(b) != "saved" {
		t.Errorf("the gateway had no final save: %q, %v", b, err)
	}
	if got := h.wait(p); !got.Clean() {
		t.Errorf("exit = %+v, want a clean one", got)
	}
}

// O6 shows that the last words of a process that died are still there after its restart.
func O6(t *testing.T, factory Factory) {
	h := newHost(t, factory)
	spec := h.spec(modeCrash)
	for range 3 {
		h.wait(h.start(spec))
	}
	spec.Env = []string{envMode + "=" + modeServe}
	h.start(spec)
	h.ready(spec, 1)
	if got, want := h.log(spec), strings.Repeat("last words\n", 3)+"ready\n"; got != want {
		t.Errorf("log = %q, want %q", got, want)
	}
}

func given(h *host) {
	// A descriptor that this process would hand on to every program it starts.
	leak, err := unix.Open(os.DevNull, unix.O_RDONLY, 0)
	h.check(err)
	defer func() { _ = unix.Close(leak) }()
	h.check(os.Setenv("DRIVERTEST_SECRET", "of the agent"))

	spec := h.spec(modeDescribe, "--flag", "value")
	spec.Env = append(spec.Env, "EXTRA=1")
	p := h.start(spec)
	h.ready(spec, 1)
	b, err := os.ReadFile(filepath.Join(spec.StateDir, "description"))
	h.check(err)
	var d Description
	h.check(json.Unmarshal(b, &d))
	if d.PID != p.PID || d.Session != p.PID {
		h.Errorf("process %d in session %d, want both to be %d", d.PID, d.Session, p.PID)
	}
	if d.Dir != spec.StateDir || !slices.Equal(d.Args, spec.Args) {
		h.Errorf("in %s with %q, want %s with %q", d.Dir, d.Args, spec.StateDir, spec.Args)
	}
	for _, want := range []string{
		"EXTRA=1", driver.EnvGateway + "=" + string(spec.Gateway), driver.EnvListen + "=" + spec.Listen,
		driver.EnvControl + "=" + spec.Control, driver.EnvStateDir + "=" + spec.StateDir,
	} {
		if !slices.Contains(d.Env, want) {
			h.Errorf("environment %q lacks %q", d.Env, want)
		}
	}
	if slices.ContainsFunc(d.Env, func(kv string) bool { return strings.HasPrefix(kv, "DRIVERTEST_SECRET=") }) {
		h.Error("the agent's environment was handed on")
	}
	if len(d.Inherited) > 0 {
		h.Errorf("descriptors were handed on: %q", d.Inherited)
	}
	if info, err := os.Stat(spec.LogFile); err != nil || info.Mode().Perm()&0o077 != 0 {
		h.Errorf("the log can be read by others: %v, %v", info.Mode(), err)
	}
}

func escalates(h *host) {
	spec := h.spec(modeStubborn)
	p := h.start(spec)
	h.ready(spec, 1)
	h.check(h.Stop(h.ctx, p, 50*time.Millisecond))
	if running(p.PID) {
		h.Error("still running")
	}
	if got, want := h.wait(p), (driver.Exit{Known: true, Code: -1, Signal: "SIGKILL"}); got != want {
		h.Errorf("exit = %+v, want %+v", got, want)
	}
}

// children reads what modeFamily wrote down.
func (h *host) children(spec driver.Spec) []int {
	h.Helper()
	b, err := os.ReadFile(filepath.Join(spec.StateDir, "children"))
	h.check(err)
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(field)
		h.check(err)
		if !running(pid) {
			h.Fatalf("child %d does not run", pid)
		}
		pids = append(pids, pid)
	}
	if len(pids) != 2 {
		h.Fatalf("children = %v", pids)
	}
	return pids
}

func endsGrandchildren(h *host) {
	spec := h.spec(modeFamily)
	p := h.start(spec)
	h.ready(spec, 1)
	pids := h.children(spec)
	h.check(h.Stop(h.ctx, p, patience))
	for _, pid := range append(pids, p.PID) {
		if running(pid) {
			h.Errorf("process %d still runs", pid)
		}
	}
	if got := h.wait(p); !got.Clean() {
		h.Errorf("exit = %+v: it was not left to end by itself", got)
	}
}

func crashEndsGrandchildren(h *host) {
	spec := h.spec(modeFamily)
	p := h.start(spec)
	h.ready(spec, 1)
	pids := h.children(spec)
	h.check(unix.Kill(p.PID, unix.SIGKILL))
	if got := h.wait(p); got.Signal != "SIGKILL" {
		h.Errorf("exit = %+v", got)
	}
	for _, pid := range pids {
		h.until(fmt.Sprintf("process %d to end", pid), func() bool { return !running(pid) })
	}
}
