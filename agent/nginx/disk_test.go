package nginx

import (
	"strings"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// A full disk at any step: the old generation serves, the error says so, and when there is space again the
// engine goes on by itself.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	h.stopEngine()
	f := h.withFaults()
	h.startEngine()
	round := int64(0)
	config := func() Config { round++; return Config{Slots: []Slot{{gs[0].id, 1000 + round}}} }
	live := func() bool { return h.engine.snapshot().slots[gs[0].id].MaxBody == 1000+round }
	f.Record()
	h.engine.SetConfig(config())
	eventually(t, "the recorded generation is live", live)
	seen := map[string]bool{}
	for _, p := range f.Points() {
		if p.Torn { // the calls that write
			seen[p.Label] = true
		}
	}
	for _, label := range []string{"nginx.generation.mkdir", "nginx.generation.durable", "nginx.generation.rename", "nginx.journal.candidate.sync", "nginx.pointer.sync", "nginx.journal.live.rename"} {
		seen[label] = true
	}
	if len(seen) < 10 {
		t.Fatalf("only %d steps write: %v", len(seen), seen)
	}
	for label := range seen {
		before := h.engine.snapshot().slots[gs[0].id].MaxBody
		f.Fail(label, syscall.ENOSPC)
		h.engine.SetConfig(config())
		eventually(t, label+": the error is reported", func() bool {
			return strings.Contains(h.engine.Status().LastError, "no space left on device")
		})
		h.mustServe(org, gs[0], 7)
		if got := h.engine.snapshot().slots[gs[0].id].MaxBody; got != before {
			t.Errorf("%s: a generation is reported live although its journal is not on disk", label)
		}
		f.Fail(label, nil)
		eventually(t, label+": it goes on by itself", live)
		h.settled()
		h.mustServe(org, gs[0], 7)
		h.clean()
		if t.Failed() {
			t.Fatalf("failed at %s", label)
		}
	}
	// Everything at once, for a route too.
	f.Fail("", syscall.ENOSPC)
	if err := h.engine.Route(within(t), org, Target{gs[0].id, 8}); !fault.Is(err, fault.RouteApplyFailed) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Route on a full disk: %v", err)
	}
	h.mustServe(org, gs[0], 7)
	if _, err := Open(h.opts); err == nil {
		t.Error("a second engine opened the directory")
	}
	f.Fail("", nil)
	h.route(org, gs[0], 8)
	h.mustServe(org, gs[0], 8)
	// A start in a fresh directory says why it cannot. a
	fresh := newHost(t)
	fresh.withFaults().Fail("", syscall.ENOSPC)
	if _, err := Open(fresh.opts); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Open on a full disk: %v", err)
	}
}
