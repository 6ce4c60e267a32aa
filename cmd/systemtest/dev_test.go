package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/outputtest"
)

// patience is how long anything may take on a busy machine.
const patience = 60 * time.Second

// waitFor looks again and again until there is nothing missing. missing says what is.
func waitFor(t testing.TB, what string, missing func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		m := missing()
		if m == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %s", patience, what, m)
		}
		time.Sleep(15 * time.Millisecond)
	}
}

// waitTrue is waitFor where there is nothing to say.
func waitTrue(t testing.TB, what string, ok func() bool) {
	t.Helper()
	waitFor(t, what, func() string {
		if ok() {
			return ""
		}
		return "not yet"
	})
}

// system is a running `demiurge dev`.
type system struct {
	t      testing.TB
	bin    string
	dir    string
	args   []string
	env    []string
	file   api.DevFile // as it was when all was ready
	client *client.Client
	cmd    *exec.Cmd
	out    *outputtest.Output
	ended  chan struct{}
}

// setup is what a test wants of its system.
type setup struct {
	flavor   flavor
	gateways int
	env      []string
	dir      string   // empty: a new one
	args     []string // more of them
}

// start runs a system until the test ends, and looks through its logs then.
func start(t testing.TB, o setup) *system {
	t.Helper()
	if o.dir == "" {
		o.dir = shortDir(t)
	}
	s := &system{t: t, bin: programs.of(t, o.flavor), dir: o.dir, env: o.env, out: &outputtest.Output{}, ended: make(chan struct{})}
	s.args = []string{"dev", "--data-dir", s.dir, "--address", "127.0.0.1:0", "--nginx-port", "0", "--gateways", fmt.Sprint(o.gateways)}
	s.args = append(s.args, o.args...)
	s.cmd = exec.Command(filepath.Join(s.bin, "demiurge"), s.args...)
	s.cmd.Env = append(os.Environ(), o.env...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.WaitDelay = time.Minute
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process, which stop waits for
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(s.stop)
	waitFor(t, "demiurge dev to be ready", func() string {
		select {
		case <-s.ended:
			t.Fatalf("demiurge dev ended: %s", s.out)
		default:
		}
		var err error
		if s.file, err = s.read(); err != nil {
			return err.Error()
		}
		return ""
	})
	var err error
	if s.client, err = client.New(client.Options{Addresses: s.file.Servers, Token: s.file.Token}); err != nil {
		t.Fatal(err)
	}
	return s
}

// read reads dev.json.
func (s *system) read() (file api.DevFile, err error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "dev.json"))
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	return file, err
}

// stop ends the system and fails the test when it leaves a process, or when a race was seen.
func (s *system) stop() {
	select {
	case <-s.ended:
	default:
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(2 * patience):
			_ = s.cmd.Process.Kill()
			s.t.Errorf("demiurge dev did not stop:\n%s", s.out)
		}
	}
	if left := s.processes(""); len(left) > 0 {
		s.t.Errorf("processes are left: %v", left)
		for _, p := range left {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	for name, text := range s.logs() {
		if i := strings.Index(text, "WARNING: DATA RACE"); i >= 0 {
			s.t.Errorf("%s has a data race:\n%.6000s", name, text[i:])
		}
		if i := strings.Index(text, "\npanic: "); i >= 0 {
			s.t.Errorf("%s has a panic:\n%.6000s", name, text[i:])
		}
	}
	if s.t.Failed() {
		s.t.Logf("demiurge dev said:\n%s", tail(s.out.String(), 6000))
		for name, text := range s.logs() {
			if !strings.Contains(name, "gateways") {
				s.t.Logf("%s:\n%s", name, tail(text, 6000))
			}
		}
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// logs are all logs by name.
func (s *system) logs() map[string]string {
	out := map[string]string{}
	for _, pattern := range []string{"log/*.log", "agent*/gateways/*/log*", "agent*/nginx/logs/error*"} {
		files, _ := filepath.Glob(filepath.Join(s.dir, pattern))
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil {
				out[strings.TrimPrefix(f, s.dir+"/")] = string(b)
			}
		}
	}
	return out
}

// shortDir is a directory whose path leaves room for unix sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// command runs the command line to its end.
func (s *system) command(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	return run(s.t, filepath.Join(s.bin, "demiurge"), []string{"DEMIURGE_ADDR=" + strings.Join(s.file.Servers, ","), "DEMIURGE_TOKEN=" + s.file.Token}, args...)
}

// run runs any program to its end.
func run(t testing.TB, program string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var o, e bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("cannot run %s: %v", program, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s %s did not end within %s:\n%s%s", program, args, patience, &o, &e)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}
