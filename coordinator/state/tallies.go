package state

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// tally is what is derived from a host's gateways: how many are in which state, which they are, and which
// are ready, each by pool. Choosing a gateway looks at the tallies only, so its cost is in the number of
// hosts; and one tally for a host instead of three index entries for a gateway is what keeps a hundred
// thousand records small.
type tally struct {
	host  *Host
	pools []poolTally // sorted by pool
	// changed are the latest changes of desired parts, oldest first: all those after index since. Views
	// share it; as with ready, appending is all that happens to it.
	changed []desiredChange
	since   uint64
}

// desiredChange is a gateway whose desired part changed at an index.
type desiredChange struct {
	index   uint64
	gateway id.Gateway
}

// keptChanges is how many changes are kept at least once that many have happened. A stream that is further
// behind reads all gateways of its host.
const keptChanges = 1024

func (c *tally) noteDesired(g *Gateway) {
	if len(c.changed) >= 2*keptChanges {
		c.since = c.changed[keptChanges-1].index
		c.changed = slices.Clone(c.changed[keptChanges:])
	}
	c.changed = append(c.changed, desiredChange{g.Desired.Index, g.ID})
}

type poolTally struct {
	pool   id.Pool
	counts Counts
	ids    []id.Gateway // sorted
	ready  []readyKey   // in the order in which they are given out
	// lastReady is the latest index at which one of them, which may be gone, became ready.
	lastReady uint64
	// owned: ids and ready are this transaction's own. Otherwise views share them, and only appending to
	// ready is allowed, because a view never looks behind its own length and there is one line of history.
	owned bool
}

// readyKey orders the ready gateways of a host: fewest failures, then longest ready, then id.
type readyKey struct {
	failures   int
	readyIndex uint64
	gateway    id.Gateway
}

func compareReady(a, b readyKey) int {
	if a.failures != b.failures {
		return a.failures - b.failures
	}
	if a.readyIndex != b.readyIndex {
		if a.readyIndex < b.readyIndex {
			return -1
		}
		return 1
	}
	return strings.Compare(string(a.gateway), string(b.gateway))
}

func (c *tally) pool(pool id.Pool) *poolTally {
	for i := range c.pools {
		if c.pools[i].pool == pool {
			return &c.pools[i]
		}
	}
	return nil
}

func (c *tally) total() Counts {
	var sum Counts
	for i := range c.pools {
		sum.merge(c.pools[i].counts)
	}
	return sum
}

// Counts is how many gateways of a pool are in each state.
func (v View) Counts(ws WatchSet, pool id.Pool) Counts {
	var sum Counts
	for c := range v.trees.tallies.all(ws, "") {
		if p := c.pool(pool); p != nil {
			sum.merge(p.counts)
		}
	}
	return sum
}

// CountsOfHost is how many gateways of a pool on a host are in each state.
func (v View) CountsOfHost(ws WatchSet, pool id.Pool, host id.Host) Counts {
	if c := v.trees.tallies.get(ws, string(host)); c != nil {
		if p := c.pool(pool); p != nil {
			return p.counts
		}
	}
	return Counts{}
}

// HostCounts is how many gateways of a host are in each state, over all pools.
func (v View) HostCounts(ws WatchSet, host id.Host) Counts {
	if c := v.trees.tallies.get(ws, string(host)); c != nil {
		return c.total()
	}
	return Counts{}
}

// GatewaysOfHost ranges over a host's gateways by id.
func (v View) GatewaysOfHost(ws WatchSet, host id.Host) iter.Seq[*Gateway] {
	return v.GatewaysOfHostAfter(ws, host, "")
}

// GatewaysOfHostAfter is GatewaysOfHost for those after one.
func (v View) GatewaysOfHostAfter(ws WatchSet, host id.Host, after id.Gateway) iter.Seq[*Gateway] {
	c := v.trees.tallies.get(ws, string(host))
	return func(yield func(*Gateway) bool) {
		if c == nil {
			return
		}
		var ids []id.Gateway
		for i := range c.pools {
			of := c.pools[i].ids
			first, _ := slices.BinarySearch(of, after+"\x00") // the least that is greater
			ids = append(ids, of[first:]...)
		}
		v.inOrder(ids, yield)
	}
}

// DesiredSince lists the gateways of a host whose desired part changed after an index, by id. ok is false
// when that is not known any more: then all of them have to be read.
func (v View) DesiredSince(ws WatchSet, host id.Host, index uint64) (changed []*Gateway, ok bool) {
	c := v.trees.tallies.get(ws, string(host))
	if c == nil {
		return nil, true
	}
	if index < c.since {
		return nil, false
	}
	i, _ := slices.BinarySearchFunc(c.changed, index+1, func(d desiredChange, i uint64) int { return cmp.Compare(d.index, i) })
	ids := make([]id.Gateway, 0, len(c.changed)-i)
	for _, d := range c.changed[i:] {
		ids = append(ids, d.gateway)
	}
	slices.Sort(ids)
	for _, gateway := range slices.Compact(ids) {
		if g := v.Gateway(nil, gateway); g != nil {
			changed = append(changed, g)
		}
	}
	return changed, true
}

// GatewaysOfPoolIn ranges over a pool's gateways in a state by id. A host that has none in it costs one look.
func (v View) GatewaysOfPoolIn(pool id.Pool, in GatewayState) iter.Seq[*Gateway] {
	return func(yield func(*Gateway) bool) {
		var ids []id.Gateway
		for c := range v.trees.tallies.all(nil, "") {
			switch p := c.pool(pool); {
			case p == nil || p.counts.Of(in) == 0:
			case in == GatewayReady:
				for _, k := range p.ready {
					ids = append(ids, k.gateway)
				}
			default:
				ids = append(ids, p.ids...)
			}
		}
		v.inOrder(ids, func(g *Gateway) bool { return g.State != in || yield(g) })
	}
}

// ReadySince reports whether a gateway of the pool became ready after an index. A host with none such costs one look.
func (v View) ReadySince(pool id.Pool, index uint64) bool {
	for c := range v.trees.tallies.all(nil, "") {
		p := c.pool(pool)
		if p == nil || p.lastReady <= index {
			continue
		}
		for _, gateway := range p.ids {
			if g := v.Gateway(nil, gateway); g != nil && g.ReadyIndex > index {
				return true
			}
		}
	}
	return false
}

func (v View) inOrder(ids []id.Gateway, yield func(*Gateway) bool) {
	slices.Sort(ids)
	for _, gateway := range ids {
		if g := v.Gateway(nil, gateway); g != nil && !yield(g) {
			return
		}
	}
}

// HostLoad is a host as the choice of a gateway sees it.
type HostLoad struct {
	Host  *Host
	Ready int
	InUse int
}

// HostLoads ranges over the hosts, by id, with what they have ready in a pool.
func (t *Txn) HostLoads(pool id.Pool) iter.Seq[HostLoad] {
	return func(yield func(HostLoad) bool) {
		for c := range t.trees.tallies.all(nil, "") {
			l := HostLoad{Host: c.host, InUse: c.total().InUse()}
			if p := c.pool(pool); p != nil {
				l.Ready = len(p.ready)
			}
			if !yield(l) {
				return
			}
		}
	}
}

// FirstReady is the ready gateway of a pool on a host that is given out next; nil when there is none.
func (t *Txn) FirstReady(pool id.Pool, host id.Host) *Gateway {
	c := t.trees.tallies.get(nil, string(host))
	if c == nil {
		return nil
	}
	p := c.pool(pool)
	if p == nil || len(p.ready) == 0 {
		return nil
	}
	return t.Gateway(p.ready[0].gateway)
}

// tallyOf gives the host's tally for modification; nil when the host is unknown. It is in the table from
// here on: nobody else sees it before the commit, so it is put once and modified in place.
func (t *Txn) tallyOf(host id.Host) *tally {
	if c := t.tallies[host]; c != nil {
		return c
	}
	old := t.trees.tallies.get(nil, string(host))
	if old == nil {
		return nil
	}
	c := &tally{host: old.host, pools: slices.Clone(old.pools), changed: old.changed, since: old.since}
	for i := range c.pools {
		c.pools[i].owned = false
	}
	t.putTally(c)
	return c
}

func (t *Txn) putTally(c *tally) {
	t.tallies[c.host.ID] = c
	t.trees.tallies.put(string(c.host.ID), c)
}

// setTallyHost makes the tally follow the host's record; nil ends it.
func (t *Txn) setTallyHost(host id.Host, record *Host) {
	c := t.tallyOf(host)
	switch {
	case record == nil:
		t.trees.tallies.remove(string(host))
		delete(t.tallies, host)
	case c != nil:
		c.host = record
	default:
		t.putTally(&tally{host: record})
	}
}

// HostGateways lists a host's gateways by id.
func (t *Txn) HostGateways(host id.Host) []*Gateway {
	c := t.trees.tallies.get(nil, string(host))
	if c == nil {
		return nil
	}
	var ids []id.Gateway
	for i := range c.pools {
		ids = append(ids, c.pools[i].ids...)
	}
	return t.records(ids)
}

// PoolGateways lists a pool's gateways by id.
func (t *Txn) PoolGateways(pool id.Pool) []*Gateway {
	var ids []id.Gateway
	for c := range t.trees.tallies.all(nil, "") {
		if p := c.pool(pool); p != nil {
			ids = append(ids, p.ids...)
		}
	}
	return t.records(ids)
}

func (t *Txn) records(ids []id.Gateway) []*Gateway {
	slices.Sort(ids)
	out := make([]*Gateway, 0, len(ids))
	for _, gateway := range ids {
		out = append(out, t.Gateway(gateway))
	}
	return out
}

// count moves a gateway from its old record to its new one; nil means that there is none.
func (t *Txn) count(c *tally, before, after *Gateway) {
	g := after
	if g == nil {
		g = before
	}
	p := c.pool(g.Pool)
	if p == nil {
		c.pools = append(c.pools, poolTally{pool: g.Pool, owned: true})
		slices.SortFunc(c.pools, func(a, b poolTally) int { return strings.Compare(string(a.pool), string(b.pool)) })
		p = c.pool(g.Pool)
	}
	if before != nil {
		p.counts.add(before.State, -1)
		if before.State == GatewayReady && (after == nil || keyOf(before) != keyOf(after) || after.State != GatewayReady) {
			p.takeReady(keyOf(before))
		}
	}
	if after != nil {
		p.lastReady = max(p.lastReady, after.ReadyIndex)
		p.counts.add(after.State, 1)
		if after.State == GatewayReady && (before == nil || keyOf(before) != keyOf(after) || before.State != GatewayReady) {
			p.addReady(keyOf(after))
		}
	}
	switch {
	case before == nil:
		p.own()
		i, _ := slices.BinarySearch(p.ids, after.ID)
		p.ids = slices.Insert(p.ids, i, after.ID)
	case after == nil:
		p.own()
		if i, ok := slices.BinarySearch(p.ids, before.ID); ok {
			p.ids = slices.Delete(p.ids, i, i+1)
		}
	}
}

func keyOf(g *Gateway) readyKey { return readyKey{g.Failures, g.ReadyIndex, g.ID} }

func (p *poolTally) own() {
	if !p.owned {
		p.ids, p.ready, p.owned = slices.Clone(p.ids), slices.Clone(p.ready), true
	}
}

func (p *poolTally) addReady(k readyKey) {
	if n := len(p.ready); n == 0 || compareReady(p.ready[n-1], k) < 0 {
		p.ready = append(p.ready, k)
		return
	}
	p.own()
	i, _ := slices.BinarySearchFunc(p.ready, k, compareReady)
	p.ready = slices.Insert(p.ready, i, k)
}

func (p *poolTally) takeReady(k readyKey) {
	if len(p.ready) > 0 && p.ready[0] == k {
		p.ready = p.ready[1:]
		return
	}
	p.own()
	if i, ok := slices.BinarySearchFunc(p.ready, k, compareReady); ok {
		p.ready = slices.Delete(p.ready, i, i+1)
	}
}
