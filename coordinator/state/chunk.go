package state

import (
	"math"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// chunkEvents divides KeptEvents: a chunk is dropped as a whole, and the few more that are kept until
// then are hidden.
const chunkEvents = 512

// chunk is some of the feed's events, as they are while it fills up, and sealed once it is full.
type chunk struct {
	open   *[chunkEvents]Event
	sealed *sealedChunk
}

// sealedChunk has its events without pointers, and their words once. The feed keeps tens of thousands of events, with a
// dozen strings each, which the collector would mark again and again.
type sealedChunk struct {
	text   string                   // the words, one after the other
	ends   []uint32                 // of each in the text
	events [chunkEvents]sealedEvent // their words are positions in ends
}

type sealedEvent struct {
	index   uint64
	seconds int64
	nanos   int32
	seq     int32
	words   [eventWords]uint16
}

// eventWords is how many strings an event has.
const eventWords = 12

// words gives the strings of an event, in the order in which they are sealed.
func (e *Event) words() [eventWords]string {
	return [...]string{
		e.Type, e.Actor, e.Source, e.Reason, string(e.Code), string(e.Organization), string(e.Allocation), string(e.Gateway),
		string(e.Host), string(e.Pool), e.Before, e.After,
	}
}

// seal gives the sealed form of a full chunk; nil when an event has what that cannot hold.
func seal(events *[chunkEvents]Event) *sealedChunk {
	s := &sealedChunk{}
	known := make(map[string]uint16, chunkEvents)
	var text []byte
	for i := range events {
		e := &events[i]
		if e.At.Location() != time.UTC || int64(e.Seq) != int64(int32(e.Seq)) {
			return nil
		}
		s.events[i] = sealedEvent{index: e.Index, seq: int32(e.Seq), seconds: e.At.Unix(), nanos: int32(e.At.Nanosecond())}
		for k, word := range e.words() {
			n, ok := known[word]
			if !ok {
				if len(text)+len(word) > math.MaxUint32 {
					return nil
				}
				text = append(text, word...)
				n = uint16(len(s.ends)) // no more than words in all, which is far below the most
				s.ends = append(s.ends, uint32(len(text)))
				known[word] = n
			}
			s.events[i].words[k] = n
		}
	}
	s.text = string(text)
	return s
}

func (s *sealedChunk) word(n uint16) string {
	if n == 0 {
		return s.text[:s.ends[0]]
	}
	return s.text[s.ends[n-1]:s.ends[n]]
}

// at gives an event of the chunk.
func (c *chunk) at(i int) Event {
	if c.sealed == nil {
		return c.open[i]
	}
	e := &c.sealed.events[i]
	word := func(k int) string { return c.sealed.word(e.words[k]) }
	return Event{
		Index: e.index, Seq: int(e.seq), At: time.Unix(e.seconds, int64(e.nanos)).UTC(),
		Type: word(0), Actor: word(1), Source: word(2), Reason: word(3), Code: fault.Code(word(4)),
		Organization: id.Organization(word(5)), Allocation: id.Allocation(word(6)), Gateway: id.Gateway(word(7)),
		Host: id.Host(word(8)), Pool: id.Pool(word(9)), Before: word(10), After: word(11),
	}
}

// idAt gives the place of an event of the chunk.
func (c *chunk) idAt(i int) EventID {
	if c.sealed == nil {
		return c.open[i].ID()
	}
	e := &c.sealed.events[i]
	return EventID{e.index, int(e.seq)}
}
