package state

import (
	"slices"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Event is one thing that happened. Index and Seq order all events.
type Event struct {
	Index        uint64          `json:"index"`
	Seq          int             `json:"seq"` // within the index, from 1
	At           time.Time       `json:"at"`
	Type         string          `json:"type"`
	Actor        string          `json:"actor,omitzero"`
	Source       string          `json:"source,omitzero"`
	Reason       string          `json:"reason,omitzero"`
	Code         fault.Code      `json:"code,omitzero"`
	Organization id.Organization `json:"organization,omitzero"`
	Allocation   id.Allocation   `json:"allocation,omitzero"`
	Gateway      id.Gateway      `json:"gateway,omitzero"`
	Host         id.Host         `json:"host,omitzero"`
	Pool         id.Pool         `json:"pool,omitzero"`
	Before       string          `json:"before,omitzero"`
	After        string          `json:"after,omitzero"`
}

// EventID is the place of an event in the feed. The zero value is before every event, and {Index: n} is
// before every event of n.
type EventID struct {
	Index uint64 `json:"index"`
	Seq   int    `json:"seq"`
}

// Before reports whether an event comes before another.
func (a EventID) Before(b EventID) bool {
	return a.Index < b.Index || a.Index == b.Index && a.Seq < b.Seq
}

// ID is the event's place in the feed.
func (e *Event) ID() EventID { return EventID{e.Index, e.Seq} }

// KeptEvents is how many events the feed keeps.
const KeptEvents = 65536

// feed is the bounded tail of all events. Chunks are written once, from the front, and replaced by their sealed form,
// which is never written, so a cut of the feed shares them.
type feed struct {
	mu         sync.Mutex
	cutLocked  feedCut
	more       chan struct{} // closes when newer events exist
	violations []string
}

// feedCut is the feed at one moment.
type feedCut struct {
	chunks  []chunk
	skip    int     // events of the first chunk that are dropped
	length  int     // of what is kept
	dropped EventID // the last event that was dropped
	last    EventID
	spare   *[chunkEvents]Event // of a chunk that is sealed now, to be written again
	lent    *[chunkEvents]Event // that a cut shares, so that it stays as it is
}

func newFeed() *feed { return &feed{more: make(chan struct{})} }

func (c *feedCut) at(i int) Event {
	i += c.skip
	return c.chunks[i/chunkEvents].at(i % chunkEvents)
}

func (c *feedCut) idAt(i int) EventID {
	i += c.skip
	return c.chunks[i/chunkEvents].idAt(i % chunkEvents)
}

func (c *feedCut) push(e *Event) {
	if c.length == KeptEvents {
		c.dropped = c.idAt(0)
		c.skip, c.length = c.skip+1, c.length-1
		if c.skip == chunkEvents {
			c.chunks, c.skip = c.chunks[1:], 0
		}
	}
	end := c.skip + c.length
	if end/chunkEvents == len(c.chunks) {
		if c.spare == nil {
			c.spare = new([chunkEvents]Event)
		}
		c.chunks = append(c.chunks, chunk{open: c.spare})
		c.spare = nil
	}
	newest := &c.chunks[end/chunkEvents]
	newest.open[end%chunkEvents] = *e
	c.length++
	c.last = e.ID()
	if end%chunkEvents == chunkEvents-1 {
		if sealed := seal(newest.open); sealed != nil {
			if newest.open != c.lent {
				c.spare = newest.open
			}
			*newest = chunk{sealed: sealed}
		}
	}
}

// from is the position of the first event after an id.
func (c *feedCut) from(after EventID) int {
	lo, hi := 0, c.length
	for lo < hi {
		mid := (lo + hi) / 2
		if after.Before(c.idAt(mid)) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

func (f *feed) append(pieces [][]Event) {
	if len(pieces) == 0 || len(pieces[0]) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, events := range pieces {
		for i := range events {
			f.cutLocked.push(&events[i])
		}
	}
	close(f.more)
	f.more = make(chan struct{})
}

// cut shares the chunks with the feed, which writes only behind the cut's length.
func (f *feed) cut() feedCut {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.cutLocked.chunks); n > 0 {
		f.cutLocked.lent = f.cutLocked.chunks[n-1].open
	}
	c := f.cutLocked
	c.chunks, c.spare = slices.Clone(c.chunks), nil
	return c
}

// abandon wakes those who wait for events of a feed that was replaced.
func (f *feed) abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.more)
	f.more = make(chan struct{})
}

func (f *feed) violate(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.violations) < 16 {
		f.violations = append(f.violations, what)
	}
}

// Events gives at most max events after one, and a channel that closes when newer ones than those exist
// or a restore replaced the feed. truncated: events after it have been dropped already.
func (s *Store) Events(after EventID, limit int) (events []Event, more <-chan struct{}, truncated bool) {
	return s.EventsInto(nil, after, limit)
}

// EventsInto is Events for a reader that has done with the events of the last time: their place is used again.
func (s *Store) EventsInto(last []Event, after EventID, limit int) (events []Event, more <-chan struct{}, truncated bool) {
	events = last[:0]
	f := s.current.Load().feed
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &f.cutLocked
	first := c.from(after)
	n := min(c.length-first, limit)
	events = slices.Grow(events, max(n, 0))
	for i := range n {
		events = append(events, c.at(first+i))
	}
	return events, f.more, after.Before(c.dropped)
}

// LastEvent is the newest event's place; zero when there is none.
func (s *Store) LastEvent() EventID {
	f := s.current.Load().feed
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cutLocked.last
}
