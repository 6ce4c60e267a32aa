package metrics_test

import (
	"bufio"
	"fmt"
	"math"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	gometrics "github.com/hashicorp/go-metrics"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/metrics"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// system is a registry fed by a state machine.
type system struct {
	t       *testing.T
	metrics *metrics.Metrics
	store   *state.Store
	machine *fsm.FSM
	index   uint64
	now     time.Time
	told    state.EventID
}

type node struct{}

func (node) IsLeader() bool                { return true }
func (node) Leader() (string, string)      { return "c1", "127.0.0.1:1" }
func (node) Storage() (free, floor uint64) { return 3 << 30, 512 << 20 }

func (node) SnapshotsSent() map[string]uint64 { return map[string]uint64{"c2": 4} }

func (node) FsyncStats() (p50, p99 time.Duration, count uint64) {
	return time.Millisecond, 9 * time.Millisecond, 5
}

type link struct{}

func (link) Ephemeral(id.Host) (api.NginxStatus, time.Time, bool) {
	return api.NginxStatus{State: api.NginxServing, DesiredGeneration: 8, LiveGeneration: 7, Routes: 3, DrainingWorkers: 2}, time.Time{}, true
}

func (link) Copied(id.Host) (first, second string) {
	return "192.0.2.1 (run one)", "192.0.2.2 (run two)"
}

func newSystem(t *testing.T) *system {
	t.Helper()
	m, err := metrics.New()
	if err != nil {
		t.Fatal(err)
	}
	s := &system{t: t, metrics: m, store: state.New(), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	s.machine = fsm.New(s.store, nil)
	m.Watch(metrics.Sources{Store: s.store, Node: node{}, Link: link{}, Now: func() time.Time { return s.now }})
	return s
}

func (s *system) meta() command.Meta { return command.Meta{At: s.now, Actor: "test"} }

// apply applies a command and feeds the events it makes.
func (s *system) apply(c command.Command) command.Result {
	s.t.Helper()
	s.index++
	data, err := command.Encode(c)
	if err != nil {
		s.t.Fatal(err)
	}
	result := s.machine.Apply(&raft.Log{Index: s.index, Data: data}).(command.Result)
	events, _, _ := s.store.Events(s.told, state.KeptEvents)
	for i := range events {
		s.metrics.Event(&events[i])
		s.told = events[i].ID()
	}
	return result
}

// gateways makes the pool, the host and n gateways that were ready after a second.
func (s *system) gateways(n int) {
	s.apply(command.PutPool{Meta: s.meta(), Pool: "default", MinReady: 2, Step: 3, Max: 50, MaxInFlight: 10, Isolation: "serve", ActivationTimeout: 10 * time.Second})
	s.apply(command.ObserveHost{Meta: s.meta(), Host: "h1", Instance: "i", Full: true, Report: &command.HostReport{Capacity: 50, NginxState: api.NginxServing}})
	create := command.CreateGateways{Meta: s.meta(), Pool: "default"}
	seen := command.ObserveHost{Host: "h1", Instance: "i"}
	for range n {
		g := id.NewGateway()
		create.Gateways = append(create.Gateways, command.NewGateway{ID: g, Host: "h1"})
		seen.Gateways = append(seen.Gateways, command.GatewayReport{Gateway: g, Incarnation: 1, Phase: api.PhaseReady, BootID: "b"})
	}
	s.apply(create)
	s.now = s.now.Add(time.Second)
	seen.Meta = s.meta()
	s.apply(seen)
}

// reserve asks for a gateway for a new organization.
func (s *system) reserve() (id.Organization, command.ReserveOutcome) {
	org := id.NewOrganization()
	s.apply(command.PutOrganization{Meta: s.meta(), Organization: org, Name: "Example"})
	r := s.apply(command.Reserve{Meta: s.meta(), Pool: "default", Items: []command.ReserveItem{{Organization: org, Allocation: id.NewAllocation()}}})
	return org, r.Reserved[0]
}

func (s *system) confirm(o command.ReserveOutcome) {
	a := s.store.View().Allocation(nil, o.Allocation)
	s.apply(command.Confirm{
		Meta: s.meta(), Allocation: a.ID, Epoch: a.Epoch, Timings: command.Timings{Reserve: time.Millisecond, Route: 2 * time.Millisecond, Total: 4 * time.Millisecond},
		Observed: command.GatewayReport{Gateway: a.Gateway, Incarnation: 1, Phase: api.PhaseServing, Organization: a.Organization, Epoch: a.Epoch, BootID: "b"},
	})
}

// scrape reads all samples.
func (s *system) scrape() map[string]float64 {
	s.t.Helper()
	w := httptest.NewRecorder()
	s.metrics.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		s.t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	out := map[string]float64{}
	for lines := bufio.NewScanner(w.Body); lines.Scan(); {
		line := lines.Text()
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			v, err := strconv.ParseFloat(line[i+1:], 64)
			if err != nil {
				s.t.Fatalf("sample %q: %v", line, err)
			}
			out[line[:i]] = v
		}
	}
	return out
}

func (s *system) want(samples map[string]float64, want map[string]float64) {
	s.t.Helper()
	for name, v := range want {
		if got, ok := samples[name]; !ok || math.Abs(got-v) > 1e-9 {
			s.t.Errorf("%s is %v (there: %v), want %v", name, got, ok, v)
		}
	}
}

func TestGaugesOfTheState(t *testing.T) {
	s := newSystem(t)
	s.gateways(3)
	_, o := s.reserve()
	s.confirm(o)
	s.reserve()
	s.apply(command.NotePool{Meta: s.meta(), Pool: "default", Breaker: "open", Limited: "breaker"})
	s.want(s.scrape(), map[string]float64{
		`demiurge_gateways{pool="default",state="ready"}`:                 1,
		`demiurge_gateways{pool="default",state="allocated"}`:             1,
		`demiurge_gateways{pool="default",state="reserved"}`:              1,
		`demiurge_gateways{pool="default",state="failed"}`:                0,
		`demiurge_pool_min_ready{pool="default"}`:                         2,
		`demiurge_pool_max{pool="default"}`:                               50,
		`demiurge_pool_limited{pool="default",reason="breaker"}`:          1,
		`demiurge_pool_limited{pool="default",reason="max"}`:              0,
		`demiurge_pool_breaker_state{pool="default"}`:                     2,
		`demiurge_allocation_queue_depth{pool="default"}`:                 0,
		`demiurge_allocations{state="active"}`:                            1,
		`demiurge_allocations{state="reserved"}`:                          1,
		`demiurge_allocations{state="queued"}`:                            0,
		`demiurge_hosts{state="alive"}`:                                   1,
		`demiurge_hosts{state="lost"}`:                                    0,
		`demiurge_nginx_generation{host="h1",kind="desired"}`:             8,
		`demiurge_nginx_generation{host="h1",kind="live"}`:                7,
		`demiurge_nginx_draining_workers{host="h1"}`:                      2,
		`demiurge_nginx_quarantined{host="h1"}`:                           0,
		`demiurge_nginx_serving{host="h1"}`:                               1,
		`demiurge_routes{host="h1"}`:                                      3,
		`demiurge_host_connected{host="h1"}`:                              1,
		`demiurge_host_copied{host="h1"}`:                                 1,
		`demiurge_raft_leader_known`:                                      1,
		`demiurge_raft_is_leader`:                                         1,
		`demiurge_raft_snapshots_sent_total{peer="c2"}`:                   4,
		`demiurge_raft_fsync_seconds{quantile="0.99"}`:                    .009,
		`demiurge_state_index`:                                            float64(s.index),
		`demiurge_pool_refill_seconds_count{pool="default"}`:              3,
		`demiurge_pool_refill_seconds_sum{pool="default"}`:                3,
		`demiurge_events_total{type="allocation.reserved"}`:               2,
		`demiurge_allocation_routable_seconds_count`:                      1,
		`demiurge_allocation_routable_seconds_sum`:                        .004,
		`demiurge_allocation_routable_seconds_bucket{le="0.0005"}`:        0,
		`demiurge_allocation_routable_seconds_bucket{le="0.005"}`:         1,
		`demiurge_allocation_step_seconds_count{step="route"}`:            1,
		`demiurge_allocations_total{code="",result="active",warm="true"}`: 1,
	})
}

// Prometheus sees no increase in a counter whose first sample is 1, so the first failure would raise no alert.
func TestWhatAlertsCountIsThereBeforeItHappens(t *testing.T) {
	s := newSystem(t)
	s.gateways(1)
	s.scrape()
	s.want(s.scrape(), map[string]float64{
		`demiurge_pool_exhausted_total{pool="default"}`:          0,
		`demiurge_nginx_generations_total{result="failed"}`:      0,
		`demiurge_nginx_drift_total`:                             0,
		`demiurge_allocation_undos_total{step="unroute"}`:        0,
		`demiurge_allocation_undos_total{step="recycle"}`:        0,
		`demiurge_allocation_routable_seconds_count`:             0,
		`demiurge_pool_limited{pool="default",reason="max"}`:     0,
		`demiurge_nginx_generations_total{result="live"}`:        0,
		`demiurge_nginx_generations_total{result="quarantined"}`: 0,
	})
}

func TestCountersOfFailures(t *testing.T) {
	s := newSystem(t)
	s.gateways(1)
	_, o := s.reserve()
	if _, refused := s.reserve(); refused.Err == nil {
		t.Fatal("the pool is not empty")
	}
	a := s.store.View().Allocation(nil, o.Allocation)
	at := s.now
	s.apply(command.Fail{Meta: s.meta(), Allocation: a.ID, Epoch: a.Epoch, Code: fault.VerifyFailed, Message: "another answered"})
	s.apply(command.ObserveHost{Meta: s.meta(), Host: "h1", Instance: "i", Gateways: []command.GatewayReport{{
		Gateway: a.Gateway, Incarnation: 2, Phase: api.PhaseReady, BootID: "c",
		Undo: []command.Step{{Step: api.StepUnroute, State: api.StepDone, StartedAt: at, EndedAt: at}, {Step: api.StepRecycle, State: api.StepDone, StartedAt: at, EndedAt: at}},
	}}})
	s.apply(command.ObserveHost{Meta: s.meta(), Host: "h2", Instance: "i", Gateways: []command.GatewayReport{{Gateway: a.Gateway, Incarnation: 9, Phase: api.PhaseReady}}})
	s.apply(command.CreateGateways{Meta: s.meta(), Pool: "default", Gateways: []command.NewGateway{{ID: "gw-aaaaaaaaaa", Host: "h1"}}})
	s.apply(command.ObserveHost{Meta: s.meta(), Host: "h1", Instance: "i", Gateways: []command.GatewayReport{{Gateway: "gw-aaaaaaaaaa", Incarnation: 1, Phase: api.PhaseFailed, Code: fault.Internal}}})
	s.apply(command.RecordEvents{Meta: s.meta(), Events: []command.Event{{Type: "host.drift_repaired", At: s.now}}})
	samples := s.scrape()
	s.want(samples, map[string]float64{
		`demiurge_pool_exhausted_total{pool="default"}`:                                     1,
		`demiurge_allocations_total{code="pool_exhausted",result="refused",warm="false"}`:   1,
		`demiurge_allocations_total{code="verify_failed",result="rolled_back",warm="true"}`: 1,
		`demiurge_allocation_undos_total{step="unroute"}`:                                   1,
		`demiurge_allocation_undos_total{step="recycle"}`:                                   1,
		`demiurge_pool_create_failures_total{pool="default",reason="internal"}`:             1,
		`demiurge_nginx_drift_total`:                                                        1,
	})
	if r := s.metrics.Rates(); r.Failed != 1 || r.Refused != 1 || r.Succeeded != 0 || r.P99 != 0 {
		t.Errorf("rates %+v", r)
	}
}

func TestFencedReportsAreCounted(t *testing.T) {
	s := newSystem(t)
	s.gateways(1)
	for g := range s.store.View().Gateways(nil) {
		s.apply(command.ObserveHost{Meta: s.meta(), Host: "h1", Instance: "i", Gateways: []command.GatewayReport{{Gateway: g.ID, Incarnation: 9, Phase: api.PhaseReady}}})
	}
	s.want(s.scrape(), map[string]float64{`demiurge_fenced_writes_total`: 1})
}

func TestRates(t *testing.T) {
	s := newSystem(t)
	s.gateways(3)
	for range 3 {
		_, o := s.reserve()
		s.confirm(o)
	}
	if r := s.metrics.Rates(); r.Succeeded != 3 || r.P50 != 4 || r.P99 != 4 {
		t.Errorf("rates %+v", r)
	}
}

func TestEstimates(t *testing.T) {
	s := newSystem(t)
	if got := s.metrics.RefillEstimate("default"); got != time.Second {
		t.Errorf("estimate without knowledge %s", got)
	}
	s.now = s.now.Add(-9 * time.Second)
	s.gateways(4)
	for range 2 {
		s.reserve()
	}
	if got := s.metrics.RefillEstimate("default"); got != time.Second {
		t.Errorf("estimate %s", got)
	}
	eta := `demiurge_pool_exhaustion_eta_seconds{pool="default"}`
	if got, ok := s.scrape()[eta]; ok {
		t.Errorf("four came and two went, and the pool runs dry in %v s", got)
	}
	other := newSystem(t)
	other.gateways(4)
	other.now = other.now.Add(time.Hour) // that they came is forgotten
	for range 2 {
		other.reserve()
	}
	if got, ok := other.scrape()[eta]; !ok || got < 30 || got > 120 {
		t.Errorf("two of four are left, two went in a minute: dry in %v s (there: %v)", got, ok)
	}
}

func TestLibrariesAreInTheRegistry(t *testing.T) {
	s := newSystem(t)
	gometrics.IncrCounter([]string{"raft", "state", "leader"}, 1)
	gometrics.AddSample([]string{"raft", "commitTime"}, 3)
	samples := s.scrape()
	s.want(samples, map[string]float64{"raft_state_leader": 1, "raft_commitTime_count": 1})
	for _, name := range []string{"go_goroutines", "process_open_fds"} {
		if _, ok := samples[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestOrganizationsAreNoLabels(t *testing.T) {
	s := newSystem(t)
	s.gateways(3)
	org, o := s.reserve()
	s.confirm(o)
	s.metrics.Request("GET /v1/organizations/{id}", 200, time.Millisecond)
	s.metrics.Refused(fault.Forbidden)
	samples := s.scrape()
	for name := range samples {
		if strings.Contains(name, string(org)) || strings.Contains(name, string(o.Allocation)) || strings.Contains(name, "gw-") {
			t.Errorf("%s", name)
		}
	}
	s.want(samples, map[string]float64{
		`demiurge_http_requests_total{route="GET /v1/organizations/{id}",status="200"}`: 1,
		`demiurge_http_requests_refused_total{code="forbidden"}`:                        1,
	})
}

func TestEventTypesAreBoundedLabels(t *testing.T) {
	s := newSystem(t)
	for i := range 1000 {
		s.metrics.Event(&state.Event{Type: fmt.Sprintf("made.up%d", i)})
	}
	s.metrics.Event(&state.Event{Type: strings.Repeat("x", 100)})
	n := 0
	for name := range s.scrape() {
		if strings.HasPrefix(name, "demiurge_events_total") {
			n++
		}
	}
	if n > 201 {
		t.Errorf("%d labels", n)
	}
}
