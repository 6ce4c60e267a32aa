package reconcile_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// socketServer is a gateway's socket in this process that remembers which connection every request came on.
type socketServer struct {
	server *http.Server

	mu    sync.Mutex
	seen  []string               // guarded by mu: path and number of the connection
	conns map[net.Conn]int       // guarded by mu: the number of each, in order
	state map[int]http.ConnState // guarded by mu
}

type connKey struct{}

func newSocketServer(t *testing.T) (*socketServer, *reconcile.HTTPControl) {
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
	s := &socketServer{conns: map[net.Conn]int{}, state: map[int]http.ConnState{}}
	s.server = &http.Server{
		Handler: http.HandlerFunc(s.serve),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.conns[c] = len(s.conns) + 1
			return context.WithValue(ctx, connKey{}, s.conns[c])
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.state[s.conns[c]] = state
		},
	}
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		_ = s.server.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.server.Close()
		<-done
	})
	return s, reconcile.NewHTTPControl(func(id.Gateway) string { return path })
}

func (s *socketServer) serve(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	s.mu.Lock()
	s.seen = append(s.seen, r.URL.Path+" "+string(rune('0'+r.Context().Value(connKey{}).(int))))
	s.mu.Unlock()
	_ = json.NewEncoder(w).Encode(api.GatewayHealth{GatewayID: "gw-aaaaaaaaaa", BootID: "b"})
}

// requests gives what was asked since, and forgets it.
func (s *socketServer) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

// waitClosed waits until the other end has closed a connection.
func (s *socketServer) waitClosed(t *testing.T, number int) {
	t.Helper()
	agenttest.Wait(t, "the connection is closed", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.state[number] == http.StateClosed
	})
}

func TestAnOrganizationIsHandedOverOnTheConnectionOfTheLastAnswer(t *testing.T) {
	s, c := newSocketServer(t)
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	me := driver.Process{Gateway: "gw-aaaaaaaaaa", PID: os.Getpid()}
	health := func() {
		t.Helper()
		if _, err := c.Health(ctx, me); err != nil {
			t.Fatal(err)
		}
	}
	activate := func(p driver.Process) error { return c.Activate(ctx, p, &api.Activate{Epoch: 4}) }
	wanted := func(want ...string) {
		t.Helper()
		if got := s.requests(); !slices.Equal(got, want) {
			t.Fatalf("asked: %q, want %q", got, want)
		}
	}
	health()
	health()
	if err := activate(me); err != nil {
		t.Fatal(err)
	}
	if err := c.Deactivate(ctx, me, api.Deactivate{Epoch: 4}); err != nil {
		t.Fatal(err)
	}
	wanted("/healthz 1", "/healthz 2", "/control/activate 2", "/control/deactivate 2") // a question for health is a new connection
	s.waitClosed(t, 1)
}

func TestAConnectionThatTheGatewayClosedIsMadeAnew(t *testing.T) {
	s, c := newSocketServer(t)
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	me := driver.Process{Gateway: "gw-aaaaaaaaaa", PID: os.Getpid()}
	if _, err := c.Health(ctx, me); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	for conn := range s.conns {
		_ = conn.Close()
	}
	s.mu.Unlock()
	if err := c.Activate(ctx, me, &api.Activate{Epoch: 4}); err != nil {
		t.Fatal(err)
	}
	if got := s.requests(); !slices.Equal(got, []string{"/healthz 1", "/control/activate 2"}) {
		t.Fatalf("asked: %q", got)
	}
	c.Forget(me.Gateway)
	s.waitClosed(t, 2)
}

func TestTheConnectionOfAProcessIsNotUsedForAnother(t *testing.T) {
	s, c := newSocketServer(t)
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	me := driver.Process{Gateway: "gw-aaaaaaaaaa", PID: os.Getpid()}
	if _, err := c.Health(ctx, me); err != nil {
		t.Fatal(err)
	}
	other := me
	other.PID = 1 << 30
	if err := c.Activate(ctx, other, &api.Activate{Epoch: 4}); err == nil {
		t.Fatal("another process was given an organization over the connection of this one")
	}
	if got := s.requests(); !slices.Equal(got, []string{"/healthz 1"}) {
		t.Fatalf("asked: %q", got)
	}
	s.waitClosed(t, 1)
}
