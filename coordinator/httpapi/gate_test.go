package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestAuthentication(t *testing.T) {
	k := newKit(t)
	good := k.tokens[api.RoleReader]
	for name, header := range map[string]string{
		"basic": "Basic " + good, "no scheme": good, "empty": "Bearer ", "two tokens": "Bearer " + good + " " + good,
		"upper case": "Bearer " + strings.ToUpper(good), "prefix": "Bearer " + good[:40], "long": "Bearer " + strings.Repeat("a", 5000),
	} {
		got := k.call(get, "/v1/status", "", "", "Authorization", header)
		if got.problem.Code != string(fault.Unauthenticated) {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if strings.Contains(string(got.body), good) {
			t.Errorf("%s: the answer has the secret", name)
		}
	}
	if got := k.call(get, "/v1/status", "", "", "Authorization", "bearer "+good); got.status != 200 {
		t.Errorf("the scheme in lower case: %d %s", got.status, got.body)
	}
	expiring := k.makeToken(api.RoleReader, k.now().Add(time.Hour))
	if got := k.call(get, "/v1/status", expiring, ""); got.status != 200 {
		t.Errorf("before its expiry: %d", got.status)
	}
	k.offset.Store(int64(time.Hour))
	wantProblem(t, k.call(get, "/v1/status", expiring, ""), fault.Unauthenticated)
}

func TestARevokedTokenOpensNothing(t *testing.T) {
	k := newKit(t)
	ctx := context.Background()
	made, err := k.client(api.RoleAdmin).CreateToken(ctx, api.CreateToken{Role: api.RoleReader})
	if err != nil {
		t.Fatal(err)
	}
	if got := k.call(get, "/v1/status", made.Secret, ""); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if err := k.client(api.RoleAdmin).DeleteToken(ctx, made.TokenID); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, k.call(get, "/v1/status", made.Secret, ""), fault.Unauthenticated)
}

func TestRateLimits(t *testing.T) {
	slow := Rate{PerSecond: 0.001, Burst: 3}
	k := newKit(t, func(o *Options) { o.Limits = Limits{Token: slow, Anonymous: slow, Failed: slow} })
	for what, c := range map[string]struct {
		path, secret string
		before       int
	}{
		"token":     {"/v1/status", k.tokens[api.RoleReader], 200},
		"anonymous": {"/healthz", "", 200},
		"failed":    {"/v1/status", "0000", 401},
	} {
		for i := range 3 {
			if got := k.call(get, c.path, c.secret, ""); got.status != c.before {
				t.Errorf("%s %d: %d", what, i, got.status)
			}
		}
		got := k.call(get, c.path, c.secret, "")
		wantProblem(t, got, fault.RateLimited)
		if got.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", what)
		}
	}
	if got := k.call(get, "/v1/status", k.tokens[api.RoleAdmin], ""); got.status != 200 {
		t.Errorf("another token from an address with failures: %d", got.status)
	}
}

func TestBuckets(t *testing.T) {
	now := time.Unix(0, 0)
	b := buckets{rate: Rate{PerSecond: 10, Burst: 2}, now: func() time.Time { return now }}
	for i, want := range []time.Duration{0, 0, 100 * time.Millisecond} {
		if got := b.take("a"); got != want {
			t.Errorf("take %d: wait %s, want %s", i, got, want)
		}
	}
	if b.take("b") != 0 {
		t.Error("keys share a bucket")
	}
	now = now.Add(150 * time.Millisecond)
	if got := b.take("a"); got != 0 {
		t.Errorf("after a pause: wait %s", got)
	}
	now = now.Add(time.Hour)
	for i := range 3 * bucketsKept {
		b.take(fmt.Sprint(i))
	}
	if n := len(b.all); n > bucketsKept {
		t.Errorf("%d buckets kept", n)
	}
	if network("2001:db8::1") != network("2001:db8::ffff") || network("192.0.2.1") == network("192.0.2.2") {
		t.Error("networks are told apart wrongly")
	}
}

func TestRefusalsAreRecordedAtABoundedRate(t *testing.T) {
	k := newKit(t)
	for range 30 {
		k.call(get, "/v1/pools", k.tokens[api.RoleReader], "")
	}
	if n := k.metrics.refused.Load(); n != 30 {
		t.Errorf("%d refusals counted, want 30", n)
	}
	var seen []state.Event
	refused := func() (n int) {
		seen = nil
		events, _, _ := k.store.Events(state.EventID{}, state.KeptEvents)
		for _, e := range events {
			if e.Type == eventRefused {
				seen = append(seen, e)
				var count int
				if _, err := fmt.Sscanf(e.Reason, "%d refused", &count); err != nil {
					t.Fatalf("reason %q: %v", e.Reason, err)
				}
				n += count
			}
		}
		return n
	}
	eventually(t, "all refusals are recorded", func() bool { return refused() == 30 })
	if len(seen) > 10 {
		t.Errorf("%d entries for one flood", len(seen))
	}
	e := seen[0]
	if e.Code != fault.Forbidden || !strings.Contains(e.Reason, "GET /v1/pools") || !strings.Contains(e.Reason, "127.0.0.1") {
		t.Errorf("event %+v", e)
	}
}

// What a coordinator refuses while nobody leads is an event as soon as somebody does; what is too old is let go.
func TestARefusalWithoutLeaderIsRecordedLater(t *testing.T) {
	k := newKit(t)
	k.cluster.leader.Store(false)
	rf := newRefusals(k.server)
	rf.add(refusal{code: fault.Forbidden, route: "GET /v1/pools", actor: "tk-late", address: "192.0.2.1"})
	recorded := func() int {
		rf.record(t.Context())
		events, _, _ := k.store.Events(state.EventID{}, state.KeptEvents)
		n := 0
		for _, e := range events {
			if e.Type == eventRefused && e.Actor == "tk-late" {
				n++
			}
		}
		return n
	}
	if recorded() != 0 {
		t.Fatal("recorded without a leader")
	}
	k.cluster.leader.Store(true)
	for range 2 {
		if n := recorded(); n != 1 {
			t.Errorf("recorded %d times", n)
		}
	}
	k.cluster.leader.Store(false)
	for range 10 * keptRefusals {
		rf.keep(command.RecordEvents{Meta: command.Meta{At: time.Now()}}, time.Now())
	}
	if rf.keep(command.RecordEvents{}, time.Now()); len(rf.kept) != keptRefusals {
		t.Errorf("%d entries are kept", len(rf.kept))
	}
	rf.kept = nil
	if rf.keep(command.RecordEvents{Meta: command.Meta{At: time.Now().Add(-refusalKept)}}, time.Now()); len(rf.kept) != 0 {
		t.Error("what is too old is kept")
	}
}

func TestAFloodOfKindsIsBounded(t *testing.T) {
	k := newKit(t)
	rf := newRefusals(k.server)
	for i := range 10 * refusalKinds {
		rf.add(refusal{code: fault.Forbidden, actor: fmt.Sprint(i)})
	}
	if len(rf.seen) != refusalKinds || rf.more != 9*refusalKinds {
		t.Errorf("%d kinds and %d more", len(rf.seen), rf.more)
	}
}

// logged is a logger that keeps its lines.
type logged struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}

func TestAPanicIsAnInternalError(t *testing.T) {
	var log logged
	k := newKit(t, func(o *Options) { o.Logger = hclog.New(&hclog.LoggerOptions{Output: &log}) })
	org := k.organization()
	k.allocs.panics.Store(true)
	got := k.call(post, "/v1/allocations", k.tokens[api.RolePlatform], `{"organization_id":"`+string(org)+`"}`)
	wantProblem(t, got, fault.Internal)
	if strings.Contains(string(got.body), "canary") || strings.Contains(string(got.body), "goroutine") {
		t.Errorf("the answer tells of the inside: %s", got.body)
	}
	if !strings.Contains(log.String(), "canary-of-a-stack") || !strings.Contains(log.String(), "goroutine") {
		t.Errorf("the log does not tell of the panic: %s", log.String())
	}
	k.allocs.panics.Store(false)
	if got := k.call(get, "/healthz", "", ""); got.status != 200 {
		t.Errorf("after a panic: %d", got.status)
	}
}

func TestCausesStayInside(t *testing.T) {
	var log logged
	k := newKit(t, func(o *Options) { o.Logger = hclog.New(&hclog.LoggerOptions{Output: &log}) })
	k.allocs.fail.Store(fault.Wrap(fault.RouteApplyFailed, errors.New("canary-cause"), "nginx refused the route"))
	got := k.call(post, "/v1/allocations", k.tokens[api.RolePlatform], `{"organization_id":"`+string(id.NewOrganization())+`"}`)
	wantProblem(t, got, fault.RouteApplyFailed)
	if strings.Contains(string(got.body), "canary") || got.problem.Detail != "nginx refused the route" {
		t.Errorf("answer %s", got.body)
	}
	if !strings.Contains(log.String(), "canary-cause") {
		t.Errorf("the log has no cause: %s", log.String())
	}
}

func TestWithoutLeader(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.organization()
	k.cluster.leader.Store(false)
	admin := k.tokens[api.RoleAdmin]
	for _, c := range []struct{ method, path, body string }{
		{post, "/v1/allocations", `{"organization_id":"` + string(org) + `"}`},
		{post, "/v1/allocations/batch", `{"organization_ids":["` + string(org) + `"]}`},
		{get, "/v1/allocations", ""},
		{get, "/v1/pools/default?consistency=consistent", ""},
		{put, "/v1/pools/default", `{}`},
		{del, "/v1/organizations/" + string(org), ""},
		{del, "/v1/allocations/al-abcdefghijklmnop", ""},
		{get, "/v1/events", ""},
		{post, "/gateway/stop", `{"organization_id":"` + string(org) + `"}`},
		{get, "/readyz", ""},
	} {
		got := k.call(c.method, c.path, admin, c.body)
		wantProblem(t, got, fault.NoLeader)
		if got.header.Get("Retry-After") != "1" {
			t.Errorf("%s %s: Retry-After %q", c.method, c.path, got.header.Get("Retry-After"))
		}
	}
	for _, path := range []string{"/v1/status", "/healthz", "/metrics", "/v1/pools?consistency=stale", "/v1/events?consistency=stale"} {
		if got := k.call(get, path, admin, ""); got.status != http.StatusOK {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	k.cluster.leader.Store(true)
	if got := k.call(get, "/v1/pools?consistency=consistent", admin, ""); got.status != 200 || k.cluster.barriers.Load() != 1 {
		t.Errorf("consistent: %d after %d barriers", got.status, k.cluster.barriers.Load())
	}
}

// unknownProposer loses every answer.
type unknownProposer struct{}

func (unknownProposer) Propose(context.Context, command.Command) (command.Result, uint64, error) {
	return command.Result{}, 0, errors.New("timed out enqueuing")
}

func TestAnUnknownOutcomeAsksToTryAgain(t *testing.T) {
	k := newKit(t)
	k.server.opts.Proposer = unknownProposer{}
	got := k.call(put, "/v1/pools/p", k.tokens[api.RoleAdmin], `{}`)
	wantProblem(t, got, fault.NoLeader)
	if strings.Contains(string(got.body), "enqueuing") {
		t.Errorf("answer %s", got.body)
	}
}

func TestReadyMeansALeaderAndANamedCluster(t *testing.T) {
	k := newKit(t)
	if got := k.call(get, "/readyz", "", ""); got.status != http.StatusOK {
		t.Errorf("%d %s", got.status, got.body)
	}
	k.mu.Lock()
	k.store.Replace(state.New()) // as before the first leader has begun
	k.mu.Unlock()
	wantProblem(t, k.call(get, "/readyz", "", ""), fault.NoLeader)
	if got := k.call(get, "/healthz", "", ""); got.status != http.StatusOK {
		t.Errorf("healthz: %d", got.status)
	}
}

// A coordinator that does not lead, or does not have all of the log yet, cannot tell that a token is wrong.
func TestUnknownTokenWithoutLeaderIsNotRefused(t *testing.T) {
	k := newKit(t)
	const unknown = "0000000000000000000000000000000000000000000000000000000000000000"
	wantProblem(t, k.call(get, "/v1/pools", unknown, ""), fault.Unauthenticated)
	k.cluster.leader.Store(false)
	wantProblem(t, k.call(get, "/v1/pools", unknown, ""), fault.NoLeader)
}
