package poolkeeper

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/id"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func spec() state.Pool {
	return state.Pool{Name: "default", MinReady: 2, Step: 3, Max: 50, MaxInFlight: 10}
}

func TestPlanCreates(t *testing.T) {
	one := []Host{{ID: "h1", Capacity: 1000}}
	tests := []struct {
		name    string
		pool    Pool
		create  int
		limited string
	}{
		{"empty pool is filled by a step", Pool{Hosts: one}, 3, ""},
		{"enough ready", Pool{Ready: 2, Total: 2, Hosts: one}, 0, ""},
		{"starting ones count, else it would create ten times over", Pool{InFlight: 3, Total: 3, Hosts: one}, 0, ""},
		{"recycling ones are on their way back", Pool{Recycled: 2, Total: 2, Hosts: one}, 0, ""},
		{"one short", Pool{Ready: 1, Total: 1, Hosts: one}, 3, ""},
		{"those in line are needed too", Pool{Ready: 0, Queued: 7, Total: 40, Hosts: one}, 9, ""},
		{"the maximum cuts the step but not the need", Pool{Ready: 1, Total: 49, Hosts: one}, 1, ""},
		{"the maximum", Pool{Total: 50, Hosts: one}, 0, LimitedByMax},
		{"nearly the maximum", Pool{Total: 49, Hosts: one}, 1, LimitedByMax},
		{"in flight", Pool{InFlight: 10, Queued: 20, Total: 10, Hosts: one}, 0, LimitedByInFlight},
		{"a full host", Pool{Hosts: []Host{{ID: "h1", Gateways: 4, Capacity: 5}}}, 1, LimitedByCapacity},
		{"no host", Pool{}, 0, LimitedByCapacity},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.pool.Spec = spec()
			a := Plan(tt.pool, now)
			if len(a.Create) != tt.create || a.Limited != tt.limited {
				t.Errorf("creates %d, limited %q; want %d, %q", len(a.Create), a.Limited, tt.create, tt.limited)
			}
			if len(a.Create) > 0 && a.Reason == "" {
				t.Error("no reason is given")
			}
		})
	}
}

func TestPlanRetiresWhatIsAboveTheMaximum(t *testing.T) {
	spare := []id.Gateway{"gw-1", "gw-2", "gw-3", "gw-4", "gw-5"}
	for name, c := range map[string]struct {
		pool Pool
		want int
	}{
		"at the maximum":                             {Pool{Ready: 5, Total: 50, Spare: spare}, 0},
		"two above":                                  {Pool{Ready: 5, Total: 52, Spare: spare}, 2},
		"the maximum is above the minimum":           {Pool{Ready: 5, Total: 58, Spare: spare}, 5},
		"those in line are served first":             {Pool{Ready: 5, Queued: 3, Total: 58, Spare: spare}, 0},
		"what serves is not taken":                   {Pool{Ready: 0, Recycled: 2, Total: 60}, 0},
		"the failed ones go anyway":                  {Pool{Ready: 5, Total: 52, Failed: []id.Gateway{"gw-8", "gw-9"}, Spare: spare}, 0},
		"recycled ones come back, but are not ready": {Pool{Ready: 1, Recycled: 9, Total: 60, Spare: spare[:1]}, 1},
	} {
		c.pool.Spec = spec()
		a := Plan(c.pool, now)
		if len(a.Surplus) != c.want || len(a.Create) != 0 || !slices.Equal(a.Surplus, spare[:c.want]) {
			t.Errorf("%s: retires %v and creates %d, want %d", name, a.Surplus, len(a.Create), c.want)
		}
	}
	gone := Pool{Spec: spec(), Ready: 9, Total: 99, Spare: spare}
	gone.Spec.Deleting = true
	if a := Plan(gone, now); len(a.Surplus) > 0 {
		t.Errorf("a pool that is being deleted retires %v by this rule", a.Surplus)
	}
}

func TestPlanSpreads(t *testing.T) {
	p := Pool{Spec: spec(), Hosts: []Host{{"b", 0, 10}, {"a", 0, 10}, {"c", 5, 10}, {"full", 3, 3}}}
	p.Spec.Step = 5
	got := Plan(p, now).Create
	if want := []id.Host{"a", "b", "a", "b", "a"}; !slices.Equal(got, want) {
		t.Errorf("placed on %v, want %v", got, want)
	}
}

func TestPlanLeavesADeletedPoolAlone(t *testing.T) {
	p := Pool{Spec: spec(), Hosts: []Host{{"a", 0, 10}}}
	p.Spec.Deleting = true
	if a := Plan(p, now); len(a.Create) > 0 {
		t.Errorf("creates %d gateways", len(a.Create))
	}
}

// The breaker opens after failures in a row, lets one probe through when its time is over, opens for
// longer when the probe fails and closes when a gateway becomes ready.
func TestBreaker(t *testing.T) {
	hosts := []Host{{"h1", 0, 100}}
	p := Pool{Spec: spec(), Hosts: hosts, Failed: []id.Gateway{"gw-aaaaaaaaaa"}}
	a := Plan(p, now)
	if a.Breaker.State != BreakerClosed || a.Breaker.Failures != 1 || len(a.Create) != 3 || len(a.Retire) != 1 {
		t.Fatalf("after one failure: %+v", a)
	}
	p.Spec.Breaker, p.Failed, p.LastWords = a.Breaker, []id.Gateway{"gw-aaaaaaaaab", "gw-aaaaaaaaac"}, "exited with code 3: no such library"
	a = Plan(p, now)
	if why := a.Breaker.Reason; why != "3 gateways in a row did not become ready; the last, gw-aaaaaaaaac: exited with code 3: no such library" {
		t.Fatalf("it opens because: %s", why)
	}
	if a.Breaker.State != BreakerOpen || len(a.Create) != 0 || a.Limited != LimitedByBreaker {
		t.Fatalf("after three failures: %+v", a)
	}
	if want := now.Add(breakerFirst); !a.Again.Equal(want) || !a.Breaker.Until.Equal(want) {
		t.Fatalf("looks again at %v, want %v", a.Again, want)
	}
	p.Spec.Breaker, p.Failed = a.Breaker, nil
	if a = Plan(p, now.Add(breakerFirst-time.Millisecond)); a.Breaker.State != BreakerOpen {
		t.Fatalf("before its time: %+v", a)
	}
	a = Plan(p, now.Add(breakerFirst))
	if a.Breaker.State != BreakerHalfOpen || len(a.Create) != 1 || !strings.Contains(a.Breaker.Reason, "no such library") {
		t.Fatalf("when its time is over: %+v", a)
	}
	p.Spec.Breaker, p.InFlight = a.Breaker, 1
	if b := Plan(p, now.Add(time.Minute)); len(b.Create) != 0 {
		t.Fatalf("a second probe while the first is starting: %+v", b)
	}
	failed := p
	failed.InFlight, failed.Failed = 0, []id.Gateway{"gw-aaaaaaaaad"}
	if b := Plan(failed, now); b.Breaker.State != BreakerOpen {
		t.Fatalf("after a failed probe: %+v", b)
	}
	p.InFlight, p.Ready, p.ReadySince = 0, 1, true
	if b := Plan(p, now); b.Breaker != (state.Breaker{State: BreakerClosed}) || len(b.Create) != 3 {
		t.Fatalf("after a probe that became ready: %+v", b)
	}
}

func TestBreakerWaitsLongerEachTime(t *testing.T) {
	p := Pool{Spec: spec(), Failed: []id.Gateway{"gw-aaaaaaaaaa"}}
	last := time.Duration(0)
	for range 60 {
		p.Spec.Breaker = Plan(p, now).Breaker
		if p.Spec.Breaker.State == BreakerOpen {
			wait := p.Spec.Breaker.Until.Sub(now)
			if wait < last || wait > breakerLongest {
				t.Fatalf("waits %v after %v", wait, last)
			}
			last = wait
		}
	}
	if last != breakerLongest {
		t.Errorf("the longest wait is %v, want %v", last, breakerLongest)
	}
}
