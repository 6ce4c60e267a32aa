package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	gw  = "gw-aaaaaaaaaa"
	org = "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"
)

// build makes the program as it is shipped.
func build(tb testing.TB) string {
	tb.Helper()
	bin := filepath.Join(tb.TempDir(), "demiurge-gateway")
	out, err := exec.Command("go", "build", "-ldflags", "-s -w -X github.com/demiurge-platform/demiurge/shared/version.linked=v9.9.9", "-o", bin, ".").CombinedOutput()
	if err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	return bin
}

// program is the program as a process.
type program struct {
	cmd    *exec.Cmd
	socket string
	client *http.Client
	log    *bytes.Buffer // read after wait
}

// launch starts the program and returns when it is healthy.
func launch(tb testing.TB, bin, dir string, env ...string) *program {
	tb.Helper()
	p := &program{socket: filepath.Join(dir, "gw.sock"), log: &bytes.Buffer{}}
	p.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
	}}}
	p.cmd = exec.Command(bin)
	p.cmd.Env = append([]string{"DEMIURGE_GATEWAY_ID=" + gw, "DEMIURGE_LISTEN=" + p.socket, "DEMIURGE_STATE_DIR=" + dir}, env...)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		p.client.CloseIdleConnections()
	})
	p.waitHealthy(tb)
	return p
}

func (p *program) waitHealthy(tb testing.TB) {
	tb.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		resp, err := p.client.Get("http://gateway/healthz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			tb.Fatalf("not healthy: %v", err)
		}
	}
}

func socketDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "dm")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (p *program) activate(tb testing.TB) {
	tb.Helper()
	body, err := json.Marshal(api.Activate{
		OrganizationID: org, AllocationID: "al-aaaaaaaaaaaaaaaa", Epoch: 7, Name: "Pottery", Hostname: "org-" + org + ".example.test",
		Members: []api.Member{}, Projects: []api.Project{},
	})
	if err != nil {
		tb.Fatal(err)
	}
	resp, err := p.client.Post("http://gateway/control/activate", "application/json", bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		tb.Fatalf("activate: %s", resp.Status)
	}
}

func TestSIGTERMEndsWebSocketsAndExitsClean(t *testing.T) {
	p := launch(t, build(t), socketDir(t))
	p.activate(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws://gateway/echo", &websocket.DialOptions{HTTPClient: p.client, HTTPHeader: http.Header{api.HeaderEpoch: {"7"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, got, err := c.Read(ctx); err != nil || string(got) != "hello" {
		t.Fatalf("echo = %q, %v", got, err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the WebSocket ended with %v, want 1001", err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("exit: %v\n%s", err, p.log)
	}
	if _, err := os.Lstat(p.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left over: %v", err)
	}
}

func TestKilledPredecessorIsReplacedAndALivingOneIsNot(t *testing.T) {
	bin, dir := build(t), socketDir(t)
	first := launch(t, bin, dir)
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.cmd.Wait() // killed
	if _, err := os.Lstat(first.socket); err != nil {
		t.Fatalf("a killed process leaves its socket: %v", err)
	}
	second := launch(t, bin, dir)
	third := exec.Command(bin)
	third.Env = second.cmd.Env
	out, err := third.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), second.socket) {
		t.Errorf("a third one: %v: %s", err, out)
	}
	resp, err := second.client.Get("http://gateway/healthz")
	if err != nil {
		t.Fatalf("the second one was disturbed: %v", err)
	}
	_ = resp.Body.Close()
}

func TestUsage(t *testing.T) {
	full := map[string]string{"DEMIURGE_GATEWAY_ID": gw, "DEMIURGE_LISTEN": "/nowhere/gw.sock", "DEMIURGE_STATE_DIR": t.TempDir()}
	without := func(name string) map[string]string {
		m := map[string]string{}
		for k, v := range full {
			if k != name {
				m[k] = v
			}
		}
		return m
	}
	with := func(name, value string) map[string]string {
		m := without("")
		m[name] = value
		return m
	}
	tests := []struct {
		name     string
		args     []string
		env      map[string]string
		code     int
		out, err string
	}{
		{"help", []string{"--help"}, nil, 0, "DEMIURGE_LISTEN", ""},
		{"version", []string{"--version"}, nil, 0, "demiurge-gateway ", ""},
		{"wrong flag", []string{"--listen", "x"}, full, 2, "", `cannot use "--listen x"`},
		{"no id", nil, without("DEMIURGE_GATEWAY_ID"), 2, "", "cannot start without DEMIURGE_GATEWAY_ID"},
		{"no socket", nil, without("DEMIURGE_LISTEN"), 2, "", "cannot start without DEMIURGE_LISTEN"},
		{"no state", nil, without("DEMIURGE_STATE_DIR"), 2, "", "cannot start without DEMIURGE_STATE_DIR"},
		{"nothing", nil, nil, 2, "", "DEMIURGE_STATE_DIR"},
		{"wrong id", nil, with("DEMIURGE_GATEWAY_ID", "x"), 2, "", "gw- and 10 characters"},
		{"wrong level", nil, with("DEMIURGE_LOG_LEVEL", "loud"), 2, "", "want trace"},
		{"socket's directory missing", nil, full, 1, "", "cannot listen on /nowhere/gw.sock"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(context.Background(), tt.args, func(k string) string { return tt.env[k] }, &stdout, &stderr)
			if code != tt.code || !strings.Contains(stdout.String(), tt.out) || !strings.Contains(stderr.String(), tt.err) {
				t.Errorf("code %d, stdout %q, stderr %q", code, &stdout, &stderr)
			}
			if tt.code != 0 && stdout.Len() > 0 || tt.code == 0 && stderr.Len() > 0 {
				t.Errorf("on the wrong stream: stdout %q, stderr %q", &stdout, &stderr)
			}
		})
	}
}

// FuzzEnvironment: whatever stands in the environment, what is wrong in it is named by its variable, and what is taken has
// the form of a gateway's id.
func FuzzEnvironment(f *testing.F) {
	f.Add(gw, "/run/gw.sock", "/state", "", "info", "json")
	f.Add("../x", "fd:3", "", "control.sock", "loud", "xml")
	f.Add("gw-AAAAAAAAAA", "", "state", "/c", "", "")
	f.Add("gw-AAAAAAAAAA", "/run/gw.sock", "/state", "", "", "")
	f.Add(gw, "/run/gw.sock", "/state", "", strings.Repeat("x", 2000), strings.Repeat("x", 2000))
	f.Fuzz(func(t *testing.T, gateway, listen, state, control, level, format string) {
		env := map[string]string{
			"DEMIURGE_GATEWAY_ID": gateway, "DEMIURGE_LISTEN": listen, "DEMIURGE_STATE_DIR": state, "DEMIURGE_CONTROL": control, "DEMIURGE_LOG_LEVEL": level, "DEMIURGE_LOG_FORMAT": format,
		}
		opts, err := options(func(name string) string { return env[name] }, io.Discard)
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if len(line) > 1000 {
					t.Fatalf("refused with %d bytes", len(line))
				}
			}
			for name, value := range env {
				needed := name == "DEMIURGE_GATEWAY_ID" || name == "DEMIURGE_LISTEN" || name == "DEMIURGE_STATE_DIR"
				if needed && value == "" && !strings.Contains(err.Error(), name) {
					t.Fatalf("%s is missing: %v", name, err)
				}
			}
			return
		}
		if _, err := id.ParseGateway(string(opts.Gateway)); err != nil || string(opts.Gateway) != gateway || opts.Listen == "" || opts.Listen != listen || opts.StateDir != state || opts.Control != control || opts.Logger == nil {
			t.Fatalf("%v is taken for %+v", env, opts)
		}
	})
}

// BenchmarkIdle starts the program as it is shipped and reports how long it takes to be healthy and how
// much memory it holds then, and with an organization: resident, and its own share (PSS) of it.
func BenchmarkIdle(b *testing.B) {
	bin := build(b)
	var started, idle, idlePSS, active []float64
	for b.Loop() {
		dir, err := os.MkdirTemp("", "dm")
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		p := launch(b, bin, dir)
		started = append(started, float64(time.Since(begin).Microseconds())/1000)
		idle = append(idle, memory(b, p.cmd.Process.Pid, "Rss"))
		idlePSS = append(idlePSS, memory(b, p.cmd.Process.Pid, "Pss"))
		p.activate(b)
		active = append(active, memory(b, p.cmd.Process.Pid, "Rss"))
		if err := errors.Join(p.cmd.Process.Signal(syscall.SIGTERM), p.cmd.Wait(), os.RemoveAll(dir)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(started), "ms-to-healthy-p50")
	b.ReportMetric(slices.Max(started), "ms-to-healthy-max")
	b.ReportMetric(median(idle), "MiB-RSS-idle")
	b.ReportMetric(median(idlePSS), "MiB-PSS-idle")
	b.ReportMetric(median(active), "MiB-RSS-active")
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// memory reads one line of smaps_rollup, in MiB.
func memory(b *testing.B, pid int, what string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == what+":" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatalf("no %s in smaps_rollup", what)
	return 0
}
