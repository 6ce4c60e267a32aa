package dev

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/outputtest"
)

// patience is for whole programs on a busy machine.
const patience = 90 * time.Second

// running is a real `demiurge dev` with the real programs.
type running struct {
	program string
	cmd     *exec.Cmd
	stdout  outputtest.Output
	stderr  outputtest.Output
	ended   chan struct{}
	err     error // of the program's end, once ended is closed
	seen    map[identity]bool
	dataDir string
}

// built are the programs, made once, when a test first wants them.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// buildPrograms gives the path of demiurge, in a directory with the other programs.
func buildPrograms(t *testing.T) string {
	t.Helper()
	built.once.Do(func() { built.dir, built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "demiurge")
}

func build() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "dmbin"); err != nil {
		return "", err
	}
	const module = "github.com/demiurge-platform/demiurge/cmd/"
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", module+"demiurge", module+"demiurge-coordinator", module+"demiurge-agent", module+"demiurge-gateway")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("cannot build the programs: %w\n%s", err, out)
	}
	return dir, nil
}

// startDev starts a system and waits until it says that it is ready.
func startDev(t *testing.T, program, temp, dataDir string) *running {
	t.Helper()
	r := &running{program: program, ended: make(chan struct{}), seen: map[identity]bool{}, dataDir: dataDir}
	args := []string{"dev", "--address", "127.0.0.1:0", "--nginx-port", "0", "--gateways", "2"}
	if dataDir != "" {
		args = append(args, "--data-dir", dataDir)
	}
	r.cmd = exec.Command(program, args...)
	r.cmd.Env = append(os.Environ(), "TMPDIR="+temp, "DEMIURGE_API_LISTEN=not an address")
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r.cmd.WaitDelay = 10 * time.Second
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the program, which cleanup ends
		r.err = r.cmd.Wait()
		close(r.ended)
	}()
	t.Cleanup(func() { r.cleanup(t) })
	r.wait(t, "ready", func() bool { return strings.HasSuffix(r.stdout.String(), "\nready\n") })
	if dataDir == "" {
		found, err := filepath.Glob(filepath.Join(temp, tempPattern+"*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("temporary directories: %v, %v", found, err)
		}
		r.dataDir = found[0]
	}
	return r
}

// cleanup ends what a failed test left running, and shows what was said.
func (r *running) cleanup(t *testing.T) {
	r.note()
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.ended:
	case <-time.After(30 * time.Second):
		_ = r.cmd.Process.Kill()
		<-r.ended
	}
	for i := range r.seen {
		i.signal(syscall.SIGKILL)
	}
	if t.Failed() {
		t.Logf("demiurge dev said\n%s%s", r.stdout.String(), r.stderr.String())
	}
}

// wait is waitFor with a longer patience; it ends when the program does.
func (r *running) wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-r.ended:
			t.Fatalf("demiurge dev ended (%v) before %s", r.err, what)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// note remembers every process below the system, to be looked for when it is over.
func (r *running) note() {
	for _, i := range descendants(r.cmd.Process.Pid) {
		r.seen[i] = true
	}
}

func (r *running) file(t *testing.T) api.DevFile {
	t.Helper()
	var f api.DevFile
	b, err := os.ReadFile(filepath.Join(r.dataDir, "dev.json"))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (r *running) pid(t *testing.T, name string) int {
	t.Helper()
	for _, p := range r.file(t).Processes {
		if p.Name == name {
			return p.PID
		}
	}
	return 0
}

func (r *running) client(t *testing.T) *client.Client {
	t.Helper()
	f := r.file(t)
	c, err := client.New(client.Options{Addresses: []string{f.API}, Token: f.Token, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// cli runs a command of the program and returns what it printed.
func (r *running) cli(t *testing.T, args ...string) string {
	t.Helper()
	f := r.file(t)
	var stderr bytes.Buffer
	cmd := exec.Command(r.program, args...)
	cmd.Env = append(os.Environ(), "DEMIURGE_ADDR="+f.API, "DEMIURGE_TOKEN="+f.Token)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("demiurge %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

func (r *running) start(t *testing.T) api.Allocation {
	t.Helper()
	var x api.Allocation
	if err := json.Unmarshal([]byte(r.cli(t, "alloc", "start", SampleOrganization, "--wait", "1m", "-o", "json")), &x); err != nil {
		t.Fatal(err)
	}
	return x
}

// serves asks the sample organization's host name through nginx.
func (r *running) serves(t *testing.T, x api.Allocation) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.file(t).HTTP+"/collab/ping", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = x.Hostname
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var health api.GatewayHealth
	if err := json.Unmarshal(b, &health); resp.StatusCode != http.StatusOK || err != nil {
		return fmt.Errorf("answered %s: %s", resp.Status, b)
	}
	if health.OrganizationID != SampleOrganization || resp.Header.Get(api.HeaderGateway) != x.GatewayID ||
		resp.Header.Get(api.HeaderEpoch) != strconv.FormatUint(x.Epoch, 10) {
		t.Fatalf("another one answered: %+v, %v; want gateway %s and epoch %d", health, resp.Header, x.GatewayID, x.Epoch)
	}
	return nil
}

// waitHealthy waits until the system says that all is well and the allocation is the same and served.
func (r *running) waitHealthy(t *testing.T, after string, x api.Allocation) {
	t.Helper()
	c := r.client(t)
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("last after %s: %s", after, last)
		}
	}()
	r.wait(t, "all healthy after "+after, func() bool {
		r.note()
		s, err := c.Status(t.Context())
		if err != nil || !s.Healthy || len(s.Problems) > 0 {
			last = fmt.Sprintf("status %+v, %v", s.Problems, err)
			return false
		}
		now, err := c.Allocation(t.Context(), x.AllocationID)
		if err != nil || now.State != api.AllocationActive {
			last = fmt.Sprintf("allocation %+v, %v", now, err)
			return false
		}
		if now.Epoch != x.Epoch || now.GatewayID != x.GatewayID {
			t.Fatalf("the allocation is another one after %s: %+v, before %+v", after, now, x)
		}
		if err := r.serves(t, x); err != nil {
			last = err.Error()
			return false
		}
		return true
	})
}

// stop interrupts the system and checks that it ends well and that none of its processes is left.
func (r *running) stop(t *testing.T, signals ...syscall.Signal) {
	t.Helper()
	r.note()
	for _, s := range signals {
		if err := r.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
	select {
	case <-r.ended:
	case <-time.After(patience):
		t.Fatal("it does not stop")
	}
	if r.err != nil {
		t.Errorf("it ended with %v", r.err)
	}
	r.wantAllDead(t)
}

func (r *running) wantAllDead(t *testing.T) {
	t.Helper()
	if len(r.seen) < 6 { // coordinator, agent, nginx and a worker, two gateways
		t.Errorf("only %d processes were seen", len(r.seen))
	}
	for i := range r.seen {
		if i.alive() {
			title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", i.PID))
			t.Errorf("process %d is left: %q", i.PID, title)
		}
	}
}

// The main job on one machine, and every program killed while an organization is served.
func TestWholeSystem(t *testing.T) {
	temp := shortDir(t)
	r := startDev(t, buildPrograms(t), temp, "")
	f := r.file(t)
	if info, err := os.Stat(filepath.Join(r.dataDir, "dev.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("dev.json: %v, %v; want only the owner to read it", info.Mode(), err)
	}
	if f.PID != r.cmd.Process.Pid || f.Domain != "dev.localhost" || f.OrganizationID != SampleOrganization || f.Token == "" {
		t.Errorf("dev.json = %+v", f)
	}
	r.wait(t, "two gateways in dev.json", func() bool {
		n := 0
		for _, p := range r.file(t).Processes {
			if strings.HasPrefix(p.Name, "gateway-gw-") {
				n++
			}
		}
		return n >= 2
	})
	if got := r.cli(t, "status"); !strings.HasPrefix(got, "Healthy: nothing is wrong.\n") {
		t.Errorf("status =\n%s", got)
	}

	x := r.start(t)
	r.waitHealthy(t, "the start", x)
	if again := r.start(t); again.AllocationID != x.AllocationID || again.Epoch != x.Epoch {
		t.Errorf("a second start gave %+v, want %+v", again, x)
	}
	for _, name := range []string{"agent-1", "coordinator-1", "nginx-1", "gateway-" + x.GatewayID} {
		r.wait(t, name+" in dev.json", func() bool { return r.pid(t, name) != 0 })
		before := r.pid(t, name)
		if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
			t.Fatalf("cannot kill %s: %v", name, err)
		}
		r.wait(t, "another "+name, func() bool { now := r.pid(t, name); return now != 0 && now != before })
		r.waitHealthy(t, "kill -9 of "+name, x)
	}
	if got := r.stderr.String(); !strings.Contains(got, fmt.Sprintf("coordinator-1 (pid %d) ended: signal: killed", pidOf(f, "coordinator-1"))) {
		t.Errorf("it did not say that the coordinator died:\n%s", got)
	}

	r.cli(t, "alloc", "stop", SampleOrganization)
	if err := r.serves(t, x); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("after the stop: %v, want 503", err)
	}
	c := r.client(t)
	r.wait(t, "the gateway to be ready again", func() bool {
		g, err := c.Gateway(t.Context(), x.GatewayID)
		return err == nil && g.State == api.GatewayReady && g.OrganizationID == ""
	})
	r.stop(t, syscall.SIGINT)
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

func pidOf(f api.DevFile, name string) int {
	for _, p := range f.Processes {
		if p.Name == name {
			return p.PID
		}
	}
	return 0
}

// What a killed dev left is ended by the next one on the same directory, and no allocation is lost.
func TestKilledDevIsTakenUp(t *testing.T) {
	temp, dataDir := shortDir(t), filepath.Join(shortDir(t), "data")
	program := buildPrograms(t)
	first := startDev(t, program, temp, dataDir)
	x := first.start(t)
	first.note()
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-first.ended

	second := startDev(t, program, temp, dataDir)
	first.wantAllDead(t)
	if !strings.Contains(second.stderr.String(), "processes that an earlier demiurge dev left in "+dataDir) {
		t.Errorf("said\n%s", second.stderr.String())
	}
	second.waitHealthy(t, "kill -9 of demiurge dev", x)
	second.stop(t, syscall.SIGTERM, syscall.SIGINT) // the second one hurries
	for name, kept := range map[string]bool{"coordinator.yaml": true, "dev.json": false, "processes.json": false} {
		if _, err := os.Stat(filepath.Join(dataDir, name)); errors.Is(err, fs.ErrNotExist) == kept {
			t.Errorf("%s: %v, want kept %v", name, err, kept)
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}
