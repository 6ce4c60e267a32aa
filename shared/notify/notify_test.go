package notify_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/notify"
	"github.com/hashicorp/go-hclog"
)

// manager listens as systemd does and hands out what it is told.
func manager(t *testing.T) (next func() string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_PID", "")
	return func() string {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("systemd was told nothing: %v", err)
		}
		return string(buf[:n])
	}
}

func TestMessages(t *testing.T) {
	next := manager(t)
	n := notify.New(hclog.NewNullLogger())
	tests := []struct {
		send func()
		want string
	}{
		{n.Ready, `^READY=1$`},
		{n.Reloading, `^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*$`},
		{n.Stopping, `^STOPPING=1$`},
	}
	for _, tt := range tests {
		tt.send()
		if got := next(); !regexp.MustCompile(tt.want).MatchString(got) {
			t.Errorf("told %q, want %s", got, tt.want)
		}
	}
}

func TestWatchdogReportsLifeWhileHealthy(t *testing.T) {
	next := manager(t)
	t.Setenv("WATCHDOG_USEC", "2000")
	n := notify.New(hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(context.Background())
	var asked atomic.Int64
	well := atomic.Bool{}
	well.Store(true)
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		n.Watchdog(ctx, func() bool { asked.Add(1); return well.Load() })
	}()
	for range 3 {
		if got := next(); got != "WATCHDOG=1" {
			t.Fatalf("told %q", got)
		}
	}
	waitForMoreQuestions := func() {
		for before := asked.Load(); asked.Load() < before+5; {
			time.Sleep(time.Millisecond)
		}
	}
	well.Store(false)
	waitForMoreQuestions() // at least one whole unhealthy round has passed
	n.Ready()              // a marker: what is before it in the queue was sent while healthy
	for next() != "READY=1" {
	}
	waitForMoreQuestions()
	n.Stopping()
	if got := next(); got != "STOPPING=1" {
		t.Errorf("told %q while not healthy", got)
	}
	cancel()
	<-done
}

func TestSilentWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	var out bytes.Buffer
	n := notify.New(hclog.New(&hclog.LoggerOptions{Output: &out}))
	n.Ready()
	n.Reloading()
	n.Stopping()
	n.Watchdog(context.Background(), func() bool { t.Error("asked without a watchdog"); return true })
	if out.Len() > 0 {
		t.Errorf("logged %s", out.String())
	}
}

func TestUnreachableManagerIsLoggedOnly(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	t.Setenv("WATCHDOG_USEC", "many")
	var out bytes.Buffer
	n := notify.New(hclog.New(&hclog.LoggerOptions{Output: &out}))
	n.Ready()
	n.Watchdog(context.Background(), func() bool { return true })
	for _, want := range []string{"cannot tell systemd", "cannot use the watchdog"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log does not say %q: %s", want, out.String())
		}
	}
}
