package dev

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/lifecycle"
	"github.com/demiurge-platform/demiurge/shared/outputtest"
)

// standIns is a directory with scripts in place of the programs.
func standIns(t *testing.T, coordinator string) string {
	t.Helper()
	dir := shortDir(t)
	script(t, filepath.Join(dir, "demiurge-coordinator"), coordinator)
	for _, name := range []string{"demiurge", "demiurge-agent", "demiurge-gateway"} {
		script(t, filepath.Join(dir, name), "exit 0")
	}
	return filepath.Join(dir, "demiurge")
}

func wantNothingRuns(t *testing.T) {
	t.Helper()
	if left := descendants(os.Getpid()); len(left) != 0 {
		t.Errorf("%d processes are left", len(left))
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) != 0 {
		t.Errorf("files are left: %v", left)
	}
}

func TestFailedStartSaysWhyAndLeavesNothing(t *testing.T) {
	program := standIns(t, "sleep 1000 & echo 'cannot open the log: disk full' >&2; exit 3")
	t.Setenv("TMPDIR", shortDir(t))
	var stdout, stderr outputtest.Output
	o := valid()
	o.Address, o.NginxPort, o.Executable, o.Environ, o.Stdout, o.Stderr = "127.0.0.1:0", 0, program, os.Environ(), &stdout, &stderr
	err := Run(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "cannot start the coordinator: coordinator-1 (pid ") || !strings.Contains(err.Error(), "ended: exit status 3") ||
		!strings.Contains(err.Error(), "\n    cannot open the log: disk full") {
		t.Errorf("Run = %v, want the coordinator's last words", err)
	}
	if stdout.String() != "" {
		t.Errorf("printed %q", stdout.String())
	}
	wantNothingRuns(t)
}

func TestInterruptedStartLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		coordinator string
		hurry       bool
	}{
		"polite": {"exec sleep 1000", false},
		"deaf":   {"trap '' TERM; echo started; while :; do sleep 1000; done", true},
	} {
		t.Run(name, func(t *testing.T) {
			program := standIns(t, c.coordinator)
			t.Setenv("TMPDIR", shortDir(t))
			var stdout, stderr outputtest.Output
			hurry := make(chan struct{})
			o := valid()
			o.Address, o.NginxPort, o.Executable, o.Environ, o.Stdout, o.Stderr, o.Hurry = "127.0.0.1:0", 0, program, os.Environ(), &stdout, &stderr, hurry
			ctx, interrupt := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- Run(ctx, o) }()
			waitFor(t, "the coordinator", func() bool { return len(descendants(os.Getpid())) > 0 })
			interrupt()
			if c.hurry {
				close(hurry)
			}
			if err := <-ended; err != nil {
				t.Errorf("Run = %v", err)
			}
			if !strings.Contains(stderr.String(), "interrupted before it was ready; everything is stopped") {
				t.Errorf("said %q", stderr.String())
			}
			wantNothingRuns(t)
		})
	}
}

// A program that dies after the start runs again, and its last words are shown.
func TestProgramsAreStartedAgain(t *testing.T) {
	h, err := openHome(shortDir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	var stderr outputtest.Output
	s, err := newSystem(Options{Stderr: &stderr, Environ: os.Environ()}, programs{}, h, ports{Coordinators: []coordinatorPorts{{API: "127.0.0.1:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.settled(); err != nil {
		t.Fatal(err)
	}
	runs := filepath.Join(t.TempDir(), "runs")
	var stack lifecycle.Stack
	thing := program{
		name: "thing-1", log: h.log("thing-1"), stop: []ending{{syscall.SIGTERM, 10 * time.Second}},
		argv: []string{"/bin/sh", "-c", fmt.Sprintf("echo run >>%s; n=$(wc -l <%s); echo words of run $n; [ $n -lt 3 ] && exit 5; exec sleep 1000", runs, runs)},
	}
	s.keep(&stack, func(int) program { return thing }, 1)
	waitFor(t, "the third run", func() bool {
		b, _ := os.ReadFile(runs)
		return strings.Count(string(b), "run") == 3
	})
	if err := stack.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := stderr.String()
	for _, want := range []string{
		"thing-1 (pid ", "ended: exit status 5", "    words of run 1\n  starting it again in 100ms\n", "    words of run 2\n  starting it again in 200ms\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("said\n%s\nwant %q", got, want)
		}
	}
	if strings.Contains(got, "words of run 1\n    words of run 2") {
		t.Errorf("the words of an earlier run are shown again:\n%s", got)
	}
	if left := descendants(os.Getpid()); len(left) != 0 || len(s.processes) != 0 {
		t.Errorf("%v run, %v are on record", left, s.processes)
	}
}

func TestLastWordsAreFewAndOfThisRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("x", 100) + "\n"
	if err := os.WriteFile(path, []byte("old\n"+strings.Repeat(long, 200)+"the end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := lastWords{file: path, from: 4}.String()
	if lines := strings.Split(got, "\n"); len(lines) != lastLines+2 || lines[len(lines)-1] != "    the end" {
		t.Errorf("last words are\n%s", got)
	}
	if got := (lastWords{file: path, from: 1 << 20}).String(); !strings.Contains(got, "it said nothing") {
		t.Errorf("of a silent run: %q", got)
	}
}
