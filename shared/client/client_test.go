package client_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// coordinator is a scripted one.
func coordinator(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

func newClient(t *testing.T, addresses ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{Addresses: addresses, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, code fault.Code, retryAfter string) {
	if retryAfter != "" {
		w.Header().Set("Retry-After", retryAfter)
	}
	f := fault.New(code, "because")
	answer(w, f.Status(), api.Problem{Status: f.Status(), Title: "t", Detail: "because", Code: string(code), Errors: []fault.Location{{Location: "body.x", Message: "m"}}})
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestOptions(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:7400": "http://127.0.0.1:7400", "localhost:7400": "http://localhost:7400", "[::1]:7400": "http://[::1]:7400",
		"10.0.0.1:7400": "https://10.0.0.1:7400", "c1.example.test:7400": "https://c1.example.test:7400",
		"https://c1.example.test:7400/": "https://c1.example.test:7400", "http://c1/base/": "http://c1/base", "c1//": "https://c1",
	} {
		c, err := client.New(client.Options{Addresses: []string{in}})
		if err != nil || c.Addresses()[0] != want {
			t.Errorf("%s: %v, %v; want %s", in, c, err, want)
		}
	}
	dir := t.TempDir()
	notPEM := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(notPEM, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string]client.Options{
		"no address":  {},
		"no host":     {Addresses: []string{"http://"}},
		"scheme":      {Addresses: []string{"ftp://x"}},
		"user":        {Addresses: []string{"http://u:p@x"}},
		"query":       {Addresses: []string{"http://x?y"}},
		"empty query": {Addresses: []string{"http://x?"}},
		"fragment":    {Addresses: []string{"http://x#y"}},
		"line break":  {Addresses: []string{"x"}, Token: "a\nb"},
		"missing CA":  {Addresses: []string{"x"}, CACert: filepath.Join(dir, "none")},
		"CA is no CA": {Addresses: []string{"x"}, CACert: notPEM},
	} {
		if _, err := client.New(opts); err == nil || !strings.HasPrefix(err.Error(), "cannot ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCACert(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, api.Status{Leader: "c1"}) }))
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Options{Addresses: []string{srv.URL}, CACert: ca})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := c.Status(deadline(t)); err != nil || st.Leader != "c1" {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := newClient(t, srv.URL).Status(deadline(t)); err == nil {
		t.Error("a certificate of an unknown CA was believed")
	}
}

func TestWhatIsSent(t *testing.T) {
	var got *http.Request
	var body []byte
	url := coordinator(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		body, _ = io.ReadAll(r.Body)
		w.Header().Set(api.HeaderIndex, "17")
		answer(w, http.StatusCreated, api.Allocation{AllocationID: "al-1"})
	})
	c := newClient(t, url)
	var index uint64
	a, created, err := c.Start(deadline(t), api.StartAllocation{OrganizationID: "o"}, client.IndexTo(&index))
	if err != nil || !created || a.AllocationID != "al-1" || index != 17 {
		t.Fatalf("%+v, %v, %v, index %d", a, created, err, index)
	}
	if got.Method != http.MethodPost || got.URL.Path != "/v1/allocations" || got.Header.Get("Authorization") != "Bearer secret" ||
		len(got.Header.Get("Idempotency-Key")) != 64 || string(body) != `{"organization_id":"o"}` {
		t.Errorf("%s %s %v %s", got.Method, got.URL, got.Header, body)
	}
	if _, _, err = c.Start(deadline(t), api.StartAllocation{}, client.IdempotencyKey("mine")); err != nil || got.Header.Get("Idempotency-Key") != "mine" {
		t.Errorf("key %q, %v", got.Header.Get("Idempotency-Key"), err)
	}
	if _, err = c.Pool(deadline(t), "../tokens?x", client.Blocking(5, time.Minute), client.Consistency("stale")); err != nil {
		t.Fatal(err)
	}
	if got.URL.EscapedPath() != "/v1/pools/..%2Ftokens%3Fx" || got.URL.RawQuery != "consistency=stale&index=5&wait=1m0s" {
		t.Errorf("%s", got.URL)
	}
	if _, err := c.Release(deadline(t), "al-1", 30*time.Second); err != nil || got.Method != http.MethodDelete || got.URL.RawQuery != "drain=30s" {
		t.Errorf("%s %s, %v", got.Method, got.URL, err)
	}
}

func TestProblemsBecomeFaults(t *testing.T) {
	url := coordinator(t, func(w http.ResponseWriter, _ *http.Request) { refuse(w, fault.PoolExhausted, "7") })
	_, err := newClient(t, url).Pool(deadline(t), "p")
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != fault.PoolExhausted || f.Message != "because" || f.RetryAfter != 7*time.Second || len(f.Locations) != 1 {
		t.Errorf("%#v", err)
	}
	for _, status := range []int{200, 404, 502} {
		url := coordinator(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<html>a proxy</html>")
		})
		if _, err := newClient(t, url).Pool(deadline(t), "p"); err == nil || strings.Contains(err.Error(), "<html>") {
			t.Errorf("%d of a stranger: %v", status, err)
		}
	}
}

// A wait beyond all measure does not turn into none.
func TestTheWaitThatAnAnswerAsksForIsBounded(t *testing.T) {
	for header, want := range map[string]time.Duration{"9223372037": 24 * time.Hour, "9223372036854775807": 24 * time.Hour, "9223372036854775808": 0, "-1": 0, "60": time.Minute} {
		url := coordinator(t, func(w http.ResponseWriter, _ *http.Request) { refuse(w, fault.PoolExhausted, header) })
		_, err := newClient(t, url).Pool(deadline(t), "p")
		var f *fault.Error
		if !errors.As(err, &f) || f.RetryAfter != want {
			t.Errorf("%s: %#v, want %s", header, err, want)
		}
	}
}

// A list that always goes on after the same item is not read for ever.
func TestAListThatDoesNotGoOnIsLeft(t *testing.T) {
	url := coordinator(t, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, api.List[api.Gateway]{Items: []api.Gateway{{GatewayID: "a"}}, Cursor: "a"})
	})
	if list, err := newClient(t, url).ListGateways(deadline(t), client.GatewayFilter{}); err == nil || !strings.Contains(err.Error(), `does not go on after "a"`) {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestNoLeaderIsAskedAgain(t *testing.T) {
	var calls atomic.Int32
	url := coordinator(t, func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); string(body) != `{"max":3}` {
			refuse(w, fault.InvalidRequest, "")
			return
		}
		if calls.Add(1) < 4 {
			refuse(w, fault.NoLeader, "1")
			return
		}
		answer(w, 200, api.Pool{Name: "p"})
	})
	three := 3
	if p, err := newClient(t, url).PutPool(deadline(t), "p", api.PutPool{Max: &three}); err != nil || p.Name != "p" || calls.Load() != 4 {
		t.Errorf("%+v, %v after %d calls", p, err, calls.Load())
	}
	never := coordinator(t, func(w http.ResponseWriter, _ *http.Request) { refuse(w, fault.NoLeader, "1") })
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := newClient(t, never).Pool(short, "p"); !fault.Is(err, fault.NoLeader) {
		t.Errorf("at the end of the context: %v", err)
	}
	impatient, err := client.New(client.Options{Addresses: []string{never}, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := impatient.Pool(context.Background(), "p"); !fault.Is(err, fault.NoLeader) {
		t.Errorf("without patience: %v", err)
	}
}

func TestOtherRefusalsAreNotRepeated(t *testing.T) {
	for code := range fault.Codes() {
		if code == fault.NoLeader || code == fault.RateLimited {
			continue
		}
		var calls atomic.Int32
		url := coordinator(t, func(w http.ResponseWriter, _ *http.Request) {
			calls.Add(1)
			refuse(w, code, "1")
		})
		if _, err := newClient(t, url, url).Pool(deadline(t), "p"); !fault.Is(err, code) || calls.Load() != 1 {
			t.Errorf("%s: %v after %d calls", code, err, calls.Load())
		}
	}
}

// dead is an address where nobody listens.
func dead() string {
	srv := httptest.NewServer(nil)
	srv.Close()
	return srv.URL
}

func TestAnotherCoordinatorIsAsked(t *testing.T) {
	var calls atomic.Int32
	alive := coordinator(t, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		answer(w, 200, api.Pool{Name: "p"})
	})
	c := newClient(t, dead(), alive, dead())
	for range 3 {
		if p, err := c.Pool(deadline(t), "p"); err != nil || p.Name != "p" {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	leaderless := coordinator(t, func(w http.ResponseWriter, _ *http.Request) { refuse(w, fault.NoLeader, "1") })
	if _, err := newClient(t, leaderless, alive).Pool(deadline(t), "p"); err != nil {
		t.Errorf("one without leader, one with: %v", err)
	}
	_, err := newClient(t, dead(), dead()).Pool(deadline(t), "p")
	var f *fault.Error
	if err == nil || errors.As(err, &f) || !strings.HasPrefix(err.Error(), "cannot reach a coordinator at http://") {
		t.Errorf("nobody there: %v", err)
	}
	if calls.Load() != 4 {
		t.Errorf("%d calls", calls.Load())
	}
}

// One that is cut off from the others answers what it knows, and that only counts when nobody knows more.
func TestACoordinatorThatReachesNoLeaderHasTheLastWord(t *testing.T) {
	var asked atomic.Int32
	alone := coordinator(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set(api.HeaderKnownLeader, "false")
		answer(w, http.StatusOK, api.Status{Version: "alone"})
	})
	good := coordinator(t, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, api.Status{Leader: "c2", Version: "good"})
	})
	for name, x := range map[string]struct {
		bases []string
		want  string
	}{
		"another one leads":       {[]string{alone, good}, "good"},
		"the other ones are gone": {[]string{dead(), alone, dead()}, "alone"},
		"nobody leads":            {[]string{alone, alone}, "alone"},
		"only this one is asked":  {[]string{alone}, "alone"},
	} {
		c := newClient(t, x.bases...)
		if s, err := c.Status(deadline(t)); err != nil || s.Version != x.want {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	c, before := newClient(t, alone, good), asked.Load()
	for range 3 {
		if _, err := c.Status(deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked.Load() - before; n != 1 {
		t.Errorf("the one that is alone was asked %d times; the one that answered better is asked first", n)
	}
}

// One that hangs is passed over like one that is gone, and is not asked again while another answers.
func TestAHangingCoordinatorIsPassedOver(t *testing.T) {
	over := make(chan struct{})
	var hung, answered atomic.Int32
	hanging := coordinator(t, func(_ http.ResponseWriter, r *http.Request) {
		hung.Add(1)
		select {
		case <-over:
		case <-r.Context().Done():
		}
	})
	defer close(over) // before the servers are closed, which waits for their calls
	good := coordinator(t, func(w http.ResponseWriter, _ *http.Request) {
		answered.Add(1)
		answer(w, http.StatusOK, api.Status{Leader: "c2"})
	})
	c, err := client.New(client.Options{Addresses: []string{hanging, good}, Probe: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if s, err := c.Status(deadline(t)); err != nil || s.Leader != "c2" {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	if h, a := hung.Load(), answered.Load(); h != 1 || a < 3 {
		t.Errorf("the one that hangs was asked %d times, the other %d times; want 1, and two calls after a look", h, a)
	}
	none, err := client.New(client.Options{Addresses: []string{hanging, hanging}, Probe: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Status(deadline(t)); err == nil || !strings.Contains(err.Error(), "cannot reach a coordinator at "+hanging) {
		t.Errorf("when all hang: %v", err)
	}
}

// Also the only coordinator is not waited for without end: whoever asked would never learn that it hangs.
func TestTheOnlyCoordinatorHangs(t *testing.T) {
	over := make(chan struct{})
	hanging := coordinator(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-over:
		case <-r.Context().Done():
		}
	})
	defer close(over) // before the server is closed, which waits for its calls
	c, err := client.New(client.Options{Addresses: []string{hanging}, Probe: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Status(deadline(t))
	if err == nil || !strings.Contains(err.Error(), "cannot reach a coordinator at "+hanging) || !strings.Contains(err.Error(), "it did not answer within 5ms") {
		t.Errorf("%v", err)
	}
}

func TestAllPagesAreFetched(t *testing.T) {
	url := coordinator(t, func(w http.ResponseWriter, r *http.Request) {
		n := map[string]int{"": 0, "1": 1, "2": 2}[r.URL.Query().Get("cursor")]
		page := api.List[api.Gateway]{Items: []api.Gateway{{GatewayID: fmt.Sprint(n)}}}
		if n < 2 {
			page.Cursor = fmt.Sprint(n + 1)
		}
		if r.URL.Query().Get("pool") != "p" {
			refuse(w, fault.InvalidRequest, "")
			return
		}
		answer(w, 200, page)
	})
	list, err := newClient(t, url).ListGateways(deadline(t), client.GatewayFilter{Pool: "p"})
	if err != nil || len(list) != 3 || list[2].GatewayID != "2" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestFollowGoesOnAfterABreak(t *testing.T) {
	var asked []string
	url := coordinator(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header.Get("Last-Event-ID"))
		switch len(asked) {
		case 2:
			refuse(w, fault.NoLeader, "1")
			return
		case 4:
			refuse(w, fault.Forbidden, "")
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, ": following\n\nid: %d.1\nevent: x.y\ndata: {\"id\":\"%d.1\"}\n\n", len(asked), len(asked))
	})
	var seen []string
	var last error
	for e, err := range newClient(t, url).Follow(deadline(t), client.EventQuery{After: "0.9"}) {
		if err != nil {
			last = err
			continue
		}
		seen = append(seen, e.ID)
	}
	if strings.Join(seen, " ") != "1.1 3.1" || !fault.Is(last, fault.Forbidden) {
		t.Errorf("saw %v and then %v", seen, last)
	}
	if strings.Join(asked, " ") != "0.9 1.1 1.1 3.1" {
		t.Errorf("asked after %v", asked)
	}
}

// A call may have waited for longer than a leader is waited for when the leader that held it is stopped.
func TestACallThatWaitedLongIsMadeAgain(t *testing.T) {
	const patience = 200 * time.Millisecond
	var calls atomic.Int32
	url := coordinator(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			<-time.After(2 * patience)
			refuse(w, fault.NoLeader, "1")
			return
		}
		answer(w, http.StatusCreated, api.Allocation{AllocationID: "al-1"})
	})
	c, err := client.New(client.Options{Addresses: []string{url}, RetryFor: patience})
	if err != nil {
		t.Fatal(err)
	}
	if a, _, err := c.Start(deadline(t), api.StartAllocation{OrganizationID: "x"}); err != nil || a.AllocationID != "al-1" {
		t.Errorf("%+v, %v after %d calls", a, err, calls.Load())
	}
}

func TestFollowTellsOfAGap(t *testing.T) {
	ctx, stop := context.WithCancel(deadline(t))
	defer stop()
	streams := 0
	url := coordinator(t, func(w http.ResponseWriter, r *http.Request) {
		streams++
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, ": following\n\n: %s\n\ndata: {\"id\":\"%d.1\"}\n\n", api.EventsDropped, streams)
	})
	var told []string
	dropped := func() { told = append(told, "gap") }
	for e, err := range newClient(t, url).Follow(ctx, client.EventQuery{Dropped: dropped}) {
		if err != nil {
			t.Fatal(err)
		}
		if told = append(told, e.ID); len(told) > 2 {
			break
		}
	}
	// Where the oldest that is kept was asked for, what was before it is not missed.
	if got := strings.Join(told, " "); got != "1.1 gap 2.1" {
		t.Errorf("told of %q", got)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	url := coordinator(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(deadline(t))
	time.AfterFunc(20*time.Millisecond, cancel)
	for _, err := range newClient(t, url).Follow(ctx, client.EventQuery{}) {
		t.Errorf("an end is not an error: %v", err)
	}
}

func TestAgentStream(t *testing.T) {
	url := coordinator(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "host=h1&instance=i1" {
			refuse(w, fault.InvalidRequest, "")
			return
		}
		_, _ = io.WriteString(w, "{\"index\":1,\"full\":true}\n{\"index\":2}\n")
	})
	var frames []uint64
	err := newClient(t, url).AgentStream(deadline(t), "h1", "i1", func(f api.AssignmentFrame) error {
		frames = append(frames, f.Index)
		return nil
	})
	if !errors.Is(err, io.EOF) || len(frames) != 2 {
		t.Errorf("%v, %v", frames, err)
	}
	enough := errors.New("enough")
	if err := newClient(t, url).AgentStream(deadline(t), "h1", "i1", func(api.AssignmentFrame) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}
