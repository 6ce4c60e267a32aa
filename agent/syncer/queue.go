package syncer

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// Bounds of what waits and of one report, which must stay far below what a coordinator takes (16 MiB). Steps are bounded by the grants that wait for their outcome;
// events are not, so the oldest are dropped and counted.
const (
	maxEvents     = 10000
	maxSteps      = 20000
	stepsAtOnce   = 2000
	eventsAtOnce  = 1000
	reportsAtOnce = 2000
)

// EventDropped says that events were lost because no coordinator took them for too long.
const EventDropped = "host.events_dropped"

// Queue holds what is to be sent. It is safe for use by several goroutines, and Observe never blocks.
type Queue struct {
	now  func() time.Time
	wake chan struct{} // capacity 1: something is to be sent

	mu       sync.Mutex // guards all below
	gateways map[string]api.GatewayReport
	steps    []api.StepReport
	events   []api.AgentEvent
	host     *api.HostReport
	full     bool
	asked    bool // a coordinator waits for any word
	dropped  int
	told     map[string]uint64 // incarnation of a gateway whose undo was acknowledged
}

// NewQueue makes an empty queue.
func NewQueue(now func() time.Time) *Queue {
	return &Queue{
		now: now, wake: make(chan struct{}, 1),
		gateways: make(map[string]api.GatewayReport), told: make(map[string]uint64),
	}
}

// Observe merges reports, steps and events into what waits.
func (q *Queue) Observe(o api.Observation) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range o.Gateways {
		q.merge(r, true)
	}
	q.addSteps(o.Steps)
	q.addEvents(o.Events)
	q.poke()
}

// SetHost has a new report of the host sent.
func (q *Queue) SetHost(h api.HostReport) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.host = &h
	q.poke()
}

// Waiting is how many gateways, steps and events wait.
func (q *Queue) Waiting() (gateways, steps, events int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.gateways), len(q.steps), len(q.events)
}

func (q *Queue) wantFull() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.full = true
	q.poke()
}

// answer has a report go out though nothing is new.
func (q *Queue) answer() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked = true
	q.poke()
}

func (q *Queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// merge keeps the newer of two reports of a gateway, and the undo of the older one: a report that says how
// an incarnation ended must not be lost behind the next. mu is held.
func (q *Queue) merge(r api.GatewayReport, newer bool) {
	have, ok := q.gateways[r.GatewayID]
	switch {
	case !ok:
		q.gateways[r.GatewayID] = r
	case newer:
		if len(r.Undo) == 0 && have.Incarnation == r.Incarnation {
			r.Undo = have.Undo
		}
		q.gateways[r.GatewayID] = r
	default:
		if len(have.Undo) == 0 && have.Incarnation == r.Incarnation {
			have.Undo = r.Undo
			q.gateways[r.GatewayID] = have
		}
	}
}

func (q *Queue) addSteps(steps []api.StepReport) {
	q.steps = append(q.steps, steps...)
	q.steps = slices.Delete(q.steps, 0, excess(len(q.steps), maxSteps))
}

func (q *Queue) addEvents(events []api.AgentEvent) {
	q.events = append(q.events, events...)
	n := excess(len(q.events), maxEvents)
	q.events = slices.Delete(q.events, 0, n)
	q.dropped += n
}

// excess is how many of n to drop: none, or enough that not every further one moves all the others.
func excess(n, most int) int {
	if n <= most {
		return 0
	}
	return n - most + most/10
}

// batch is one observation, and how many events were dropped before it.
type batch struct {
	api.Observation
	dropped int
}

// take removes what the next report holds. reports and host are called when a full one is due; they
// must not call the queue.
func (q *Queue) take(src Source) (o batch, more bool) {
	q.mu.Lock()
	wantFull := q.full
	q.mu.Unlock()
	var all []api.GatewayReport
	var host api.HostReport
	if wantFull { // outside mu: an actor that holds its own lock may be waiting for Observe
		all, host = src.Reports(), src.Host()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if wantFull {
		o.Full, q.full, o.Host, q.host = true, false, &host, nil
		o.Gateways = q.wholeState(all)
	} else {
		o.Gateways = q.someState()
		o.Host, q.host = q.host, nil
	}
	o.Gateways = q.withoutToldUndo(o.Gateways)
	n := min(len(q.steps), stepsAtOnce)
	o.Steps, q.steps = slices.Clone(q.steps[:n]), slices.Delete(q.steps, 0, n)
	n = min(len(q.events), eventsAtOnce)
	o.Events, q.events = slices.Clone(q.events[:n]), slices.Delete(q.events, 0, n)
	o.dropped, q.dropped = q.dropped, 0
	if len(q.steps)+len(q.events)+len(q.gateways) > 0 {
		q.poke()
	}
	asked := q.asked
	q.asked = false
	return o, asked || o.Full || o.Host != nil || len(o.Gateways)+len(o.Steps)+len(o.Events)+o.dropped > 0
}

// body is the observation as it is sent.
func (b batch) body(now time.Time) api.Observation {
	o := b.Observation
	if b.dropped > 0 {
		o.Events = append([]api.AgentEvent{{
			Type: EventDropped, At: now.UTC(), Reason: fmt.Sprintf("%d events were dropped while no coordinator took them", b.dropped),
		}}, o.Events...)
	}
	return o
}

// wholeState is every gateway that exists, and those that are gone and were not reported so yet. A
// report that waits is newer than the one in all, or the same. mu is held.
func (q *Queue) wholeState(all []api.GatewayReport) []api.GatewayReport {
	named := make(map[string]bool, len(all))
	out := make([]api.GatewayReport, 0, len(all))
	for _, r := range all {
		named[r.GatewayID] = true
		if waiting, ok := q.gateways[r.GatewayID]; ok {
			r = waiting
		}
		out = append(out, r)
	}
	for g, r := range q.gateways {
		if !named[g] {
			out = append(out, r)
		}
	}
	clear(q.gateways)
	sortReports(out)
	return out
}

// someState is the gateways that changed. mu is held.
func (q *Queue) someState() []api.GatewayReport {
	out := make([]api.GatewayReport, 0, min(len(q.gateways), reportsAtOnce))
	for g, r := range q.gateways {
		if len(out) == reportsAtOnce {
			break
		}
		out = append(out, r)
		delete(q.gateways, g)
	}
	sortReports(out)
	return out
}

// withoutToldUndo leaves out what the coordinator has acknowledged already. mu is held.
func (q *Queue) withoutToldUndo(reports []api.GatewayReport) []api.GatewayReport {
	for i, r := range reports {
		if q.told[r.GatewayID] == r.Incarnation {
			reports[i].Undo = nil
		}
	}
	return reports
}

// acknowledged notes that a coordinator has taken the observation.
func (q *Queue) acknowledged(o batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range o.Gateways {
		switch {
		case r.Phase == api.PhaseGone:
			delete(q.told, r.GatewayID)
		case len(r.Undo) > 0:
			q.told[r.GatewayID] = r.Incarnation
		}
	}
}

// giveBack puts an observation that was not acknowledged behind what is newer and before what comes.
func (q *Queue) giveBack(o batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range o.Gateways {
		q.merge(r, false)
	}
	steps, events := q.steps, q.events
	q.steps, q.events = nil, nil
	q.addSteps(append(o.Steps, steps...))
	q.addEvents(append(o.Events, events...))
	q.dropped += o.dropped
	if q.host == nil {
		q.host = o.Host
	}
	q.full = q.full || o.Full
	q.poke()
}

func sortReports(r []api.GatewayReport) {
	sort.Slice(r, func(i, k int) bool { return r[i].GatewayID < r[k].GatewayID })
}

func (q *Queue) empty() bool {
	g, s, e := q.Waiting()
	return g+s+e == 0
}
