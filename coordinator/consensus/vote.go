package consensus

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"
)

// The keys under which the library keeps its durable state.
const (
	keyTerm     = "CurrentTerm"
	keyVoteTerm = "LastVoteTerm"
	keyVoteCand = "LastVoteCand"
	keyVote     = "DemiurgeLastVote" // ours: both halves of a vote in one record
)

// stable is the library's small durable state behind the guard. The library writes a vote in two halves,
// term and then candidate, and a crash between them leaves a vote of the new term for the old candidate;
// here the first half waits in memory and both are written as one record.
//
// The library calls it from one goroutine at a time, so it needs no lock.
type stable struct {
	guard *guard
	term  uint64 // the term on disk, once known
	vote  uint64 // term of a vote whose candidate has not come yet
}

var _ raft.StableStore = (*stable)(nil)

// Set implements raft.StableStore.
func (s *stable) Set(key, value []byte) error {
	if string(key) == keyVoteCand {
		record := binary.LittleEndian.AppendUint64(nil, s.vote)
		key, value = []byte(keyVote), append(record, value...)
	}
	return s.guard.do("raft.vote", "a write of the vote", func() error { return s.guard.store.Set(key, value) })
}

// Get implements raft.StableStore.
func (s *stable) Get(key []byte) ([]byte, error) {
	if string(key) != keyVoteCand {
		return s.guard.store.Get(key)
	}
	_, candidate, err := s.lastVote()
	return candidate, err
}

// SetUint64 implements raft.StableStore.
func (s *stable) SetUint64(key []byte, value uint64) error {
	switch string(key) {
	case keyVoteTerm:
		s.vote = value
		return nil
	case keyTerm:
		return s.setTerm(value)
	}
	return s.guard.do("raft.state", "a write of Raft state", func() error { return s.guard.store.SetUint64(key, value) })
}

// GetUint64 implements raft.StableStore.
func (s *stable) GetUint64(key []byte) (uint64, error) {
	switch string(key) {
	case keyVoteTerm:
		term, _, err := s.lastVote()
		return term, err
	case keyTerm:
		term, err := s.guard.store.GetUint64(key)
		if err == nil {
			s.term = term
		}
		return term, err
	}
	return s.guard.store.GetUint64(key)
}

// setTerm writes the current term. The library panics when that fails. A fenced node is about to be ended
// by its Fence function, so the caller, the library's main goroutine, is held here instead: it can answer
// nobody meanwhile. When the node closes, the library is already told to stop and the answer no longer matters.
func (s *stable) setTerm(term uint64) error {
	if term == s.term {
		return nil // the library writes the term it has just read when it starts
	}
	err := s.guard.do("raft.term", "a write of the term", func() error {
		return s.guard.store.SetUint64([]byte(keyTerm), term)
	})
	if err != nil {
		<-s.guard.released
		return nil
	}
	s.term = term
	return nil
}

func (s *stable) lastVote() (term uint64, candidate []byte, err error) {
	record, err := s.guard.store.Get([]byte(keyVote))
	if err != nil || len(record) == 0 {
		return 0, nil, err
	}
	if len(record) < 8 {
		return 0, nil, fmt.Errorf("cannot read the last vote: its record has %d bytes; %s", len(record), remedyDamaged)
	}
	return binary.LittleEndian.Uint64(record), record[8:], nil
}
