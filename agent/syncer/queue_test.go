package syncer

import (
	"fmt"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

type all struct{ reports []api.GatewayReport }

func (a all) Reports() []api.GatewayReport { return append([]api.GatewayReport(nil), a.reports...) }
func (a all) Host() api.HostReport         { return api.HostReport{Capacity: 1} }

func gw(name string, incarnation uint64, phase string, undo int) api.GatewayReport {
	return api.GatewayReport{GatewayID: name, Incarnation: incarnation, Phase: phase, Undo: make([]api.Step, undo)}
}

func observe(q *Queue, r ...api.GatewayReport) { q.Observe(api.Observation{Gateways: r}) }

func show(o batch) string {
	s := ""
	for _, r := range o.Gateways {
		s += fmt.Sprintf("%s %d %s %d; ", r.GatewayID, r.Incarnation, r.Phase, len(r.Undo))
	}
	return s
}

func TestTheLatestReportWinsAndKeepsTheUndo(t *testing.T) {
	q := NewQueue(time.Now)
	observe(q, gw("a", 2, "starting", 3), gw("b", 1, "ready", 0))
	observe(q, gw("a", 2, "ready", 0))
	sent, more := q.take(all{})
	if got := show(sent); !more || got != "a 2 ready 3; b 1 ready 0; " {
		t.Fatalf("got %s", got)
	}
	// It is lost on the way, and meanwhile the gateway changed again, twice.
	observe(q, gw("a", 2, "unhealthy", 0), gw("c", 1, "ready", 0))
	q.giveBack(sent)
	sent, _ = q.take(all{})
	if got := show(sent); got != "a 2 unhealthy 3; b 1 ready 0; c 1 ready 0; " {
		t.Fatalf("got %s", got)
	}
	q.acknowledged(sent)
	observe(q, gw("a", 2, "ready", 3))
	sent, _ = q.take(all{})
	if got := show(sent); got != "a 2 ready 0; " {
		t.Fatalf("the undo was told twice: %s", got)
	}
	observe(q, gw("a", 3, "starting", 3))
	sent, _ = q.take(all{})
	if got := show(sent); got != "a 3 starting 3; " {
		t.Fatalf("got %s", got)
	}
	if _, more := q.take(all{}); more {
		t.Fatal("something is left")
	}
}

func TestAFullObservationNamesEverythingAndWhatIsGone(t *testing.T) {
	q := NewQueue(time.Now)
	observe(q, gw("gone", 1, api.PhaseGone, 0), gw("a", 1, "ready", 0))
	q.SetHost(api.HostReport{Capacity: 9})
	q.wantFull()
	sent, _ := q.take(all{[]api.GatewayReport{gw("a", 1, "starting", 0), gw("b", 1, "serving", 0)}})
	if got := show(sent); got != "a 1 ready 0; b 1 serving 0; gone 1 gone 0; " || !sent.Full || sent.Host.Capacity != 1 {
		t.Fatalf("got %s %+v", got, sent.Host)
	}
	q.giveBack(sent)
	again, _ := q.take(all{[]api.GatewayReport{gw("b", 1, "serving", 0)}})
	if got := show(again); got != "a 1 ready 0; b 1 serving 0; gone 1 gone 0; " || !again.Full {
		t.Fatalf("after it was lost: %s", got)
	}
	q.acknowledged(again)
	if sent, more := q.take(all{}); more {
		t.Fatalf("something is left: %+v", sent)
	}
}

func TestWhatWaitsIsBounded(t *testing.T) {
	q := NewQueue(time.Now)
	for i := range maxEvents + 500 {
		q.Observe(api.Observation{
			Events: []api.AgentEvent{{Type: "test", Reason: fmt.Sprint(i)}},
			Steps:  []api.StepReport{{Epoch: uint64(i)}, {Epoch: uint64(i)}, {Epoch: uint64(i)}},
		})
	}
	_, steps, events := q.Waiting()
	if steps > maxSteps || steps < maxSteps*8/10 || events > maxEvents || events < maxEvents*8/10 {
		t.Fatalf("%d steps, %d events wait", steps, events)
	}
	o, _ := q.take(all{})
	if len(o.Events) != eventsAtOnce || len(o.Steps) != stepsAtOnce || o.dropped != maxEvents+500-events {
		t.Fatalf("%d events and %d steps at once, %d dropped", len(o.Events), len(o.Steps), o.dropped)
	}
	if o.Events[0].Reason != fmt.Sprint(o.dropped) {
		t.Fatalf("not the oldest were dropped: the first is %s after %d", o.Events[0].Reason, o.dropped)
	}
	select {
	case <-q.wake:
	default:
		t.Fatal("the rest would never be sent")
	}
	dropped := o.dropped
	q.giveBack(o)
	o, _ = q.take(all{})
	want := fmt.Sprintf("%d events were dropped while no coordinator took them", dropped)
	if e := o.body(time.Unix(5, 0)).Events[0]; e.Type != EventDropped || e.Reason != want {
		t.Fatalf("the first event is %+v", e)
	}
}
