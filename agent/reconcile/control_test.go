package reconcile_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// serveSocket answers on a unix socket in this process.
func serveSocket(t *testing.T, h http.Handler) (socket func(id.Gateway) string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "http.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return func(id.Gateway) string { return path }
}

func TestA10_OnlyTheProcessThatIsMeantMayAnswer(t *testing.T) {
	health := api.GatewayHealth{GatewayID: "gw-aaaaaaaaaa", BootID: "b"}
	c := reconcile.NewHTTPControl(serveSocket(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(health)
	})))
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	me := driver.Process{Gateway: "gw-aaaaaaaaaa", PID: os.Getpid()}
	if got, err := c.Health(ctx, me); err != nil || got != health {
		t.Fatalf("%+v %v", got, err)
	}
	// A child in our session that answers through us is not the process that is meant either.
	child := exec.Command("sleep", "600")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	for _, pid := range []int{child.Process.Pid, 1 << 30} {
		other := driver.Process{Gateway: "gw-aaaaaaaaaa", PID: pid}
		if _, err := c.Health(ctx, other); err == nil || !strings.Contains(err.Error(), "listens on the gateway's socket") {
			t.Errorf("an answer of another process counts: %v", err)
		}
		if err := c.Activate(ctx, other, &api.Activate{}); err == nil {
			t.Error("another process was activated")
		}
	}
}

func TestRefusalsOfAGatewayKeepTheirCode(t *testing.T) {
	status, body := http.StatusConflict, `{"code":"stale_epoch","detail":"epoch 4 is over"}`
	c := reconcile.NewHTTPControl(serveSocket(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/control/activate" || r.URL.Path == "/control/deactivate" {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	})))
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	me := driver.Process{Gateway: "gw-aaaaaaaaaa", PID: os.Getpid()}
	err := c.Activate(ctx, me, &api.Activate{Epoch: 4})
	if !fault.Is(err, fault.StaleEpoch) || !strings.Contains(err.Error(), "epoch 4 is over") {
		t.Fatalf("%v", err)
	}
	for _, tt := range []struct {
		status int
		body   string
	}{
		{500, `{"code":"made_up","detail":"x"}`}, {502, `<html>`}, {302, `{}`}, {200, `<html>`}, {200, `{"gateway_id":7}`},
	} {
		status, body = tt.status, tt.body
		if h, err := c.Health(ctx, me); err == nil || fault.CodeOf(err) != fault.Internal {
			t.Errorf("%d %s: %+v %v", tt.status, tt.body, h, err)
		}
	}
	status, body = 500, ""
	if err := c.Deactivate(ctx, me, api.Deactivate{Epoch: 4}); err == nil {
		t.Error("no error")
	}
}

// A program of somebody else may answer before it has read a long activation, and may say first that it goes on.
func TestAnEarlyRefusalOfALongBodyCounts(t *testing.T) {
	c := reconcile.NewHTTPControl(serveSocket(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		_, _ = w.Write([]byte(`{"code":"too_large","detail":"that is too long"}`))
	})))
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	me := driver.Process{Gateway: "gw-aaaaaaaaaa", PID: os.Getpid()}
	for _, length := range []int{10, 8 << 20} {
		err := c.Activate(ctx, me, &api.Activate{Epoch: 4, Name: strings.Repeat("x", length)})
		if !fault.Is(err, fault.TooLarge) || !strings.Contains(err.Error(), "that is too long") {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	asked, over := make(chan struct{}), make(chan struct{})
	c := reconcile.NewHTTPControl(serveSocket(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-over
	})))
	defer close(over)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // ends when the question has arrived
		<-asked
		cancel()
	}()
	if _, err := c.Health(ctx, driver.Process{Gateway: "gw-aaaaaaaaaa", PID: os.Getpid()}); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
}
