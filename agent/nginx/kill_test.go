package nginx

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// The walk of crash_test.go with a real process and a real SIGKILL, at the steps where it matters most:
// also those inside one write, which only a process that is killed there can leave half done.
func TestKillTheProcessAtAStep(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	h.stopEngine()
	bin := filepath.Join(t.TempDir(), "host")
	if out, err := exec.Command("go", "build", "-tags", "failpoints", "-o", bin, "./testdata/host").CombinedOutput(); err != nil {
		t.Fatalf("cannot build: %v\n%s", err, out)
	}
	for i, point := range []string{
		"nginx.generation.write.half", "nginx.generation.rename", "nginx.journal.candidate.write.half", "nginx.journal.candidate.rename",
		"nginx.pointer.write.fsync", "nginx.pointer.rename", "nginx.pointer.sync", "nginx.hup", "nginx.fence.answer", "nginx.fence.refuse",
		"nginx.canary", "nginx.journal.live.rename", "nginx.journal.live.sync", "nginx.tidy.socket",
	} {
		body := int64(2000 + i)
		cmd := exec.Command(bin, h.opts.DataDir, h.opts.RunDir, h.opts.SocketDir, domain, h.opts.Listen[0].String(), string(gs[0].id), fmt.Sprint(body))
		cmd.Env = append(os.Environ(), "DEMIURGE_FAILPOINT="+point)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stuck := time.AfterFunc(longWait, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		err := cmd.Wait()
		stuck.Stop()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%s: the process ended with %v instead of being killed", point, err)
		}
		h.mustServe(org, gs[0], 7)
		h.startEngine()
		h.apply(Config{Slots: []Slot{{gs[0].id, body}}})
		h.settled()
		h.mustServe(org, gs[0], 7)
		h.clean()
		h.stopEngine()
		if t.Failed() {
			t.Fatalf("failed at %s", point)
		}
	}
}
