package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Times and bounds of the guard.
const (
	askTimeout = 5 * time.Second
	watchWait  = 20 * time.Second
	// outage is how long an answer of before counts while the agent does not answer: an agent that is replaced
	// must not end the work of those who are there. Nobody new gets in meanwhile.
	outage       = 30 * time.Second
	maxAnswers   = 10_000
	guardAnswer  = 64 << 10
	firstRewatch = 50 * time.Millisecond
	lastRewatch  = 2 * time.Second
)

// guard asks the agent, over the gateway's control socket, who makes a request and whether he may. Answers are
// kept by the organization's version; a question that is held open tells when there is another one.
type guard struct {
	client *http.Client // nil: there is no agent to ask, and nobody is let in

	mu      sync.Mutex
	answers map[question]answer
	version uint64        // of the answers; 0: not known
	changed chan struct{} // closed when answers were forgotten because of a change
	watched bool          // somebody asks for changes
	stop    context.CancelFunc
	watch   sync.WaitGroup
	ended   bool
}

// question is the SHA-256 of what is asked.
type question [sha256.Size]byte

type answer struct {
	api.Checked
	at time.Time
}

// credentials are what a request shows of who makes it.
type credentials struct {
	Authorization []string
	Cookie        []string
}

func credentialsOf(r *http.Request) credentials {
	return credentials{r.Header.Values("Authorization"), r.Header.Values("Cookie")}
}

// asking is one question.
type asking struct {
	who     credentials
	action  string
	project string
}

func (a asking) key() question {
	form, _ := json.Marshal([]any{a.who.Authorization, a.who.Cookie, a.action, a.project}) // strings only
	return sha256.Sum256(form)
}

// visitorKey is the key of a request's context under which the answer about its maker is.
type visitorKey struct{}

func newGuard(control string) *guard {
	g := &guard{answers: map[question]answer{}, changed: make(chan struct{})}
	if control != "" {
		g.client = &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", control)
			},
			MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
		}}
	}
	return g
}

// ask returns who asks if he may; else an error says why not.
func (g *guard) ask(ctx context.Context, a asking) (api.Checked, error) {
	if g.client == nil {
		return api.Checked{}, fault.New(fault.Forbidden, "this gateway has no agent that knows who may do this")
	}
	key := a.key()
	g.mu.Lock()
	kept, have := g.answers[key]
	g.begin()
	g.mu.Unlock()
	if have && time.Since(kept.at) < time.Duration(kept.GoodFor) {
		return kept.Checked, verdict(kept.Checked)
	}
	fresh, err := g.question(ctx, a)
	if err != nil {
		if fault.CodeOf(err) == fault.Internal && have && kept.Allowed && time.Since(kept.at) < outage {
			return kept.Checked, nil
		}
		return api.Checked{}, err
	}
	g.mu.Lock()
	if len(g.answers) >= maxAnswers {
		clear(g.answers)
	}
	if g.version == 0 || fresh.Version >= g.version { // else it was made before the change that is known
		g.answers[key] = answer{fresh, time.Now()}
	}
	g.mu.Unlock()
	return fresh, verdict(fresh)
}

func verdict(c api.Checked) error {
	switch {
	case c.Allowed:
		return nil
	case !c.Known:
		return fault.New(fault.Unauthenticated, "%s", c.Reason)
	}
	return fault.New(fault.Forbidden, "%s", c.Reason)
}

// question asks the agent.
func (g *guard) question(ctx context.Context, a asking) (api.Checked, error) {
	var out api.Checked
	body, err := json.Marshal(api.Check{Authorization: a.who.Authorization, Cookie: a.who.Cookie, Action: a.action, ProjectID: a.project})
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err = g.call(ctx, http.MethodPost, "/v1/check", body, &out)
	return out, err
}

// call makes a request of the agent. What the agent refuses is a fault; that it does not answer is not.
func (g *guard) call(ctx context.Context, method, path string, body []byte, into any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	res, err := g.client.Do(r)
	if err != nil {
		return fmt.Errorf("cannot ask the agent: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(res.Body, guardAnswer))
	if err != nil {
		return fmt.Errorf("cannot ask the agent: %w", err)
	}
	return answered(res.StatusCode, text, into)
}

// answered reads an answer of the agent.
func answered(status int, text []byte, into any) error {
	if status == http.StatusOK {
		if err := json.Unmarshal(text, into); err != nil {
			return fmt.Errorf("cannot read the agent's answer: %w", err)
		}
		return nil
	}
	var p api.Problem
	if json.Unmarshal(text, &p) == nil {
		if _, known := fault.Codes()[fault.Code(p.Code)]; known {
			return fault.New(fault.Code(p.Code), "%s", p.Detail)
		}
	}
	return fmt.Errorf("cannot ask the agent: it answers %d", status)
}

// begin starts to ask for changes, once. mu is held.
func (g *guard) begin() {
	if g.watched || g.ended {
		return
	}
	g.watched = true
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	g.watch.Go(func() { g.follow(ctx) }) // ended and waited for by close
}

// follow forgets all answers whenever somebody may do more or less than before.
func (g *guard) follow(ctx context.Context) {
	pause := firstRewatch
	for ctx.Err() == nil {
		g.mu.Lock()
		known := g.version
		g.mu.Unlock()
		q := url.Values{"version": {strconv.FormatUint(known, 10)}, "wait": {watchWait.String()}}
		var c api.Changes
		wctx, cancel := context.WithTimeout(ctx, watchWait+askTimeout)
		err := g.call(wctx, http.MethodGet, "/v1/changes?"+q.Encode(), nil, &c)
		cancel()
		if err != nil {
			// Another agent counts anew.
			g.mu.Lock()
			g.version = 0
			g.mu.Unlock()
			sleep.For(ctx, pause)
			pause = min(2*pause, lastRewatch)
			continue
		}
		pause = firstRewatch
		g.learn(c.Version)
	}
}

// learn takes notice of a version.
func (g *guard) learn(version uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if version == g.version {
		return
	}
	g.version = version
	// Answers that are forgotten are asked again, and those of people who are there are kept for an outage:
	// they are only made old.
	for key, a := range g.answers {
		a.GoodFor = 0
		g.answers[key] = a
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// changes is closed when somebody may do more or less than before.
func (g *guard) changes() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// close ends what begin started.
func (g *guard) close() {
	g.mu.Lock()
	g.ended = true
	stop := g.stop
	g.mu.Unlock()
	if stop != nil {
		stop()
	}
	g.watch.Wait()
	if g.client != nil {
		g.client.CloseIdleConnections()
	}
}
