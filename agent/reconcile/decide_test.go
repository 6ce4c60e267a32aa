package reconcile

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/journal"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const maxStarts = 5

// want and have begin with a gateway that is ready; a row changes what it is about.
func want(change func(w *desired)) desired {
	w := desired{Wanted: journal.Wanted{Target: api.TargetRun, Incarnation: 2}}
	if change != nil {
		change(&w)
	}
	return w
}

func have(change func(o *observed)) observed {
	p := driver.Process{Gateway: "gw-aaaaaaaaaa", PID: 7}
	o := observed{
		Gateway: journal.Gateway{Gateway: "gw-aaaaaaaaaa", Incarnation: 2, Used: true, Process: &p},
		running: true, healthy: true, everUp: true, slot: true, probeAt: t0.Add(time.Second),
	}
	if change != nil {
		change(&o)
	}
	return o
}

func give(epoch id.Epoch, version uint64) func(w *desired) {
	return func(w *desired) { w.grant = &grant{organization: "org", epoch: epoch, version: version} }
}

// held is a grant whose steps have come as far as the statuses say.
func held(epoch id.Epoch, served bool, back bool, statuses ...steps.Status) func(o *observed) {
	return func(o *observed) {
		o.Grant = &journal.Grant{Organization: "org", Epoch: epoch, Version: 1, Served: served}
		o.Epoch = epoch
		o.Change = steps.New(takeSteps...)
		o.Change.Back = back
		for i, s := range statuses {
			o.Change.Steps[i].Status = s
		}
	}
}

func all(changes ...func(o *observed)) func(o *observed) {
	return func(o *observed) {
		for _, c := range changes {
			c(o)
		}
	}
}

func ending(statuses ...steps.Status) func(o *observed) {
	return func(o *observed) {
		o.Ending = steps.New(endSteps...)
		for i, s := range statuses {
			o.Ending.Steps[i].Status = s
		}
	}
}

const (
	pending = steps.Pending
	doing   = steps.Doing
	done    = steps.Done
	undoing = steps.Undoing
	undone  = steps.Undone
	failed  = steps.Failed
)

func do(name string) steps.Action   { return steps.Action{Step: name} }
func undo(name string) steps.Action { return steps.Action{Step: name, Undo: true} }

var (
	serves   = held(9, true, false, done, done, done)
	dead     = func(o *observed) { o.running, o.healthy, o.Process = false, false, nil }
	later    = t0.Add(time.Minute)
	backOff  = func(o *observed) { o.notBefore = later }
	goneWish = func(w *desired) { w.Target = api.TargetGone }
	nextOne  = func(w *desired) { w.Incarnation = 3 }
	blank    = func(o *observed) { *o = observed{Gateway: journal.Gateway{Gateway: "gw-aaaaaaaaaa"}} }
)

func TestNext(t *testing.T) {
	idle := action{kind: wait, until: t0.Add(time.Second)}
	for _, tt := range []struct {
		name  string
		w     desired
		o     observed
		want  action
		phase string
	}{
		{"new gateway", want(nil), have(blank), action{kind: begin}, api.PhaseStarting},
		{"begun, no process", want(nil), have(all(dead, func(o *observed) { o.everUp = false })), action{kind: start}, api.PhaseStarting},
		{"start failed, back-off", want(nil), have(all(dead, backOff)), action{kind: wait, until: later}, api.PhaseUnhealthy},
		{"too many starts failed", want(nil), have(all(dead, func(o *observed) { o.failures = maxStarts })), action{kind: wait}, api.PhaseFailed},
		{"the same with a grant: never given up", want(give(9, 1)), have(all(serves, dead, func(o *observed) { o.failures = 99 })), action{kind: start}, api.PhaseUnhealthy},
		{"started, to be asked", want(nil), have(func(o *observed) { o.healthy, o.everUp, o.probeAt = false, false, t0 }), action{kind: probe}, api.PhaseStarting},
		{"started, asked lately", want(nil), have(func(o *observed) { o.healthy = false }), idle, api.PhaseUnhealthy},
		{"hung", want(nil), have(func(o *observed) { o.hung, o.healthy = true, false }), action{kind: kill}, api.PhaseUnhealthy},
		{"healthy, not named by nginx", want(nil), have(func(o *observed) { o.slot = false }), idle, api.PhaseStarting},
		{"healthy, not named, granted: not served", want(give(9, 1)), have(func(o *observed) { o.slot = false }), idle, api.PhaseStarting},
		{"ready", want(nil), have(nil), idle, api.PhaseReady},
		{"ready, health due", want(nil), have(func(o *observed) { o.probeAt = t0 }), action{kind: probe}, api.PhaseReady},

		{"granted", want(give(9, 1)), have(nil), action{kind: take}, api.PhaseReady},
		{"granted while the health is due: the grant first", want(give(9, 1)), have(func(o *observed) { o.probeAt = t0 }), action{kind: take}, api.PhaseReady},
		{"granted a lower epoch than seen", want(give(9, 1)), have(func(o *observed) { o.Epoch = 10 }), action{kind: refuse}, api.PhaseReady},
		{"the same, refused before", want(give(9, 1)), have(func(o *observed) { o.Epoch, o.refused = 10, 9 }), idle, api.PhaseReady},
		{"taken", want(give(9, 1)), have(held(9, false, false)), action{kind: step, step: do("activate")}, api.PhaseReady},
		{"activated", want(give(9, 1)), have(held(9, false, false, done)), action{kind: step, step: do("route")}, api.PhaseReady},
		{"routed", want(give(9, 1)), have(held(9, false, false, done, done)), action{kind: step, step: do("verify")}, api.PhaseReady},
		{"a step begun by the agent before", want(give(9, 1)), have(held(9, false, false, done, doing)), action{kind: step, step: do("route")}, api.PhaseReady},
		{"served", want(give(9, 1)), have(serves), idle, api.PhaseServing},
		{"served, health due", want(give(9, 1)), have(all(serves, func(o *observed) { o.probeAt = t0 })), action{kind: probe}, api.PhaseServing},
		{"served, members changed", want(give(9, 2)), have(serves), action{kind: update}, api.PhaseServing},
		{"served, members changed, back-off: asked for health meanwhile", want(give(9, 2)), have(all(serves, backOff)), idle, api.PhaseServing},
		{"served, the process died", want(give(9, 1)), have(all(held(9, true, false), dead)), action{kind: start}, api.PhaseUnhealthy},
		{"served, the process is back", want(give(9, 1)), have(held(9, true, false)), action{kind: step, step: do("activate")}, api.PhaseUnhealthy},
		{"served, and an older grant comes", want(give(8, 7)), have(serves), action{kind: refuse}, api.PhaseServing},

		{"verify failed", want(give(9, 1)), have(all(held(9, false, true, done, done, failed), refusedWith("verify_failed"))), action{kind: step, step: undo("route")}, api.PhaseUnhealthy},
		{"the undo goes on without a process", want(give(9, 1)), have(all(held(9, false, true, done, undone, failed), refusedWith("x"), dead)), action{kind: step, step: undo("activate")}, api.PhaseUnhealthy},
		{"an undo failed", want(give(9, 1)), have(all(held(9, false, true, done, undoing, failed), refusedWith("x"), backOff)), action{kind: wait, until: later}, api.PhaseUnhealthy},
		{"undone: waits for the coordinator", want(give(9, 1)), have(all(held(9, false, true, undone, undone, failed), refusedWith("x"))), action{kind: wait}, api.PhaseUnhealthy},
		{"undone, the process died: waits", want(give(9, 1)), have(all(held(9, false, true, undone, undone, failed), refusedWith("x"), dead)), action{kind: wait}, api.PhaseUnhealthy},
		{"undone, next incarnation", want(nextOne), have(all(held(9, false, true, undone, undone, failed), refusedWith("x"))), action{kind: endBegin}, api.PhaseUnhealthy},

		{"next incarnation", want(nextOne), have(serves), action{kind: endBegin}, api.PhaseStarting},
		{"next incarnation in the middle of a step", want(nextOne), have(held(9, false, false, done, doing)), action{kind: endBegin}, api.PhaseStarting},
		{"next incarnation of a dead gateway", want(nextOne), have(all(serves, dead)), action{kind: endBegin}, api.PhaseStarting},
		{"next incarnation with a grant", want(func(w *desired) { nextOne(w); give(12, 1)(w) }), have(serves), action{kind: endBegin}, api.PhaseStarting},
		{"ending: route first", want(nextOne), have(all(serves, ending(pending))), action{kind: endStep, step: do("unroute")}, api.PhaseStarting},
		{"ending: then the organization", want(nextOne), have(all(serves, ending(done))), action{kind: endStep, step: do("deactivate")}, api.PhaseStarting},
		{"ending: then the process", want(nextOne), have(all(serves, ending(done, done))), action{kind: endStep, step: do("recycle")}, api.PhaseStarting},
		{"ending fails", want(nextOne), have(all(serves, ending(doing), backOff)), action{kind: wait, until: later}, api.PhaseStarting},
		{"ended", want(nextOne), have(all(dead, unused, ending(done, done, done))), action{kind: begin}, api.PhaseUnhealthy},
		{"an ending is completed whatever is wanted by now", want(give(9, 1)), have(all(serves, ending(done))), action{kind: endStep, step: do("deactivate")}, api.PhaseStarting},

		{"the grant vanished in the same incarnation", want(nil), have(serves), action{kind: endBegin}, api.PhaseStarting},
		{"a higher epoch in the same incarnation", want(give(10, 1)), have(serves), action{kind: endBegin}, api.PhaseStarting},
		{"an incarnation of the past", want(func(w *desired) { w.Incarnation = 1 }), have(nil), idle, api.PhaseReady},

		{"the lease ended", want(give(9, 1)), have(all(serves, cutOff)), action{kind: fence}, api.PhaseServing},
		{"the lease ended in the middle of a step", want(give(9, 1)), have(all(held(9, false, false, done, doing), cutOff)), action{kind: fence}, api.PhaseReady},
		{"the lease ended, back-off: closed all the same", want(give(9, 1)), have(all(serves, dead, backOff, cutOff)), action{kind: fence}, api.PhaseUnhealthy},
		{"the lease ended, the health is due", want(give(9, 1)), have(all(serves, cutOff, func(o *observed) { o.probeAt = t0 })), action{kind: fence}, api.PhaseServing},
		{"the lease ended, closed: waits", want(give(9, 1)), have(all(held(9, true, false), dead, cutOff, shut)), action{kind: wait}, api.PhaseUnhealthy},
		{"the lease ended, closed and undone: waits", want(give(9, 1)), have(all(held(9, false, true, undone, undone, failed), refusedWith("x"), dead, cutOff, shut)), action{kind: wait}, api.PhaseUnhealthy},
		{"the lease ended, the grant is over", want(nextOne), have(all(serves, dead, cutOff, shut)), action{kind: endBegin}, api.PhaseStarting},
		{"the lease goes on: brought back", want(give(9, 1)), have(all(held(9, true, false), dead)), action{kind: start}, api.PhaseUnhealthy},
		{"without a lease nothing is taken up", want(give(9, 1)), have(cutOff), idle, api.PhaseReady},
		{"without a lease gateways are kept ready", want(nil), have(all(dead, cutOff, func(o *observed) { o.everUp = false })), action{kind: start}, api.PhaseStarting},

		{"to go", want(goneWish), have(serves), action{kind: endBegin}, api.PhaseStarting},
		{"to go, ended", want(goneWish), have(all(dead, unused, ending(done, done, done))), action{kind: forget}, api.PhaseUnhealthy},
		{"to go, never was", want(goneWish), have(blank), action{kind: forget}, api.PhaseStarting},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := next(tt.w, tt.o, t0, maxStarts); got != tt.want {
				t.Errorf("next is %+v, want %+v", got, tt.want)
			}
			r := report(tt.w, tt.o, maxStarts)
			if r.Phase != tt.phase {
				t.Errorf("phase is %s, want %s", r.Phase, tt.phase)
			}
			if (r.Epoch != 0) != (r.OrganizationID != "") || r.Phase == api.PhaseServing && r.Epoch == 0 || r.Phase == api.PhaseReady && r.Epoch != 0 {
				t.Errorf("a report that contradicts itself: %+v", r)
			}
		})
	}
}

func refusedWith(code string) func(o *observed) {
	return func(o *observed) { o.Code, o.Message = code, "why" }
}

func unused(o *observed) { o.Used = false }

func cutOff(o *observed) { o.fenced = true }

func shut(o *observed) { o.closed = true }

// TestNextNeverServesThePast walks every combination of the facts that matter and checks the rules that
// hold in all of them.
func TestNextNeverServesThePast(t *testing.T) {
	bools := []bool{false, true}
	grants := []func(w *desired){nil, give(8, 1), give(9, 1), give(10, 1)}
	helds := []func(o *observed){func(*observed) {}, held(9, false, false), held(9, false, false, done), serves, held(9, false, true, done, doing)}
	endings := []func(o *observed){func(*observed) {}, ending(pending), ending(done), ending(done, done)}
	n := 0
	for _, incarnation := range []uint64{1, 2, 3} {
		for _, target := range []string{api.TargetRun, api.TargetGone} {
			for _, g := range grants {
				for _, hl := range helds {
					for _, en := range endings {
						for _, running := range bools {
							for _, healthy := range bools {
								for _, lease := range []func(o *observed){func(*observed) {}, cutOff, all(cutOff, shut)} {
									w := want(g)
									w.Incarnation, w.Target = incarnation, target
									o := have(all(hl, en, lease, func(o *observed) {
										o.running, o.healthy = running, running && healthy
									}))
									checkRules(t, w, o)
									n++
								}
							}
						}
					}
				}
			}
		}
	}
	if n != 3*2*4*5*4*4*3 {
		t.Fatalf("%d combinations", n)
	}
}

func checkRules(t *testing.T, w desired, o observed) {
	t.Helper()
	a := next(w, o, t0, maxStarts)
	r := report(w, o, maxStarts)
	_, mid := o.Ending.Next()
	past := mid || mustEnd(w, o)
	serving := a.kind == take || a.kind == update || a.kind == start || a.kind == step && !a.step.Undo
	switch {
	case past && serving:
		t.Errorf("%+v of what belongs to the past: wanted %+v, observed %+v", a, w, o)
	case o.fenced && serving && (o.Grant != nil || a.kind != start):
		t.Errorf("%+v without a lease: wanted %+v, observed %+v", a, w, o)
	case o.fenced && o.Grant != nil && !o.closed && !past && a.kind != fence && a.kind != begin:
		t.Errorf("%+v, and it is not closed though the lease has ended: wanted %+v, observed %+v", a, w, o)
	case past && (r.Phase == api.PhaseServing || r.Phase == api.PhaseReady || r.Epoch != 0):
		t.Errorf("reported %+v of what belongs to the past: wanted %+v, observed %+v", r, w, o)
	case a.kind == endStep && a.step.Step != api.StepUnroute && o.Ending.Status(api.StepUnroute) != done:
		t.Errorf("%+v before the route is gone: observed %+v", a, o)
	case r.Phase == api.PhaseServing && (!o.running || !o.healthy || !o.Change.Complete()):
		t.Errorf("reported serving: %+v", o)
	case a.kind == begin && (o.Used || o.running):
		t.Errorf("began with something left over: %+v", o)
	}
}
