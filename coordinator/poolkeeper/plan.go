// Package poolkeeper decides how many gateways a pool has. Plan is the decision, pure; Keeper is the
// loop that watches the state, asks Plan and proposes.
package poolkeeper

import (
	"fmt"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// States of the breaker.
const (
	BreakerClosed   = "closed"
	BreakerOpen     = "open"
	BreakerHalfOpen = "half_open"
)

// What keeps a pool from growing as much as its rule asks.
const (
	LimitedByMax      = "max"
	LimitedByInFlight = "in_flight"
	LimitedByCapacity = "capacity"
	LimitedByBreaker  = "breaker"
)

const (
	breakerThreshold = 3               // failed gateways in a row that open the breaker
	breakerFirst     = 5 * time.Second // open for this long the first time, doubled at every failed probe
	breakerLongest   = 5 * time.Minute
)

// Pool is what Plan looks at: a pool's rule, its gateways by state, and the hosts that could take more.
type Pool struct {
	Spec     state.Pool
	Ready    int
	InFlight int // pending and starting: on their way to ready, new
	Recycled int // recycling: on their way back to ready
	Total    int // all but terminating
	Queued   int
	Failed   []id.Gateway // given up by their agents, without organization
	// LastWords is what the agent said of the last of those.
	LastWords string
	Spare     []id.Gateway // ready ones, those to be missed least first; only of a pool above its maximum
	// ReadySince tells that a gateway of the pool became ready after the breaker was last noted.
	ReadySince bool
	Hosts      []Host // eligible ones
}

// Host is a host that may take more gateways.
type Host struct {
	ID       id.Host
	Gateways int // of all pools
	Capacity int
}

// Action is what to do about a pool now. The zero value is nothing.
type Action struct {
	Create  []id.Host // one entry per gateway, on that host
	Retire  []id.Gateway
	Surplus []id.Gateway // to retire too: the pool has more than its maximum
	Limited string       // what kept Create below what the rule asks; "" when nothing did
	Breaker state.Breaker
	Reason  string
	Again   time.Time // when to look again even if nothing changes; zero: not needed
}

// Plan applies the rule: when ready, pending, starting and recycling gateways together are fewer than
// the minimum (plus those who wait in line), create max(step, deficit), within the pool's maximum,
// its in-flight limit, the hosts' capacities and the breaker. Counting ready ones alone would create
// again and again while the first new ones are still starting.
func Plan(p Pool, now time.Time) Action {
	if p.Spec.Deleting {
		return Action{Breaker: p.Spec.Breaker}
	}
	a := Action{Breaker: breaker(p, now), Retire: p.Failed}
	needed := p.Spec.MinReady + p.Queued - p.Ready - p.InFlight - p.Recycled
	if a.Breaker.State == BreakerOpen {
		a.Again = a.Breaker.Until
	}
	if above := p.Total - len(p.Failed) - p.Spec.Max; above > 0 && p.Queued == 0 {
		// A maximum that was lowered, or a lost host that came back after its gateways were replaced. It is above the
		// minimum in rank; what serves is never taken.
		a.Surplus = p.Spare[:min(above, len(p.Spare))]
	}
	if needed <= 0 {
		return a
	}
	n, limited := bound(p, a.Breaker, max(p.Spec.Step, needed))
	a.Create = spread(p.Hosts, n)
	if len(a.Create) < n {
		limited = LimitedByCapacity
	}
	if len(a.Create) < needed {
		a.Limited = limited
	}
	a.Reason = fmt.Sprintf("%d ready, %d starting, %d recycling, %d waiting in line, minimum %d", p.Ready, p.InFlight, p.Recycled, p.Queued, p.Spec.MinReady)
	return a
}

// bound cuts n down to what the pool's limits allow, and names the limit that cut the most.
func bound(p Pool, b state.Breaker, n int) (allowed int, by string) {
	cut := func(to int, name string) {
		if to < n {
			n, by = max(to, 0), name
		}
	}
	cut(p.Spec.MaxInFlight-p.InFlight, LimitedByInFlight)
	cut(p.Spec.Max-p.Total+len(p.Failed), LimitedByMax)
	switch b.State {
	case BreakerOpen:
		cut(0, LimitedByBreaker)
	case BreakerHalfOpen:
		cut(1-p.InFlight, LimitedByBreaker)
	}
	return n, by
}

// breaker moves the breaker on: failures in a row open it, time half-opens it for a single probe, a
// gateway that became ready closes it.
func breaker(p Pool, now time.Time) state.Breaker {
	b := p.Spec.Breaker
	if b.State == "" || p.ReadySince && b.Failures > 0 {
		b = state.Breaker{State: BreakerClosed}
	}
	switch {
	case len(p.Failed) > 0:
		probe := b.State == BreakerHalfOpen
		b.Failures += len(p.Failed)
		if b.Failures < breakerThreshold && !probe {
			return b
		}
		doublings := min((b.Failures-breakerThreshold)/breakerThreshold, 10)
		b.State, b.Until = BreakerOpen, now.Add(min(breakerFirst<<doublings, breakerLongest))
		b.Reason = fmt.Sprintf("%d gateways in a row did not become ready; the last, %s: %s", b.Failures, p.Failed[len(p.Failed)-1], orUnknown(p.LastWords))
	case b.State == BreakerOpen && !now.Before(b.Until):
		b.State, b.Reason = BreakerHalfOpen, "trying one gateway after "+b.Reason
	}
	return b
}

func orUnknown(words string) string {
	if words == "" {
		return "it said nothing"
	}
	return words
}

// spread places n gateways one by one on the host that is least full, by id among equals, and returns
// fewer when the hosts are full.
func spread(hosts []Host, n int) []id.Host {
	hosts = slices.Clone(hosts)
	var out []id.Host
	for range n {
		best := -1
		for i, h := range hosts {
			if h.Gateways >= h.Capacity {
				continue
			}
			if best < 0 || fuller(hosts[best], h) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		out = append(out, hosts[best].ID)
		hosts[best].Gateways++
	}
	return out
}

// fuller reports whether a is fuller than b, or as full and later by name.
func fuller(a, b Host) bool {
	x, y := a.Gateways*b.Capacity, b.Gateways*a.Capacity
	return x > y || x == y && a.ID > b.ID
}
