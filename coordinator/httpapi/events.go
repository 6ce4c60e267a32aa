package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
)

type eventsInput struct {
	Index       uint64 `query:"index" doc:"Only events after this index; 0: from the oldest that is kept"`
	Wait        string `query:"wait" doc:"How long to wait for the first event of a list, at most 5m" example:"30s"`
	Topic       string `query:"topic" doc:"Only these topics, separated by commas: agent, allocation, coordinator, gateway, host, join_token, organization, pool, snapshot, token, trust" example:"allocation,host"`
	Limit       int    `query:"limit" minimum:"1" maximum:"10000" default:"1000"`
	Cursor      string `query:"cursor" doc:"Id of the last event of the page before"`
	Accept      string `header:"Accept"`
	LastEventID string `header:"Last-Event-ID" doc:"Follow after this event"`
	Consistency string `query:"consistency" enum:"default,consistent,stale"`
}

// scan is how many events are looked at in one go.
const scan = 1000

func (s *Server) listEvents(ctx context.Context, in *eventsInput) (*stream, error) {
	var c checks
	wait := duration(&c, "query.wait", in.Wait, waitLimit)
	keep := topics(&c, in.Topic)
	after := state.EventID{Index: in.Index, Seq: math.MaxInt}
	if in.Index == 0 {
		after = state.EventID{}
	}
	if in.Cursor != "" {
		after = parse(&c, "query.cursor", in.Cursor, cursorOf(parseEventID))
	}
	follow := strings.Contains(in.Accept, eventStream)
	if follow && in.LastEventID != "" {
		after = parse(&c, "header.Last-Event-ID", in.LastEventID, parseEventID)
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	if follow {
		return s.followEvents(after, keep), nil
	}
	if err := s.fresh(ctx, in.Consistency); err != nil {
		return nil, err
	}
	list, err := s.collectEvents(ctx, after, in.Limit, wait, keep)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("cannot encode events: %w", err)
	}
	index := strconv.FormatUint(s.opts.Store.LastEvent().Index, 10)
	if n := len(list.Items); list.Cursor != "" && n > 0 {
		index = strconv.FormatUint(list.Items[n-1].Index, 10)
	}
	return &stream{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "application/json")
		hc.SetHeader(api.HeaderIndex, index)
		hc.SetStatus(http.StatusOK)
		_, _ = hc.BodyWriter().Write(append(body, '\n')) // a client that went away needs no answer
	}}, nil
}

// collectEvents makes a page; while it is empty it waits for the first event.
func (s *Server) collectEvents(ctx context.Context, after state.EventID, limit int, wait time.Duration, keep func(string) bool) (api.List[api.Event], error) {
	ctx, release := s.held(ctx)
	defer release()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if wait > 0 {
		var expelled context.CancelFunc
		ctx, expelled = s.whileEntitled(ctx)
		defer expelled()
	}
	out := api.List[api.Event]{Items: []api.Event{}}
	for {
		events, more, _ := s.opts.Store.Events(after, scan)
		if wait > 0 && !s.entitled(nil, callerOf(ctx)) {
			return out, errCredential()
		}
		for i := range events {
			after = events[i].ID()
			if !keep(topicOf(events[i].Type)) {
				continue
			}
			if len(out.Items) == limit {
				out.Cursor = out.Items[limit-1].ID
				return out, nil
			}
			out.Items = append(out.Items, event(&events[i]))
		}
		if len(events) == scan {
			continue
		}
		if len(out.Items) > 0 {
			return out, nil
		}
		if ctx.Err() != nil {
			return out, nil
		}
		select {
		case <-more:
		case <-ctx.Done(): // the next turn looks why
		}
	}
}

// followEvents answers with server-sent events as long as the caller's token counts. A comment now and then shows a silent
// client that the stream is alive, and one tells when events were missed.
func (s *Server) followEvents(after state.EventID, keep func(string) bool) *stream {
	return &stream{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		ctx, release := s.held(r.Context())
		defer release()
		ctx, expelled := s.whileEntitled(ctx)
		defer expelled()
		out := newLines(w, eventStream)
		if err := out.send([]byte(": following\n\n")); err != nil {
			return
		}
		err := s.opts.Events.Follow(ctx, after, s.opts.Heartbeat, func(batch []state.Event, truncated bool) error {
			if !s.entitled(nil, callerOf(ctx)) {
				return context.Canceled
			}
			var b bytes.Buffer
			if truncated {
				b.WriteString(": " + api.EventsDropped + "\n\n")
			}
			for i := range batch {
				if !keep(topicOf(batch[i].Type)) {
					continue
				}
				e := event(&batch[i])
				data, err := json.Marshal(e)
				if err != nil {
					return fmt.Errorf("cannot encode an event: %w", err)
				}
				fmt.Fprintf(&b, "id: %s\nevent: %s\ndata: %s\n\n", e.ID, e.Type, data)
			}
			if b.Len() == 0 && len(batch) == 0 {
				b.WriteString(": alive\n\n")
			}
			if b.Len() == 0 {
				return nil
			}
			return out.send(b.Bytes())
		})
		s.ended(out, "event stream ended", err)
	}}
}

// topics reads the filter; none keeps all.
func topics(c *checks, raw string) func(string) bool {
	if raw == "" {
		return func(string) bool { return true }
	}
	wanted := map[string]bool{}
	for _, t := range strings.Split(raw, ",") {
		if !slices.Contains(eventTopics, t) {
			c.add("query.topic", fmt.Errorf("cannot use %.80q as a topic: want some of %s, separated by commas", t, strings.Join(eventTopics, ", ")))
		}
		wanted[t] = true
	}
	return func(topic string) bool { return wanted[topic] }
}

// parseEventID reads "<index>.<n>".
func parseEventID(s string) (state.EventID, error) {
	index, seq, ok := strings.Cut(s, ".")
	i, err1 := strconv.ParseUint(index, 10, 64)
	n, err2 := strconv.ParseUint(seq, 10, 31)
	if !ok || err1 != nil || err2 != nil {
		return state.EventID{}, fmt.Errorf("cannot use %.80q as the id of an event: want \"<index>.<n>\"", s)
	}
	return state.EventID{Index: i, Seq: int(n)}, nil
}

// eventTopics are all topics. A name that is none of them would be a feed in which nothing ever happens.
var eventTopics = []string{"agent", "allocation", "coordinator", "gateway", "host", "join_token", "organization", "pool", "snapshot", "token", "trust"}

// topicOf is the first part of an event's type.
func topicOf(eventType string) string {
	topic, _, _ := strings.Cut(eventType, ".")
	return topic
}

// event converts an event of the store.
func event(e *state.Event) api.Event {
	return api.Event{
		ID: strconv.FormatUint(e.Index, 10) + "." + strconv.Itoa(e.Seq), Index: e.Index, At: e.At.UTC(),
		Type: e.Type, Topic: topicOf(e.Type), Actor: e.Actor, Source: e.Source, Reason: e.Reason,
		OrganizationID: string(e.Organization), AllocationID: string(e.Allocation), GatewayID: string(e.Gateway),
		HostID: string(e.Host), Pool: string(e.Pool), Before: e.Before, After: e.After, Code: string(e.Code),
	}
}
