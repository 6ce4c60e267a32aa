package check

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// order is what the answers themselves say of the order of things. Allocations began in the order of their epochs,
// in the whole pool; an organization or a gateway had one after the other; who saw one alive came before its end.
// A search over the whole pool that knows this has little to try, and loses no order that could be one.
type order struct {
	ops   []Operation
	known uint64 // the highest epoch before the run

	times  []span        // of the operations, and after them of the beginnings that several may have made
	before map[int][]int // of each: what came before it

	began     map[uint64]int     // by epoch: the start or batch that began it
	moved     map[grant]int      // what gave the allocation another gateway: several may move with one epoch
	ended     map[string]int     // by allocation: the operation that ended it
	following map[string][]grant // of an organization or a gateway: its grants, in order
	latest    map[string]Item    // of an allocation: with the last gateway that it had
	left      map[grant]int      // what took the allocation off its gateway
	may       map[int][]int      // of a beginning that several may have made: who
	called    []time.Duration    // when the operations were really called
}

// turns bounds how often narrower times may lead to more that is known of the order.
const turns = 10

// grant is an allocation with one of its epochs.
type grant struct {
	allocation string
	epoch      uint64
}

func grantOf(it Item) grant { return grant{it.Allocation, it.Epoch} }

// span is when something happened, at the earliest and at the latest.
type span struct{ call, back time.Duration }

// narrow shortens the time in which each operation can have happened. Where operations contradict each other it leaves
// all as they are and names one that had to happen before it was called or after it had returned. Otherwise it
// proposes an order of them all, each at the earliest moment that the answers allow.
func narrow(ops []Operation, known uint64) (proposed []Operation, contradiction *Operation) {
	o := order{
		ops: ops, known: known, before: map[int][]int{}, began: map[uint64]int{}, moved: map[grant]int{}, ended: map[string]int{}, following: map[string][]grant{}, latest: map[string]Item{}, left: map[grant]int{}, may: map[int][]int{},
	}
	for _, op := range ops {
		o.times, o.called = append(o.times, span{op.Call, op.Return}), append(o.called, op.Call)
	}
	o.beginnings()
	o.endings()
	o.sights()
	o.steps()
	if op := o.settle(); op != nil {
		return nil, op
	}
	for range turns {
		was := slices.Clone(o.times)
		o.gaps()
		if op := o.settle(); op != nil {
			return nil, op
		}
		if slices.Equal(was, o.times) {
			break
		}
	}
	for i := range ops {
		ops[i].Call, ops[i].Return = o.times[i].call, o.times[i].back
	}
	return o.propose(), nil
}

// absent reports whether an operation found its organization without allocation.
func absent(op Operation) bool {
	return op.Kind == Get && op.Outcome == OK && op.Items[0].Epoch == 0 || op.Kind == Start && op.Outcome == Refused
}

// propose orders the operations by the earliest times that they can have. One that found nothing is put where
// nothing was, if there is such a moment.
func (o *order) propose() []Operation {
	type change struct {
		at    time.Duration
		begin bool
	}
	changes := map[string][]change{}
	note := func(organization string, c change) { changes[organization] = append(changes[organization], c) }
	o.each(func(i int, op Operation, it Item) {
		switch {
		case op.Kind == Release || op.Kind == ended:
			note(it.Organization, change{o.times[i].call, false})
		case op.Kind == Start || op.Kind == Batch: // it, or one of several that may have begun it
			if began, ok := o.beginning(grantOf(it)); ok && (began == i || began >= len(o.ops)) {
				note(it.Organization, change{o.times[i].call, true})
			}
		}
	})
	out := slices.Clone(o.ops)
	for began, may := range o.may { // the first of them begins it
		at := o.times[began].call
		for _, i := range may {
			if o.called[i] <= at && o.ops[i].Kind == Start {
				out[i].Call = at
				note(o.ops[i].Items[0].Organization, change{at, true})
				break
			}
		}
	}
	for _, list := range changes {
		slices.SortFunc(list, func(a, b change) int { return cmp.Compare(a.at, b.at) })
	}
	for i, op := range out {
		if !absent(op) {
			continue
		}
		live := false // before the first change, as far as it tells
		if list := changes[op.Items[0].Organization]; len(list) > 0 {
			live = !list[0].begin
			for _, c := range list {
				if c.at > op.Call && !live {
					break
				}
				if live = c.begin; !live && c.at >= op.Call && c.at < op.Return {
					out[i].Call = c.at + 1
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Operation) int { return cmp.Compare(a.Call, b.Call) })
	return out
}

// follow notes that b came after a.
func (o *order) follow(a, b int) {
	if a != b && !slices.Contains(o.before[b], a) {
		o.before[b] = append(o.before[b], a)
	}
}

// each calls f with all that an answered operation said of allocations.
func (o *order) each(f func(i int, op Operation, it Item)) {
	for i, op := range o.ops {
		for _, it := range op.Items {
			if op.Outcome == OK && it.Epoch != 0 {
				f(i, op, it)
			}
		}
	}
}

// beginnings finds what began each epoch, in their order.
func (o *order) beginnings() {
	may := map[grant][]int{} // by epoch, or of a late one
	o.each(func(i int, op Operation, it Item) {
		if op.Kind == moved { // not in the order of the epochs: it is seen when the new gateway serves
			o.moved[grantOf(it)] = i
		}
		if op.Kind == left {
			o.left[grantOf(it)] = i
		}
	})
	o.each(func(i int, op Operation, it Item) {
		if it.Epoch >= o.latest[it.Allocation].Epoch && it.Gateway != "" {
			o.latest[it.Allocation] = it
		}
		if op.Kind != Start && op.Kind != Batch && op.Kind != moved {
			return
		}
		if _, ok := o.moved[grantOf(it)]; !ok && it.Epoch > o.known {
			g := grant{epoch: it.Epoch}
			if it.late {
				g = grantOf(it)
			}
			may[g] = append(may[g], i)
		}
		for _, place := range []string{it.Organization, it.Gateway} {
			if !slices.Contains(o.following[place], grantOf(it)) {
				o.following[place] = append(o.following[place], grantOf(it))
			}
		}
	})
	byEpoch := func(a, b grant) int {
		return cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.allocation, b.allocation))
	}
	for _, list := range o.following {
		slices.SortFunc(list, byEpoch)
	}
	last, moves := -1, o.movesByEpoch()
	for _, g := range slices.SortedFunc(maps.Keys(may), byEpoch) {
		for ; len(moves) > 0 && o.ops[moves[0]].Items[0].Epoch < g.epoch; moves = moves[1:] {
			o.after(last, moves[0])
		}
		began := o.first(slices.Compact(may[g])) // a batch may name it more than once
		o.after(last, began)
		if g.allocation != "" { // as with a move, what has later epochs may be before it
			o.moved[g] = began
			continue
		}
		o.began[g.epoch] = began
		last = began
	}
	for _, i := range moves {
		o.after(last, i)
	}
	o.each(func(i int, _ Operation, it Item) {
		if began, ok := o.beginning(grantOf(it)); ok {
			o.follow(began, i)
		}
	})
}

// first is the operation of these that came first: the only one that can have, or one that stands for whichever it was.
func (o *order) first(ops []int) int {
	seen := forever
	for _, i := range ops {
		seen = min(seen, o.times[i].back)
	}
	ops = slices.DeleteFunc(ops, func(i int) bool { return o.times[i].call > seen }) // it had been answered with by then
	if len(ops) == 1 {
		return ops[0]
	}
	began, s := len(o.times), span{forever, forever}
	for _, i := range ops {
		s.call = min(s.call, o.times[i].call)
	}
	o.times = append(o.times, s)
	o.may[began] = ops
	return began
}

// beginning is what gave an allocation this epoch.
func (o *order) beginning(g grant) (int, bool) {
	if i, ok := o.moved[g]; ok {
		return i, true
	}
	i, ok := o.began[g.epoch]
	return i, ok
}

// after notes that b came after a, where there is one.
func (o *order) after(a, b int) {
	if a >= 0 {
		o.follow(a, b)
	}
}

// movesByEpoch are what gave allocations other gateways. The grant has its place among the beginnings; that it is seen
// comes later, when the gateway serves, so it only follows those that began before the grant.
func (o *order) movesByEpoch() []int {
	var out []int
	for i, op := range o.ops {
		if op.Kind == moved {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b int) int { return cmp.Compare(o.ops[a].Items[0].Epoch, o.ops[b].Items[0].Epoch) })
	return out
}

// endings finds what ended each allocation.
func (o *order) endings() {
	o.each(func(i int, op Operation, it Item) {
		if op.Kind == Release || op.Kind == ended {
			o.ended[it.Allocation] = i
		}
	})
}

// next is what began the next epoch after this one, at an organization or a gateway.
func (o *order) next(place string, epoch uint64) (int, bool) {
	list := o.following[place]
	at, _ := slices.BinarySearchFunc(list, epoch+1, func(g grant, epoch uint64) int { return cmp.Compare(g.epoch, epoch) })
	if at == len(list) {
		return 0, false
	}
	return o.beginning(list[at])
}

// sights puts each operation between the beginning and the end of what it saw.
func (o *order) sights() {
	o.each(func(i int, op Operation, it Item) {
		end, sure := o.ended[it.Allocation]
		switch {
		case op.Kind == Release || op.Kind == ended:
			if !sure {
				return
			}
			it = o.latest[it.Allocation]
			if next, ok := o.next(it.Gateway, it.Epoch); ok {
				o.follow(i, next)
			}
		case op.Kind == moved: // what has ended moves no more
			if sure {
				o.follow(i, end)
			}
		case op.Kind == left:
			if next, ok := o.next(it.Gateway, it.Epoch); ok {
				o.follow(i, next)
			}
		case sure && op.Kind == Get && ending(it.State):
			o.follow(end, i)
		case sure:
			o.follow(i, end)
		}
		if next, ok := o.next(it.Organization, it.Epoch); ok {
			o.follow(i, next)
		}
		if l, ok := o.left[grantOf(it)]; ok && op.Kind != Release && op.Kind != ended && it.Gateway != "" {
			o.follow(i, l)
		}
	})
}

// steps orders what set the step of the pool, and puts what read it in between.
func (o *order) steps() {
	var sets []int
	set := map[int]int{} // by step
	for i, op := range o.ops {
		if op.Kind == SetStep {
			set[op.Step] = i
			if op.Index != 0 {
				sets = append(sets, i)
			}
		}
	}
	slices.SortFunc(sets, func(a, b int) int { return int(o.ops[a].Index) - int(o.ops[b].Index) })
	after := map[int]int{}
	for n := 1; n < len(sets); n++ {
		o.follow(sets[n-1], sets[n])
		after[sets[n-1]] = sets[n]
	}
	for i, op := range o.ops {
		if op.Kind != GetStep {
			continue
		}
		if s, ok := set[op.Step]; ok {
			o.follow(s, i)
			if next, ok := after[s]; ok {
				o.follow(i, next)
			}
		}
	}
}

// gaps puts each operation that found an organization without allocation between the end of one and the beginning of
// the next, where the times leave only one place.
func (o *order) gaps() {
	ends := map[string]map[uint64]int{} // by organization and epoch
	o.each(func(i int, op Operation, it Item) {
		if end, ok := o.ended[it.Allocation]; ok && end == i {
			if ends[it.Organization] == nil {
				ends[it.Organization] = map[uint64]int{}
			}
			ends[it.Organization][o.latest[it.Allocation].Epoch] = i
		}
	})
	for i, op := range o.ops {
		for _, it := range op.Items {
			if absent(op) || op.Kind == Batch && op.Outcome == OK && it.Epoch == 0 && it.Code != "" && !undone(it.Code) {
				o.gap(i, it.Organization, ends[it.Organization])
			}
		}
	}
}

// gap puts the i-th operation where the organization had nothing, if there is one such place. ends are the operations
// that ended its allocations, by epoch.
func (o *order) gap(i int, organization string, ends map[uint64]int) {
	list := o.following[organization]
	place, places := -1, 0
	for n := -1; n < len(list); n++ { // after the n-th, before the next
		if n >= 0 {
			// One that nothing ended was moved, or is still there.
			if end, ok := ends[list[n].epoch]; !ok || o.times[end].call > o.times[i].back {
				continue
			}
		}
		if n+1 < len(list) {
			began, ok := o.beginning(list[n+1])
			if !ok || o.times[began].back < o.times[i].call || began < len(o.ops) && o.ops[began].Kind == moved {
				continue
			}
		}
		place, places = n, places+1
	}
	if places != 1 {
		return
	}
	if place >= 0 {
		if end, ok := ends[list[place].epoch]; ok {
			o.follow(end, i)
		}
	}
	if place+1 < len(list) {
		if began, ok := o.beginning(list[place+1]); ok {
			o.follow(i, began)
		}
	}
}

// settle draws the conclusions for the times until there are no more. It returns an operation that no time is left
// for, or nil.
func (o *order) settle() *Operation {
	for rounds := 0; o.conclude() && rounds <= len(o.times); rounds++ {
	}
	for i, s := range o.times {
		if s.call > s.back && i < len(o.ops) {
			return &o.ops[i]
		}
	}
	return nil
}

// conclude draws each conclusion once, and reports whether one was new.
func (o *order) conclude() bool {
	changed := false
	for b, all := range o.before {
		for _, a := range all {
			if at := o.times[a].call + 1; at > o.times[b].call {
				o.times[b].call, changed = at, true
			}
			if at := o.times[b].back - 1; at < o.times[a].back {
				o.times[a].back, changed = at, true
			}
		}
	}
	return changed
}
