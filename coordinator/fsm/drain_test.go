package fsm_test

import (
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func TestDrainHost(t *testing.T) {
	m := pair(t, 3)
	m.active(1, 1)
	m.reserve(2, 2)
	m.refused(fault.NotFound, command.DrainHost{Meta: m.meta(), Host: "h9"})
	m.refused(fault.Superseded, command.NoteDrain{Meta: m.meta(), Host: "h1", State: api.DrainDrained})
	deadline := m.now.Add(time.Minute)
	m.ok(command.DrainHost{Meta: m.meta(), Host: "h1", Deadline: deadline, Drain: time.Second})
	if m.types() != "host.cordoned host.draining" {
		t.Fatal(m.types())
	}
	h := m.store.View().Host(nil, "h1")
	if d := h.Drain; !h.Cordoned || d.State != api.DrainDraining || d.Total != 2 || !d.Deadline.Equal(deadline) || d.Drain != time.Second {
		t.Fatalf("%+v", h)
	}
	if out := m.reserve(3, 3); out.Err == nil {
		t.Fatal("a gateway of a draining host was given out")
	}
	// Once more changes how, and not since when or of how many.
	m.now = m.now.Add(time.Second)
	m.ok(command.DrainHost{Meta: m.meta(), Host: "h1", Deadline: deadline, Force: true})
	if d := m.store.View().Host(nil, "h1").Drain; !d.Force || d.Drain != 0 || d.Total != 2 || !d.Since.Before(m.now) {
		t.Fatalf("%+v", d)
	}
	note := func(state, reason string) {
		t.Helper()
		m.ok(command.NoteDrain{Meta: m.meta(), Host: "h1", State: state, Reason: reason})
	}
	m.refused(fault.InvalidRequest, command.NoteDrain{Meta: m.meta(), Host: "h1", State: "odd"})
	note(api.DrainDraining, "no gateway")
	if m.types() != "" || m.store.View().Host(nil, "h1").Drain.Reason != "no gateway" {
		t.Fatal("a reason alone is no event:", m.types())
	}
	note(api.DrainOverdue, "no gateway")
	note(api.DrainOverdue, "no gateway")
	if m.types() != "" {
		t.Fatal("noted twice:", m.types())
	}
	note(api.DrainDrained, "")
	if d := m.store.View().Host(nil, "h1").Drain; m.types() != "host.drained" || !d.EndedAt.Equal(m.now) {
		t.Fatalf("%s %+v", m.types(), d)
	}
	m.ok(command.SetHostSchedulable{Meta: m.meta(), Host: "h1", Schedulable: true})
	if h := m.store.View().Host(nil, "h1"); h.Drain != nil || h.Cordoned || !strings.Contains(m.types(), "host.uncordoned") {
		t.Fatalf("%+v", h)
	}
	m.lose("h1")
	m.refused(fault.HostLost, command.DrainHost{Meta: m.meta(), Host: "h1"})
}

// A snapshot in the middle of every kind of move loads, and goes on as the log does.
func TestSnapshotWhileMoving(t *testing.T) {
	m := pair(t, 4)
	for n := 1; n <= 4; n++ {
		m.active(n, n)
	}
	m.ready("default", "h2", 101, 102)
	m.relocate(command.Relocate{}, 1)
	m.confirmPending(alID(1)) // has left h1
	m.relocate(command.Relocate{}, 2)
	m.ok(command.DrainHost{Meta: m.meta(), Host: "h2"})
	m.lose("h1") // 2 is on its way, 3 and 4 wait
	again := newMachine(t)
	restore(t, again.fsm, m.snapshot())
	if again.records() != m.records() || again.store.Checkpoint().Hash() != m.store.Checkpoint().Hash() {
		t.Fatalf("restored\n%s\nfrom\n%s", again.records(), m.records())
	}
	if err := again.store.Check(); err != nil {
		t.Fatal(err)
	}
	again.index, again.now = m.index, m.now
	for _, x := range []*machine{m, again} {
		x.host("h3", 20)
		x.ready("default", "h3", 201, 202)
		for n := 2; n <= 4; n++ {
			x.confirmPending(alID(n))
		}
	}
	if again.store.Checkpoint().Hash() != m.store.Checkpoint().Hash() {
		t.Fatal("what was restored goes another way")
	}
}
