package check

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// slot is what the model knows of one organization.
type slot struct {
	live       bool
	allocation string // the live one, or the last one
	gateway    string
	epoch      uint64
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
		var number [9]byte
		binary.LittleEndian.PutUint64(number[:], s.epoch)
		if s.live {
			number[8] = 1
		}
		_, _ = h.Write(number[:])
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

// is reports whether a slot holds the allocation that somebody saw. One that lost its host has no gateway for a while.
func (s slot) is(it Item) bool {
	return s.allocation == it.Allocation && s.epoch == it.Epoch && (s.gateway == it.Gateway || it.Gateway == "")
}

// leave takes a live allocation off its gateway. Nobody sees it there any more.
func (m model) leave(p pool, it Item) (pool, bool) {
	n := m.numbers[it.Organization]
	s := p.slots[n]
	if !s.live || !s.is(it) {
		return p, false
	}
	s.gateway = ""
	return p.with(n, s), true
}

// move gives a live allocation another gateway.
func (m model) move(p pool, it Item) (pool, bool) {
	n := m.numbers[it.Organization]
	s := p.slots[n]
	if !s.live || s.allocation != it.Allocation || it.Epoch <= s.epoch || p.taken(it.Gateway, n) {
		return p, false
	}
	s.gateway, s.epoch = it.Gateway, it.Epoch
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
		return p, s.is(it)
	}
	if it.Epoch <= within && !it.late || p.taken(it.Gateway, n) {
		return p, false
	}
	return p.with(n, slot{live: true, allocation: it.Allocation, gateway: it.Gateway, epoch: it.Epoch}), true
}

// end applies the end of an allocation. One that has ended before stays as it is; one that has not begun
// cannot end.
func (m model) end(p pool, it Item) (pool, bool) {
	n := m.numbers[it.Organization]
	s := p.slots[n]
	if !s.live || s.allocation != it.Allocation {
		return p, it.Epoch <= s.epoch
	}
	s.live = false
	return p.with(n, s), true
}

// get checks what was read of an organization.
func (m model) get(p pool, it Item) (pool, bool) {
	n := m.numbers[it.Organization]
	s := p.slots[n]
	switch {
	case it.Allocation == "":
		return p, !s.live
	case ending(it.State):
		return p, !s.live && s.allocation == it.Allocation
	}
	return p, s.live && s.is(it)
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
		return m.end(p, op.Items[0])
	case ended:
		return m.end(p, op.Items[0])
	case left:
		return m.leave(p, op.Items[0])
	case moved:
		return m.move(p, op.Items[0])
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
		p.slots[n] = slot{live: !ending(a.State), allocation: a.AllocationID, gateway: a.GatewayID, epoch: a.Epoch}
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

// explains reports whether the operations are legal one after the other, as they stand.
func (m model) explains(p pool, order []Operation) bool {
	for _, op := range order {
		next, legal := m.step(p, op)
		if !legal {
			return false
		}
		p = next
	}
	return true
}

// contradicted bounds the search for an order where the answers contradict each other already.
const contradicted = 2 * time.Second

// linearizable reports what keeps the history from being one of a machine that does one thing after the
// other, each between its call and its return: the whole pool at once. Mostly the earliest times that the answers
// allow are such an order; otherwise one is searched for, in the way that is quick where there is one, and then in the one that
// can tell that there is none. It gives up after limit, and says so.
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
	proposed, contradiction := narrow(whole, first.max)
	if contradiction == nil && (m.explains(first, proposed) || m.find(first, whole) != nil) {
		return nil
	}
	if contradiction != nil {
		limit = min(limit, contradicted)
	}
	operations := make([]porcupine.Operation, len(whole))
	for i, op := range whole {
		operations[i] = porcupine.Operation{ClientId: i, Input: op, Call: int64(op.Call), Return: int64(op.Return)}
	}
	switch porcupine.CheckOperationsTimeout(described, operations, limit) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		if contradiction != nil {
			return []Violation{{Linearizable, "what others were answered leaves no time for " + describe(*contradiction)}}
		}
		return []Violation{{Linearizable, fmt.Sprintf("unknown: undecided after %s: %d operations", limit, len(operations))}}
	}
	_, info := porcupine.CheckOperationsVerbose(described, operations, limit)
	return []Violation{{Linearizable, stuck(whole, info)}}
}

// stuck names the first operation that no order has a place for.
func stuck(whole []Operation, info porcupine.LinearizationInfo) string {
	placed := map[int]bool{}
	for _, partition := range info.PartialLinearizationsOperations() {
		var longest []porcupine.Operation
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
		for _, o := range longest {
			placed[o.ClientId] = true
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
	return fmt.Sprintf("%d of %d operations have an order; no order has a place for %s", len(placed), len(whole), describe(*next))
}
