// Package metrics is the coordinator's Prometheus registry: counters and histograms fed by the event feed
// and by the API, gauges read from the state at the moment of a scrape, and what Raft, Serf, Go and the
// process tell of themselves. Organization ids are never labels.
package metrics

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	gometrics "github.com/hashicorp/go-metrics"
	promsink "github.com/hashicorp/go-metrics/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/version"
)

// Metrics is the registry of one coordinator.
type Metrics struct {
	registry *prometheus.Registry
	handler  http.Handler
	set      instruments

	mu sync.Mutex
	// sources is what Watch was given; guarded by mu.
	sources Sources
	// refills is how long the latest gateways of each pool took to become ready; guarded by mu.
	refills map[id.Pool]*window
	// flows is how fast each pool's ready gateways are taken; guarded by mu.
	flows map[id.Pool]*flow
	// types are the event types that have a label of their own; guarded by mu.
	types map[string]bool
	// routable is how long the latest allocations took; guarded by mu, as are the three counts.
	routable                   window
	succeeded, failed, refused uint64
}

// instruments are what is counted, in the order of the contract.
type instruments struct {
	poolExhausted      *prometheus.CounterVec
	poolRefill         *prometheus.HistogramVec
	poolCreateFailures *prometheus.CounterVec
	allocations        *prometheus.CounterVec
	allocationRoutable prometheus.Histogram
	allocationStep     *prometheus.HistogramVec
	allocationUndos    *prometheus.CounterVec
	relocations        *prometheus.CounterVec
	relocationTime     *prometheus.HistogramVec
	fencedWrites       prometheus.Counter
	events             *prometheus.CounterVec
	nginxGenerations   *prometheus.CounterVec
	nginxDrift         prometheus.Counter
	requests           *prometheus.CounterVec
	requestTime        *prometheus.HistogramVec
	requestsRefused    *prometheus.CounterVec
}

// namespace is the prefix of Demiurge's own metrics.
const namespace = "demiurge"

// buckets begin at half a millisecond, because a route switch takes about one.
func buckets() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
}

// New makes a registry and leads the go-metrics of Raft and Serf into it. That part is one per process:
// with several coordinators in one process the newest registry has it.
func New() (*Metrics, error) {
	m := &Metrics{
		registry: prometheus.NewRegistry(), refills: map[id.Pool]*window{}, flows: map[id.Pool]*flow{}, types: map[string]bool{},
	}
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.instrument()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Always 1; the version is the label.",
		ConstLabels: prometheus.Labels{"version": version.Get().Version},
	})
	build.Set(1)
	m.registry.MustRegister(build)
	sink, err := promsink.NewPrometheusSinkFrom(promsink.PrometheusOpts{Registerer: m.registry, Name: "raft_and_serf", Expiration: 10 * time.Minute})
	if err != nil {
		return nil, fmt.Errorf("cannot make the sink for the metrics of Raft and Serf: %w", err)
	}
	cfg := gometrics.DefaultConfig("")
	cfg.EnableHostname, cfg.EnableRuntimeMetrics = false, false
	if _, err := gometrics.NewGlobal(cfg, sink); err != nil {
		return nil, fmt.Errorf("cannot lead the metrics of Raft and Serf into the registry: %w", err)
	}
	return m, nil
}

func (m *Metrics) instrument() {
	s := &m.set
	s.poolExhausted = m.counters("pool_exhausted_total", "Starts that were refused because the pool had no ready gateway.", "pool")
	s.poolRefill = m.histograms("pool_refill_seconds", "From the creation of a gateway until it is ready.", "pool")
	s.poolCreateFailures = m.counters("pool_create_failures_total", "Gateways that failed before they were ready.", "pool", "reason")
	s.allocations = m.counters("allocations_total", "Allocations by what became of them.", "result", "code", "warm")
	s.allocationStep = m.histograms("allocation_step_seconds", "How long each step of an allocation took.", "step")
	s.allocationUndos = m.counters("allocation_undos_total", "Steps that were taken back.", "step")
	s.relocations = m.counters("relocations_total", "Moves of allocations to other gateways, by cause and by what became of them.", "cause", "result")
	s.relocationTime = m.histograms("relocation_seconds", "From the loss of the host, or the request, until another gateway serves and is verified.", "cause")
	s.events = m.counters("events_total", "Events by type.", "type")
	s.nginxGenerations = m.counters("nginx_generations_total", "Configuration changes of the hosts by what became of them.", "result")
	s.requests = m.counters("http_requests_total", "Answered requests.", "route", "status")
	s.requestTime = m.histograms("http_request_seconds", "Time to answer, the time that a request was held included.", "route")
	s.requestsRefused = m.counters("http_requests_refused_total", "Requests that were not let in.", "code")
	s.allocationRoutable = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: namespace, Name: "allocation_routable_seconds", Help: "From the request until the organization is served and verified.", Buckets: buckets(),
	})
	s.fencedWrites = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: namespace, Name: "fenced_writes_total", Help: "Reports and writes of an old epoch that were ignored.",
	})
	s.nginxDrift = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: namespace, Name: "nginx_drift_total", Help: "Times that a host's configuration was found changed by somebody else.",
	})
	m.registry.MustRegister(s.allocationRoutable, s.fencedWrites, s.nginxDrift)
	for _, result := range []string{generationLive, generationFailed, generationQuarantined} {
		begin(s.nginxGenerations, result)
	}
	for _, step := range undoSteps() {
		begin(s.allocationUndos, step)
	}
}

// begin lets a counter that alerts look at be there as 0: one whose first sample is 1 has not increased.
func begin(v *prometheus.CounterVec, labels ...string) { v.WithLabelValues(labels...) }

func (m *Metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

func (m *Metrics) histograms(name, help string, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets()}, labels)
	m.registry.MustRegister(v)
	return v
}

// ServeHTTP answers a scrape.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.handler.ServeHTTP(w, r) }

// Request counts one answered request.
func (m *Metrics) Request(route string, status int, took time.Duration) {
	m.set.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	m.set.requestTime.WithLabelValues(route).Observe(took.Seconds())
}

// Refused counts a request that was not let in.
func (m *Metrics) Refused(code fault.Code) { m.set.requestsRefused.WithLabelValues(string(code)).Inc() }

// Rates sums up the allocations that this coordinator saw since it started.
func (m *Metrics) Rates() api.Rate {
	m.mu.Lock()
	defer m.mu.Unlock()
	return api.Rate{
		Succeeded: m.succeeded, Failed: m.failed, Refused: m.refused,
		P50: ms(m.routable.quantile(.5)), P99: ms(m.routable.quantile(.99)),
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// window keeps the latest durations.
type window struct {
	samples []time.Duration
	next    int
}

// windowSize is enough for a 99th percentile that one slow allocation does not make.
const windowSize = 1024

func (w *window) add(d time.Duration) {
	if len(w.samples) < windowSize {
		w.samples = append(w.samples, d)
		return
	}
	w.samples[w.next] = d
	w.next = (w.next + 1) % windowSize
}

// quantile is zero without samples.
func (w *window) quantile(q float64) time.Duration {
	if len(w.samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(w.samples))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
