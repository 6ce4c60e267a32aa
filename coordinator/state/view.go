package state

import (
	"iter"

	"github.com/hashicorp/go-memdb"
)

// View is a consistent, immutable snapshot of all tables. Everything it gives out is immutable too: never
// modify a record.
type View struct {
	txn   *memdb.Txn
	trees *trees
	about cluster
}

// first looks one record up by the exact key of an index; nil when there is none.
func first[T any](v View, ws WatchSet, name, index, key string) *T {
	if key == "" {
		return nil
	}
	watch, obj, err := v.txn.FirstWatch(name, index, key)
	if err != nil {
		panic("cannot read table " + name + ": " + err.Error()) // only a wrong schema makes an error
	}
	ws.Add(watch)
	if obj == nil {
		return nil
	}
	return obj.(*T)
}

// all ranges over the records of a table whose ids come after one, by id; "" is before every record. Those before cost
// nothing.
func all[T any](v View, ws WatchSet, name, after string) iter.Seq[*T] {
	if ws != nil {
		it, err := v.txn.Get(name, indexID)
		if err != nil {
			panic("cannot read table " + name + ": " + err.Error())
		}
		ws.Add(it.WatchCh())
	}
	least := ""
	if after != "" {
		least = after + "\x00"
	}
	return func(yield func(*T) bool) {
		it, err := v.txn.LowerBound(name, indexID, least)
		if err != nil {
			panic("cannot read table " + name + ": " + err.Error())
		}
		for obj := it.Next(); obj != nil; obj = it.Next() {
			if !yield(obj.(*T)) {
				return
			}
		}
	}
}
