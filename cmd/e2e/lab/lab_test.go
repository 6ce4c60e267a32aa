//go:build e2e

package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/lab"
)

// reach reports how a host meets the port of another, where nobody listens: it is told so, or hears nothing.
func reach(t *testing.T, from, to *lab.Host) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := from.Dial(ctx, "tcp", to.Address+":9")
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "told"
	case errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err):
		return "nothing"
	}
	t.Fatalf("%s to %s: %v", from.Name, to.Name, err)
	return ""
}

// told wants each first host to reach the second one, if not at once on a busy machine.
func told(t *testing.T, when string, pairs ...[2]*lab.Host) {
	t.Helper()
	for _, p := range pairs {
		poll(t, func() error {
			if got := reach(t, p[0], p[1]); got != "told" {
				return fmt.Errorf("%s: %s hears %s of %s", when, p[0].Name, got, p[1].Name)
			}
			return nil
		})
	}
}

func TestHostsAreCutOffAndHealed(t *testing.T) {
	n, err := lab.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob("/run/netns/dme" + strconv.Itoa(os.Getpid()) + "*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	var hosts []*lab.Host
	for _, name := range []string{"a", "b", "c"} {
		h, err := n.Add(name)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	a, b, c := hosts[0], hosts[1], hosts[2]
	for _, cut := range []func() error{func() error { return a.Refuse(b) }, func() error { return a.Withhold(b) }} {
		told(t, "before the cut", [2]*lab.Host{a, b}, [2]*lab.Host{b, a})
		if err := cut(); err != nil {
			t.Fatal(err)
		}
		if got := reach(t, a, b) + reach(t, b, a); got != "nothingnothing" {
			t.Errorf("after the cut: %s", got)
		}
		told(t, "the others after the cut", [2]*lab.Host{a, c}, [2]*lab.Host{c, a}, [2]*lab.Host{b, c})
		if err := a.Heal(); err != nil {
			t.Fatal(err)
		}
	}
	told(t, "after the healing", [2]*lab.Host{a, b}, [2]*lab.Host{b, a})
	programEnds(t, a)
}

// programEnds: a program runs once, says so, and is gone when it was killed, paused or not.
func programEnds(t *testing.T, on *lab.Host) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	p := on.Program("sleeper", log, []string{"MARK=here"}, "/bin/sh", "-c", "echo $MARK; exec sleep 1000")
	if p.Running() {
		t.Error("it runs before it was started")
	}
	for range 2 { // the second time it is killed while it is paused
		if err := errors.Join(p.Start(), p.Start()); err != nil {
			t.Fatal(err)
		}
		if files, err := p.Files(); err != nil || files == 0 {
			t.Errorf("%d files, %v", files, err)
		}
		for end := time.Now().Add(30 * time.Second); ; {
			text, err := os.ReadFile(log)
			if err == nil && strings.HasPrefix(string(text), "here\n") {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("its output is %q, %v", text, err)
			}
		}
		if err := p.Signal(syscall.SIGSTOP); err != nil || !p.Running() {
			t.Errorf("paused: %v, running %t", err, p.Running())
		}
		if err := p.Kill(); err != nil || p.Running() {
			t.Errorf("killed: %v, running %t", err, p.Running())
		}
	}
}

// What a run left that was itself killed is removed by the next one, and nothing else is.
func TestLeftoversAreSwept(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	left, alive := "dme"+strconv.Itoa(dead.Process.Pid)+"x", "dme"+strconv.Itoa(os.Getppid())+"x"
	for _, name := range []string{left, alive} {
		if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	defer func() {
		if out, err := exec.Command("ip", "netns", "delete", alive).CombinedOutput(); err != nil {
			t.Errorf("what belongs to a living process is gone: %v\n%s", err, out)
		}
	}()
	n, err := lab.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/run/netns/" + left); err == nil {
		t.Errorf("%s is still there", left)
	}
}

// bootedVariable makes this test's program boot a machine and wait for its end.
const bootedVariable = "LAB_BOOTED"

// A machine that systemd has booted goes with the process that has booted it, even when that is killed.
func TestBootedMachinesEndWithTheirProcess(t *testing.T) {
	if image := os.Getenv(bootedVariable); image != "" {
		bootAndWait(t, image)
		return
	}
	image := t.TempDir()
	for _, dir := range []string{"etc", "usr"} {
		if err := os.Mkdir(filepath.Join(image, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), bootedVariable+"="+image)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if killed := cmd.Process.Kill(); killed != nil {
		t.Error(killed)
	}
	_ = cmd.Wait() // it was killed
	systemd, known := strings.CutPrefix(strings.TrimSpace(line), "systemd ")
	if !known {
		t.Fatalf("it has not booted: %q, %v", line, err)
	}
	poll(t, func() error {
		groups, err := exec.Command("unshare", "--mount", "sh", "-c", "mount -t cgroup2 groups /mnt && ls /mnt").Output()
		if err != nil {
			return err
		}
		if strings.Contains(string(groups), "dme"+strconv.Itoa(cmd.Process.Pid)+"-") {
			return fmt.Errorf("there are the control groups %s", groups)
		}
		if _, err = os.Stat("/proc/" + systemd); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("systemd runs still: %v", err)
		}
		return nil
	})
	n, err := lab.Open() // removes the rest
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// poll asks until a condition holds.
func poll(t *testing.T, holds func() error) {
	t.Helper()
	if err := lab.Await(t.Context(), 30*time.Second, "what the lab was told", holds); err != nil {
		t.Fatal(err)
	}
}

// bootAndWait boots a machine, says so, and never ends.
func bootAndWait(t *testing.T, image string) {
	n, err := lab.Open()
	if err != nil {
		t.Fatal(err)
	}
	h, err := n.Add("booted")
	if err != nil {
		t.Fatal(err)
	}
	b, err := h.Boot(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	said, err := b.Shell(t.Context(), "cat /proc/1/comm && ls /sys/fs/cgroup/system.slice && hostname")
	if err != nil || !strings.HasPrefix(said, "systemd\n") || !strings.HasSuffix(said, "booted\n") {
		t.Fatalf("%v: %s", err, said)
	}
	pids, err := h.Processes("systemd")
	if err != nil || len(pids) != 1 {
		t.Fatalf("systemd is %v, %v", pids, err)
	}
	fmt.Println("systemd", pids[0])
	select {} // until it is killed
}

// Root that lacks something, as in most containers, is told what.
func TestWhatRootLacksIsNamed(t *testing.T) {
	if os.Getenv("LAB_OPEN") != "" {
		if _, err := lab.Open(); err != nil {
			t.Fatal(err)
		}
		return
	}
	cmd := exec.Command("setpriv", "--bounding-set=-net_admin,-sys_admin", os.Args[0], "-test.run", t.Name())
	cmd.Env = append(os.Environ(), "LAB_OPEN=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "root lacks CAP_NET_ADMIN, CAP_SYS_ADMIN here") {
		t.Errorf("%v\n%s", err, out)
	}
}
