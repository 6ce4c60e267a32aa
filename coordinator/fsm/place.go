package fsm

import (
	"strings"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Why a gateway was chosen. The rule is the same; what differs is whether somebody had to wait.
const (
	ruleAtOnce = "the eligible host with the lowest load, then with the most ready gateways; on it the ready gateway with the fewest failures, then the longest ready one"
	ruleMoved  = "its host was lost; first in line for " + ruleAtOnce
	ruleMove   = "to another host: " + ruleAtOnce
	ruleInLine = "first in line when a gateway became ready; " + ruleAtOnce
)

// explained is how many hosts an explanation names.
const explained = 8

// placer chooses gateways of one pool, for as many allocations as one entry makes. It looks at hosts, never
// at gateways, so its cost does not depend on how many of those there are.
type placer struct {
	t     *state.Txn
	pool  id.Pool
	hosts []candidate
}

type candidate struct {
	host     *state.Host
	ready    int
	inUse    int
	capacity int
	eligible bool
	why      string
}

func newPlacer(t *state.Txn, pool id.Pool) *placer {
	p := &placer{t: t, pool: pool, hosts: make([]candidate, 0, 32)}
	for l := range t.HostLoads(pool) {
		c := candidate{host: l.Host, ready: l.Ready, inUse: l.InUse, capacity: max(l.Host.Report.Capacity, 1)}
		c.why, c.eligible = l.Host.Eligible()
		p.hosts = append(p.hosts, c)
	}
	return p
}

// notThis and notThat are why a host is no choice for an allocation that moves.
const (
	notThis = "the allocation is on this host"
	notThat = "another host was asked for"
)

// takeFor is take for an allocation that leaves a host, to a certain one if to is not empty.
func (p *placer) takeFor(rule string, from, to id.Host) (*state.Gateway, state.Explanation) {
	all := p.hosts
	defer func() { p.hosts = all }()
	p.hosts = make([]candidate, len(all))
	copy(p.hosts, all)
	for i := range p.hosts {
		c := &p.hosts[i]
		switch {
		case c.host.ID == from:
			c.eligible, c.why = false, notThis
		case to != "" && c.host.ID != to && c.eligible:
			c.eligible, c.why = false, notThat
		}
	}
	g, why := p.take(rule)
	for i := range all { // what was taken counts for the next one
		all[i].ready, all[i].inUse = p.hosts[i].ready, p.hosts[i].inUse
	}
	return g, why
}

// eligibleBut reports whether there is a host that may be used, apart from one.
func (p *placer) eligibleBut(host id.Host) bool {
	for i := range p.hosts {
		if p.hosts[i].eligible && p.hosts[i].host.ID != host {
			return true
		}
	}
	return false
}

// better reports whether a is to be preferred to b.
func better(a, b *candidate) bool {
	if x, y := a.eligible && a.ready > 0, b.eligible && b.ready > 0; x != y {
		return x
	}
	// in use / capacity, compared without rounding
	if x, y := a.inUse*b.capacity, b.inUse*a.capacity; x != y {
		return x < y
	}
	if a.ready != b.ready {
		return a.ready > b.ready
	}
	return strings.Compare(string(a.host.ID), string(b.host.ID)) < 0
}

// take chooses the next gateway, counts it as used, and says what was looked at; nil when there is none.
func (p *placer) take(rule string) (*state.Gateway, state.Explanation) {
	var best [explained]*candidate
	n := 0
	for i := range p.hosts {
		c := &p.hosts[i]
		if n == explained && !better(c, best[n-1]) {
			continue
		}
		if n < explained {
			n++
		}
		at := n - 1
		for ; at > 0 && better(c, best[at-1]); at-- {
			best[at] = best[at-1]
		}
		best[at] = c
	}
	if n == 0 || !best[0].eligible || best[0].ready == 0 {
		return nil, state.Explanation{}
	}
	why := state.Explanation{Index: p.t.EntryIndex(), Reason: rule, Candidates: make([]state.Candidate, n)}
	for i, c := range best[:n] {
		why.Candidates[i] = state.Candidate{
			Host: c.host.ID, Ready: c.ready, Load: float64(c.inUse) / float64(c.capacity), Eligible: c.eligible, Reason: c.why,
		}
	}
	chosen := best[0]
	g := p.t.FirstReady(p.pool, chosen.host.ID)
	chosen.ready--
	chosen.inUse++
	return g, why
}

// elsewhere is how many gateways are ready on hosts that may not be used now.
func (p *placer) elsewhere() int {
	n := 0
	for i := range p.hosts {
		if !p.hosts[i].eligible {
			n += p.hosts[i].ready
		}
	}
	return n
}
