package state

import (
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

// chunkEvents divides KeptEvents: a chunk is dropped as a whole, and the few more that are kept until
// then are hidden.
const chunkEvents = 512

// feed is the bounded tail of all events. Events are written once and never moved, so a cut of the feed
// shares its chunks.
type feed struct {
	mu         sync.Mutex
	cutLocked  feedCut
	more       chan struct{} // closes when newer events exist
	violations []string
}

// feedCut is the feed at one moment.
type feedCut struct {
	chunks  []*[chunkEvents]Event
	skip    int     // events of the first chunk that are dropped
	length  int     // of what is kept
	dropped EventID // the last event that was dropped
	last    EventID
}

func newFeed() *feed { return &feed{more: make(chan struct{})} }

func (c *feedCut) at(i int) *Event {
	i += c.skip
	return &c.chunks[i/chunkEvents][i%chunkEvents]
}

func (c *feedCut) push(e *Event) {
	if c.length == KeptEvents {
		c.dropped = c.at(0).ID()
		c.skip, c.length = c.skip+1, c.length-1
		if c.skip == chunkEvents {
			c.chunks, c.skip = c.chunks[1:], 0
		}
	}
	end := c.skip + c.length
	if end/chunkEvents == len(c.chunks) {
		c.chunks = append(c.chunks, new([chunkEvents]Event))
	}
	c.chunks[end/chunkEvents][end%chunkEvents] = *e
	c.length++
	c.last = e.ID()
}

// from is the position of the first event after an id.
func (c *feedCut) from(after EventID) int {
	lo, hi := 0, c.length
	for lo < hi {
		mid := (lo + hi) / 2
		if after.Before(c.at(mid).ID()) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

func (f *feed) append(pieces [][]Event) {
	if len(pieces) == 0 {
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
	c := f.cutLocked
	c.chunks = append([]*[chunkEvents]Event(nil), c.chunks...)
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
	f := s.current.Load().feed
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &f.cutLocked
	first := c.from(after)
	if n := min(c.length-first, limit); n > 0 {
		events = make([]Event, n)
		for i := range events {
			events[i] = *c.at(first + i)
		}
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
