package state

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Txn is the one writer of a store, for one batch of log entries. It is not safe for concurrent use. Either
// Commit or Abort ends it.
//
// Its reads see its own writes.
type Txn struct {
	View // of the transaction

	store   *Store
	tallies map[id.Host]*tally // made by this transaction, so they may be modified until it commits
	events  [][]Event          // in pieces, so that a big entry does not copy them over and over

	seq    int
	at     time.Time
	actor  string
	source string

	granted map[id.Pool]bool // pools in which a gateway or a host may have become able to serve
}

// Begin starts the transaction of a batch.
func (s *Store) Begin() *Txn {
	base := s.View()
	return &Txn{
		store:   s,
		View:    View{txn: s.current.Load().db.Txn(true), trees: base.trees.begin(), about: base.about},
		tallies: map[id.Host]*tally{},
		events:  [][]Event{s.spareEvents[:0]},
		granted: map[id.Pool]bool{},
	}
}

// Origin is where a command comes from.
type Origin struct {
	Index         uint64 // of the log entry
	At            time.Time
	Actor, Source string
}

// Entry says which log entry the following writes belong to.
func (t *Txn) Entry(o Origin) {
	t.about.Index, t.seq = o.Index, 0
	t.at, t.actor, t.source = o.At.UTC(), o.Actor, o.Source
}

// Now is the proposer's time of the current entry.
func (t *Txn) Now() time.Time { return t.at }

// EntryIndex is the log index of the current entry.
func (t *Txn) EntryIndex() uint64 { return t.about.Index }

// NextSeq numbers what an entry makes several of, in order.
func (t *Txn) NextSeq() int { return t.seq + 1 }

// Commit makes everything visible: the tables first, then the events that tell of them.
func (t *Txn) Commit() {
	t.store.publish.Lock()
	c := t.store.current.Load()
	t.txn.Commit()
	t.trees.publish()
	c.view.Store(&View{txn: c.db.Txn(false), trees: t.trees, about: t.about})
	c.feed.append(t.events) // which copies them
	t.store.publish.Unlock()
	t.store.spareEvents = t.events[0]
	t.trees.notify()
}

// Abort drops everything.
func (t *Txn) Abort() { t.txn.Abort() }

// Emit adds an event of the current entry to the feed.
func (t *Txn) Emit(e Event) {
	t.seq++
	e.Index, e.Seq, e.Actor, e.Source = t.about.Index, t.seq, t.actor, t.source
	if e.At.IsZero() {
		e.At = t.at
	}
	n := len(t.events)
	if last := t.events[n-1]; len(last) == cap(last) {
		t.events = append(t.events, make([]Event, 0, min(2*cap(last), 1024)))
		n++
	}
	t.events[n-1] = append(t.events[n-1], e)
}

// violation is a write that a table of moves does not allow. It is a defect of ours and not of the
// caller's, every member makes the same one, and stopping all of them would help nobody: so it is
// remembered for Check and shows in the feed.
func (t *Txn) violation(e Event, what string) {
	e.Code, e.Reason = fault.Internal, what
	t.Emit(e)
	t.store.current.Load().feed.violate(fmt.Sprintf("index %d: %s", t.about.Index, what))
}

func (t *Txn) insert(name string, record any) {
	if err := t.txn.Insert(name, record); err != nil {
		panic("cannot write table " + name + ": " + err.Error()) // only a wrong schema makes an error
	}
}

func (t *Txn) remove(name string, record any) {
	if err := t.txn.Delete(name, record); err != nil && err != memdb.ErrNotFound {
		panic("cannot write table " + name + ": " + err.Error())
	}
}

// saveAll is the save of a table whose records go into a snapshot as they are.
func saveAll[T any](name string) func(View, func(any) error) error {
	return func(v View, put func(any) error) error {
		for r := range all[T](v, nil, name, "") {
			if err := put(r); err != nil {
				return err
			}
		}
		return nil
	}
}

// restoreInto is the restore of such a table; fix, which may be nil, completes a record, but for what it is
// found by, and makes what is derived from it.
func restoreInto[T any](name string, fix func(*Txn, *T, interner) error) func(*Txn, []byte, interner) error {
	return func(t *Txn, raw []byte, in interner) error {
		r := new(T)
		if err := json.Unmarshal(raw, r); err != nil {
			return fmt.Errorf("cannot read a record of table %s: %w", name, err)
		}
		if err := t.txn.Insert(name, r); err != nil { // a damaged record may lack its key
			return fmt.Errorf("cannot take a record of table %s: %w", name, err)
		}
		if fix == nil {
			return nil
		}
		if err := fix(t, r, in); err != nil {
			return fmt.Errorf("cannot take a record of table %s: %w", name, err)
		}
		return nil
	}
}

// interner keeps one copy of strings that many records share.
type interner map[string]string

func (in interner) of(s string) string {
	if kept, ok := in[s]; ok {
		return kept
	}
	in[s] = s
	return s
}

// intern replaces a string by the kept copy.
func intern[S ~string](in interner, s *S) { *s = S(in.of(string(*s))) }
