package syncer_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/syncer"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
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

	born     time.Time
	lease    atomic.Int64 // the shortest; negative: a renewal made no sense
	renewals atomic.Int64
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

// certificate is what a host's agent presents; with Replace it gets another one.
type certificate struct{ *pki.Live }

func (c certificate) TLS() (*tls.Config, error) {
	return c.Client(pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}, "http/1.1")
}

func newCertificate(t *testing.T, of *agenttest.Trust) certificate {
	t.Helper()
	return certificate{pki.NewLive(of.Issue(t, pki.RoleAgent, "host-1", time.Now()), pki.LiveOptions{})}
}

func start(t *testing.T, c certificate, addresses ...string) *side {
	t.Helper()
	return startTimed(t, syncer.Timing{Silence: 2 * time.Second, FullEvery: 300 * time.Millisecond, BackOff: 5 * time.Millisecond, MaxBackOff: 50 * time.Millisecond}, c, addresses...)
}

func startTimed(t *testing.T, timing syncer.Timing, c certificate, addresses ...string) *side {
	t.Helper()
	client, err := syncer.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	s := &side{born: time.Now(), queue: syncer.NewQueue(time.Now), done: make(chan struct{})}
	s.syncer, err = syncer.New(syncer.Options{
		Logger: hclog.NewNullLogger(), Host: "host-1", Coordinators: addresses, Client: client, Queue: s.queue, Source: s, Follower: s, Leases: s,
		Timing: timing,
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

// Shortest, Now and Renewed make it the leases, of which there are none until one is set.
func (s *side) Shortest() time.Duration { return time.Duration(s.lease.Load()) }

func (s *side) Now() time.Duration { return time.Since(s.born) }

func (s *side) Renewed(sent time.Duration, index uint64) {
	if sent > s.Now() || index == 0 {
		s.lease.Store(-1) // seen by the test
		return
	}
	s.renewals.Add(1)
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
	s := start(t, newCertificate(t, c.Trust()), c.Address())
	agenttest.Wait(t, "the full observation of the host", func() bool { return c.Host().Capacity == 7 })
	agenttest.Wait(t, "a stream", func() bool { return s.count(full) == 1 })
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
	s := start(t, newCertificate(t, c.Trust()), c.Address())
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

// TestEverythingIsSaidWhenEverythingIsAsked: a coordinator whose state was replaced says everything to its agents,
// and does not know what they have told the one before.
func TestEverythingIsSaidWhenEverythingIsAsked(t *testing.T) {
	c := agenttest.NewCoordinator(t, "a.test")
	s := startTimed(t, syncer.Timing{FullEvery: time.Hour}, newCertificate(t, c.Trust()), c.Address())
	fulls := func() int {
		return len(slices.DeleteFunc(c.Bodies(), func(o api.Observation) bool { return !o.Full }))
	}
	agenttest.Wait(t, "a stream, and a full observation over it", func() bool { return s.count(full) == 1 && fulls() > 0 })
	settled := fulls()
	g := c.Run(1)[0]
	s.queue.Observe(api.Observation{Gateways: []api.GatewayReport{report(g, api.PhaseReady)}})
	c.WaitPhase(t, g, api.PhaseReady, 1)
	before := fulls()
	if before > settled+1 { // one at the start of the agent, one of the stream
		t.Errorf("%d full observations without need", before-settled)
	}
	c.Again()
	agenttest.Wait(t, "another full observation", func() bool { return fulls() > before })
}

func TestASilentCoordinatorIsLeft(t *testing.T) {
	silent := agenttest.NewCoordinator(t, "a.test")
	other := silent.Trust().Coordinator(t, "a.test")
	silent.Mute(true)
	s := start(t, newCertificate(t, silent.Trust()), silent.Address(), other.Address())
	agenttest.Wait(t, "the other coordinator", func() bool { return other.Streams() == 1 && silent.Streams() == 0 })
	agenttest.Wait(t, "its full frame", func() bool { return s.count(full) == 2 })
	agenttest.Wait(t, "a full observation there", func() bool { return other.Host().Capacity == 7 })
}

func TestACoordinatorThatIsGoneIsLeft(t *testing.T) {
	c := agenttest.NewCoordinator(t, "a.test")
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	wrong := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"index":1}` + "\n")) // whatever it is, it is no coordinator
	}))
	defer wrong.Close()
	other := agenttest.NewCoordinator(t, "a.test") // of another cluster
	s := start(t, newCertificate(t, c.Trust()), strings.TrimPrefix(gone.URL, "http://"), strings.TrimPrefix(wrong.URL, "http://"), other.Address(), c.Address())
	agenttest.Wait(t, "the one that is there", func() bool { return c.Streams() == 1 })
	agenttest.Wait(t, "its frames", func() bool { return s.count(full) > 0 })
	if other.Requests() != 0 || other.Streams() != 0 {
		t.Fatal("a coordinator of another cluster was spoken to")
	}
}

func TestAFrameThatIsNotFollowedEndsTheStream(t *testing.T) {
	first := agenttest.NewCoordinator(t, "a.test")
	second := first.Trust().Coordinator(t, "a.test")
	s := start(t, newCertificate(t, first.Trust()), first.Address(), second.Address())
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

// TestANewCertificateIsUsedFromTheNextRequestOn: the old connection goes on, and what is sent next comes
// over one that was made with the new certificate.
func TestANewCertificateIsUsedFromTheNextRequestOn(t *testing.T) {
	c := agenttest.NewCoordinator(t, "a.test")
	mine := newCertificate(t, c.Trust())
	s := start(t, mine, c.Address())
	agenttest.Wait(t, "a stream", s.syncer.Connected)
	next := c.Trust().Issue(t, pki.RoleAgent, "host-1", time.Now())
	if err := mine.Replace(next); err != nil {
		t.Fatal(err)
	}
	agenttest.Wait(t, "a report with the new certificate", func() bool { return c.Certificate().Equal(next.Leaf()) })
	if c.Streams() != 1 || s.count(full) != 1 {
		t.Error("the stream was not left alone")
	}
}

func TestTheCertificateIsRenewed(t *testing.T) {
	c := agenttest.NewCoordinator(t, "a.test")
	mine := newCertificate(t, c.Trust())
	s := start(t, mine, c.Address())
	e, err := pki.NewEnrolment()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	answer, err := s.syncer.RenewCertificate(ctx, api.JoinRequest{CSR: e.Request(), Role: "agent", Name: "host-1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Accept(answer.Certificate, answer.CA, mine.Current().Identity(), time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := s.syncer.RenewCertificate(ctx, api.JoinRequest{CSR: "none"}); err == nil || !strings.Contains(err.Error(), "cannot renew at") {
		t.Errorf("a refused renewal: %v", err)
	}
}

func TestWhatWaitsAtTheEndIsSent(t *testing.T) {
	c := agenttest.NewCoordinator(t, "a.test")
	s := start(t, newCertificate(t, c.Trust()), c.Address())
	agenttest.Wait(t, "a stream", s.syncer.Connected)
	g := id.NewGateway()
	c.Refuse(true)
	before := c.Requests()
	s.queue.Observe(api.Observation{Events: []api.AgentEvent{{Type: "test"}}, Gateways: []api.GatewayReport{report(g, api.PhaseReady)}})
	agenttest.Wait(t, "a refused observation", func() bool { return c.Requests() > before })
	c.Refuse(false)
	s.stop()
	if len(c.Events("test")) == 0 { // twice, when the end came before the answer to the first time
		t.Fatal("the event was lost")
	}
}

func TestWhatCannotWorkIsSaid(t *testing.T) {
	for _, u := range []string{"", "coordinator", "http://c:7400", "ftp://c:1", "https://", "https://c", "https://c:1/path", "https://u:p@c:1", "https://c:1?x=1", "https://c:1#f", "https://[::1"} {
		if _, err := syncer.ParseBase(u); err == nil {
			t.Errorf("%q was taken", u)
		}
	}
	if _, err := syncer.New(syncer.Options{Logger: hclog.NewNullLogger()}); err == nil {
		t.Error("no coordinator was taken")
	}
}

// Where nothing depends on a lease, nothing asks for one. Where something does, each word that is
// acknowledged renews it, and there is one at a steady rate; one that is refused renews nothing.
func TestLeasesAreRenewed(t *testing.T) {
	c := agenttest.NewCoordinator(t, "apps.example.test")
	s := start(t, newCertificate(t, c.Trust()), c.Address())
	agenttest.Wait(t, "a report came", func() bool { return len(c.Bodies()) > 0 })
	if s.renewals.Load() != 0 {
		t.Error("a lease was renewed that nothing depends on")
	}
	for _, o := range c.Bodies() {
		if o.Renew {
			t.Errorf("a renewal was asked for that nothing depends on: %+v", o)
		}
	}
	s.lease.Store(int64(8 * time.Second))
	agenttest.Wait(t, "the lease was renewed twice", func() bool { return s.renewals.Load() >= 2 })
	c.Refuse(true)
	refused := c.Requests()
	agenttest.Wait(t, "words were refused", func() bool { return c.Requests() >= refused+3 })
	before := s.renewals.Load()
	refused = c.Requests()
	agenttest.Wait(t, "more were refused", func() bool { return c.Requests() >= refused+3 })
	if s.renewals.Load() != before {
		t.Error("a word that was refused has renewed the lease")
	}
	c.Refuse(false)
	agenttest.Wait(t, "the lease goes on", func() bool { return s.renewals.Load() > before })
	if s.lease.Load() < 0 {
		t.Error("a renewal came from the future, or without an index")
	}
}
