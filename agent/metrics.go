package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/demiurge-platform/demiurge/agent/nginx"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// metrics are the agent's own, in a registry of its own so that several agents fit in one process.
type metrics struct {
	registry    *prometheus.Registry
	seconds     prometheus.Histogram
	generations *prometheus.CounterVec
	drift       prometheus.Counter
	restarts    prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "demiurge_nginx_generation_seconds", Help: "From the beginning of a generation to the proof that it is live.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .2, .5, 1, 2.5, 5, 10},
		}),
		generations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "demiurge_nginx_generations_total", Help: "Generations by result: live, failed.",
		}, []string{"result"}),
		drift: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "demiurge_nginx_drift_total", Help: "Files of nginx that somebody else changed and that were repaired.",
		}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "demiurge_nginx_restarts_total", Help: "Times that another nginx was found to run than before: it died, or was restarted.",
		}),
	}
	m.registry.MustRegister(m.seconds, m.generations, m.drift, m.restarts,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, result := range []string{"live", "failed"} {
		m.generations.WithLabelValues(result)
	}
	return m
}

func (m *metrics) nginxEvent(e nginx.Event) {
	switch e.Type {
	case nginx.GenerationLive:
		m.generations.WithLabelValues("live").Inc()
		m.seconds.Observe(e.Took.Seconds())
	case nginx.GenerationFailed:
		m.generations.WithLabelValues("failed").Inc()
	case nginx.DriftRepaired:
		m.drift.Inc()
	case nginx.NginxRestarted:
		m.restarts.Inc()
	}
}

// watch adds what is read when Prometheus asks.
func (m *metrics) watch(r reader) { m.registry.MustRegister(&r) }

// reader is a collector without state.
type reader struct {
	status    func() api.NginxStatus
	reports   func() []api.GatewayReport
	connected func() bool
	oauth     func() oauth.Stats
	sessions  func() int
}

func description(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("demiurge_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector. It describes nothing: what is read is checked when it is
// collected.
func (r *reader) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (r *reader) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := r.status()
	gauge(description("routes", "Organizations that this host routes."), float64(s.Routes))
	generation := description("nginx_generation", "Number of the nginx generation.", "kind")
	gauge(generation, float64(s.DesiredGeneration), "desired")
	gauge(generation, float64(s.LiveGeneration), "live")
	gauge(description("nginx_draining_workers", "Old nginx workers that still hold connections."), float64(s.DrainingWorkers))
	gauge(description("nginx_quarantined", "Parts of the configuration that nginx refused."), float64(len(s.Quarantined)))
	up := 0.0
	if s.State == api.NginxServing {
		up = 1
	}
	gauge(description("nginx_up", "1 when nginx serves the live generation."), up)
	phases := map[string]int{
		api.PhaseStarting: 0, api.PhaseReady: 0, api.PhaseServing: 0, api.PhaseUnhealthy: 0, api.PhaseFailed: 0,
	}
	restarts := 0
	for _, g := range r.reports() {
		phases[g.Phase]++
		restarts += g.Restarts
	}
	byPhase := description("host_gateways", "Gateways of this host by phase.", "phase")
	for phase, n := range phases {
		gauge(byPhase, float64(n), phase)
	}
	gauge(description("host_gateway_restarts", "Restarts of the gateways that run now, in their present incarnation."), float64(restarts))
	following := 0.0
	if r.connected() {
		following = 1
	}
	r.collectTenants(out, gauge)
	gauge(description("agent_connected", "1 when the agent follows a coordinator."), following)
}

// collectTenants tells what the agent itself holds for organizations, of all of them together.
func (r *reader) collectTenants(out chan<- prometheus.Metric, gauge func(*prometheus.Desc, float64, ...string)) {
	s := r.oauth()
	objects := description("oauth_objects", "OAuth objects that are held now.", "kind")
	expired := description("oauth_expired_total", "OAuth objects that were removed because their time was over.", "kind")
	removed := description("oauth_removed_total", "OAuth objects that were removed before that: revoked, or with their client, member or organization.", "kind")
	gauge(objects, float64(s.Clients), "client")
	for _, k := range oauth.Kinds() {
		gauge(objects, float64(s.Live.Of(k)), k.String())
		out <- prometheus.MustNewConstMetric(expired, prometheus.CounterValue, float64(s.Expired.Of(k)), k.String())
		out <- prometheus.MustNewConstMetric(removed, prometheus.CounterValue, float64(s.Removed.Of(k)), k.String())
	}
	gauge(description("tenant_sessions", "Browsers that are logged in at organizations."), float64(r.sessions()))
}
