package gateway_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/gateway"
	"github.com/hashicorp/go-hclog"
)

func stop(t *testing.T, g *gateway.Gateway) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := g.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// stale leaves a socket file that nobody listens on, as a killed process does.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	opts := options(t)
	stale(t, opts.Listen)
	g, err := gateway.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	g.Start()
	resp, err := clientOf(opts.Listen).Get("http://gateway/healthz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	if info, err := os.Stat(opts.Listen); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode = %v, %v, want 0660", info.Mode(), err)
	}
	stop(t, g)
	if _, err := os.Lstat(opts.Listen); !os.IsNotExist(err) {
		t.Errorf("the socket is left over: %v", err)
	}
}

func TestSocketThatIsInUseIsNamed(t *testing.T) {
	r := start(t)
	_, err := gateway.New(r.opts)
	if err == nil || !strings.Contains(err.Error(), r.opts.Listen) || !strings.Contains(err.Error(), "answers there") {
		t.Errorf("New = %v, want an error that names the socket", err)
	}
	r.do(http.MethodGet, "/healthz", "").expect(t, "the first one", http.StatusOK, "")
}

func TestSocketOfASuccessorStays(t *testing.T) {
	opts := options(t)
	g, err := gateway.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	g.Start()
	if err := os.Rename(opts.Listen, opts.Listen+".old"); err != nil {
		t.Fatal(err)
	}
	stale(t, opts.Listen)
	stop(t, g)
	if _, err := os.Lstat(opts.Listen); err != nil {
		t.Errorf("a socket that is another's was removed: %v", err)
	}
}

func TestListenOnPassedDescriptor(t *testing.T) {
	opts := options(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: opts.Listen, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // its file is whose who made it
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	socket := opts.Listen
	opts.Listen = "fd:" + strconv.Itoa(int(f.Fd()))
	g, err := gateway.New(opts) // takes the descriptor over
	if err != nil {
		t.Fatal(err)
	}
	g.Start()
	resp, err := clientOf(socket).Get("http://gateway/healthz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	stop(t, g)
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the socket of whoever passed it was removed: %v", err)
	}
}

func TestWrongOptions(t *testing.T) {
	tests := map[string]func(*gateway.Options){
		"gateway id":          func(o *gateway.Options) { o.Gateway = "../x" },
		"state directory":     func(o *gateway.Options) { o.StateDir = "state" },
		"create it":           func(o *gateway.Options) { o.StateDir += "/none" },
		"is no directory":     func(o *gateway.Options) { o.StateDir = plainFile(o.StateDir) },
		"agent's socket":      func(o *gateway.Options) { o.Control = "c.sock" },
		"without a logger":    func(o *gateway.Options) { o.Logger = nil },
		"absolute path":       func(o *gateway.Options) { o.Listen = "gw.sock" },
		"3 or more":           func(o *gateway.Options) { o.Listen = "fd:2" },
		"a passed descriptor": func(o *gateway.Options) { o.Listen = "fd:x" },
		"listening socket":    func(o *gateway.Options) { o.Listen = "fd:65000" },
		"shorter run":         func(o *gateway.Options) { o.Listen = "/" + strings.Repeat("x", 107) },
		"no socket":           func(o *gateway.Options) { o.Listen = plainFile(o.StateDir) },
		"directory exist":     func(o *gateway.Options) { o.Listen = o.StateDir + "/none/gw.sock" },
	}
	for want, change := range tests {
		opts := options(t)
		opts.Logger = hclog.NewNullLogger()
		change(&opts)
		g, err := gateway.New(opts)
		if err == nil {
			stop(t, g)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want %q", err, want)
		}
	}
}

func plainFile(dir string) string {
	path := filepath.Join(dir, "plain")
	_ = os.WriteFile(path, nil, 0o600) // New fails in another way if it is not there
	return path
}
