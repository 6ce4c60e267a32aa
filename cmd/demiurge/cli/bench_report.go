package cli

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// samples collects what a run saw. All times are milliseconds.
type samples struct {
	mu        sync.Mutex // guards all: every turn is a goroutine
	times     map[string][]float64
	errors    map[string]int
	succeeded int
}

func newSamples() *samples { return &samples{times: map[string][]float64{}, errors: map[string]int{}} }

func (s *samples) add(name string, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times[name] = append(s.times[name], float64(d)/float64(time.Millisecond))
}

func (s *samples) failed(code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors[code]++
}

// started records a start that succeeded: the time since it was due, and the steps as the coordinator
// measured them.
func (s *samples) started(t api.Timings, total time.Duration) {
	s.add("total", total)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.succeeded++
	for name, ms := range map[string]float64{
		api.StepQueue: t.Queue, api.StepReserve: t.Reserve, api.StepActivate: t.Activate, api.StepRoute: t.Route,
		api.StepDNS: t.DNS, api.StepVerify: t.Verify, api.StepConfirm: t.Confirm, "coordinator": t.Total,
	} {
		s.times[name] = append(s.times[name], ms)
	}
}

// spread is a distribution in milliseconds.
type spread struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99_9"`
	Max   float64 `json:"max"`
}

// spreadOf takes nearest-rank percentiles: each is a value that was measured. It sorts its argument.
func spreadOf(ms []float64) spread {
	if len(ms) == 0 {
		return spread{}
	}
	slices.Sort(ms)
	at := func(p float64) float64 {
		rank := int(math.Ceil(p * float64(len(ms))))
		return ms[min(max(rank, 1), len(ms))-1]
	}
	return spread{Count: len(ms), P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999), Max: ms[len(ms)-1]}
}

// benchReport is the result of a run. Latencies are by name: total (due start to answer), coordinator and
// its steps, first byte, commit to first byte, release.
type benchReport struct {
	Organizations int               `json:"organizations"`
	Rate          float64           `json:"rate"`
	Seconds       float64           `json:"seconds"`
	Interrupted   bool              `json:"interrupted"`
	Succeeded     int               `json:"succeeded"`
	Failed        int               `json:"failed"`
	Achieved      float64           `json:"achieved_rate"`
	Latency       map[string]spread `json:"latency_ms"`
	Errors        map[string]int    `json:"errors"`
}

// benchOrder is the order of the table's rows, that of an allocation's life.
func benchOrder() []string {
	return []string{
		"total", "coordinator", api.StepQueue, api.StepReserve, api.StepActivate, api.StepRoute, api.StepDNS, api.StepVerify, api.StepConfirm,
		"first byte", "commit to first byte", "release",
	}
}

func (s *samples) report(plan benchPlan, took time.Duration, interrupted bool) benchReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := benchReport{
		Organizations: plan.organizations, Rate: plan.rate, Seconds: took.Seconds(), Interrupted: interrupted,
		Succeeded: s.succeeded, Latency: map[string]spread{}, Errors: maps.Clone(s.errors),
	}
	for _, n := range s.errors {
		r.Failed += n
	}
	if took > 0 {
		r.Achieved = float64(s.succeeded) / took.Seconds()
	}
	for name, ms := range s.times {
		r.Latency[name] = spreadOf(ms)
	}
	return r
}

func (r benchReport) draw(w io.Writer) error {
	fmt.Fprintf(w, "%d starts succeeded in %.1f s (%.1f/s of %g/s planned), %d errors, %d organizations\n\n",
		r.Succeeded, r.Seconds, r.Achieved, r.Rate, r.Failed, r.Organizations)
	g := newGrid("MILLISECONDS", "COUNT", "P50", "P90", "P99", "P99.9", "MAX")
	for _, name := range benchOrder() {
		if l, ok := r.Latency[name]; ok && l.Max > 0 { // a step that never ran has only zeros
			g.add(name, l.Count, millis(l.P50), millis(l.P90), millis(l.P99), millis(l.P999), millis(l.Max))
		}
	}
	if err := g.draw(w); err != nil || len(r.Errors) == 0 {
		return err
	}
	fmt.Fprintln(w)
	g = newGrid("ERROR", "COUNT")
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		g.add(code, r.Errors[code])
	}
	return g.draw(w)
}
