package syncer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

var errSilent = errors.New("it was silent for too long")

// maxFrame bounds the text of one frame: a full one of a host with thousands of members.
const maxFrame = 256 << 20

// follow holds a stream open, with one coordinator after the other, until ctx ends.
func (s *Syncer) follow(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		base, n := s.base()
		frames, err := s.stream(ctx, base)
		s.connected.Store(false)
		if ctx.Err() != nil {
			return
		}
		if frames > 1 {
			failures = 0
		}
		failures++
		s.next(n)
		level := s.logger.Warn
		if failures > 1 && failures%20 != 0 {
			level = s.logger.Debug // the same again
		}
		level("the coordinator's stream ended", "coordinator", base.String(), "frames", frames, "error", err)
		if !sleep.For(ctx, s.backOff(failures)) {
			return
		}
	}
}

// stream reads frames from one coordinator until something goes wrong; it returns how many it took.
func (s *Syncer) stream(ctx context.Context, base *url.URL) (frames int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(s.o.Timing.Silence, func() { cancel(errSilent) })
	defer watchdog.Stop()
	u := base.JoinPath("/v1/agent/stream")
	u.RawQuery = url.Values{"host": {string(s.o.Host)}, "instance": {s.instance}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, err
	}
	resp, err := s.o.Client.Do(req)
	if err != nil {
		return 0, cause(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 0, problem(resp)
	}
	body := &bounded{r: resp.Body, left: maxFrame}
	dec := json.NewDecoder(body)
	for {
		var f api.AssignmentFrame
		if err := dec.Decode(&f); err != nil {
			return frames, cause(ctx, err)
		}
		body.left = maxFrame
		watchdog.Reset(s.o.Timing.Silence)
		if frames == 0 && !f.Full {
			return 0, errors.New("its first frame is not a full one")
		}
		if err := s.o.Follower.Apply(f); err != nil {
			return frames, err
		}
		if f.Ask {
			s.o.Queue.answer()
		}
		frames++
		if frames == 1 {
			s.logger.Info("following a coordinator", "coordinator", base.String(), "index", f.Index)
			s.connected.Store(true)
		}
		if f.Full { // it has begun anew, or its state was replaced by another
			s.o.Queue.wantFull()
		}
	}
}

// cause prefers the reason why a context ended to the error that its end made.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && ctx.Err() != nil {
		return c
	}
	return err
}

// problem puts an error answer into one line.
func problem(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var p api.Problem
	if json.Unmarshal(b, &p) == nil && p.Detail != "" {
		return &refusal{status: resp.StatusCode, text: p.Code + ": " + p.Detail}
	}
	return &refusal{status: resp.StatusCode, text: resp.Status}
}

// refusal is an answer of a coordinator that is not a success.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("the coordinator answers %d: %s", r.status, r.text)
}

// bounded ends a read when one frame grows beyond all measure.
type bounded struct {
	r    io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("cannot read a frame: it is too long")
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
