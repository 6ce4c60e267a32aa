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
	// refusalKinds bounds how many different refusals one entry names.
	refusalKinds = 50
	// eventRefused is the type of the events.
	eventRefused = "token.refused"
)

// refusals gathers refused requests and records them in the event feed, at most one entry a second
// whatever a caller does: a flood must not fill the log.
type refusals struct {
	server *Server
	wake   chan struct{}

	mu sync.Mutex
	// seen counts by kind since the last entry; guarded by mu. more counts what had no room in seen.
	seen map[refusal]int
	more int
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
	select {
	case rf.wake <- struct{}{}:
	default: // awake already
	}
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

// record writes one entry. It is lost when there is no leader: the metric has counted it.
func (rf *refusals) record(ctx context.Context) {
	rf.mu.Lock()
	seen, more := rf.seen, rf.more
	rf.seen, rf.more = map[refusal]int{}, 0
	rf.mu.Unlock()
	if len(seen) == 0 || !rf.server.opts.Cluster.IsLeader() {
		return
	}
	now := rf.server.opts.Now()
	// The entry has one origin, so it names the gate itself; each event tells who was refused.
	cmd := command.RecordEvents{Meta: command.Meta{At: now, Actor: "httpapi"}}
	for k, n := range seen {
		cmd.Events = append(cmd.Events, command.Event{
			Type: eventRefused, At: now, Code: k.code,
			Reason: fmt.Sprintf("%d refused: %s by %s from %s", n, k.route, k.actor, k.address),
		})
	}
	if more > 0 {
		cmd.Events = append(cmd.Events, command.Event{Type: eventRefused, At: now, Reason: fmt.Sprintf("%d more refused", more)})
	}
	if result, _, err := rf.server.opts.Proposer.Propose(ctx, cmd); err != nil || result.Err != nil {
		rf.server.log.Debug("cannot record refusals", "error", err, "refused", result.Err)
	}
}

// noteHandler counts a refusal that only a handler could see: an agent that speaks for another host, a join
// token that was used.
func (s *Server) noteHandler(ctx context.Context, err error) {
	switch f := fault.From(err); f.Code {
	case fault.Forbidden, fault.Unauthenticated, fault.RateLimited:
		c := callerOf(ctx)
		s.opts.Metrics.Refused(f.Code)
		s.refusals.add(refusal{f.Code, c.route.method + " " + c.route.path, c.actor(), c.address})
	}
}
