package check

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// tried bounds how many beginnings of an order a search tries.
const tried = 200_000

// search looks for an order of operations that the model allows, each between its call and its return. It is quick where
// there is one, for it never tries more than one place for what changes nothing: if such an operation is legal now, then it
// is in no other's way. It may give up without an answer.
type search struct {
	m      model
	ops    []Operation // by call
	placed []bool
	order  []Operation
	seen   map[string]bool // beginnings that lead nowhere
	left   int             // beginnings that may still be tried
}

// find returns an order that explains the operations, or nil.
func (m model) find(first pool, ops []Operation) []Operation {
	s := &search{m: m, ops: slices.Clone(ops), placed: make([]bool, len(ops)), seen: map[string]bool{}, left: tried}
	slices.SortStableFunc(s.ops, func(a, b Operation) int { return cmp.Compare(a.Call, b.Call) })
	if s.from(first) {
		return s.order
	}
	return nil
}

// open are the operations that may come next: none of the others had returned when they were called.
func (s *search) open() []int {
	var out []int
	back := forever
	for i, op := range s.ops {
		if op.Call > back {
			break
		}
		if !s.placed[i] {
			out = append(out, i)
			back = min(back, op.Return)
		}
	}
	return slices.DeleteFunc(out, func(i int) bool { return s.ops[i].Call > back })
}

// place puts an operation next.
func (s *search) place(i int) {
	s.placed[i] = true
	s.order = append(s.order, s.ops[i])
}

// back takes what was placed last back, down to so many.
func (s *search) back(to int, undo []int) {
	for _, i := range undo {
		s.placed[i] = false
	}
	s.order = s.order[:to]
}

// from places all that is left, after a state of the pool.
func (s *search) from(p pool) bool {
	begun := len(s.order)
	var undo []int
	var open []int
	for again := true; again; {
		again = false
		open = s.open()
		for _, i := range open {
			if next, legal := s.m.step(p, s.ops[i]); legal && s.ops[i].Kind != SetStep && next.equal(p) {
				s.place(i)
				undo, again = append(undo, i), true
			}
		}
	}
	if len(s.order) == len(s.ops) {
		return true
	}
	key := s.key(p)
	if s.left--; s.left < 0 || s.seen[key] {
		s.back(begun, undo)
		return false
	}
	s.seen[key] = true
	slices.SortStableFunc(open, func(a, b int) int { return cmp.Compare(s.ops[a].Return, s.ops[b].Return) })
	for _, i := range open {
		next, legal := s.m.step(p, s.ops[i])
		if !legal {
			continue
		}
		s.place(i)
		if s.from(next) {
			return true
		}
		s.back(len(s.order)-1, []int{i})
	}
	s.back(begun, undo)
	return false
}

// key is what tells one beginning of an order from others that leave the same to be done.
func (s *search) key(p pool) string {
	key := make([]byte, 8+(len(s.placed)+7)/8)
	binary.LittleEndian.PutUint64(key, p.hash())
	for i, placed := range s.placed {
		if placed {
			key[8+i/8] |= 1 << (i % 8)
		}
	}
	return string(key)
}
