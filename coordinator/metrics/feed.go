package metrics

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// What becomes of a configuration change of a host.
const (
	generationLive        = "live"
	generationFailed      = "failed"
	generationQuarantined = "quarantined"
)

// Event counts one event. It is called in the order of the feed, from one goroutine.
func (m *Metrics) Event(e *state.Event) {
	m.set.events.WithLabelValues(m.typeLabel(e.Type)).Inc()
	switch topic, what, _ := strings.Cut(e.Type, "."); topic {
	case "allocation":
		m.allocation(e, what)
	case "gateway":
		m.gateway(e, what)
	case "host":
		switch what {
		case "generation":
			m.set.nginxGenerations.WithLabelValues(generationLive).Inc()
		case "quarantined":
			m.set.nginxGenerations.WithLabelValues(generationQuarantined).Inc()
		case "generation_failed":
			m.set.nginxGenerations.WithLabelValues(generationFailed).Inc()
		case "drift_repaired":
			m.set.nginxDrift.Inc()
		}
	}
}

// typesKept bounds the labels that event types make: agents choose the types of their own events.
const typesKept = 200

func (m *Metrics) typeLabel(eventType string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.types[eventType] {
		if len(m.types) >= typesKept || len(eventType) > 64 {
			return "other"
		}
		m.types[eventType] = true
	}
	return eventType
}

// allocation counts what became of an allocation.
func (m *Metrics) allocation(e *state.Event, what string) {
	switch what {
	case "refused":
		if e.Code == fault.PoolExhausted || e.Code == fault.NoEligibleHost {
			m.set.poolExhausted.WithLabelValues(string(e.Pool)).Inc()
		}
		m.set.allocations.WithLabelValues(what, string(e.Code), "false").Inc()
		m.count(&m.refused)
	case "relocation_failed": // whatever else it had come to, its gateway is taken back
		m.set.allocationUndos.WithLabelValues(api.StepRecycle).Inc()
	case api.StepUndoDNS:
		m.set.allocationUndos.WithLabelValues(what).Inc()
	case "reserved", "placed":
		m.flow(e.Pool, e.At, 1)
	case "active", "released", "failed", "rolled_back":
		if what == "active" && e.Before == string(state.AllocationRelocating) {
			m.moved(e)
			return
		}
		m.ended(e, what)
	}
}

// moved counts a move that is over.
func (m *Metrics) moved(e *state.Event) {
	rec := m.record(e.Allocation)
	if rec == nil || len(rec.Moves) == 0 {
		return
	}
	last := rec.Moves[len(rec.Moves)-1]
	if last.Failure.Code != "" {
		m.set.relocations.WithLabelValues(last.Cause, "stayed").Inc()
		return
	}
	m.set.relocations.WithLabelValues(last.Cause, "moved").Inc()
	m.set.relocationTime.WithLabelValues(last.Cause).Observe(max(last.EndedAt.Sub(last.Since), 0).Seconds())
}

// ended counts an allocation that became active or ended. What its steps took is in the record.
func (m *Metrics) ended(e *state.Event, what string) {
	warm := "false"
	code := e.Code
	rec := m.record(e.Allocation)
	if rec != nil {
		if rec.Warm {
			warm = "true"
		}
		if code == "" {
			code = rec.Failure.Code
		}
	}
	if what == "active" || what == "released" {
		code = ""
	}
	m.set.allocations.WithLabelValues(what, string(code), warm).Inc()
	switch {
	case what == "active":
		m.count(&m.succeeded)
		if rec != nil {
			m.timings(rec.Timings)
		}
	case what != "released":
		m.count(&m.failed)
		if rec != nil {
			m.undos(rec.Journal)
		}
	}
}

func (m *Metrics) record(a id.Allocation) *state.Allocation {
	if store := m.watched().Store; store != nil {
		return store.View().Allocation(nil, a)
	}
	return nil
}

func (m *Metrics) count(n *uint64) {
	m.mu.Lock()
	*n++
	m.mu.Unlock()
}

// timings observes what each step of an active allocation took; a step that did not run took nothing.
func (m *Metrics) timings(t command.Timings) {
	if t.Total > 0 {
		m.set.allocationRoutable.Observe(t.Total.Seconds())
		m.mu.Lock()
		m.routable.add(t.Total)
		m.mu.Unlock()
	}
	for _, s := range []struct {
		step string
		took time.Duration
	}{
		{api.StepQueue, t.Queue},
		{api.StepReserve, t.Reserve},
		{api.StepActivate, t.Activate},
		{api.StepRoute, t.Route},
		{api.StepDNS, t.DNS},
		{api.StepVerify, t.Verify},
		{api.StepConfirm, t.Confirm},
	} {
		if s.took > 0 {
			m.set.allocationStep.WithLabelValues(s.step).Observe(s.took.Seconds())
		}
	}
}

// undos counts the steps that a failed allocation took back.
func (m *Metrics) undos(journal []command.Step) {
	for _, s := range journal {
		if slices.Contains(undoSteps(), s.Step) {
			m.set.allocationUndos.WithLabelValues(s.Step).Inc()
		}
	}
}

func undoSteps() []string {
	return []string{api.StepUndoDNS, api.StepUnroute, api.StepDeactivate, api.StepRecycle}
}

// gateway counts what a gateway went through.
func (m *Metrics) gateway(e *state.Event, what string) {
	switch what {
	case "fenced":
		m.set.fencedWrites.Inc()
	case "ready":
		m.flow(e.Pool, e.At, -1)
		if e.Before == api.GatewayPending || e.Before == api.GatewayStarting {
			m.refilled(e)
		}
	case "failed":
		if e.Before == api.GatewayPending || e.Before == api.GatewayStarting {
			m.set.poolCreateFailures.WithLabelValues(string(e.Pool), m.failure(e.Gateway)).Inc()
		}
	}
}

// failure is the code that a gateway's agent gave for its failure.
func (m *Metrics) failure(gateway id.Gateway) string {
	if store := m.watched().Store; store != nil {
		if g := store.View().Gateway(nil, gateway); g != nil && g.Observed.Code != "" {
			if _, known := fault.Codes()[g.Observed.Code]; known {
				return string(g.Observed.Code)
			}
		}
	}
	return "unknown"
}

// refilled notes how long a new gateway took to be ready.
func (m *Metrics) refilled(e *state.Event) {
	store := m.watched().Store
	if store == nil {
		return
	}
	g := store.View().Gateway(nil, e.Gateway)
	if g == nil {
		return
	}
	took := e.At.Sub(g.CreatedAt)
	if took < 0 { // two clocks
		return
	}
	m.set.poolRefill.WithLabelValues(string(e.Pool)).Observe(took.Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refills[e.Pool] == nil {
		m.refills[e.Pool] = &window{}
	}
	m.refills[e.Pool].add(took)
}

// Bounds of an estimate that nothing better is known for.
const (
	refillFloor   = time.Second
	refillCeiling = time.Minute
)

// RefillEstimate is when a gateway of an empty pool may be ready: what most of the latest ones took.
func (m *Metrics) RefillEstimate(pool id.Pool) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.refills[pool]
	if w == nil {
		return refillFloor
	}
	return min(max(w.quantile(.9), refillFloor), refillCeiling)
}

// flow is a moving average of how many ready gateways a pool loses per second, net.
type flow struct {
	perSecond float64
	at        time.Time
}

// flowTime is the time after which an old change has lost most of its weight.
const flowTime = time.Minute

func (m *Metrics) flow(pool id.Pool, at time.Time, taken float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.flows[pool]
	if f == nil {
		f = &flow{at: at}
		m.flows[pool] = f
	}
	f.fade(at)
	f.perSecond += taken / flowTime.Seconds()
}

func (f *flow) fade(now time.Time) {
	if passed := now.Sub(f.at); passed > 0 {
		f.perSecond *= math.Exp(-passed.Seconds() / flowTime.Seconds())
		f.at = now
	}
}

// exhaustion estimates when a pool will have no ready gateway; ok is false when it is not shrinking.
func (m *Metrics) exhaustion(pool id.Pool, ready int, now time.Time) (seconds float64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.flows[pool]
	if f == nil {
		return 0, false
	}
	f.fade(now)
	const least = 1.0 / 3600 // less than one an hour is no trend
	if f.perSecond < least {
		return 0, false
	}
	return float64(ready) / f.perSecond, true
}
