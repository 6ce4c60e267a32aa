package state

import (
	"github.com/hashicorp/go-memdb"
)

// table is one table with the way it goes into a snapshot and comes back.
type table struct {
	kind    byte               // marks the table's records in a snapshot, so never reorder or reuse one
	schema  *memdb.TableSchema // nil: its records are in trees
	save    func(View, func(record any) error) error
	restore func(*Txn, []byte, interner) error
}

// tables lists every table in the order of a snapshot: gateways come after the hosts they are counted for.
func tables() []table {
	return []table{
		hostTable(),
		poolTable(),
		organizationTable(),
		tokenTable(),
		requestTable(),
		trustTable(),
		joinTokenTable(),
		enrolmentTable(),
		allocationTable(),
		gatewayTable(),
	}
}

func schema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range tables() {
		if t.schema != nil {
			s.Tables[t.schema.Name] = t.schema
		}
	}
	return s
}
