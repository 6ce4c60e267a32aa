package check

import (
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// slot is what the model knows of one organization.
type slot struct {
	live       bool
	allocation string // "" while live: started by an operation without an answer, so nobody knows its name yet
	gateway    string
	epoch      uint64
	last       string // the allocation before
}

// pool is the state of the model: the whole pool, so that a gateway given to two organizations is seen.
// Values are never changed once they are the state after a step.
type pool struct {
	slots []slot // by number of the organization
	max   uint64 // the highest epoch
	step  int
}

func (p pool) equal(q pool) bool {
	return p.max == q.max && p.step == q.step && slices.Equal(p.slots, q.slots)
}

// hash is equal for equal pools.
func (p pool) hash() uint64 {
	h := fnv.New64a()
	for _, s := range p.slots {
		_, _ = h.Write([]byte(s.allocation)) // never fails
		_, _ = h.Write([]byte{byte(len(s.last)), byte(s.epoch)})
	}
	return h.Sum64() + p.max + uint64(p.step)
}

// with is the pool with another slot.
func (p pool) with(n int, s slot) pool {
	p.slots = slices.Clone(p.slots)
	p.slots[n] = s
	p.max = max(p.max, s.epoch)
	return p
}

// taken reports whether a gateway serves another organization than the n-th.
func (p pool) taken(gateway string, n int) bool {
	for i, s := range p.slots {
		if i != n && s.live && s.gateway == gateway && gateway != "" {
			return true
		}
	}
	return false
}

// bind learns the name of a live allocation that somebody saw.
func (p pool) bind(n int, it Item) (pool, bool) {
	s := p.slots[n]
	if s.allocation != "" {
		same := s.allocation == it.Allocation && (it.Epoch == 0 || s.epoch == it.Epoch) && (it.Gateway == "" || s.gateway == it.Gateway)
		return p, same
	}
	if it.Allocation == s.last || p.taken(it.Gateway, n) {
		return p, false
	}
	s.allocation, s.gateway, s.epoch = it.Allocation, it.Gateway, it.Epoch
	return p.with(n, s), true
}

// model is the pool as one machine that does one thing after the other.
type model struct{ numbers map[string]int }

// start applies one start to an organization. within is the highest epoch before the operation: all that one
// batch starts may have one epoch.
func (m model) start(p pool, it Item, within uint64) (pool, bool) {
	n := m.numbers[it.Organization]
	s := p.slots[n]
	switch fault.Code(it.Code) {
	case "":
	case fault.PoolExhausted, fault.NoEligibleHost, fault.Conflict:
		return p, !s.live // a live one would have been the answer
	default:
		return p, true
	}
	if s.live {
		return p.bind(n, it)
	}
	if it.Allocation == s.last || it.Epoch <= within || p.taken(it.Gateway, n) {
		return p, false
	}
	return p.with(n, slot{live: true, allocation: it.Allocation, gateway: it.Gateway, epoch: it.Epoch, last: s.last}), true
}

// end applies the end of an allocation. One that has ended before stays as it is.
func (m model) end(p pool, it Item) pool {
	n := m.numbers[it.Organization]
	s := p.slots[n]
	if !s.live || s.allocation != "" && s.allocation != it.Allocation {
		return p
	}
	return p.with(n, slot{last: it.Allocation})
}

// get checks what was read of an organization.
func (m model) get(p pool, it Item) (pool, bool) {
	n := m.numbers[it.Organization]
	s := p.slots[n]
	switch {
	case it.Allocation == "":
		return p, !s.live
	case ending(it.State):
		return p, !s.live && s.last == it.Allocation
	case !s.live:
		return p, false
	}
	return p.bind(n, it)
}

// ending reports whether an allocation of this state is on its way out or gone.
func ending(state string) bool {
	switch state {
	case api.AllocationReleasing, api.AllocationReleased, api.AllocationRollingBack, api.AllocationRolledBack, api.AllocationFailed:
		return true
	}
	return false
}

// step applies an operation.
func (m model) step(p pool, op Operation) (pool, bool) {
	switch op.Kind {
	case Start, Batch:
		if op.Outcome == Unknown {
			if n := m.numbers[op.Items[0].Organization]; !p.slots[n].live {
				return p.with(n, slot{live: true, last: p.slots[n].last}), true
			}
			return p, true
		}
		within, legal := p.max, true
		for _, it := range op.Items {
			if p, legal = m.start(p, it, within); !legal {
				return p, false
			}
		}
		return p, true
	case Release:
		if op.Outcome == Refused {
			s := p.slots[m.numbers[op.Items[0].Organization]]
			return p, !s.live || s.allocation != op.Items[0].Allocation
		}
		return m.end(p, op.Items[0]), true
	case ended:
		return m.end(p, op.Items[0]), true
	case Get:
		return m.get(p, op.Items[0])
	case SetStep:
		p.step = op.Step
		return p, true
	case GetStep:
		return p, p.step == op.Step
	}
	return p, false
}

// initial is the pool of the model at the beginning of a run, and the numbers of the organizations.
func initial(r Run) (model, pool) {
	m, p := model{numbers: map[string]int{}}, pool{}
	number := func(organization string) int {
		n, ok := m.numbers[organization]
		if !ok {
			n = len(p.slots)
			m.numbers[organization] = n
			p.slots = append(p.slots, slot{})
		}
		return n
	}
	for _, a := range slices.SortedFunc(slices.Values(r.Before.Allocations), func(a, b api.Allocation) int { return int(a.Epoch) - int(b.Epoch) }) {
		n := number(a.OrganizationID)
		p.max = max(p.max, a.Epoch)
		if ending(a.State) {
			p.slots[n].last = a.AllocationID
			continue
		}
		p.slots[n] = slot{live: true, allocation: a.AllocationID, gateway: a.GatewayID, epoch: a.Epoch, last: p.slots[n].last}
	}
	for _, op := range r.Operations {
		for _, it := range op.Items {
			number(it.Organization)
		}
	}
	for _, one := range r.Before.Pools {
		p.step = one.Step
	}
	return m, p
}

// forever is the return time of what may still happen.
const forever = time.Duration(math.MaxInt64)

// history is what porcupine is given. Reads without an answer say nothing, nor
// do repetitions. Starts that were undone, and batches without an answer, become what may have happened of them.
func history(r Run) []Operation {
	var out []Operation
	may := func(op Operation, kind Kind, it Item) {
		op.Kind, op.Outcome, op.Return, op.Items = kind, Unknown, forever, []Item{it}
		out = append(out, op)
	}
	for _, op := range r.Operations {
		switch {
		case op.Again:
		case op.Outcome == Unknown && (op.Kind == Get || op.Kind == GetStep):
		case op.Outcome == Refused && (op.Kind == Get || op.Kind == GetStep || op.Kind == SetStep):
		case op.Outcome == Unknown && op.Kind == SetStep:
			op.Return = forever
			out = append(out, op)
		case op.Outcome == Unknown:
			for _, it := range op.Items {
				may(op, op.Kind, it)
			}
		case op.Kind == Start && op.Outcome == Refused:
			op.Items = []Item{{Organization: op.Items[0].Organization, Code: op.Code}}
			out = append(out, op)
			if undone(op.Code) {
				may(op, Start, op.Items[0])
			}
		case op.Kind == Batch && op.Outcome == Refused:
		default:
			out = append(out, op)
		}
	}
	return append(out, endings(r)...)
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

// endings are the allocations that the cluster ended by itself: it says so in their failure.
func endings(r Run) []Operation {
	var out []Operation
	for _, a := range r.After.Allocations {
		if a.Failure == nil || a.CreatedAt.Before(r.Begun) {
			continue
		}
		out = append(out, Operation{
			Kind: ended, Outcome: Unknown, Call: a.CreatedAt.Sub(r.Begun), Return: forever,
			Items: []Item{{Organization: a.OrganizationID, Allocation: a.AllocationID}},
		})
	}
	return out
}

// linearizable reports what keeps the history from being one of a machine that does one thing after the
// other, each between its call and its return. It gives up after limit.
func linearizable(r Run, limit time.Duration) []Violation {
	m, first := initial(r)
	described := porcupine.Model{
		Init: func() any { return first },
		Step: func(state, input, _ any) (bool, any) {
			next, legal := m.step(state.(pool), input.(Operation))
			return legal, next
		},
		Equal: func(a, b any) bool { return a.(pool).equal(b.(pool)) },
		Hash:  func(state any) uint64 { return state.(pool).hash() },
	}
	whole := history(r)
	operations := make([]porcupine.Operation, len(whole))
	for i, op := range whole {
		operations[i] = porcupine.Operation{ClientId: i, Input: op, Call: int64(op.Call), Return: int64(op.Return)}
	}
	switch porcupine.CheckOperationsTimeout(described, operations, limit) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return []Violation{{Linearizable, fmt.Sprintf("undecided after %s: %d operations", limit, len(operations))}}
	}
	_, info := porcupine.CheckOperationsVerbose(described, operations, limit)
	return []Violation{{Linearizable, stuck(whole, info)}}
}

// stuck names the first operation that no order has a place for.
func stuck(whole []Operation, info porcupine.LinearizationInfo) string {
	placed := map[int]bool{}
	longest := 0
	for _, partition := range info.PartialLinearizations() {
		for _, order := range partition {
			if len(order) > longest {
				longest = len(order)
				clear(placed)
				for _, i := range order {
					placed[i] = true
				}
			}
		}
	}
	var next *Operation
	for i := range whole {
		if op := &whole[i]; !placed[i] && (next == nil || op.Return < next.Return) {
			next = op
		}
	}
	if next == nil {
		return "no order of the operations explains them"
	}
	return fmt.Sprintf("%d of %d operations have an order; no order has a place for %s", longest, len(whole), describe(*next))
}
