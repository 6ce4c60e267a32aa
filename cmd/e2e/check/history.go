package check

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// forever is the return time of what may still happen.
const forever = time.Duration(math.MaxInt64)

// late is how long after its client gave up, or after its record was stamped, something may take effect.
const late = 15 * time.Second

// history is what is to be put into an order. What happened of an operation without an answer, and of one that
// was undone, the state at the end tells: it has every allocation, also those that have ended.
func history(r Run) []Operation {
	w := newWitness(r)
	var out []Operation
	for _, op := range r.Operations {
		starts := op.Kind == Start || op.Kind == Batch
		switch {
		case op.Again || op.Kind == Migrate || op.Host != "" || op.Outcome != OK && (op.Kind == Get || op.Kind == GetStep):
		case op.Kind == SetStep && op.Outcome == Unknown:
			if seen := w.steps[op.Step]; seen > op.Call { // one that nobody ever read may as well not have happened
				op.Return = seen
				out = append(out, op)
			}
		case op.Kind == SetStep && op.Outcome == Refused:
		case starts && (op.Outcome == Unknown || op.Outcome == Refused && undone(op.Code)):
		case op.Kind == Start && op.Outcome == Refused:
			op.Items = []Item{{Organization: op.Items[0].Organization, Code: op.Code}}
			out = append(out, op)
		case op.Kind == Batch && op.Outcome == Refused:
		case op.Kind == Batch && op.Outcome == OK && len(op.Nodes) > 1:
			out = append(out, w.apart(op)...)
		case op.Kind == Release && op.Outcome == Unknown:
			if a := w.records[op.Items[0].Allocation]; a.EndedAt != nil {
				op.Outcome, op.Return = OK, w.ends(a)
				out = append(out, op)
			}
		default:
			out = append(out, w.narrowed(op))
		}
	}
	out = endOnce(append(append(out, w.begun()...), w.endings()...))
	out = append(out, w.moves(out)...)
	for _, op := range out {
		for i, it := range op.Items {
			if op.Outcome == OK && (op.Kind == Start || op.Kind == Batch) {
				op.Items[i].late = w.late[grantOf(it)]
			}
		}
	}
	return out
}

// apart is a batch that was tried more than once. What one try was refused for another may begin, while it keeps what was
// begun: then each was answered at a time of its own. Only what was begun with one epoch was begun together.
func (w *witness) apart(op Operation) []Operation {
	var out []Operation
	together := map[uint64]int{} // by epoch, of what was begun meanwhile
	for _, it := range op.Items {
		one := op
		one.Kind, one.Items = Start, []Item{it}
		if it.Code != "" {
			if one.Outcome, one.Code = Refused, it.Code; !undone(it.Code) {
				out = append(out, one)
			}
			continue
		}
		if a, ok := w.records[it.Allocation]; ok && a.CreatedAt.Sub(w.run.Begun) >= op.Call {
			if at, ok := together[it.Epoch]; ok {
				out[at].Kind, out[at].Items = Batch, append(out[at].Items, it)
				continue
			}
			together[it.Epoch] = len(out)
		}
		out = append(out, w.narrowed(one))
	}
	return out
}

// endOnce makes one of all operations that ended the same allocation. It ended after the first was called and before
// any returned; the others found it so, and did nothing.
func endOnce(ops []Operation) []Operation {
	first := map[string]int{}
	out := ops[:0]
	for _, op := range ops {
		if op.Kind != ended && (op.Kind != Release || op.Outcome != OK) {
			out = append(out, op)
			continue
		}
		at, again := first[op.Items[0].Allocation]
		if again {
			out[at].Call, out[at].Return = min(out[at].Call, op.Call), min(out[at].Return, op.Return)
			continue
		}
		first[op.Items[0].Allocation] = len(out)
		out = append(out, op)
	}
	return out
}

// undone reports whether a refusal with this code may come after something had begun, which is then undone.
func undone(code string) bool {
	switch fault.Code(code) {
	case fault.PoolExhausted, fault.NoEligibleHost, fault.Conflict, fault.NotFound, fault.RateLimited, fault.InvalidRequest,
		fault.Unauthenticated, fault.Forbidden:
		return false
	}
	return true
}

// witness tells from the state at the end what happened.
type witness struct {
	run     Run
	records map[string]api.Allocation
	claims  map[string][]Operation // by organization: what may have begun an allocation
	highest []epochSeen
	steps   map[int]time.Duration // when a step of the pool was last read
	grants  map[string][]Item     // the gateways that each allocation was seen with, by epoch
	late    map[grant]bool        // the first of these that are of a move
}

// epochSeen is that an answer had this epoch: whatever has a lower one had happened by then.
type epochSeen struct {
	epoch uint64
	by    time.Duration
}

func newWitness(r Run) *witness {
	w := &witness{run: r, records: map[string]api.Allocation{}, claims: map[string][]Operation{}, steps: map[int]time.Duration{}, grants: grants(r), late: map[grant]bool{}}
	for _, a := range r.After.Allocations {
		w.records[a.AllocationID] = a
		for _, m := range a.Moves {
			if first := w.grants[a.AllocationID]; m.Failure == nil && len(first) > 0 && first[0].Epoch == m.Epoch && a.CreatedAt.After(r.Begun) {
				w.late[grantOf(first[0])] = true
			}
		}
	}
	for _, op := range r.Operations {
		if op.Kind == GetStep && op.Outcome == OK {
			w.steps[op.Step] = max(w.steps[op.Step], op.Return)
		}
		for _, it := range op.Items {
			if op.Kind == Start || op.Kind == Batch {
				one := op
				one.Items = []Item{it}
				w.claims[it.Organization] = append(w.claims[it.Organization], one)
			}
			if op.Outcome == OK && op.Kind != Release {
				w.highest = append(w.highest, epochSeen{it.Epoch, op.Return})
			}
		}
	}
	return w
}

// begun are the allocations that began and that nobody was answered with who can have begun them. Each is of an
// operation whose answer is not known, or says that it was undone. All that one batch begins has one epoch and one time:
// it began together, though others may have been answered with a part of it.
func (w *witness) begun() []Operation {
	type birth struct {
		epoch uint64
		at    time.Duration
	}
	var births []birth
	born := map[birth][]api.Allocation{}
	for _, a := range w.run.After.Allocations {
		at := a.CreatedAt.Sub(w.run.Begun)
		if at < 0 || a.Epoch == 0 {
			continue
		}
		if first := w.grants[a.AllocationID]; len(first) > 0 { // what it began with, wherever it is now
			a.GatewayID, a.Epoch = first[0].Gateway, first[0].Epoch
		}
		b := birth{a.Epoch, at}
		if born[b] = append(born[b], a); len(born[b]) == 1 {
			births = append(births, b)
		}
	}
	var out []Operation
	for _, b := range births {
		var origin *Operation
		for _, a := range born[b] {
			if o := w.origin(a, b.at); o != nil {
				origin = o
			}
		}
		if origin == nil {
			continue
		}
		op := w.started(*origin, born[b][0], b.at)
		for _, a := range born[b][1:] {
			one := w.started(*origin, a, b.at)
			op.Kind, op.Items, op.Return = Batch, append(op.Items, one.Items...), min(op.Return, one.Return)
		}
		out = append(out, op)
	}
	return out
}

// origin is the operation that must have begun an allocation, or nil when one can have that was answered.
func (w *witness) origin(a api.Allocation, at time.Duration) *Operation {
	var origin *Operation
	for i, op := range w.claims[a.OrganizationID] {
		code := op.Code + op.Items[0].Code
		switch {
		case op.Again || op.Call > at:
		case op.Outcome == OK && op.Items[0].Allocation == a.AllocationID && at <= op.Return:
			return nil
		case op.Outcome == Unknown && at <= op.Return+late, code != "" && undone(code) && at <= op.Return:
			origin = &w.claims[a.OrganizationID][i]
		}
	}
	return origin
}

// started is an operation as if it had been answered with the allocation that it began.
func (w *witness) started(op Operation, a api.Allocation, at time.Duration) Operation {
	op.Kind, op.Outcome, op.Code, op.Call, op.Return = Start, OK, "", at, w.ends(a)
	op.Items = []Item{{Organization: a.OrganizationID, Allocation: a.AllocationID, Gateway: a.GatewayID, Epoch: a.Epoch, State: a.State}}
	for _, seen := range w.highest {
		if seen.epoch > a.Epoch {
			op.Return = min(op.Return, max(seen.by, at))
		}
	}
	return op
}

// narrowed is an operation that cannot have happened before the allocation that it speaks of was made.
func (w *witness) narrowed(op Operation) Operation {
	if op.Kind == Batch || len(op.Items) == 0 {
		return op
	}
	if a, ok := w.records[op.Items[0].Allocation]; ok {
		op.Call = max(op.Call, min(a.CreatedAt.Sub(w.run.Begun), op.Return))
	}
	return op
}

// ends is when an allocation had ended at the latest.
func (w *witness) ends(a api.Allocation) time.Duration {
	if a.EndedAt == nil {
		return forever
	}
	return a.EndedAt.Sub(w.run.Begun) + late
}

// endings are the allocations that the cluster ended by itself: it says so in their failure.
func (w *witness) endings() []Operation {
	var out []Operation
	for _, a := range w.run.After.Allocations {
		if a.Failure == nil || a.CreatedAt.Before(w.run.Begun) || a.Epoch == 0 {
			continue
		}
		out = append(out, Operation{
			Kind: ended, Outcome: OK, Call: a.CreatedAt.Sub(w.run.Begun), Return: w.ends(a),
			Items: []Item{{Organization: a.OrganizationID, Allocation: a.AllocationID, Gateway: a.GatewayID, Epoch: a.Epoch}},
		})
	}
	return out
}

// grants are the gateways that each allocation was seen with by anybody, in the order of their epochs. One that is
// moved to another host has several.
func grants(r Run) map[string][]Item {
	out := map[string][]Item{}
	see := func(it Item) {
		at, found := slices.BinarySearchFunc(out[it.Allocation], it.Epoch, func(known Item, epoch uint64) int { return cmp.Compare(known.Epoch, epoch) })
		if !found && it.Gateway != "" && it.Epoch != 0 {
			out[it.Allocation] = slices.Insert(out[it.Allocation], at, it)
		}
	}
	for _, look := range r.looks() {
		for _, a := range look.Allocations {
			see(Item{Organization: a.OrganizationID, Allocation: a.AllocationID, Gateway: a.GatewayID, Epoch: a.Epoch})
		}
	}
	for _, op := range r.Operations {
		for _, it := range op.Items {
			if op.Outcome == OK {
				see(Item{Organization: it.Organization, Allocation: it.Allocation, Gateway: it.Gateway, Epoch: it.Epoch})
			}
		}
	}
	return out
}

// moves are the changes of gateways that the cluster made. The start that was called first began an allocation, though
// it may have waited so long that it was answered with a later gateway.
func (w *witness) moves(ops []Operation) []Operation {
	var out []Operation
	for allocation, seen := range w.grants {
		if len(seen) < 2 {
			continue
		}
		w.mend(ops, allocation, seen)
		for n, it := range seen[1:] {
			if w.before(it) { // it was so when the run began
				continue
			}
			back := w.known(ops, it)
			// Others may have had both gateways in between, and itself still others that nobody saw.
			out = append(out, Operation{Kind: left, Outcome: OK, Return: back, Items: []Item{seen[n]}},
				Operation{Kind: moved, Outcome: OK, Return: back, Items: []Item{it}})
		}
	}
	return out
}

// known is when somebody was first answered that an allocation has this epoch, or a later one. Who had it migrated was.
func (w *witness) known(ops []Operation, it Item) time.Duration {
	back := forever
	note := func(op Operation) {
		for _, o := range op.Items {
			if op.Outcome == OK && o.Allocation == it.Allocation && o.Epoch >= it.Epoch {
				back = min(back, op.Return)
			}
		}
	}
	for _, op := range ops {
		note(op)
	}
	for _, op := range w.run.Operations {
		if op.Kind == Migrate {
			note(op)
		}
	}
	return back
}

// before reports whether an allocation had this epoch, or a later one, when the run began.
func (w *witness) before(it Item) bool {
	return slices.ContainsFunc(w.run.Before.Allocations, func(a api.Allocation) bool {
		return a.AllocationID == it.Allocation && a.Epoch >= it.Epoch
	})
}

// elsewhere reports whether a batch began another allocation, with another epoch than this one. All that it began has
// one epoch, so it only found the allocation of this epoch, however early it was called.
func (w *witness) elsewhere(op Operation, epoch uint64) bool {
	if op.Kind != Batch {
		return false
	}
	return slices.ContainsFunc(op.Items, func(it Item) bool {
		first := w.grants[it.Allocation]
		if len(first) == 0 || first[0].Epoch != it.Epoch || it.Epoch == epoch || w.late[grantOf(it)] {
			return false
		}
		at := w.records[it.Allocation].CreatedAt.Sub(w.run.Begun)
		return at >= op.Call && !slices.ContainsFunc(w.claims[it.Organization], func(other Operation) bool {
			return other.ID != op.ID && !other.Again && other.Call <= at && (other.Outcome == Unknown || at <= other.Return)
		})
	})
}

// mend gives the operation that began an allocation what it began it with, if it was answered with a later gateway.
func (w *witness) mend(ops []Operation, allocation string, seen []Item) {
	if w.before(seen[0]) {
		return
	}
	first := -1
	for i, op := range ops {
		if op.Kind != Start && op.Kind != Batch || op.Outcome != OK {
			continue
		}
		for _, it := range op.Items {
			if it.Allocation == allocation && (first < 0 || op.Call < ops[first].Call) && !w.elsewhere(op, seen[0].Epoch) {
				first = i
			}
		}
	}
	if first < 0 {
		return
	}
	ops[first].Items = slices.Clone(ops[first].Items)
	for j := range ops[first].Items {
		if it := &ops[first].Items[j]; it.Allocation == allocation {
			it.Gateway, it.Epoch = seen[0].Gateway, seen[0].Epoch
		}
	}
}
