package httpapi

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// elections is a cluster in which others lead, one after the other, and the way to them.
type elections struct {
	*scriptedCluster
	answer func(leader string) error // what becomes of a request to a leader; nil: it answers
	// reply makes the answer, if it is not nil.
	reply  func(r *http.Request) *http.Response
	looked chan struct{} // gets a value each time somebody begins to wait, if there is room

	mu      sync.Mutex
	leader  string        // guarded by mu
	changed chan struct{} // closed and replaced when leader changes; guarded by mu
	asked   []string      // the leaders that requests came to, with their bodies; guarded by mu
}

func newElections(t *testing.T, patience time.Duration) (*kit, *elections) {
	e := &elections{scriptedCluster: &scriptedCluster{}, looked: make(chan struct{}, 1), changed: make(chan struct{})}
	return newKit(t, func(o *Options) { o.Cluster, o.Peers, o.LeaderPatience = e, e, patience }), e
}

func (e *elections) elect(leader string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leader = leader
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *elections) Leader() (string, string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.leader, e.leader
}

func (e *elections) LeaderChanged() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case e.looked <- struct{}{}:
	default:
	}
	return e.changed
}

// RoundTrip reaches a leader, or not.
func (e *elections) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	defer func() { _ = r.Body.Close() }()
	if e.answer != nil {
		if err := e.answer(r.URL.Host); err != nil {
			return nil, err
		}
	}
	if e.reply != nil {
		return e.reply(r), nil
	}
	body, err := io.ReadAll(r.Body)
	e.mu.Lock()
	e.asked = append(e.asked, r.URL.Host+" "+string(body))
	e.mu.Unlock()
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("done")), Request: r}, err
}

func (e *elections) reached() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.asked, ",")
}

// put sends a change and gives its answer when it comes.
func (k *kit) put(body string) <-chan reply {
	call, answer := k.prepare(put, "/v1/pools/p", k.tokens[api.RoleAdmin], body), make(chan reply, 1)
	go func() { answer <- call() }() // waited for by whoever reads the channel
	return answer
}

func TestRequestWaitsForALeader(t *testing.T) {
	k, e := newElections(t, patience)
	answer := k.put(`{"max":3}`)
	<-e.looked
	e.elect("c2:1")
	if got := <-answer; got.status != http.StatusOK || e.reached() != `c2:1 {"max":3}` {
		t.Errorf("%d, and it came to %q", got.status, e.reached())
	}
}

func TestRequestWaitsUntilThisCoordinatorLeads(t *testing.T) {
	k, e := newElections(t, patience)
	answer := k.put(`{"max":3}`)
	<-e.looked
	e.scriptedCluster.leader.Store(true)
	e.elect("")
	if got := <-answer; got.status != http.StatusCreated || e.reached() != "" {
		t.Errorf("%d, and it came to %q", got.status, e.reached())
	}
}

func TestRequestGoesToTheNextLeaderWhenTheKnownOneIsGone(t *testing.T) {
	k, e := newElections(t, patience)
	gone := make(chan struct{})
	e.answer = func(leader string) error {
		if leader == "c2:1" {
			<-e.looked // for this leader
			close(gone)
			return &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		}
		return nil
	}
	e.elect("c2:1")
	answer := k.put(`{"max":3}`)
	<-gone
	<-e.looked // for the next one
	e.elect("c3:1")
	if got := <-answer; got.status != http.StatusOK || e.reached() != `c3:1 {"max":3}` {
		t.Errorf("%d, and it came to %q", got.status, e.reached())
	}
}

// What a leader may have taken is the caller's to repeat.
func TestRequestThatMayHaveArrivedIsNotSentAgain(t *testing.T) {
	k, e := newElections(t, patience)
	e.answer = func(string) error {
		e.elect("c3:1")
		return errors.New("the connection broke")
	}
	e.elect("c2:1")
	wantProblem(t, <-k.put(`{"max":3}`), fault.NoLeader)
	if e.reached() != "" {
		t.Errorf("it came to %q", e.reached())
	}
}

func TestRequestIsRefusedWhenNoLeaderComes(t *testing.T) {
	k, _ := newElections(t, time.Millisecond)
	wantProblem(t, <-k.put(`{"max":3}`), fault.NoLeader)
}

// A coordinator that is cut off tells of itself, and that it does: a client then asks another one.
func TestStatusTellsWhetherALeaderIsReached(t *testing.T) {
	for name, c := range map[string]struct {
		arrange func(e *elections)
		query   string
		want    string
	}{
		"nobody leads":             {func(*elections) {}, "", "false"},
		"the leader cannot be had": {func(e *elections) { e.answer = func(string) error { return errors.New("no route") }; e.elect("c2:1") }, "", "false"},
		"this one leads":           {func(e *elections) { e.scriptedCluster.leader.Store(true) }, "", ""},
		"the leader answers":       {func(e *elections) { e.elect("c2:1") }, "", ""},
		"this one alone is meant":  {func(*elections) {}, "?consistency=stale", ""},
	} {
		k, e := newElections(t, time.Millisecond)
		c.arrange(e)
		got := k.prepare(get, "/v1/status"+c.query, k.tokens[api.RoleAdmin], "")()
		if h := got.header.Get(api.HeaderKnownLeader); got.status != http.StatusOK || h != c.want {
			t.Errorf("%s: %d, %s %q, want %q", name, got.status, api.HeaderKnownLeader, h, c.want)
		}
	}
}
