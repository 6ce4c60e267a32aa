package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// CallOption changes one call.
type CallOption func(*call)

// call is one request before it is sent.
type call struct {
	method string
	path   string // escaped
	query  url.Values
	body   any
	open   func() (io.ReadCloser, error) // of a body that is sent as it is, instead of body
	header http.Header
	key    string
	status *int
	index  *uint64
}

// IdempotencyKey sets the key of a creating call. Without it a random one is used, so that the client's
// own repetitions are safe in any case.
func IdempotencyKey(key string) CallOption { return func(c *call) { c.key = key } }

// Blocking makes a reading call wait up to wait for something newer than index.
func Blocking(index uint64, wait time.Duration) CallOption {
	return func(c *call) {
		c.query.Set("index", strconv.FormatUint(index, 10))
		c.query.Set("wait", wait.String())
	}
}

// Consistency sets how fresh a reading call's answer has to be: default, consistent or stale.
func Consistency(level string) CallOption {
	return func(c *call) { c.query.Set("consistency", level) }
}

// IndexTo stores the index that the answer was made from, for the next Blocking call.
func IndexTo(index *uint64) CallOption { return func(c *call) { c.index = index } }

// StatusTo stores the HTTP status of the answer.
func StatusTo(status *int) CallOption { return func(c *call) { c.status = status } }

// newCall makes a call whose path elements are escaped one by one.
func newCall(method string, elements ...string) *call {
	var b strings.Builder
	for _, e := range elements {
		b.WriteString("/" + url.PathEscape(e))
	}
	return &call{method: method, path: b.String(), query: url.Values{}, header: http.Header{}}
}

// get is a reading call.
func get(elements ...string) *call { return newCall(http.MethodGet, elements...) }

// create is a POST that creates and carries an idempotency key.
func create(body any, elements ...string) *call {
	c := newCall(http.MethodPost, elements...)
	c.body, c.key = body, id.Secret()
	return c
}

const (
	// maxAnswer bounds what is read of one answer; a full page of the longest records is far below it.
	maxAnswer = 256 << 20
	// maxRetryAfter is the longest that an answer can ask to be left alone.
	maxRetryAfter = 24 * time.Hour
)

// do sends a call and decodes its answer into T.
func do[T any](ctx context.Context, c *Client, rq *call, opts []CallOption) (T, error) {
	var out T
	resp, err := c.send(ctx, rq, opts)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return out, nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&out); err != nil {
		if ctx.Err() != nil { // as http.Client says it: which of the two notices the end is chance
			return out, &url.Error{Op: rq.method, URL: rq.path, Err: ctx.Err()}
		}
		return out, fmt.Errorf("cannot read the answer to %s %s: %w", rq.method, rq.path, err)
	}
	return out, nil
}

// send delivers a call to the coordinators in turn and returns the first good answer, whose body the
// caller closes. While there is no leader it asks again.
func (c *Client) send(ctx context.Context, rq *call, opts []CallOption) (*http.Response, error) {
	for _, o := range opts {
		o(rq)
	}
	var body []byte
	if rq.body != nil {
		var err error
		if body, err = json.Marshal(rq.body); err != nil {
			return nil, fmt.Errorf("cannot encode the request: %w", err)
		}
	}
	var until time.Time // from the first refusal on: the call may have waited in line for minutes before
	var answered error  // by a coordinator, to the try before
	for try := 0; ; try++ {
		resp, err := c.round(ctx, rq, body)
		if err == nil {
			c.note(rq, resp)
			return resp, nil
		}
		if ctx.Err() != nil && answered != nil {
			return nil, answered // why there is none, whenever the context ended
		}
		answered = err
		if until.IsZero() {
			until = time.Now().Add(c.retryFor)
		}
		wait, again := pause(err, try)
		if !again || time.Now().Add(wait).After(until) || !sleep.For(ctx, wait) {
			return nil, err
		}
	}
}

// pause decides whether a failed round is worth another one, and after which time.
func pause(err error, try int) (time.Duration, bool) {
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != fault.NoLeader && f.Code != fault.RateLimited {
		return 0, false
	}
	wait := max(f.RetryAfter, 100*time.Millisecond)
	if f.Code == fault.NoLeader { // the header counts in seconds, an election often takes less, a transfer far less
		wait = 10 * time.Millisecond << min(try, 7)
	}
	return wait, true
}

// round tries each coordinator once, beginning with the one that answered last. Only a coordinator that
// cannot be reached, or reaches no leader, makes it go on to the next: one that is cut off knows less than the others.
func (c *Client) round(ctx context.Context, rq *call, body []byte) (*http.Response, error) {
	first := int(c.preferred.Load())
	var errs []error
	var alone *http.Response // of the first that reaches no leader
	defer func() {
		if alone != nil {
			_ = alone.Body.Close()
		}
	}()
	for i := range c.bases {
		n := (first + i) % len(c.bases)
		if err := c.there(ctx, n); err != nil && ctx.Err() == nil {
			errs = append(errs, err)
			continue
		}
		resp, err := c.once(ctx, c.bases[n], rq, body)
		if err == nil {
			c.answered[n].Store(time.Now().UnixNano())
			if resp.Header.Get(api.HeaderKnownLeader) == "false" {
				if alone == nil {
					alone = resp
				} else {
					_ = resp.Body.Close()
				}
				continue
			}
			c.preferred.Store(uint32(n))
			return resp, nil
		}
		var f *fault.Error
		if errors.As(err, &f) && f.Code != fault.NoLeader || ctx.Err() != nil {
			return nil, err
		}
		errs = append(errs, err)
	}
	if resp := alone; resp != nil {
		alone = nil
		return resp, nil
	}
	for _, err := range errs { // a coordinator that answers knows more than one that does not
		if fault.Is(err, fault.NoLeader) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("cannot reach a coordinator at %s: %w", strings.Join(c.Addresses(), ", "), errors.Join(errs...))
}

// there asks a coordinator whether it answers, unless it has just done so.
func (c *Client) there(ctx context.Context, n int) error {
	if c.probe <= 0 || time.Since(time.Unix(0, c.answered[n].Load())) < c.probe {
		return nil
	}
	patience := c.probe
	if len(c.bases) == 1 {
		patience *= 5
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it did not answer within %s", patience))
	defer cancel()
	target := c.bases[n].String() + "/healthz"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return fmt.Errorf("cannot make the request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// once sends the call to one coordinator.
func (c *Client) once(ctx context.Context, base *url.URL, rq *call, body []byte) (*http.Response, error) {
	target := base.String() + rq.path
	if len(rq.query) > 0 {
		target += "?" + rq.query.Encode()
	}
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	if rq.open != nil {
		file, err := rq.open()
		if err != nil {
			return nil, err
		}
		reader = file // closed by the request
	}
	req, err := http.NewRequestWithContext(ctx, rq.method, target, reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make the request: %w", err)
	}
	for k, v := range rq.header {
		req.Header[k] = v
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if rq.open != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
		req.Header.Set("Expect", "100-continue") // nothing is sent to a coordinator that refuses
	}
	if rq.key != "" {
		req.Header.Set("Idempotency-Key", rq.key)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, readProblem(resp)
}

// note hands out what the caller asked to know of the answer.
func (c *Client) note(rq *call, resp *http.Response) {
	if rq.status != nil {
		*rq.status = resp.StatusCode
	}
	if rq.index != nil {
		*rq.index, _ = strconv.ParseUint(resp.Header.Get(api.HeaderIndex), 10, 64)
	}
}

// readProblem turns an error answer into a fault. What is not a problem document comes from something
// between the client and a coordinator.
func readProblem(resp *http.Response) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("cannot read the error answer: %w", err)
	}
	var p api.Problem
	if json.Unmarshal(raw, &p) != nil || p.Code == "" {
		return fault.New(fault.Internal, "the address answered %s, and not as a coordinator does; is it the address of one?", resp.Status)
	}
	f := &fault.Error{Code: fault.Code(p.Code), Message: p.Detail, Locations: p.Errors}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		f.RetryAfter = time.Duration(min(s, int(maxRetryAfter/time.Second))) * time.Second
	}
	return f
}

// all fetches every page of a list.
func all[T any](ctx context.Context, c *Client, rq *call, opts []CallOption) ([]T, error) {
	items := []T{}
	for {
		page, err := do[api.List[T]](ctx, c, rq, opts)
		if err != nil {
			return nil, err
		}
		items = append(items, page.Items...)
		if page.Cursor == "" {
			return items, nil
		}
		if page.Cursor == rq.query.Get("cursor") {
			return nil, fmt.Errorf("cannot read the list %s: it does not go on after %.80q", rq.path, page.Cursor)
		}
		rq.query.Set("cursor", page.Cursor)
	}
}

// filter sets the parameters that are not empty.
func filter(rq *call, pairs ...string) *call {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			rq.query.Set(pairs[i], pairs[i+1])
		}
	}
	return rq
}
