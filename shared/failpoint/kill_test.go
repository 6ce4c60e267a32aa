package failpoint_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The same program is built with and without the tag: only the first may die.
func TestHitKillsOnlyWithTheTag(t *testing.T) {
	built := map[string]string{}
	run := func(tags, selected string, environ ...string) (string, error) {
		bin := built[tags]
		if bin == "" {
			bin = filepath.Join(t.TempDir(), "program")
			if out, err := exec.Command("go", "build", "-tags", tags, "-o", bin, "./testdata/loop").CombinedOutput(); err != nil {
				t.Fatalf("cannot build: %v\n%s", err, out)
			}
			built[tags] = bin
		}
		cmd := exec.Command(bin)
		cmd.Env = append(append(os.Environ(), "DEMIURGE_FAILPOINT="+selected), environ...)
		out, err := cmd.Output()
		return string(out), err
	}
	if out, err := run("", "loop.step:2"); err != nil || out != "0\n1\n2\n" {
		t.Errorf("without the tag: %q, %v", out, err)
	}
	out, err := run("failpoints", "loop.step:2")
	if !killed(err) || out != "0\n" {
		t.Errorf("with the tag: %q, %v; want SIGKILL before the second step", out, err)
	}
	if out, err := run("failpoints", "other.step"); err != nil || out != "0\n1\n2\n" {
		t.Errorf("another label: %q, %v", out, err)
	}

	file, trace := filepath.Join(t.TempDir(), "point"), filepath.Join(t.TempDir(), "trace")
	armed := []string{"DEMIURGE_FAILPOINT_FILE=" + file, "DEMIURGE_FAILPOINT_TRACE=" + trace}
	write(t, file, "loop.step:3\n")
	if out, err := run("failpoints", "", armed...); !killed(err) || out != "0\n1\n" {
		t.Errorf("armed by a file: %q, %v; want SIGKILL before the third step", out, err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the file is still there: the successor would die too")
	}
	if out, err := run("failpoints", "", armed...); err != nil || out != "0\n1\n2\n" {
		t.Errorf("the successor: %q, %v", out, err)
	}
	if b, err := os.ReadFile(trace); err != nil || string(b) != strings.Repeat("loop.step\n", 6) {
		t.Errorf("the trace is %q, %v; want the label once for each time it was reached", b, err)
	}

	full := "DEMIURGE_FAILPOINT_FULL=" + file
	write(t, file, "loop.")
	if out, err := run("failpoints", "", full); err != nil || strings.Count(out, "no space left on device") != 3 {
		t.Errorf("a full disk: %q, %v; want every step to fail", out, err)
	}
	write(t, file, "other. loop.=eio")
	if out, err := run("failpoints", "", full); err != nil || strings.Count(out, "input/output error") != 3 {
		t.Errorf("a bad disk: %q, %v; want every step to fail", out, err)
	}
	write(t, file, "loop.=1ms")
	if out, err := run("failpoints", "", full); err != nil || out != "0\n1\n2\n" {
		t.Errorf("a slow disk: %q, %v", out, err)
	}
	write(t, file, "other.")
	if out, err := run("failpoints", "", full); err != nil || out != "0\n1\n2\n" {
		t.Errorf("a disk that is full for others: %q, %v", out, err)
	}
}

func killed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
