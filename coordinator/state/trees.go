package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
)

// trees are the tables that every allocation reads and writes.
type trees struct {
	organizations tree[*Organization]
	gateways      tree[*Gateway]
	allocationTrees
	tallies tree[*tally] // derived from hosts and gateways, so not in a snapshot
}

func newTrees() *trees {
	return &trees{
		organizations: newTree[*Organization](),
		gateways:      newTree[*Gateway](),
		allocationTrees: allocationTrees{
			allocations: newTree[*Allocation](), ended: newQuietTree[packedAllocation](), live: newTree[*Allocation](),
			line: newTree[*Allocation](), ending: newTree[*Allocation](),
		},
		tallies: newTree[*tally](),
	}
}

// each lists the trees as what a transaction does with all of them.
func (t *trees) each() [8]anyTree {
	return [...]anyTree{&t.organizations, &t.gateways, &t.allocations, &t.ended, &t.live, &t.line, &t.ending, &t.tallies}
}

type anyTree interface {
	begin(*owner)
	publish()
	notify()
}

// begin gives the trees of a new transaction; these stay as they are.
func (t *trees) begin() *trees {
	next, o := *t, &owner{}
	for _, one := range next.each() {
		one.begin(o)
	}
	return &next
}

func (t *trees) publish() {
	for _, one := range t.each() {
		one.publish()
	}
}

func (t *trees) notify() {
	for _, one := range t.each() {
		one.notify()
	}
}

// saveTree is saveAll for records in a tree.
func saveTree[T any](from iter.Seq[T], put func(any) error) error {
	for r := range from {
		if err := put(r); err != nil {
			return err
		}
	}
	return nil
}

// errNoKey is what is wrong with a damaged record that cannot be found by anything.
var errNoKey = errors.New("its key is missing")

// restoreTree is restoreInto for records in trees: take puts the record, too.
func restoreTree[T any](name string, take func(*Txn, *T, interner) error) func(*Txn, []byte, interner) error {
	return func(t *Txn, raw []byte, in interner) error {
		r := new(T)
		if err := json.Unmarshal(raw, r); err != nil {
			return fmt.Errorf("cannot read a record of table %s: %w", name, err)
		}
		if err := take(t, r, in); err != nil {
			return fmt.Errorf("cannot take a record of table %s: %w", name, err)
		}
		return nil
	}
}
