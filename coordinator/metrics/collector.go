package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Link is what the agents said last and is not in the log.
type Link interface {
	Ephemeral(host id.Host) (nginx api.NginxStatus, lastSeen time.Time, connected bool)
	// Copied tells where the host's agent is, and a second one that is refused; empty: there is none.
	Copied(host id.Host) (first, second string)
}

// Node is this coordinator's Raft node.
type Node interface {
	IsLeader() bool
	Leader() (nodeID, address string)
	// FsyncStats is the median and the 99th percentile of the latest log writes, and how many there were.
	FsyncStats() (p50, p99 time.Duration, count uint64)
	// Storage is the space on the disk of the log and the floor below which no new work is taken, in bytes.
	Storage() (free, floor uint64)
	// SnapshotsSent is how many snapshots went to each of the other members since the start.
	SnapshotsSent() map[string]uint64
}

// Sources is what gauges are read from at a scrape.
type Sources struct {
	Store *state.Store
	Node  Node
	Link  Link
	Now   func() time.Time
}

// Watch adds the gauges of the state. It is apart from New because Raft wants its metrics before there is
// a node to read from; it is called once, before the registry is scraped or fed.
func (m *Metrics) Watch(s Sources) {
	if s.Now == nil {
		s.Now = time.Now
	}
	m.mu.Lock()
	m.sources = s
	m.mu.Unlock()
	m.registry.MustRegister(newGauges(m))
}

func (m *Metrics) watched() Sources {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sources
}

// gauges reads the state at a scrape: nothing has to be kept in step with it.
type gauges struct {
	metrics *Metrics

	gateways, poolMinReady, poolMax, poolLimited, poolETA, breaker        *prometheus.Desc
	queueDepth, allocations, hosts, waiting, drainLeft, drainOverdue      *prometheus.Desc
	generation, draining, quarantined, routes, connected, serving, copied *prometheus.Desc
	leaderKnown, isLeader, fsync, index, free, floor, snapshots           *prometheus.Desc
}

func newGauges(m *Metrics) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
	}
	return &gauges{
		metrics:      m,
		gateways:     desc("gateways", "Gateways by pool and state.", "pool", "state"),
		poolMinReady: desc("pool_min_ready", "Refill below this many ready, pending and starting gateways.", "pool"),
		poolMax:      desc("pool_max", "Most gateways of the pool.", "pool"),
		poolLimited:  desc("pool_limited", "1 for what keeps the pool from growing.", "pool", "reason"),
		poolETA:      desc("pool_exhaustion_eta_seconds", "When the pool will have no ready gateway if it goes on like this; absent when it is not shrinking.", "pool"),
		breaker:      desc("pool_breaker_state", "Creating gateways: 0 goes on, 1 is being tried, 2 is stopped.", "pool"),
		waiting:      desc("relocations_waiting", "Organizations that lost their gateway and wait for another one.", "pool"),
		drainLeft:    desc("host_drain_left", "Allocations that a host which is being emptied still serves.", "host"),
		drainOverdue: desc("host_drain_overdue", "1 while a host is not empty after the deadline of its drain.", "host"),
		queueDepth:   desc("allocation_queue_depth", "Allocations waiting in line.", "pool"),
		allocations:  desc("allocations", "Live allocations by state.", "state"),
		hosts:        desc("hosts", "Hosts by state.", "state"),
		generation:   desc("nginx_generation", "Configuration generation of a host.", "host", "kind"),
		draining:     desc("nginx_draining_workers", "Old nginx workers that still serve connections.", "host"),
		quarantined:  desc("nginx_quarantined", "Parts of a host's configuration that nginx refused.", "host"),
		routes:       desc("routes", "Routes that are live on a host.", "host"),
		connected:    desc("host_connected", "1 while the host's agent holds its stream.", "host"),
		copied:       desc("host_copied", "1 while a second agent tries to speak for the host and is refused.", "host"),
		serving:      desc("nginx_serving", "1 while the host's nginx serves and takes configurations.", "host"),
		leaderKnown:  desc("raft_leader_known", "1 while this coordinator knows a leader."),
		isLeader:     desc("raft_is_leader", "1 while this coordinator leads."),
		fsync:        desc("raft_fsync_seconds", "Latest log writes, sync included.", "quantile"),
		free:         desc("raft_storage_free_bytes", "Space on the disk of the log."),
		floor:        desc("raft_storage_floor_bytes", "With less space no new work is taken."),
		snapshots:    desc("raft_snapshots_sent_total", "Snapshots of the state that were sent to another coordinator.", "peer"),
		index:        desc("state_index", "Index of the newest change of the state."),
	}
}

// Describe implements prometheus.Collector. The gauges depend on what exists, so none is announced.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) { ch <- g.index }

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	src := g.metrics.watched()
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	v := src.Store.View()
	send(g.index, float64(v.Index()))
	for p := range v.Pools(nil) {
		g.pool(send, v, p, src.Now())
	}
	g.live(send, v)
	states := map[string]int{api.HostAlive: 0, api.HostSilent: 0, api.HostLost: 0}
	for h := range v.Hosts(nil) {
		states[h.Status]++
		g.host(send, h, src.Link)
		g.drain(send, v, h)
	}
	for s, n := range states {
		send(g.hosts, float64(n), s)
	}
	if src.Node != nil {
		leader, _ := src.Node.Leader()
		send(g.leaderKnown, one(leader != ""))
		send(g.isLeader, one(src.Node.IsLeader()))
		free, floor := src.Node.Storage()
		send(g.free, float64(free))
		send(g.floor, float64(floor))
		for peer, n := range src.Node.SnapshotsSent() {
			ch <- prometheus.MustNewConstMetric(g.snapshots, prometheus.CounterValue, float64(n), peer)
		}
		if p50, p99, count := src.Node.FsyncStats(); count > 0 {
			send(g.fsync, p50.Seconds(), "0.5")
			send(g.fsync, p99.Seconds(), "0.99")
		}
	}
}

// sender emits one gauge.
type sender func(d *prometheus.Desc, value float64, labels ...string)

// gatewayStates are the labels of a pool's gateways, so that a state without gateways is 0 and not absent.
func gatewayStates() []state.GatewayState {
	return []state.GatewayState{
		state.GatewayPending, state.GatewayStarting, state.GatewayReady, state.GatewayReserved, state.GatewayAllocated,
		state.GatewayDraining, state.GatewayRecycling, state.GatewayUnhealthy, state.GatewayLost, state.GatewayReconciling,
		state.GatewayFailed, state.GatewayQuarantined, state.GatewayTerminating,
	}
}

func (g *gauges) pool(send sender, v state.View, p *state.Pool, now time.Time) {
	name := string(p.Name)
	begin(g.metrics.set.poolExhausted, name)
	counts := v.Counts(nil, p.Name)
	for _, s := range gatewayStates() {
		send(g.gateways, float64(counts.Of(s)), name, string(s))
	}
	send(g.poolMinReady, float64(p.MinReady), name)
	send(g.poolMax, float64(p.Max), name)
	for _, reason := range []string{"max", "in_flight", "capacity", "breaker"} {
		send(g.poolLimited, one(p.Limited == reason), name, reason)
	}
	send(g.breaker, map[string]float64{"half_open": 1, "open": 2}[p.Breaker.State], name)
	if eta, ok := g.metrics.exhaustion(p.Name, counts.Of(state.GatewayReady), now); ok {
		send(g.poolETA, eta, name)
	}
	depth := 0
	for range v.Line(nil, p.Name) {
		depth++
	}
	send(g.queueDepth, float64(depth), name)
	waiting := 0
	for range v.Stranded(nil, p.Name) {
		waiting++
	}
	for range v.Held(nil, p.Name) {
		waiting++
	}
	send(g.waiting, float64(waiting), name)
}

func (g *gauges) live(send sender, v state.View) {
	live := map[state.AllocationState]int{
		state.AllocationQueued: 0, state.AllocationReserved: 0, state.AllocationActive: 0,
		state.AllocationReleasing: 0, state.AllocationRollingBack: 0, state.AllocationRelocating: 0,
	}
	for a := range v.LiveAllocations(nil) {
		live[a.State]++
	}
	for s, n := range live {
		send(g.allocations, float64(n), string(s))
	}
}

func (g *gauges) host(send sender, h *state.Host, link Link) {
	name := string(h.ID)
	nginx := api.NginxStatus{
		State: h.Report.NginxState, DesiredGeneration: h.Report.DesiredGeneration, LiveGeneration: h.Report.LiveGeneration,
	}
	quarantined := len(h.Report.Quarantined)
	connected, copied := false, false
	if link != nil {
		_, second := link.Copied(h.ID)
		copied = second != ""
		var last api.NginxStatus
		if last, _, connected = link.Ephemeral(h.ID); connected && last.State != "" {
			nginx, quarantined = last, len(last.Quarantined)
		}
	}
	send(g.connected, one(connected), name)
	send(g.copied, one(copied), name)
	send(g.serving, one(nginx.State == api.NginxServing), name)
	send(g.generation, float64(nginx.DesiredGeneration), name, "desired")
	send(g.generation, float64(nginx.LiveGeneration), name, "live")
	send(g.draining, float64(nginx.DrainingWorkers), name)
	send(g.quarantined, float64(quarantined), name)
	send(g.routes, float64(nginx.Routes), name)
}

// drain tells how far a host is that is being emptied; nothing of others.
func (g *gauges) drain(send sender, v state.View, h *state.Host) {
	if h.Drain == nil || h.Drain.State == api.DrainDrained {
		return
	}
	n := v.HostCounts(nil, h.ID)
	send(g.drainLeft, float64(n.Of(state.GatewayReserved)+n.Of(state.GatewayAllocated)), string(h.ID))
	send(g.drainOverdue, one(h.Drain.State == api.DrainOverdue), string(h.ID))
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
