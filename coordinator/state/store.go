// Package state is what the Raft log has built up so far: tables of immutable records, one table per file,
// read through consistent views with watch channels, and a bounded feed of events. What every allocation
// reads and writes is in trees of our own, the rest in go-memdb.
//
// Only the state machine writes, through one Txn at a time. Records are never modified after they were put:
// whoever wants a change puts a changed copy. There is no clock, no randomness and no side effect in here,
// because every member must build the same state from the same log.
package state

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"
)

// WatchSet collects channels that close when what was read changes. Nil is allowed everywhere.
type WatchSet = memdb.WatchSet

// Store holds the tables and the event feed. Views may be taken from any goroutine; there is one writer.
type Store struct {
	current atomic.Pointer[contents]
	// publish is held while a transaction is made visible, so that a checkpoint sees tables and events of
	// the same index.
	publish sync.Mutex
	// spareEvents is where the writer's next transaction gathers its first events. Only the writer uses it.
	spareEvents []Event
}

// contents is what a restore replaces as a whole.
type contents struct {
	db       *memdb.MemDB         // the tables that are not in trees
	view     atomic.Pointer[View] // of the last commit
	feed     *feed
	restored chan struct{}
}

// firstEvents is more than most transactions have.
const firstEvents = 64

// New makes an empty store.
func New() *Store {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic("cannot make the tables, their schema is wrong: " + err.Error())
	}
	c := &contents{db: db, feed: newFeed(), restored: make(chan struct{})}
	c.view.Store(&View{txn: db.Txn(false), trees: newTrees()})
	s := &Store{spareEvents: make([]Event, 0, firstEvents)}
	s.current.Store(c)
	return s
}

// View gives a consistent, immutable snapshot of all tables. It is cheap: all views of one commit share
// memdb's read transaction, which nothing modifies.
func (s *Store) View() View { return *s.current.Load().view.Load() }

// Restored gives a channel that closes when a restore has replaced the state: watch channels of earlier
// views are dead then, and watchers must read again.
func (s *Store) Restored() <-chan struct{} { return s.current.Load().restored }

// Replace takes over the contents of another store, which must not be used any more. Views taken before
// stay as they are.
func (s *Store) Replace(other *Store) {
	s.publish.Lock()
	next := other.current.Load()
	old := s.current.Swap(next)
	s.publish.Unlock()
	close(old.restored)
	old.feed.abandon()
}

// Checkpoint is the whole state at one index, for snapshots and digests.
type Checkpoint struct {
	View   View
	events feedCut
}

// Checkpoint captures tables and events of the same index. It copies no record.
func (s *Store) Checkpoint() Checkpoint {
	s.publish.Lock()
	defer s.publish.Unlock()
	return Checkpoint{View: s.View(), events: s.current.Load().feed.cut()}
}
