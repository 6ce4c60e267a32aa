package process_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/driver/process"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// shell is a gateway that runs a script.
func shell(t *testing.T, dir, script string) driver.Spec {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	return driver.Spec{
		Gateway: "gw-aaaaaaaaaa", Program: sh, Args: []string{"-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")},
		Listen: filepath.Join(dir, "gw.sock"), StateDir: filepath.Join(dir, "state"), LogFile: filepath.Join(dir, "gw.log"),
	}
}

func newDriver(t *testing.T, opts process.Options) (*process.Driver, context.Context) {
	t.Helper()
	d, err := process.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return d, ctx
}

func begin(t *testing.T, ctx context.Context, d *process.Driver, spec driver.Spec) driver.Process {
	t.Helper()
	p, err := d.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.Background(), p, 0); err != nil {
			t.Error(err)
		}
	})
	return p
}

func until(t *testing.T, ctx context.Context, what string, cond func() bool) {
	t.Helper()
	for !cond() {
		if ctx.Err() != nil {
			t.Fatalf("waited too long for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func read(path string) string {
	b, _ := os.ReadFile(path) // what is not there is empty
	return string(b)
}

func TestLimitsThatAPlainProcessCanHave(t *testing.T) {
	dir := t.TempDir()
	d, ctx := newDriver(t, process.Options{RunDir: dir, MaxFiles: 100})
	spec := shell(t, dir, `echo "$GOMEMLIMIT $GOMAXPROCS"; exec sleep 1000`)
	spec.Limits = api.Limits{MemoryBytes: 1000, CPUPercent: 150}
	p := begin(t, ctx, d, spec)
	until(t, ctx, "the program to speak", func() bool { return read(spec.LogFile) != "" })
	if got := read(spec.LogFile); got != "900 2\n" {
		t.Errorf("GOMEMLIMIT and GOMAXPROCS = %q", got)
	}
	proc := filepath.Join("/proc", strconv.Itoa(p.PID))
	if got := strings.TrimSpace(read(filepath.Join(proc, "oom_score_adj"))); got != "500" {
		t.Errorf("oom_score_adj = %q", got)
	}
	for line := range strings.Lines(read(filepath.Join(proc, "limits"))) {
		if strings.HasPrefix(line, "Max open files") && strings.Join(strings.Fields(line)[3:5], " ") != "100 100" {
			t.Errorf("limits: %s", line)
		}
	}
}

func TestNoLimitsLeaveTheEnvironmentAlone(t *testing.T) {
	dir := t.TempDir()
	d, ctx := newDriver(t, process.Options{RunDir: dir})
	spec := shell(t, dir, `echo "limits: $GOMEMLIMIT$GOMAXPROCS"`)
	if _, err := d.Wait(ctx, begin(t, ctx, d, spec)); err != nil {
		t.Fatal(err)
	}
	if got := read(spec.LogFile); got != "limits: \n" {
		t.Errorf("log = %q", got)
	}
}

func TestO6_LongLogIsSetAsideAtRestart(t *testing.T) {
	dir := t.TempDir()
	d, ctx := newDriver(t, process.Options{RunDir: dir, MaxLogBytes: 10})
	for _, words := range []string{"one is long enough", "two is long enough", "three"} {
		if _, err := d.Wait(ctx, begin(t, ctx, d, shell(t, dir, "echo "+words))); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(dir, "gw.log")
	if now, before := read(log), read(log+".1"); now != "three\n" || before != "two is long enough\n" {
		t.Errorf("log = %q, before it %q", now, before)
	}
}

// The shell appends to the same open file all the time; the driver bounds it while it waits for the
// process, both for its own child and for one that it has adopted.
func TestLogOfARunningGatewayIsBounded(t *testing.T) {
	dir := t.TempDir()
	opts := process.Options{RunDir: dir, MaxLogBytes: 1000, LogCheck: time.Millisecond}
	starter, ctx := newDriver(t, opts)
	spec := shell(t, dir, `echo first; while [ ! -e more ]; do sleep 0.01; done; i=0; while [ $i -lt 100 ]; do echo "line $i of some length"; i=$((i+1)); done; echo last; while [ ! -e end ]; do sleep 0.01; done; echo end`)
	p := begin(t, ctx, starter, spec)
	adopter, _ := newDriver(t, opts)
	waitCtx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { // waited for below
		_, err := adopter.Wait(waitCtx, p)
		done <- err
	}()
	until(t, ctx, "the first line", func() bool { return read(spec.LogFile) == "first\n" })
	if err := os.WriteFile(filepath.Join(spec.StateDir, "more"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, ctx, "the log to be cut", func() bool {
		now, before := read(spec.LogFile), read(spec.LogFile+".1")
		return len(now) <= 1000 && (strings.HasPrefix(before, "first\nline 0 ") || strings.HasPrefix(before, "line "))
	})
	if err := os.WriteFile(filepath.Join(spec.StateDir, "end"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := read(spec.LogFile); !strings.HasSuffix(got, "end\n") || strings.ContainsRune(got, 0) {
		t.Errorf("the process does not append after the cut: %q", got)
	}
}

func TestRunDirectoryMustBeAbsolute(t *testing.T) {
	if _, err := process.New(process.Options{RunDir: "run"}); err == nil || !strings.Contains(err.Error(), "run") {
		t.Errorf("New = %v", err)
	}
}

// Two hundred gateways are waited for without a thread each: the agent is to stay small.
func TestManyWaitsNeedNoThreads(t *testing.T) {
	dir := t.TempDir()
	d, ctx := newDriver(t, process.Options{RunDir: dir})
	before := threads(t)
	const n = 60
	results := make(chan driver.Exit, n)
	for range n {
		p := begin(t, ctx, d, shell(t, dir, "exec sleep 1000"))
		go func() { // waited for below
			exit, err := d.Wait(ctx, p)
			if err != nil {
				t.Error(err)
			}
			results <- exit
		}()
	}
	if grown := threads(t) - before; grown > n/2 {
		t.Errorf("%d waits made %d threads", n, grown)
	}
	all, err := d.List(ctx)
	if err != nil || len(all) != n {
		t.Fatalf("List = %d, %v", len(all), err)
	}
	for _, p := range all {
		if err := d.Stop(ctx, p, time.Minute); err != nil {
			t.Error(err)
		}
	}
	for range n {
		if exit := <-results; exit.Signal != "SIGTERM" {
			t.Errorf("exit = %+v", exit)
		}
	}
}

func threads(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}

func TestProcessSurvivesJSON(t *testing.T) {
	dir := t.TempDir()
	d, ctx := newDriver(t, process.Options{RunDir: dir})
	p := begin(t, ctx, d, shell(t, dir, "exec sleep 1000"))
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var back driver.Process
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if err := d.Adopt(ctx, back); err != nil {
		t.Error(err)
	}
}
