package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// ownHost is the host of an agent's request: the one of its certificate, and no other.
func ownHost(ctx context.Context, c *checks, location, raw string) (id.Host, error) {
	host := parse(c, location, raw, id.ParseHost)
	if err := c.err(); err != nil {
		return "", err
	}
	if bound := callerOf(ctx).agent.who.Name(); bound != string(host) {
		return "", fault.New(fault.Forbidden, "this is the agent of host %q and may not speak for host %q", bound, host)
	}
	return host, nil
}

// instance checks the name of an agent's run.
func instance(value string) (string, error) {
	ok := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' }
	if value == "" || len(value) > 64 || strings.ContainsFunc(value, func(r rune) bool { return !ok(r) }) {
		return "", fmt.Errorf("cannot use %.80q as the instance of an agent: want 1 to 64 characters of [a-z0-9-]", value)
	}
	return value, nil
}

type agentStreamInput struct {
	Host     string `query:"host" required:"true" doc:"Host that the certificate is for"`
	Instance string `query:"instance" required:"true" doc:"Random name of this run of the agent"`
}

// agentStream holds a host's assignment stream open. Every frame is one line and sent at once.
func (s *Server) agentStream(ctx context.Context, in *agentStreamInput) (*stream, error) {
	var c checks
	run := parse(&c, "query.instance", in.Instance, instance)
	host, err := ownHost(ctx, &c, "query.host", in.Host)
	if err == nil {
		err = s.atLeader()
	}
	if err != nil {
		return nil, err
	}
	return &stream{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		ctx, release := s.held(r.Context())
		defer release()
		ctx, expelled := s.whileEnrolled(ctx, *callerOf(r.Context()).agent)
		defer expelled()
		// The next leader counts the hosts that are connected to it.
		stop := context.AfterFunc(s.opts.Cluster.Reign(), release)
		defer stop()
		out := newLines(w, jsonLines)
		hold := s.opts.Agents.Stream
		if relays(r) {
			hold = s.opts.Agents.RelayedStream
		}
		err := hold(ctx, host, run, addressOf(r), func(f api.AssignmentFrame) error {
			line, err := json.Marshal(f)
			if err != nil {
				return fmt.Errorf("cannot encode a frame: %w", err)
			}
			return out.send(append(line, '\n'))
		})
		s.ended(out, "assignment stream ended", err, "host", host)
	}}, nil
}

type observeInput struct {
	Body api.Observation
}

func (s *Server) agentObserve(ctx context.Context, in *observeInput) (*answer[api.Observed], error) {
	var c checks
	parse(&c, "body.instance", in.Body.Instance, instance)
	host, err := ownHost(ctx, &c, "body.host_id", in.Body.HostID)
	if err == nil {
		err = s.atLeader()
	}
	if err != nil {
		return nil, err
	}
	index, err := s.opts.Agents.Observe(ctx, host, in.Body)
	if err == nil && in.Body.Renew {
		err = s.opts.Cluster.VerifyLeader(ctx) // or one that leads no longer, and does not know it, would prolong a lease
	}
	if err != nil {
		return nil, err
	}
	return &answer[api.Observed]{Index: index, Body: api.Observed{Index: index}}, nil
}

// lines writes a held answer piece by piece.
type lines struct {
	w       http.ResponseWriter
	control *http.ResponseController
	kind    string
	begun   bool
}

func newLines(w http.ResponseWriter, contentType string) *lines {
	return &lines{w: w, control: http.NewResponseController(w), kind: contentType}
}

// begin sends the headers.
func (l *lines) begin() error {
	if l.begun {
		return nil
	}
	l.begun = true
	l.w.Header().Set("Content-Type", l.kind)
	l.w.Header().Set("Cache-Control", "no-store")
	l.w.Header().Set("X-Accel-Buffering", "no") // a proxy in front must not hold it back
	l.w.WriteHeader(http.StatusOK)
	return l.control.Flush()
}

// send writes and flushes.
func (l *lines) send(b []byte) error {
	if err := l.begin(); err != nil {
		return err
	}
	if _, err := l.w.Write(b); err != nil {
		return err
	}
	return l.control.Flush()
}

// ended closes a held answer: one that never began can still be answered with a problem.
func (s *Server) ended(l *lines, what string, err error, kv ...any) {
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.Debug(what, append(kv, "error", err)...)
	}
	switch {
	case l.begun:
	case err != nil && fault.CodeOf(err) != fault.Internal:
		writeProblem(l.w, fault.From(err), 0)
	default:
		writeProblem(l.w, noLeader(err), 0) // it ended before it began: the coordinator is stopping
	}
}
