package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

const (
	// refusalPause is the least time between two entries of the log that record refusals.
	refusalPause = time.Second
	// refusalKinds bounds how many different refusals are told apart between two pauses.
	refusalKinds = 50
	// refusalOrigins bounds how many entries are written for them: an entry of the log has one origin.
	refusalOrigins = 8
	// refusalKept is how long an entry that cannot be written is kept: longer than it takes to find another leader.
	refusalKept = 30 * time.Second
	// keptRefusals bounds how many such entries are kept.
	keptRefusals = 4 * refusalOrigins
	// eventRefused is the type of the events.
	eventRefused = "token.refused"
)

// refusals gathers refused requests and records them in the event feed, at most a few entries a second
// whatever callers do: a flood must not fill the log.
type refusals struct {
	server *Server
	wake   chan struct{}

	mu sync.Mutex
	// seen counts by kind since the last entry; guarded by mu. more counts what had no room in seen.
	seen map[refusal]int
	more int
	// kept could not be written yet; guarded by mu.
	kept []command.RecordEvents
}

// refusal is what makes two refusals the same.
type refusal struct {
	code           fault.Code
	route          string
	actor, address string
}

func newRefusals(s *Server) *refusals {
	return &refusals{server: s, wake: make(chan struct{}, 1), seen: map[refusal]int{}}
}

// note counts a refusal of the gate; what is merely no such path is not one.
func (s *Server) note(f *fault.Error, route string, c *caller, r *http.Request) {
	switch f.Code {
	case fault.Unauthenticated, fault.Forbidden, fault.RateLimited:
	default:
		return
	}
	s.opts.Metrics.Refused(f.Code)
	s.log.Debug("request refused", "code", f.Code, "route", route, "actor", c.actor(), "address", addressOf(r))
	s.refusals.add(refusal{f.Code, route, c.actor(), addressOf(r)})
}

func (rf *refusals) add(k refusal) {
	rf.mu.Lock()
	if _, ok := rf.seen[k]; ok || len(rf.seen) < refusalKinds {
		rf.seen[k]++
	} else {
		rf.more++
	}
	rf.mu.Unlock()
	rf.alarm()
}

// run records what was added until ctx is done.
func (rf *refusals) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-rf.wake:
		}
		rf.record(ctx)
		timer := time.NewTimer(refusalPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// record writes one entry for each caller that was refused. What cannot be written, because this coordinator leads no
// more or not yet, is tried again for a while, and then lost: the metric has counted it.
func (rf *refusals) record(ctx context.Context) {
	rf.mu.Lock()
	seen, more, waiting := rf.seen, rf.more, rf.kept
	rf.seen, rf.more, rf.kept = map[refusal]int{}, 0, nil
	rf.mu.Unlock()
	now := rf.server.opts.Now()
	if len(seen) > 0 {
		waiting = append(waiting, entries(seen, more, now)...)
	}
	for _, cmd := range waiting {
		err := error(noLeader(nil))
		if rf.server.opts.Cluster.IsLeader() {
			_, _, err = rf.server.opts.Proposer.Propose(ctx, cmd)
		}
		if err != nil {
			rf.server.log.Debug("cannot record refusals now", "error", err)
			rf.keep(cmd, now)
		}
	}
}

// keep has an entry written later, if it is not too old or one of too many.
func (rf *refusals) keep(cmd command.RecordEvents, now time.Time) {
	if now.Sub(cmd.At) >= refusalKept {
		return
	}
	rf.mu.Lock()
	defer rf.mu.Unlock()
	if len(rf.kept) < keptRefusals {
		rf.kept = append(rf.kept, cmd)
	}
	rf.alarm()
}

// alarm has what there is recorded soon.
func (rf *refusals) alarm() {
	select {
	case rf.wake <- struct{}{}:
	default: // awake already
	}
}

// entries makes what is written for refusals: an entry for each caller, with its actor and source. Of too
// many callers the last entry tells together; it names the gate, and each of its events who was refused.
func entries(seen map[refusal]int, more int, now time.Time) []command.RecordEvents {
	var out []command.RecordEvents
	rest := command.RecordEvents{Meta: command.Meta{At: now, Actor: gateActor}}
	of := map[command.Meta]int{} // its place in out
	for k, n := range seen {
		told := command.Event{
			Type: eventRefused, At: now, Code: k.code,
			Reason: fmt.Sprintf("%d refused: %s by %s from %s", n, k.route, k.actor, k.address),
		}
		origin := command.Meta{At: now, Actor: k.actor, Source: k.address}
		at, known := of[origin]
		switch {
		case known:
			out[at].Events = append(out[at].Events, told)
		case len(out) < refusalOrigins:
			of[origin] = len(out)
			out = append(out, command.RecordEvents{Meta: origin, Events: []command.Event{told}})
		default:
			rest.Events = append(rest.Events, told)
		}
	}
	if more > 0 {
		rest.Events = append(rest.Events, command.Event{Type: eventRefused, At: now, Reason: fmt.Sprintf("%d more refused", more)})
	}
	if len(rest.Events) > 0 {
		out = append(out, rest)
	}
	return out
}

// gateActor is the gate itself in events.
const gateActor = "httpapi"

// noteHandler counts a refusal that only a handler could see: an agent that speaks for another host, a join
// token that was used, a user who is no member.
func (s *Server) noteHandler(ctx context.Context, f *fault.Error) {
	switch f.Code {
	case fault.Forbidden, fault.Unauthenticated, fault.RateLimited:
		c := callerOf(ctx)
		s.opts.Metrics.Refused(f.Code)
		s.refusals.add(refusal{f.Code, c.route.method + " " + c.route.path, c.actor(), c.address})
	}
}
