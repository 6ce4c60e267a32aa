package fsm_test

import (
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestAllocationFromReserveToRelease(t *testing.T) {
	m := small(t, 2)
	out := m.reserve(1, 1)
	index := m.index
	if out.Err != nil || out.Existing || out.Queued || out.Allocation != alID(1) {
		t.Fatalf("outcome: %+v", out)
	}
	a := m.allocation(alID(1))
	if a.State != state.AllocationReserved || a.Epoch != id.Epoch(index) || !a.Warm || a.Gateway != gwID(1) || a.Host != "h1" ||
		!a.Deadline.Equal(start.Add(10*time.Second)) || a.Explanation.Index != index || len(a.Explanation.Candidates) != 1 {
		t.Fatalf("reserved: %+v", a)
	}
	if got := m.types(); got != "allocation.reserved gateway.reserved" {
		t.Fatal("events:", got)
	}
	g := m.gateway(gwID(1))
	if g.State != state.GatewayReserved || g.Desired.Organization != orgID(1) || g.Desired.Epoch != a.Epoch || g.Desired.Index != index {
		t.Fatalf("gateway: %+v", g)
	}

	m.now = m.now.Add(time.Second)
	c := m.confirmOf(alID(1))
	c.Timings.Total = 5 * time.Millisecond
	m.ok(c)
	a = m.allocation(alID(1))
	if a.State != state.AllocationActive || !a.ActiveAt.Equal(m.now) || a.Timings.Total != 5*time.Millisecond || len(a.Journal) != 1 || !a.ExpiresAt.IsZero() {
		t.Fatalf("active: %+v", a)
	}
	m.wantGateway(gwID(1), state.GatewayAllocated)
	if got := m.types(); got != "allocation.active gateway.allocated" {
		t.Fatal("events:", got)
	}

	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1), Drain: 3 * time.Second, Reason: "asked"})
	m.wantAllocation(alID(1), state.AllocationReleasing)
	g = m.gateway(gwID(1))
	if g.State != state.GatewayDraining || g.Desired.Organization != "" || g.Desired.Epoch != 0 || g.Desired.Incarnation != 2 || g.Desired.Drain != 3*time.Second {
		t.Fatalf("released gateway: %+v", g)
	}
	if out := m.reserve(1, 2); out.Err == nil || out.Err.Code != fault.Conflict || out.Err.RetryAfter != time.Second || !strings.Contains(out.Err.Message, "is being released") {
		t.Fatalf("reserve while releasing: %+v", out)
	}

	r := m.report(gwID(1), api.PhaseStarting)
	r.Undo = []command.Step{{Step: api.StepUnroute, State: api.StepDone}, {Step: api.StepRecycle, State: api.StepDone}}
	m.observe(r)
	a = m.allocation(alID(1))
	if a.State != state.AllocationReleased || a.EndedAt.IsZero() || len(a.Journal) != 3 || a.Journal[2].Step != api.StepRecycle {
		t.Fatalf("released: %+v", a)
	}
	m.wantGateway(gwID(1), state.GatewayRecycling)
	m.observe(m.report(gwID(1), api.PhaseReady))
	m.wantGateway(gwID(1), state.GatewayReady)
	if m.store.View().LiveAllocation(nil, orgID(1)) != nil {
		t.Fatal("a released allocation is live")
	}
}

func TestReserveRefusals(t *testing.T) {
	m := small(t, 1)
	refusal := func(c command.Reserve, code fault.Code, after time.Duration) {
		t.Helper()
		out := m.do(c).Reserved[0]
		if out.Err == nil || out.Err.Code != code || out.Err.RetryAfter != after || out.Allocation != "" {
			t.Fatalf("%+v, want %s", out, code)
		}
		if got := m.types(); got != "allocation.refused" || m.events()[0].Code != code {
			t.Fatal("events:", got)
		}
	}
	unknown := m.reserveOf(99, 1)
	refusal(unknown, fault.NotFound, 0)
	elsewhere := m.reserveOf(1, 1)
	elsewhere.Pool = "other"
	refusal(elsewhere, fault.NotFound, 0)
	if out := m.reserve(1, 1); out.Err != nil {
		t.Fatal(out.Err)
	}
	refusal(m.reserveOf(2, 2), fault.PoolExhausted, time.Second)
	refusal(m.reserveOf(2, 1), fault.Conflict, 0) // the allocation id is taken

	m.host("h2", 5)
	m.ready("default", "h2", 20, 20)
	m.ok(command.SetHostSchedulable{Meta: m.meta(), Host: "h2"})
	refusal(m.reserveOf(2, 2), fault.NoEligibleHost, time.Second)
	m.ok(command.SetHostSchedulable{Meta: m.meta(), Host: "h2", Schedulable: true})
	m.ok(command.SetHostStatus{Meta: m.meta(), Host: "h2", Status: api.HostSilent, Reason: "test"})
	refusal(m.reserveOf(2, 2), fault.NoEligibleHost, time.Second)
	report := hostReport(5)
	report.NginxState = api.NginxWedged
	m.ok(command.ObserveHost{Meta: m.meta(), Host: "h2", Instance: "i1", Report: report})
	refusal(m.reserveOf(2, 2), fault.NoEligibleHost, time.Second)
	m.host("h2", 5) // serving again, and full: its gateway is not named
	refusal(m.reserveOf(2, 2), fault.PoolExhausted, time.Second)
}

func TestReserveExisting(t *testing.T) {
	m := small(t, 2)
	first := m.reserve(1, 1)
	epoch := m.allocation(first.Allocation).Epoch
	for n := 2; n < 4; n++ {
		if out := m.reserve(1, n); !out.Existing || out.Allocation != alID(1) || out.Queued {
			t.Fatalf("second reserve: %+v", out)
		}
		if m.types() != "" {
			t.Fatal("an existing allocation made events:", m.types())
		}
	}
	m.ok(m.confirmOf(alID(1)))
	if out := m.reserve(1, 5); !out.Existing || m.allocation(out.Allocation).Epoch != epoch {
		t.Fatalf("reserve of an active one: %+v", out)
	}
}

func TestReserveIdempotencyKey(t *testing.T) {
	m := small(t, 1)
	c := m.reserveOf(1, 1)
	c.Key, c.Digest = "k1", "d1"
	c.Items = append(c.Items, command.ReserveItem{Organization: orgID(2), Allocation: alID(2)})
	outs := m.ok(c).Reserved
	if outs[0].Err != nil || outs[1].Err == nil {
		t.Fatalf("one gateway, two items: %+v", outs)
	}
	m.ok(m.confirmOf(alID(1)))
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
	m.observe(m.report(gwID(1), api.PhaseReady))

	// The first item is answered as before although it has ended; the refused one is tried again.
	c.Items[0].Allocation, c.Items[1].Allocation = alID(3), alID(4)
	outs = m.ok(c).Reserved
	if !outs[0].Existing || outs[0].Allocation != alID(1) || outs[1].Existing || outs[1].Allocation != alID(4) {
		t.Fatalf("the same key again: %+v", outs)
	}
	outs = m.ok(c).Reserved
	if !outs[1].Existing || outs[1].Allocation != alID(4) {
		t.Fatalf("the same key, third time: %+v", outs)
	}
	c.Digest = "d2"
	m.refused(fault.Conflict, c)
	if q := m.store.View().Request("k1"); q == nil || q.Digest != "d1" || len(q.Objects) != 2 {
		t.Fatalf("request: %+v", q)
	}
}

func TestLineIsServedInOrder(t *testing.T) {
	m := small(t, 0)
	c := command.Reserve{Meta: m.meta(), Pool: "default", QueueUntil: m.now.Add(time.Minute)}
	for _, n := range []int{3, 1, 2} { // the order of asking counts, not the ids
		c.Items = append(c.Items, command.ReserveItem{Organization: orgID(n), Allocation: alID(n)})
	}
	for _, out := range m.ok(c).Reserved {
		if !out.Queued || out.Err != nil {
			t.Fatalf("%+v", out)
		}
	}
	c.Items = []command.ReserveItem{{Organization: orgID(4), Allocation: alID(4)}, {Organization: orgID(3), Allocation: alID(9)}}
	if outs := m.ok(c).Reserved; !outs[1].Existing || !outs[1].Queued || outs[1].Allocation != alID(3) {
		t.Fatalf("one that waits asks again: %+v", outs)
	}
	if out := m.reserve(5, 5); out.Err == nil || out.Err.Code != fault.PoolExhausted {
		t.Fatalf("one that does not wait: %+v", out)
	}
	m.ready("default", "h1", 1, 2)
	m.wantAllocation(alID(3), state.AllocationReserved)
	m.wantAllocation(alID(1), state.AllocationReserved)
	m.wantAllocation(alID(2), state.AllocationQueued)
	if a, b := m.allocation(alID(3)), m.allocation(alID(1)); a.Epoch != id.Epoch(m.index) || a.Epoch != b.Epoch || a.Warm || a.Gateway == b.Gateway {
		t.Fatalf("granted from the line: %+v, %+v", a, b)
	}
	// Leaving the line, by its own wish and by the deadline.
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(2)})
	m.wantAllocation(alID(2), state.AllocationReleased)
	m.ok(command.Fail{Meta: m.meta(), Allocation: alID(4), Code: fault.PoolExhausted, Message: "waited too long"})
	m.wantAllocation(alID(4), state.AllocationFailed)
	m.ready("default", "h1", 3, 3)
	m.wantGateway(gwID(3), state.GatewayReady)
	for range m.store.View().Line(nil, "default") {
		t.Fatal("somebody still stands in line")
	}
}

func TestNobodyOvertakesTheLine(t *testing.T) {
	m := small(t, 1)
	m.ok(command.SetHostSchedulable{Meta: m.meta(), Host: "h1"})
	waiting := m.reserveOf(1, 1)
	waiting.QueueUntil = m.now.Add(time.Minute)
	if out := m.ok(waiting).Reserved[0]; !out.Queued {
		t.Fatalf("%+v", out)
	}
	m.ok(command.SetHostSchedulable{Meta: m.meta(), Host: "h1", Schedulable: true})
	m.wantAllocation(alID(1), state.AllocationReserved)
	if got := m.types(); got != "host.uncordoned allocation.reserved gateway.reserved" {
		t.Fatal("events:", got)
	}
}

func TestConfirmRefusals(t *testing.T) {
	m := small(t, 1)
	m.refused(fault.NotFound, command.Confirm{Meta: m.meta(), Allocation: alID(1), Epoch: 1})
	m.reserve(1, 1)
	good := m.confirmOf(alID(1))
	change := func(code fault.Code, f func(*command.Confirm)) {
		t.Helper()
		c := good
		f(&c)
		m.refused(code, c)
	}
	change(fault.StaleEpoch, func(c *command.Confirm) { c.Epoch-- })
	change(fault.StaleEpoch, func(c *command.Confirm) { c.Observed.Gateway = gwID(9) })
	change(fault.StaleEpoch, func(c *command.Confirm) { c.Observed.Incarnation++ })
	change(fault.StaleEpoch, func(c *command.Confirm) { c.Observed.Epoch-- })
	change(fault.VerifyFailed, func(c *command.Confirm) { c.Observed.Phase = api.PhaseReady })
	m.ok(good)
	before := m.records()
	m.ok(good) // again: already so
	if m.records() != before || m.types() != "" {
		t.Fatal("a repeated confirmation changed something")
	}
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
	m.refused(fault.Superseded, good)
}

func TestTimeToLive(t *testing.T) {
	m := small(t, 1)
	c := m.reserveOf(1, 1)
	c.TTL, c.Metadata = time.Hour, map[string]string{"k": "v"}
	m.ok(c)
	m.now = m.now.Add(time.Minute)
	m.ok(m.confirmOf(alID(1)))
	if a := m.allocation(alID(1)); !a.ExpiresAt.Equal(start.Add(61*time.Minute)) || a.Metadata["k"] != "v" {
		t.Fatalf("%+v", a)
	}
}

func TestFailUndoes(t *testing.T) {
	m := small(t, 2)
	m.refused(fault.NotFound, command.Fail{Meta: m.meta(), Allocation: alID(1)})
	m.reserve(1, 1)
	a := m.allocation(alID(1))
	fail := command.Fail{
		Meta: m.meta(), Allocation: a.ID, Epoch: a.Epoch, Code: fault.VerifyFailed, Message: "no answer", BlameGateway: true,
		Journal: []command.Step{{Step: api.StepVerify, State: api.StepFailed}},
	}
	stale := fail
	stale.Epoch--
	m.refused(fault.StaleEpoch, stale)
	m.ok(fail)
	a = m.allocation(alID(1))
	if a.State != state.AllocationRollingBack || a.Failure.Code != fault.VerifyFailed || len(a.Journal) != 1 || !a.EndedAt.IsZero() {
		t.Fatalf("%+v", a)
	}
	if g := m.gateway(a.Gateway); g.State != state.GatewayDraining || g.Failures != 1 || g.Desired.Allocation != "" || g.Desired.Incarnation != 2 {
		t.Fatalf("%+v", g)
	}
	m.refused(fault.Superseded, fail)
	m.observe(m.report(a.Gateway, api.PhaseReady))
	if a = m.allocation(alID(1)); a.State != state.AllocationRolledBack || a.EndedAt.IsZero() {
		t.Fatalf("%+v", a)
	}
	// The blamed gateway is ready again and passed over while another one is there.
	m.reserve(2, 2)
	if got := m.allocation(alID(2)).Gateway; got != gwID(2) {
		t.Fatalf("%s was chosen, which failed", got)
	}
	m.reserve(3, 3)
	if got := m.allocation(alID(3)).Gateway; got != gwID(1) {
		t.Fatalf("%s was chosen", got)
	}
	m.ok(m.confirmOf(alID(3)))
	if n := m.gateway(gwID(1)).Failures; n != 0 {
		t.Fatalf("%d failures after a success", n)
	}
}

func TestBlamedTooOftenIsRetired(t *testing.T) {
	m := small(t, 1)
	for n := 1; n <= 3; n++ {
		m.reserve(1, n)
		a := m.allocation(alID(n))
		m.ok(command.Fail{Meta: m.meta(), Allocation: a.ID, Epoch: a.Epoch, Code: fault.ActivationTimeout, Message: "late", BlameGateway: true})
		if n < 3 {
			m.observe(m.report(gwID(1), api.PhaseReady))
		}
	}
	m.wantGateway(gwID(1), state.GatewayTerminating)
	m.wantAllocation(alID(3), state.AllocationRollingBack)
	m.observe(m.report(gwID(1), api.PhaseGone))
	m.wantAllocation(alID(3), state.AllocationRolledBack)
	if m.store.View().Gateway(nil, gwID(1)) != nil {
		t.Fatal("the gateway is still there")
	}
}

func TestReleaseBeforeActive(t *testing.T) {
	m := small(t, 1)
	m.refused(fault.NotFound, command.Release{Meta: m.meta(), Allocation: alID(1)})
	m.reserve(1, 1)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
	if a := m.allocation(alID(1)); a.State != state.AllocationRollingBack || a.Failure.Code != fault.Superseded {
		t.Fatalf("%+v", a)
	}
	for range 2 { // ending, then ended: nothing changes
		before := m.records()
		m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
		if m.records() != before {
			t.Fatal("a second release changed something")
		}
		m.observe(m.report(gwID(1), api.PhaseReady))
	}
}

func TestPlacement(t *testing.T) {
	m := newMachine(t)
	m.pool("default")
	m.host("h1", 10)
	m.host("h2", 20)
	m.host("h3", 20)
	for n := 1; n <= 8; n++ {
		m.org(n)
	}
	m.ready("default", "h1", 1, 3)
	m.ready("default", "h2", 4, 5)
	m.ready("default", "h3", 6, 8)
	var got []id.Host
	for n := 1; n <= 8; n++ {
		m.reserve(n, n)
		got = append(got, m.allocation(alID(n)).Host)
	}
	// Load decides (in use ÷ capacity), then most ready, then the id.
	want := []id.Host{"h1", "h3", "h2", "h3", "h2", "h1", "h3", "h1"}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("hosts %v, want %v", got, want)
		}
	}
	if e := m.allocation(alID(2)).Explanation; len(e.Candidates) != 3 || e.Candidates[0].Host != "h3" || e.Candidates[2].Host != "h1" || e.Candidates[2].Load != 0.1 {
		t.Fatalf("explanation: %+v", e)
	}
}

// TestAPoolThatIsNamedExists: whoever names a pool that there is not hears of it, also for an organization that has its
// gateway; whoever names none gets what there is. So does a request of version 1, which does not say whether it did.
func TestAPoolThatIsNamedExists(t *testing.T) {
	m := small(t, 2)
	m.active(1, 1)
	m.ok(command.PutPool{Meta: m.meta(), Pool: "other", Step: 1, Max: 1, MaxInFlight: 1, Isolation: "serve"})
	for _, c := range []struct {
		pool  id.Pool
		named bool
		want  fault.Code
	}{
		{"default", true, ""}, {"default", false, ""}, {"other", true, ""}, {"nowhere", false, ""}, {"nowhere", true, fault.NotFound},
	} {
		out := m.ok(command.Reserve{
			Meta: m.meta(), Pool: c.pool, PoolNamed: c.named, Items: []command.ReserveItem{{Organization: orgID(1), Allocation: alID(9)}},
		}).Reserved[0]
		switch {
		case c.want != "":
			if out.Err == nil || out.Err.Code != c.want || !strings.Contains(out.Err.Message, string(c.pool)) || m.types() != "allocation.refused" {
				t.Errorf("%+v: %+v, %s", c, out, m.types())
			}
		case out.Err != nil || !out.Existing || out.Allocation != alID(1):
			t.Errorf("%+v: %+v", c, out)
		}
	}
}
