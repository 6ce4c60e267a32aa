// Package events is the outward side of the event feed: a log line and a metric per event, and the source
// of those who follow. The feed itself is part of the store; whatever follows it reads it from there, each
// at its own pace, so a slow reader costs nobody anything.
package events

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Options of a Broker. Everything without a default is needed.
type Options struct {
	Store  *state.Store
	Logger hclog.Logger
	// Observe is told every event that happens while the Broker runs, such as by the metrics. May be nil.
	Observe func(*state.Event)
	// After is the newest index of the log when this process started: events up to it happened in an
	// earlier life and are not told again when the log is replayed.
	After uint64
}

// Broker tells of events as they happen.
type Broker struct {
	opts Options
	log  hclog.Logger
	from state.EventID // what is told comes after it
}

// New makes a Broker that tells of what happens from now on.
func New(opts Options) *Broker {
	b := &Broker{opts: opts, log: opts.Logger.Named("events"), from: opts.Store.LastEvent()}
	if b.from.Index <= opts.After {
		b.from = state.EventID{Index: opts.After + 1} // before every event of the first new index
	}
	return b
}

// batch is how many events are read from the store at once.
const batch = 512

// idle is how often Run looks at the feed without being told of something new. Followers have a heartbeat
// of their own.
const idle = time.Minute

// settle is how long Run lets events gather before it tells of them: whoever waits for an entry of the log to
// be applied comes first, and log lines are for readers to whom it makes no difference.
const settle = 10 * time.Millisecond

// Run writes the log lines and feeds the metrics until ctx is done.
func (b *Broker) Run(ctx context.Context) {
	_ = b.follow(ctx, b.from, idle, settle, func(events []state.Event, truncated bool) error {
		if truncated {
			b.log.Warn("events were dropped before they were told", "kept", state.KeptEvents)
		}
		for i := range events {
			b.tell(&events[i])
		}
		return nil
	}) // only send makes errors, and this one makes none
}

// tell logs and counts one event.
func (b *Broker) tell(e *state.Event) {
	if e.Code != "" && b.log.IsWarn() {
		b.log.Warn("event", said(e)...)
	} else if e.Code == "" && b.log.IsInfo() {
		b.log.Info("event", said(e)...)
	}
	if b.opts.Observe != nil {
		b.opts.Observe(e)
	}
}

// said is an event as keys and values. Keys are left out where there is nothing to say.
func said(e *state.Event) []any {
	kv := append(make([]any, 0, 26), "type", e.Type, "index", e.Index)
	for _, p := range []struct{ key, value string }{
		{"organization", string(e.Organization)},
		{"allocation", string(e.Allocation)},
		{"gateway", string(e.Gateway)},
		{"host", string(e.Host)},
		{"pool", string(e.Pool)},
		{"before", e.Before},
		{"after", e.After},
		{"code", string(e.Code)},
		{"reason", e.Reason},
		{"actor", e.Actor},
		{"source", e.Source},
	} {
		if p.value != "" {
			kv = append(kv, p.key, p.value)
		}
	}
	return kv
}

// Follow hands the events after an id to send, in order, as they happen. send gets an empty batch when
// nothing happened for a heartbeat, and truncated when events before the batch are no longer kept. A batch is send's
// until it returns. Follow returns nil when ctx is done, and send's error otherwise.
func (b *Broker) Follow(ctx context.Context, after state.EventID, heartbeat time.Duration, send func(batch []state.Event, truncated bool) error) error {
	return b.follow(ctx, after, heartbeat, 0, send)
}

// follow is Follow with a pause between that something happened and its reading.
func (b *Broker) follow(ctx context.Context, after state.EventID, heartbeat, settle time.Duration, send func(batch []state.Event, truncated bool) error) error {
	alive := time.NewTicker(heartbeat)
	defer alive.Stop()
	var read []state.Event
	for ctx.Err() == nil {
		restored := b.opts.Store.Restored()
		events, more, truncated := b.opts.Store.EventsInto(read, after, batch)
		read = events
		if len(events) > 0 {
			if err := send(events, truncated); err != nil {
				return err
			}
			after = events[len(events)-1].ID()
			alive.Reset(heartbeat)
			continue
		}
		select {
		case <-ctx.Done():
		case <-more:
			sleep.For(ctx, settle)
		case <-restored: // the feed may be another one now: what it has after this place is read next
		case <-alive.C:
			if err := send(nil, false); err != nil {
				return err
			}
		}
	}
	return nil
}
