package httpapi

import (
	"bytes"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// headerBeats says that the coordinator which passes an assignment stream on makes the empty frames of it, which are
// many with a thousand hosts; so the leader need not. It is believed on connections between coordinators and nowhere
// else.
const headerBeats = "X-Demiurge-Beats"

// streamPath is the route of assignment streams.
const streamPath = "/v1/agent/stream"

// beating passes an assignment stream on to an agent and fills its silence with empty frames, as long as the leader
// that it comes from leads: this coordinator hears of it through Raft several times a second. A frame says of which
// index of the state it is, and those that are made here repeat the latest that the leader sent.
type beating struct {
	*recorder
	leads func() bool

	mu    sync.Mutex
	timer *time.Timer // of the next beat; guarded by mu
	head  []byte      // how the line begins that is being written; guarded by mu
	empty []byte      // the frame that fills silence; nil before the first one has come; guarded by mu
	ended bool        // guarded by mu
}

// mostHead is enough of a line to have its index.
const mostHead = 64

// newBeating begins with the first frame and goes on until stop.
func newBeating(w *recorder, leads func() bool) *beating {
	b := &beating{recorder: w, leads: leads}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = time.AfterFunc(untilBeat(), b.beat) // ended by stop
	return b
}

// WriteHeader implements http.ResponseWriter.
func (b *beating) WriteHeader(status int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recorder.WriteHeader(status)
}

// Write implements io.Writer.
func (b *beating) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.recorder.Write(p)
	b.note(p[:n])
	b.timer.Reset(untilBeat())
	return n, err
}

// FlushError is for http.ResponseController.
func (b *beating) FlushError() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.control.Flush()
}

// note follows where lines end and what index they are of; the caller holds mu.
func (b *beating) note(p []byte) {
	for len(p) > 0 {
		line, rest, whole := bytes.Cut(p, []byte{'\n'})
		b.head = append(b.head, line[:min(len(line), mostHead-len(b.head))]...)
		if whole {
			b.empty, b.head = emptyFrame(b.head), b.head[:0]
		}
		p = rest
	}
}

// emptyFrame is the frame with nothing in it of the same index as the one that begins so; nil when that has none. The
// index comes first in every frame.
func emptyFrame(head []byte) []byte {
	digits, found := bytes.CutPrefix(head, []byte(`{"index":`))
	end := bytes.IndexAny(digits, ",}")
	if !found || end < 0 {
		return nil
	}
	index, err := strconv.ParseUint(string(digits[:end]), 10, 64)
	if err != nil {
		return nil
	}
	return append(strconv.AppendUint([]byte(`{"index":`), index, 10), "}\n"...)
}

// beat sends an empty frame if the stream was silent, and comes again.
func (b *beating) beat() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return
	}
	if b.empty != nil && len(b.head) == 0 && b.leads() {
		if _, err := b.recorder.Write(b.empty); err != nil || b.control.Flush() != nil {
			return // the agent has gone, and the request ends with its connection
		}
	}
	b.timer.Reset(untilBeat())
}

func untilBeat() time.Duration { return api.UntilBeat(time.Now(), api.StreamHeartbeat) }

// stop ends it: from now on the answer may be over.
func (b *beating) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.timer.Stop()
}

// relays reports whether a request is for a stream whose silence is filled by the coordinator that passes it on.
func relays(r *http.Request) bool { return forwarded(r.Context()) && r.Header.Get(headerBeats) != "" }
