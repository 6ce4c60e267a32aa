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

// all ranges over the records of an index in the order of its keys; prefix "" means every one.
func all[T any](v View, ws WatchSet, name, index, prefix string) iter.Seq[*T] {
	open := func() memdb.ResultIterator {
		var it memdb.ResultIterator
		var err error
		if prefix == "" {
			it, err = v.txn.Get(name, index)
		} else {
			it, err = v.txn.Get(name, index+"_prefix", prefix)
		}
		if err != nil {
			panic("cannot read table " + name + ": " + err.Error())
		}
		return it
	}
	if ws != nil {
		ws.Add(open().WatchCh())
	}
	return func(yield func(*T) bool) {
		it := open()
		for obj := it.Next(); obj != nil; obj = it.Next() {
			if !yield(obj.(*T)) {
				return
			}
		}
	}
}
