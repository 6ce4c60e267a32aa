package failpoint_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

const program = `package main

import (
	"fmt"

	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

func main() {
	for i := range 3 {
		failpoint.Hit("loop.step")
		fmt.Println(i)
	}
}
`

// The same program is built with and without the tag: only the first may die.
func TestHitKillsOnlyWithTheTag(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(wd, "testprogram-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(tags, selected string) (string, error) {
		bin := filepath.Join(t.TempDir(), "program")
		if out, err := exec.Command("go", "build", "-tags", tags, "-o", bin, dir).CombinedOutput(); err != nil {
			t.Fatalf("cannot build: %v\n%s", err, out)
		}
		cmd := exec.Command(bin)
		cmd.Env = append(os.Environ(), "DEMIURGE_FAILPOINT="+selected)
		out, err := cmd.Output()
		return string(out), err
	}
	if out, err := run("", "loop.step:2"); err != nil || out != "0\n1\n2\n" {
		t.Errorf("without the tag: %q, %v", out, err)
	}
	out, err := run("failpoints", "loop.step:2")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL || out != "0\n" {
		t.Errorf("with the tag: %q, %v; want SIGKILL before the second step", out, err)
	}
	if out, err := run("failpoints", "other.step"); err != nil || out != "0\n1\n2\n" {
		t.Errorf("another label: %q, %v", out, err)
	}
}
