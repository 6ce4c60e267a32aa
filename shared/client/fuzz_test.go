package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// saying answers every request with the same.
type saying struct {
	status int
	retry  string
	body   string
}

func (s saying) RoundTrip(r *http.Request) (*http.Response, error) {
	h := http.Header{}
	h.Set("Retry-After", s.retry)
	h.Set(api.HeaderIndex, s.retry)
	return &http.Response{StatusCode: s.status, Status: "status", Header: h, Body: io.NopCloser(strings.NewReader(s.body)), Request: r}, nil
}

// FuzzAnswer: whatever answers in the place of a coordinator, the answer is read or refused with a reason, a wait that it
// asks for is none that lies in the past, and a list and a stream come to an end.
func FuzzAnswer(f *testing.F) {
	f.Add(200, "1", `{"items":[{"gateway_id":"a"}],"cursor":""}`)
	f.Add(200, "1", `{"items":[{"gateway_id":"a"}],"cursor":"h1"}`)
	f.Add(200, "", ": following\n\nid: 1.1\nevent: host.x\ndata: {\"id\":\"1.1\"}\n\n")
	f.Add(200, "-1", `{"full":true,"index":1} {"index":2}`)
	f.Add(429, "9223372036854775807", `{"status":429,"code":"rate_limited","detail":"slowly","errors":[{"location":"x"}]}`)
	f.Add(502, "x", "<html>")
	f.Add(204, "", "")
	f.Fuzz(func(t *testing.T, status int, retry, body string) {
		c, err := New(Options{Addresses: []string{"http://192.0.2.1:7400"}, Token: "t", HTTPClient: &http.Client{Transport: saying{status, retry, body}}, RetryFor: -1})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.ListGateways(context.Background(), GatewayFilter{})
		var refused *fault.Error
		if errors.As(err, &refused) && (refused.RetryAfter < 0 || refused.Code == "") {
			t.Fatalf("%d %q: wait %s for %q", status, retry, refused.RetryAfter, refused.Code)
		}
		if err != nil && err.Error() == "" {
			t.Fatal("refused without a word")
		}
		if status != http.StatusOK {
			return
		}
		var q EventQuery
		n := 0
		if _, _, err := c.follow(context.Background(), &q, func(api.Event, error) bool { n++; return true }); n > strings.Count(body, "data:") {
			t.Fatalf("%d events of %q, %v", n, body, err)
		}
		n = 0
		if err := c.AgentStream(context.Background(), "h1", "i", func(api.AssignmentFrame) error { n++; return nil }); err == nil || n > len(body) {
			t.Fatalf("%d frames of %q, %v", n, body, err)
		}
	})
}

// FuzzParseAddress: what is taken as the address of a coordinator leads there and nowhere else.
func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"10.0.0.1:7400", "https://c1.example.org/", "localhost:7400", "[::1]:7400", "::1", "http://u:p@x", "ftp://x", "https://x?y", "//x", "https://x#y", "", ":"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseAddress(s)
		if err != nil {
			if !strings.Contains(err.Error(), "as coordinator address") || len(err.Error()) > 1000 {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "http" && u.Scheme != "https" {
			t.Fatalf("%q is read as %+v", s, u)
		}
		if again, err := parseAddress(u.String()); err != nil || again.String() != u.String() {
			t.Fatalf("%q is read as %s, and that as %v, %v", s, u, again, err)
		}
	})
}
