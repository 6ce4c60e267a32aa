package nginx

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// straightServer answers with fn and counts the connections that it took.
func straightServer(t *testing.T, fn http.HandlerFunc) (client *http.Client, s *straight, url string, taken *atomic.Int64, srv *httptest.Server) {
	t.Helper()
	taken = new(atomic.Int64)
	srv = httptest.NewUnstartedServer(fn)
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			taken.Add(1)
		}
	}
	srv.Start()
	s = &straight{dial: new(net.Dialer).DialContext, other: failing{}}
	t.Cleanup(srv.Close)
	t.Cleanup(s.CloseIdleConnections)
	return &http.Client{Transport: s}, s, srv.URL, taken, srv
}

// failing is a transport that must not be asked, or says that it was.
type failing struct{}

func (failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, io.ErrNoProgress }

func getText(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStraightKeepsItsConnection(t *testing.T) {
	t.Parallel()
	c, s, url, taken, srv := straightServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
		case "/last":
			w.Header().Set("Connection", "close")
		case "/early":
			w.WriteHeader(http.StatusEarlyHints)
		}
		if r.URL.Path != "/empty" {
			_, _ = io.WriteString(w, r.Host+r.URL.Path)
		}
	})
	host := strings.TrimPrefix(url, "http://")
	for i, path := range []string{"/a", "/empty", "/early", "/b", "/last", "/c"} {
		want := host + path
		if path == "/empty" {
			want = ""
		}
		if got := getText(t, c, url+path); got != want {
			t.Errorf("%s: %q", path, got)
		}
		// The fifth answer ends the connection, so the sixth question needs another one.
		if n := taken.Load(); n != int64(1+i/5) {
			t.Errorf("%s: %d connections", path, n)
		}
	}
	// What the other side has closed meanwhile is replaced without an error.
	srv.CloseClientConnections()
	if got := getText(t, c, url+"/d"); got != host+"/d" || taken.Load() != 3 {
		t.Errorf("after the end of the kept connection: %q, %d connections", got, taken.Load())
	}
	// One that is kept for another address is not used, and nobody has used it for long.
	s.mu.Lock()
	for _, k := range s.idle {
		k.since = k.since.Add(-keptFor)
	}
	s.mu.Unlock()
	if got := getText(t, c, url+"/e"); got != host+"/e" || taken.Load() != 4 {
		t.Errorf("after a long pause: %q, %d connections", got, taken.Load())
	}
}

// An answer that is not read to its end, and one that never ends, cost their connection and no time.
func TestStraightDoesNotWaitForWhatIsNotRead(t *testing.T) {
	t.Parallel()
	c, s, url, taken, _ := straightServer(t, func(w http.ResponseWriter, r *http.Request) {
		for r.URL.Path == "/endless" && r.Context().Err() == nil {
			_, _ = io.WriteString(w, "and on ")
		}
		if r.URL.Path == "/silent" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	})
	ctx, cancel := context.WithCancel(within(t))
	for i, path := range []string{"/endless", "/silent", "/"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if path == "/silent" {
			cancel()
			if b, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("the end of the context does not end the answer: %q", b)
			}
			ctx = within(t)
		}
		_ = resp.Body.Close()
		if taken.Load() != int64(i+1) {
			t.Errorf("%s: %d connections", path, taken.Load())
		}
	}
	if len(s.idle) != 1 {
		t.Errorf("%d connections are kept", len(s.idle))
	}
	ctx, cancel = context.WithCancel(within(t))
	cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if _, err := c.Do(req); err == nil {
		t.Error("an ended context asks")
	}
}

func TestStraightLeavesTheRestToOthers(t *testing.T) {
	t.Parallel()
	c, _, url, taken, _ := straightServer(t, func(http.ResponseWriter, *http.Request) {})
	if _, err := c.Post(url, "text/plain", strings.NewReader("x")); err == nil || taken.Load() != 0 {
		t.Errorf("POST: %v", err)
	}
	if _, err := c.Get(strings.Replace(url, "http:", "https:", 1)); err == nil || taken.Load() != 0 {
		t.Errorf("https: %v", err)
	}
}
