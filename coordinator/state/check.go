package state

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Hash is a digest of every record and event: members that applied the same log have the same. It reads everything.
func (c Checkpoint) Hash() string {
	h := sha256.New()
	if err := c.Save(h); err != nil {
		panic("cannot encode the state: " + err.Error()) // records always encode and a hash always writes
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Check tells which invariant does not hold. It reads everything: it is for tests and for finding defects.
func (s *Store) Check() error {
	f := s.current.Load().feed
	f.mu.Lock()
	violations := slices.Clone(f.violations)
	f.mu.Unlock()
	c := checker{View: s.View()}
	for _, v := range violations {
		c.failf("%s", v)
	}
	c.allocations()
	c.gateways()
	c.tallies()
	c.line()
	c.organizations()
	return errors.Join(c.errs...)
}

type checker struct {
	View
	errs []error
}

func (c *checker) failf(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

// allocations: one live one for an organization and for a gateway, a grant for each that has a gateway, and
// epochs that only rise.
func (c *checker) allocations() {
	type owner struct{ what, id string }
	type last struct {
		created uint64
		epoch   id.Epoch
		live    *Allocation
	}
	byOwner := map[owner]*last{}
	ordered := slices.SortedFunc(c.Allocations(nil), func(a, b *Allocation) int {
		if a.CreateIndex != b.CreateIndex {
			return int(a.CreateIndex) - int(b.CreateIndex)
		}
		return int(a.Epoch) - int(b.Epoch)
	})
	for _, a := range ordered {
		if a.Epoch > id.Epoch(c.Index()) {
			c.failf("allocation %s: its epoch %d is after the log's index %d", a.ID, a.Epoch, c.Index())
		}
		holds := a.State == AllocationReserved || a.State == AllocationActive || a.State.Ending()
		if pending, ok := a.Pending(); (holds || ok) && a.Gateway == "" || ok && pending.Gateway == "" {
			c.failf("allocation %s is %s without a gateway", a.ID, a.State)
		}
		if moving := a.State == AllocationRelocating; moving != (a.Move != nil) || a.Left != nil && !moving && a.State != AllocationActive {
			c.failf("allocation %s is %s with the move %v and has left %v", a.ID, a.State, a.Move, a.Left)
		}
		l := byOwner[owner{"organization", string(a.Organization)}]
		if l == nil {
			l = &last{}
			byOwner[owner{"organization", string(a.Organization)}] = l
		}
		if l.live != nil {
			c.failf("organization %s: allocation %s was made while %s was live", a.Organization, a.ID, l.live.ID)
		}
		if a.Epoch != 0 && a.Epoch <= l.epoch {
			c.failf("organization %s: allocation %s has epoch %d after %d", a.Organization, a.ID, a.Epoch, l.epoch)
		}
		l.created, l.epoch = a.CreateIndex, max(l.epoch, a.Epoch)
		if a.State.Live() {
			l.live = a
		}
		c.granted(a)
	}
	c.oneOnEach()
}

// oneOnEach: a gateway is given to one allocation at a time, and to each at a higher epoch.
func (c *checker) oneOnEach() {
	type holding struct {
		*Allocation
		grant Grant
	}
	var all []holding
	for a := range c.Allocations(nil) {
		if a.Gateway != "" {
			all = append(all, holding{a, a.Grant()})
		}
		if a.Move != nil && a.Move.Target != nil {
			all = append(all, holding{a, *a.Move.Target})
		}
	}
	slices.SortStableFunc(all, func(a, b holding) int { return int(a.grant.Epoch) - int(b.grant.Epoch) })
	onGateway := map[id.Gateway]holding{}
	for _, h := range all {
		if p, ok := onGateway[h.grant.Gateway]; ok && (p.grant.Epoch == h.grant.Epoch || p.State.Live()) {
			c.failf("gateway %s: given to %s (epoch %d, %s) and to %s (epoch %d)", h.grant.Gateway, p.ID, p.grant.Epoch, p.State, h.ID, h.grant.Epoch)
		}
		onGateway[h.grant.Gateway] = h
	}
}

// granted: what an allocation has is granted to it and to nobody else.
func (c *checker) granted(a *Allocation) {
	if live := c.LiveAllocation(nil, a.Organization); a.State.Live() && live != a {
		c.failf("allocation %s is live and is not found by its organization %s", a.ID, a.Organization)
	}
	if pending, ok := a.Pending(); ok {
		if h := c.Host(nil, pending.Host); h != nil && h.Lost() {
			c.failf("allocation %s is %s on host %s, which is lost", a.ID, a.State, pending.Host)
		}
	}
	if a.Gateway != "" && a.Has(a.Gateway) {
		c.has(a, a.Grant())
	}
	if a.Move != nil && a.Move.Target != nil {
		if a.Move.Stranded || a.Move.Target.Epoch <= a.Epoch || a.Move.Target.Gateway == a.Gateway {
			c.failf("allocation %s, epoch %d on gateway %s, has the target %+v", a.ID, a.Epoch, a.Gateway, *a.Move.Target)
		}
		c.has(a, *a.Move.Target)
	}
}

func (c *checker) has(a *Allocation, grant Grant) {
	g := c.Gateway(nil, grant.Gateway)
	if g == nil {
		c.failf("allocation %s is %s on gateway %s, which does not exist", a.ID, a.State, grant.Gateway)
		return
	}
	if g.Desired.Allocation != a.ID || g.Desired.Organization != a.Organization || g.Desired.Epoch != grant.Epoch || g.Host != grant.Host {
		c.failf("allocation %s is %s with epoch %d and gateway %s is granted to %q, epoch %d", a.ID, a.State, grant.Epoch, g.ID, g.Desired.Allocation, g.Desired.Epoch)
	}
}

func (c *checker) gateways() {
	for g := range c.Gateways(nil) {
		host := c.Host(nil, g.Host)
		if host == nil {
			c.failf("gateway %s is on host %s, which does not exist", g.ID, g.Host)
			continue
		}
		if c.Pool(nil, g.Pool) == nil {
			c.failf("gateway %s is of pool %s, which does not exist", g.ID, g.Pool)
		}
		d := &g.Desired
		var grant *Allocation
		if d.Allocation != "" {
			grant = c.Allocation(nil, d.Allocation)
			if grant == nil || !grant.Has(g.ID) {
				c.failf("gateway %s is granted to %s, which does not have it", g.ID, d.Allocation)
			}
		} else if d.Epoch != 0 || d.Organization != "" {
			c.failf("gateway %s has epoch %d and organization %q without a grant", g.ID, d.Epoch, d.Organization)
		}
		if want := deriveGateway(g, host.Lost(), grant, c.Ending(g.ID)); want != g.State {
			c.failf("gateway %s is %s and should be %s", g.ID, g.State, want)
		}
		if g.Observed.Incarnation > d.Incarnation {
			c.failf("gateway %s: incarnation %d was seen and only %d was wanted", g.ID, g.Observed.Incarnation, d.Incarnation)
		}
		if g.State == GatewayReady && g.Observed.Phase != api.PhaseReady && g.Observed.Phase != api.PhaseServing {
			c.failf("gateway %s is ready and was seen %q", g.ID, g.Observed.Phase)
		}
	}
}

// tallies: they say what counting everything says.
func (c *checker) tallies() {
	type place struct {
		host id.Host
		pool id.Pool
	}
	counts, ids, ready, last := map[place]Counts{}, map[place][]id.Gateway{}, map[place][]readyKey{}, map[place]uint64{}
	for g := range c.Gateways(nil) {
		p := place{g.Host, g.Pool}
		n := counts[p]
		n.add(g.State, 1)
		counts[p] = n
		ids[p] = append(ids[p], g.ID)
		last[p] = max(last[p], g.ReadyIndex)
		if g.State == GatewayReady {
			ready[p] = append(ready[p], keyOf(g))
		}
	}
	hosts := 0
	for t := range c.trees.tallies.all(nil, "") {
		hosts++
		if t.host != c.Host(nil, t.host.ID) {
			c.failf("the tally of host %s has an old record of it", t.host.ID)
		}
		for _, have := range t.pools {
			p := place{t.host.ID, have.pool}
			slices.SortFunc(ready[p], compareReady)
			if have.counts != counts[p] || !slices.Equal(have.ids, ids[p]) || !slices.Equal(have.ready, ready[p]) {
				c.failf("the tally of host %s and pool %s says %v, %v, %v and counting says %v, %v, %v",
					p.host, p.pool, have.counts, have.ids, have.ready, counts[p], ids[p], ready[p])
			}
			if have.lastReady < last[p] { // of one that is gone it may be later
				c.failf("a gateway of host %s and pool %s became ready at index %d, and the tally says %d", p.host, p.pool, last[p], have.lastReady)
			}
			delete(counts, p)
		}
	}
	if n := len(slices.Collect(c.Hosts(nil))); n != hosts {
		c.failf("there are %d hosts and %d tallies", n, hosts)
	}
	if len(counts) != 0 {
		c.failf("%d hosts and pools have gateways and no tally", len(counts))
	}
}

// line: it is in order, holds the queued ones, and nobody waits while something can be given out.
func (c *checker) line() {
	queued, stranded := 0, 0
	for a := range c.Allocations(nil) {
		switch {
		case a.State == AllocationQueued:
			queued++
		case a.State == AllocationRelocating && a.Move.Stranded:
			stranded++
		}
	}
	for p := range c.Pools(nil) {
		for a := range c.Stranded(nil, p.Name) {
			stranded--
			c.waits(p, a)
		}
		for range c.Held(nil, p.Name) {
			stranded--
		}
		var before *Allocation
		for a := range c.Line(nil, p.Name) {
			queued--
			if before != nil && (before.QueueIndex > a.QueueIndex || before.QueueIndex == a.QueueIndex && before.QueueSeq >= a.QueueSeq) {
				c.failf("pool %s: %s stands behind %s in line", p.Name, a.ID, before.ID)
			}
			before = a
		}
		if before != nil {
			c.waits(p, before)
		}
	}
	if queued != 0 || stranded != 0 {
		c.failf("%d queued and %d stranded allocations are in no line", queued, stranded)
	}
}

// waits: nothing is ready for an allocation that waits.
func (c *checker) waits(p *Pool, a *Allocation) {
	for h := range c.Hosts(nil) {
		if _, eligible := h.Eligible(); eligible && c.CountsOfHost(nil, p.Name, h.ID).Of(GatewayReady) > 0 {
			c.failf("pool %s: %s waits in line and host %s has a ready gateway", p.Name, a.ID, h.ID)
		}
	}
}

func (c *checker) organizations() {
	for o := range c.Organizations(nil) {
		if !slices.IsSortedFunc(o.Members, compareMembers) || !slices.IsSortedFunc(o.Projects, compareProjects) {
			c.failf("organization %s: members or projects are not sorted", o.ID)
		}
	}
	for a := range c.LiveAllocations(nil) {
		if c.Organization(nil, a.Organization) == nil {
			c.failf("allocation %s is live for organization %s, which does not exist", a.ID, a.Organization)
		}
	}
}
