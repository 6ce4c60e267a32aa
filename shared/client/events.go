package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// EventQuery says which events are wanted.
type EventQuery struct {
	// After is the id of the last event already seen ("<index>.<n>"); it goes before Index.
	After string
	// Index leaves out the events up to this index; 0: from the oldest that is kept.
	Index uint64
	// Topics such as "allocation"; empty: all.
	Topics []string
	// Dropped is called by Follow where events after the last one seen are no longer kept. May be nil.
	Dropped func()
}

// call is the request without the place to begin after, which lists and streams carry differently.
func (q *EventQuery) call() *call {
	rq := filter(get("v1", "events"), "topic", strings.Join(q.Topics, ","))
	if q.Index > 0 {
		rq.query.Set("index", strconv.FormatUint(q.Index, 10))
	}
	return rq
}

// ListEvents lists the kept events after the query's id, all pages, the oldest first.
func (c *Client) ListEvents(ctx context.Context, q EventQuery, opts ...CallOption) ([]api.Event, error) {
	rq := q.call()
	if q.After != "" {
		rq.query.Set("cursor", q.After)
	}
	return all[api.Event](ctx, c, rq, opts)
}

const (
	// silence is how long a stream may say nothing, heartbeats included, before it is taken for dead.
	silence = 45 * time.Second
	// lineLimit bounds one line of a stream.
	lineLimit = 16 << 20
)

// Follow yields events as they happen, for ever: a broken stream is opened again after the last event
// that was seen. It ends when the consumer stops, when the context is done (without an error), or with a
// refusal that asking again does not change.
func (c *Client) Follow(ctx context.Context, q EventQuery) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		for try := 0; ctx.Err() == nil; try++ {
			stopped, seen, err := c.follow(ctx, &q, yield)
			if stopped || ctx.Err() != nil {
				return
			}
			var f *fault.Error
			if errors.As(err, &f) && f.Code != fault.NoLeader && f.Code != fault.RateLimited {
				yield(api.Event{}, err)
				return
			}
			if seen {
				try = 0
			}
			sleep.For(ctx, 100*time.Millisecond<<min(try, 5))
		}
	}
}

// follow reads one stream to its end. stopped: the consumer wants no more; seen: an event came.
func (c *Client) follow(ctx context.Context, q *EventQuery, yield func(api.Event, error) bool) (stopped, seen bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rq := q.call()
	rq.header.Set("Accept", "text/event-stream")
	if q.After != "" {
		rq.header.Set("Last-Event-ID", q.After)
	}
	resp, err := c.send(ctx, rq, nil)
	if err != nil {
		return false, false, err
	}
	defer resp.Body.Close()
	alive := time.AfterFunc(silence, cancel)
	defer alive.Stop()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, lineLimit)
	for lines.Scan() {
		alive.Reset(silence)
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		if !ok {
			if lines.Text() == ": "+api.EventsDropped && q.Dropped != nil && (q.After != "" || q.Index > 0) {
				q.Dropped()
			}
			continue // heartbeats, and the id and type that the event repeats
		}
		var e api.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return false, seen, fmt.Errorf("cannot read an event: %w", err)
		}
		q.After, seen = e.ID, true
		if !yield(e, nil) {
			return true, seen, nil
		}
	}
	return false, seen, lines.Err()
}

// AgentStream holds the assignment stream of a host open and hands every frame to fn, until the stream
// ends or fn returns an error. The caller opens it again.
func (c *Client) AgentStream(ctx context.Context, host, instance string, fn func(api.AssignmentFrame) error) error {
	rq := filter(get("v1", "agent", "stream"), "host", host, "instance", instance)
	rq.header.Set("Accept", "application/x-ndjson")
	resp, err := c.send(ctx, rq, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	frames := json.NewDecoder(resp.Body)
	for {
		var frame api.AssignmentFrame
		if err := frames.Decode(&frame); err != nil {
			if errors.Is(err, io.EOF) {
				return io.EOF
			}
			return fmt.Errorf("cannot read the assignment stream: %w", err)
		}
		if err := fn(frame); err != nil {
			return err
		}
	}
}

// Observe reports what a host's agent saw.
func (c *Client) Observe(ctx context.Context, in api.Observation, opts ...CallOption) (api.Observed, error) {
	rq := post("v1", "agent", "observations")
	rq.body = in
	return do[api.Observed](ctx, c, rq, opts)
}
