package syncer_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/syncer"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// side is the agent's side: what it has, and what it got.
type side struct {
	mu      sync.Mutex
	frames  []api.AssignmentFrame
	refuse  error
	reports []api.GatewayReport
	queue   *syncer.Queue
	syncer  *syncer.Syncer
	cancel  context.CancelFunc
	done    chan struct{}
}

func (s *side) Apply(f api.AssignmentFrame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames = append(s.frames, f)
	return s.refuse
}

func (s *side) Reports() []api.GatewayReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]api.GatewayReport(nil), s.reports...)
}

func (s *side) Host() api.HostReport { return api.HostReport{Address: "192.0.2.1", Capacity: 7} }

func (s *side) count(f func(api.AssignmentFrame) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, fr := range s.frames {
		if f(fr) {
			n++
		}
	}
	return n
}

func full(f api.AssignmentFrame) bool { return f.Full }

func tokenFile(t *testing.T, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func start(t *testing.T, token string, urls ...string) *side {
	t.Helper()
	client, err := syncer.NewClient(syncer.ClientOptions{TokenFile: token})
	if err != nil {
		t.Fatal(err)
	}
	s := &side{queue: syncer.NewQueue(time.Now), done: make(chan struct{})}
	s.syncer, err = syncer.New(syncer.Options{
		Logger: hclog.NewNullLogger(), Host: "host-1", Coordinators: urls, Client: client, Queue: s.queue, Source: s, Follower: s,
		Timing: syncer.Timing{Silence: 2 * time.Second, FullEvery: 300 * time.Millisecond, BackOff: 5 * time.Millisecond, MaxBackOff: 50 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() { // waited for by stop
		defer close(s.done)
		s.syncer.Run(ctx)
	}()
	t.Cleanup(s.stop)
	t.Cleanup(client.CloseIdleConnections)
	return s
}

func (s *side) stop() {
	s.cancel()
	<-s.done
}

func report(g id.Gateway, phase string) api.GatewayReport {
	return api.GatewayReport{GatewayID: string(g), Incarnation: 1, Phase: phase}
}

func TestFramesComeInAndObservationsGoOut(t *testing.T) {
	c := agenttest.NewCoordinator(t, "apps.example.test")
	s := start(t, tokenFile(t, agenttest.Token+"\n"), c.URL())
	agenttest.Wait(t, "the full observation of the host", func() bool { return c.Host().Capacity == 7 })
	g := c.Run(1)[0]
	agenttest.Wait(t, "the gateway's frame", func() bool {
		return s.count(func(f api.AssignmentFrame) bool {
			return !f.Full && len(f.Gateways) == 1 && f.Gateways[0].GatewayID == string(g)
		}) == 1
	})
	s.queue.Observe(api.Observation{Gateways: []api.GatewayReport{report(g, api.PhaseReady)}})
	c.WaitPhase(t, g, api.PhaseReady, 1)
	for _, o := range c.Bodies() {
		if o.HostID != "host-1" || o.Instance != s.syncer.Instance() || o.Full != (o.Host != nil) {
			t.Fatalf("observation %+v", o)
		}
	}
	if !s.syncer.Connected() {
		t.Fatal("not connected")
	}
}

func TestNothingIsLostWhileTheCoordinatorRefuses(t *testing.T) {
	c := agenttest.NewCoordinator(t, "apps.example.test")
	c.Refuse(true)
	s := start(t, tokenFile(t, agenttest.Token), c.URL())
	g := id.NewGateway()
	agenttest.Wait(t, "a refused observation", func() bool { return c.Requests() > 0 })
	const n = 3000 // more than one report holds
	for i := range n {
		s.queue.Observe(api.Observation{
			Gateways: []api.GatewayReport{report(g, api.PhaseStarting)},
			Steps:    []api.StepReport{{GatewayID: string(g), Epoch: uint64(i), Step: api.Step{Step: "verify", State: "done"}}},
			Events:   []api.AgentEvent{{Type: "test", Reason: fmt.Sprint(i)}},
		})
	}
	s.queue.Observe(api.Observation{Gateways: []api.GatewayReport{report(g, api.PhaseReady)}})
	before := c.Requests()
	agenttest.Wait(t, "more refused observations", func() bool { return c.Requests() > before+3 })
	c.Refuse(false)
	agenttest.Wait(t, "all steps and events", func() bool { return len(c.Steps(g)) == n && len(c.Events("test")) == n })
	for i, step := range c.Steps(g) {
		if step.Epoch != uint64(i) || c.Events("test")[i].Reason != fmt.Sprint(i) {
			t.Fatalf("out of order at %d", i)
		}
		if i > 20 {
			break
		}
	}
	for _, r := range c.Reports(g) {
		if r.Phase != api.PhaseReady {
			t.Fatalf("an outdated report was sent: %+v", r)
		}
	}
}

func TestASilentCoordinatorIsLeft(t *testing.T) {
	silent, other := agenttest.NewCoordinator(t, "a.test"), agenttest.NewCoordinator(t, "a.test")
	silent.Mute(true)
	s := start(t, tokenFile(t, agenttest.Token), silent.URL(), other.URL())
	agenttest.Wait(t, "the other coordinator", func() bool { return other.Streams() == 1 && silent.Streams() == 0 })
	if s.count(full) != 2 {
		t.Fatalf("%d full frames", s.count(full))
	}
	agenttest.Wait(t, "a full observation there", func() bool { return other.Host().Capacity == 7 })
}

func TestACoordinatorThatIsGoneIsLeft(t *testing.T) {
	c := agenttest.NewCoordinator(t, "a.test")
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	wrong := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"index":1}` + "\n")) // its first frame is not a full one
	}))
	defer wrong.Close()
	s := start(t, tokenFile(t, agenttest.Token), gone.URL, wrong.URL, c.URL())
	agenttest.Wait(t, "the one that is there", func() bool { return c.Streams() == 1 })
	agenttest.Wait(t, "its frames", func() bool { return s.count(full) > 0 })
	if n := s.count(func(f api.AssignmentFrame) bool { return f.Index == 1 }); n != 0 {
		t.Fatal("a partial frame was taken for the assignment")
	}
}

func TestAFrameThatIsNotFollowedEndsTheStream(t *testing.T) {
	first, second := agenttest.NewCoordinator(t, "a.test"), agenttest.NewCoordinator(t, "a.test")
	s := start(t, tokenFile(t, agenttest.Token), first.URL(), second.URL())
	agenttest.Wait(t, "a stream", func() bool { return s.count(full) == 1 })
	s.mu.Lock()
	s.refuse = errors.New("it lags behind")
	s.mu.Unlock()
	agenttest.Wait(t, "both asked again", func() bool { return s.count(full) >= 5 })
	s.mu.Lock()
	s.refuse = nil
	s.mu.Unlock()
	agenttest.Wait(t, "a stream", s.syncer.Connected)
}

func TestTheTokenMayBeReplaced(t *testing.T) {
	c := agenttest.NewCoordinator(t, "a.test")
	path := tokenFile(t, "wrong")
	s := start(t, path, c.URL())
	if err := os.WriteFile(path+".new", []byte(agenttest.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path+".new", time.Time{}, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if c.Streams() != 0 || s.syncer.Connected() {
		t.Fatal("a wrong token was taken")
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	agenttest.Wait(t, "a stream with the new token", s.syncer.Connected)
}

func TestWhatWaitsAtTheEndIsSent(t *testing.T) {
	c := agenttest.NewCoordinator(t, "a.test")
	s := start(t, tokenFile(t, agenttest.Token), c.URL())
	agenttest.Wait(t, "a stream", s.syncer.Connected)
	g := id.NewGateway()
	c.Refuse(true)
	before := c.Requests()
	s.queue.Observe(api.Observation{Events: []api.AgentEvent{{Type: "test"}}, Gateways: []api.GatewayReport{report(g, api.PhaseReady)}})
	agenttest.Wait(t, "a refused observation", func() bool { return c.Requests() > before })
	c.Refuse(false)
	s.stop()
	if len(c.Events("test")) != 1 {
		t.Fatalf("%d events", len(c.Events("test")))
	}
}

func TestWhatCannotWorkIsSaid(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	two := filepath.Join(dir, "two")
	for path, text := range map[string]string{empty: "\n", two: "a b"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good := tokenFile(t, "x")
	for _, tt := range []struct {
		o    syncer.ClientOptions
		want string
	}{
		{syncer.ClientOptions{TokenFile: filepath.Join(dir, "none")}, "make one with demiurge token create"},
		{syncer.ClientOptions{TokenFile: empty}, "must hold one token"},
		{syncer.ClientOptions{TokenFile: two}, "must hold one token"},
		{syncer.ClientOptions{TokenFile: good, CAFile: filepath.Join(dir, "none")}, "certificate authority"},
		{syncer.ClientOptions{TokenFile: good, CAFile: two}, "no PEM certificate"},
	} {
		if _, err := syncer.NewClient(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt.o, err)
		}
	}
	for _, u := range []string{"", "coordinator:7400", "ftp://c", "https://", "https://c/path", "https://u:p@c", "https://c?x=1", "http://c#f", "http://[::1"} {
		if _, err := syncer.ParseBase(u); err == nil {
			t.Errorf("%q was taken", u)
		}
	}
	if _, err := syncer.New(syncer.Options{Logger: hclog.NewNullLogger()}); err == nil {
		t.Error("no coordinator was taken")
	}
}
