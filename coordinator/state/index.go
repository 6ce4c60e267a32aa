package state

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/go-memdb"
)

// keyIndexer makes a memdb index from one function. All our indexes are unique: memory is what a gateway
// record costs most of, and a unique index stores nothing beside its key.
type keyIndexer[T any] struct {
	key func(*T) string // "" keeps the record out of the index
}

// FromObject implements memdb.SingleIndexer.
func (x keyIndexer[T]) FromObject(obj any) (bool, []byte, error) {
	k := x.key(obj.(*T))
	return k != "", []byte(k), nil
}

// FromArgs implements memdb.Indexer: the one argument is the key.
func (keyIndexer[T]) FromArgs(args ...any) ([]byte, error) {
	if s, ok := args[0].(string); ok && len(args) == 1 {
		return []byte(s), nil
	}
	return nil, fmt.Errorf("cannot look up %v: want one string", args)
}

// unique declares an index whose key may be missing, except for the primary one.
func unique[T any](name string, key func(*T) string) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: name, Unique: true, AllowMissing: name != indexID, Indexer: keyIndexer[T]{key}}
}

// tableOf declares a table with its indexes.
func tableOf(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
	for _, x := range indexes {
		t.Indexes[x.Name] = x
	}
	return t
}

const indexID = "id"

// ordered gives a number the form whose byte order is the numbers' order.
func ordered(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }
