package reconcile_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// renewals is a lease that a test renews, in the bubble's time.
type renewals struct {
	mu   sync.Mutex
	need uint64    // guarded by mu
	seen uint64    // guarded by mu
	sent time.Time // guarded by mu
}

func (r *renewals) Held(length time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.sent.Add(length)) && r.seen >= r.need
}

func (r *renewals) Assigned(index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = index
}

// renew makes the lease begin anew; need is the assignment without which it does not count.
func (r *renewals) renew(need uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent, r.need = time.Now(), need
}

// end ends the lease now.
func (r *renewals) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = time.Time{}
}

const eight = 8 * time.Second

// leased serves an organization with a lease of eight seconds from now.
func leased(t *testing.T, h *agenttest.Host) (*renewals, id.Gateway, id.Organization, uint64) {
	t.Helper()
	r := &renewals{}
	h.Lease = r
	g := ready(h)
	r.renew(0)
	org := id.NewOrganization()
	w := h.Wanted(g)
	w.Lease = api.Duration(eight)
	h.Assign(w)
	epoch := h.Grant(g, org)
	h.WaitServing(g, epoch)
	r.renew(0)
	return r, g, org, epoch
}

// However short a time the lease was over, at whatever moment: what was closed is brought back.
func TestALeaseThatGoesOnSoonBringsBackWhatWasClosed(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		r, g, org, epoch := leased(t, h)
		for range 20 {
			w := h.Wanted(g)
			r.end()
			h.Assign(w) // has the gateway looked at
			h.Until("closed", func() bool { _, routed := h.Route(org); return !routed })
			r.renew(0)
			h.WaitServing(g, epoch)
			time.Sleep(7 * time.Millisecond)
		}
	})
}

// A host that is cut off closes the organization when its lease ends, not before, and brings it back when
// the lease goes on and the assignment still wants it, with the state that it had.
func TestTheEndOfALeaseClosesWhatIsServed(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		r, g, org, epoch := leased(t, h)
		other := h.NewGateway() // of a pool that is served for ever
		h.WaitPhase(other, api.PhaseReady, 1)
		kept := id.NewOrganization()
		keptEpoch := h.Grant(other, kept)
		h.WaitServing(other, keptEpoch)
		r.renew(0)
		time.Sleep(eight - time.Millisecond)
		if _, routed := h.Route(org); !routed {
			t.Fatal("it was closed before the end of its lease")
		}
		began := time.Now()
		h.Until("the route is closed", func() bool { _, routed := h.Route(org); return !routed })
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("the route was closed %v after the end of the lease; coordinators give it a second", took)
		}
		h.Until("its process has ended", func() bool { return len(h.Running(g)) == 0 })
		h.Until("it is reported", func() bool {
			return h.Report(g).Phase == api.PhaseUnhealthy && len(h.Events(reconcile.EventFenced)) == 1
		})
		if _, routed := h.Route(kept); !routed || h.Report(other).Phase != api.PhaseServing {
			t.Error("an organization without a lease was closed too")
		}
		time.Sleep(time.Hour)
		if len(h.Running(g)) != 0 {
			t.Error("it was started without a lease")
		}
		if n := len(h.Log("recycle", "wipe")); n != 0 {
			t.Errorf("its state was touched %d times", n)
		}
		r.renew(0)
		h.WaitServing(g, epoch)
		if to, routed := h.Route(org); !routed || to.Gateway != g || uint64(to.Epoch) != epoch {
			t.Errorf("it is routed to %+v", to)
		}
	})
}

// The lease is renewed, and what was wanted before it ended does not count any more: the organization is
// served elsewhere by now. It is not brought back for a moment.
func TestAfterTheEndOfALeaseTheAssignmentCounts(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		r, g, org, _ := leased(t, h)
		h.Until("the route is closed", func() bool { _, routed := h.Route(org); return !routed })
		activations := len(h.Log("activate"))
		r.renew(1 << 40) // acknowledged at an index that no assignment here has
		time.Sleep(4 * time.Second)
		if _, routed := h.Route(org); routed || len(h.Log("activate")) != activations {
			t.Error("it was brought back by an assignment of the past")
		}
		h.Recycle(g)
		r.renew(0)
		h.WaitPhase(g, api.PhaseReady, 2)
		if _, routed := h.Route(org); routed || len(h.Log("activate")) != activations {
			t.Error("it was brought back though it is served elsewhere")
		}
	})
}

// Without a lease nothing is taken up; gateways are kept ready all the same.
func TestNothingIsTakenUpWithoutALease(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		r := &renewals{}
		h.Lease = r
		h.Start()
		h.Connect()
		g := id.NewGateway()
		h.Assign(api.GatewayAssignment{GatewayID: string(g), Target: api.TargetRun, Incarnation: 1, Lease: api.Duration(eight)})
		h.WaitPhase(g, api.PhaseReady, 1)
		org := id.NewOrganization()
		epoch := h.Grant(g, org)
		time.Sleep(time.Minute)
		if n := len(h.Log("activate")); n != 0 {
			t.Errorf("%d activations without a lease", n)
		}
		r.renew(0)
		h.WaitServing(g, epoch)
	})
}

// An agent that restarts with a lease that goes on disturbs nothing; one that finds it ended closes the
// route before anything else.
func TestARestartedAgentKeepsToTheLease(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		r, g, org, epoch := leased(t, h)
		pid := h.Report(g).PID
		h.Kill()
		h.Start()
		h.Connect()
		h.WaitServing(g, epoch)
		if got := h.Report(g).PID; got != pid {
			t.Errorf("the process is %d, and was %d", got, pid)
		}
		h.Kill()
		time.Sleep(eight)
		if _, routed := h.Route(org); !routed {
			t.Fatal("the route is gone before anybody could close it")
		}
		h.Start()
		h.Until("the route is closed", func() bool { _, routed := h.Route(org); return !routed })
		h.Until("its process has ended", func() bool { return len(h.Running(g)) == 0 })
		r.renew(0)
		h.Connect()
		h.WaitServing(g, epoch)
	})
}

// The end of a lease does not wait for a gateway that hangs.
func TestAHungGatewayDoesNotHoldTheEndOfALeaseUp(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		h.Timing.HealthTimeout = time.Minute
		_, g, org, _ := leased(t, h)
		h.Do(func(w *agenttest.World) {
			w.Fail["health"] = hang
			w.Fail["deactivate"] = hang
		})
		time.Sleep(eight)
		began := time.Now()
		h.Until("the route is closed", func() bool { _, routed := h.Route(org); return !routed })
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("the route was closed %v after the end of the lease", took)
		}
		h.Until("its process has ended", func() bool { return len(h.Running(g)) == 0 })
	})
}

// hang is a script of what does not answer.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}
