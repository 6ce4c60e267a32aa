package reconcile

import (
	"time"

	"github.com/demiurge-platform/demiurge/agent/journal"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

// desired is what is wanted of a gateway: the coordinator's last word or, before it has spoken, what the
// journal kept of it.
type desired struct {
	journal.Wanted
	grant *grant // nil: none
}

// grant is an organization that a gateway is to serve.
type grant struct {
	organization id.Organization
	allocation   id.Allocation
	epoch        id.Epoch
	version      uint64
	body         *api.Activate // shared, never modified
}

// observed is what is known of a gateway now.
type observed struct {
	journal.Gateway

	running   bool      // a process was started or adopted and has not been seen to end
	healthy   bool      // that process answered as itself, and did not miss too often since
	hung      bool      // it misses too often, or never became healthy: it must be ended
	everUp    bool      // a process of this incarnation was healthy once
	slot      bool      // the live nginx generation names the gateway
	failures  int       // starts in a row that came to nothing
	notBefore time.Time // back-off: neither a start nor the step that failed is tried earlier
	probeAt   time.Time // when the process is to be asked again
	refused   id.Epoch  // the grant of the past that was declined last
	fenced    bool      // the lease without which the organization must not be served has ended
	// unrecorded: the wanted incarnation could not be taken up, because the journal was not written.
	unrecorded bool
	closed     bool // what was served is closed because of that: no route, no process; its state is kept
}

// kind is what an actor does next.
type kind int

const (
	wait     kind = iota // nothing, until something happens or action.until
	endBegin             // note that what this incarnation did must be taken back
	endStep              // take the next part of it back: unroute, deactivate, recycle
	forget               // nothing is left and nothing is wanted
	begin                // take up the wanted incarnation
	start                // start a process
	kill                 // end a process that is hung
	probe                // ask the process who it is and whether it is well
	take                 // note the grant and its steps
	refuse               // decline a grant of the past
	step                 // do or undo the next step of the grant
	update               // hand the gateway changed members or projects
	fence                // close what is served, for the lease has ended
)

// action is a kind with its particulars.
type action struct {
	kind  kind
	step  steps.Action // of endStep and step
	until time.Time    // of wait; zero: no timer
}

// The steps of a grant and of its end.
var (
	takeSteps = []string{api.StepActivate, api.StepRoute, api.StepVerify}
	endSteps  = []string{api.StepUnroute, api.StepDeactivate, api.StepRecycle}
)

// next decides what to do. It is pure, and it is the whole behaviour of a gateway.
//
// The order of its parts is the order of importance: taking back before running, running before serving.
// What was begun to be taken back is taken back to the end, whatever is wanted by now.
func next(w desired, o observed, now time.Time, maxStarts int) action {
	if a, ok := o.Ending.Next(); ok {
		return afterBackOff(o, now, action{kind: endStep, step: a})
	}
	if mustEnd(w, o) {
		return action{kind: endBegin}
	}
	if w.Target == api.TargetGone {
		return action{kind: forget}
	}
	if o.Incarnation < w.Incarnation && o.unrecorded {
		return afterBackOff(o, now, action{kind: begin})
	}
	if o.Incarnation < w.Incarnation {
		return action{kind: begin}
	}
	if o.fenced && o.Grant != nil && !o.closed {
		return action{kind: fence}
	}
	if o.Change.Back {
		if a, ok := o.Change.Next(); ok {
			return afterBackOff(o, now, action{kind: step, step: a})
		}
	}
	if o.Code != "" {
		return action{kind: wait} // the grant was not taken up: only a new incarnation helps
	}
	if o.closed {
		return action{kind: wait} // until the lease is renewed
	}
	if a, decided := run(o, now, maxStarts); decided {
		return a
	}
	return serve(w, o, now)
}

// mustEnd reports whether what runs belongs to the past: its incarnation, or its organization. A process
// that was given an organization never serves another one, nor the same one at another epoch.
func mustEnd(w desired, o observed) bool {
	if !o.Used {
		return false
	}
	if w.Target == api.TargetGone || w.Incarnation > o.Incarnation {
		return true
	}
	if o.Grant == nil {
		return false
	}
	// A lower epoch than the one held is a word of the past: what is held stays.
	return w.grant == nil || w.grant.epoch > o.Grant.Epoch
}

// run decides about the process; false when it runs, is well and is named by nginx.
func run(o observed, now time.Time, maxStarts int) (action, bool) {
	switch {
	case o.hung:
		return action{kind: kill}, true
	case !o.running && o.Grant == nil && o.failures >= maxStarts:
		return action{kind: wait}, true
	case !o.running:
		return afterBackOff(o, now, action{kind: start}), true
	case !o.healthy && !now.Before(o.probeAt):
		return action{kind: probe}, true
	case !o.healthy:
		return action{kind: wait, until: o.probeAt}, true
	case !o.slot:
		return idle(o, now), true
	}
	return action{}, false
}

// serve decides about the organization of a gateway that is well.
func serve(w desired, o observed, now time.Time) action {
	if a, ok := o.Change.Next(); ok {
		return orIdle(o, now, action{kind: step, step: a})
	}
	if w.grant == nil || o.fenced {
		return idle(o, now)
	}
	switch epoch := w.grant.epoch; {
	case epoch < o.Epoch && epoch != o.refused:
		return action{kind: refuse}
	case epoch < o.Epoch:
		return idle(o, now)
	case o.Grant == nil:
		return action{kind: take}
	case w.grant.version > o.Grant.Version:
		return orIdle(o, now, action{kind: update})
	}
	return idle(o, now)
}

// idle asks for the health when that is due and waits otherwise.
func idle(o observed, now time.Time) action {
	if !now.Before(o.probeAt) {
		return action{kind: probe}
	}
	return action{kind: wait, until: o.probeAt}
}

// afterBackOff holds an action back until the back-off is over.
func afterBackOff(o observed, now time.Time, a action) action {
	if now.Before(o.notBefore) {
		return action{kind: wait, until: o.notBefore}
	}
	return a
}

// orIdle is afterBackOff for a process that runs: its health is asked for meanwhile.
func orIdle(o observed, now time.Time, a action) action {
	if !now.Before(o.notBefore) {
		return a
	}
	i := idle(o, now)
	if i.kind == wait && o.notBefore.Before(i.until) {
		i.until = o.notBefore
	}
	return i
}

// report says what the coordinator is to know.
func report(w desired, o observed, maxStarts int) api.GatewayReport {
	r := api.GatewayReport{
		GatewayID: string(o.Gateway.Gateway), Incarnation: o.Incarnation, Phase: phase(w, o, maxStarts),
		Restarts: o.Restarts, Code: o.Code, Message: o.Message,
	}
	if o.Process != nil && o.running {
		r.PID = o.Process.PID
	}
	if _, ending := o.Ending.Next(); ending || mustEnd(w, o) {
		return r // the grant is over for the coordinator, so its epoch is not named any more
	}
	if o.Grant != nil && o.Grant.Served {
		r.OrganizationID, r.Epoch = string(o.Grant.Organization), uint64(o.Grant.Epoch)
	}
	if o.Ending.Complete() {
		r.Undo = undoReport(o.Ending)
	}
	return r
}

// phase puts what is observed into one of the contract's words.
func phase(w desired, o observed, maxStarts int) string {
	_, ending := o.Ending.Next()
	switch {
	case ending || mustEnd(w, o):
		if o.Message != "" {
			return api.PhaseUnhealthy
		}
		return api.PhaseStarting
	case o.Code != "":
		return api.PhaseUnhealthy
	case !o.running && o.Grant == nil && o.failures >= maxStarts:
		return api.PhaseFailed
	case !o.running || !o.healthy:
		if o.everUp || o.Grant != nil {
			return api.PhaseUnhealthy
		}
		return api.PhaseStarting
	case !o.slot:
		return api.PhaseStarting
	case o.Grant == nil || !o.Grant.Served:
		return api.PhaseReady
	case o.Change.Complete():
		return api.PhaseServing
	}
	return api.PhaseUnhealthy // served before, and is being brought back
}

// undoReport puts the steps that ended the incarnation before into the contract's form.
func undoReport(ended steps.Change) []api.Step {
	out := make([]api.Step, 0, len(ended.Steps))
	for _, s := range ended.Steps {
		end := s.Ended
		out = append(out, api.Step{Step: s.Name, State: api.StepDone, StartedAt: s.Started, EndedAt: &end})
	}
	return out
}
