package agent_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
)

// join opens a project's WebSocket with a token; the status of the answer where it is refused.
func (h *home) join(project, token string) (*websocket.Conn, int) {
	h.t.Helper()
	header := http.Header{}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	c, res, err := websocket.Dial(h.t.Context(), strings.Replace(h.issuer(h.org), "https", "wss", 1)+"/project/"+project, &websocket.DialOptions{
		HTTPClient: h.web, HTTPHeader: header,
	})
	if err != nil {
		if res == nil {
			h.t.Fatal(err)
		}
		return nil, res.StatusCode
	}
	h.t.Cleanup(func() { _ = c.CloseNow() })
	return c, res.StatusCode
}

// closed reads until the other side ends the WebSocket, and says how.
func closed(t testing.TB, c *websocket.Conn) websocket.StatusCode {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), agenttest.Patience)
	defer cancel()
	for {
		if _, _, err := c.Read(ctx); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				t.Fatal("the WebSocket stays open")
			}
			return websocket.CloseStatus(err)
		}
	}
}

func TestP4_TheGatewayAsksForEachProjectAndEachEvent(t *testing.T) {
	h := newHome(t)
	h.conf.Scopes = []string{"room:read", "room:write"}
	h.members("ada=owner", "bob=member")
	ada := h.granted(h.browser(), "ada").AccessToken
	bobs := h.browser()
	bob := h.granted(bobs, "bob").AccessToken
	h.conf.Scopes = []string{"room:read"}
	bobs.open(h.conf.AuthCodeURL("s"))
	bobs.submit(url.Values{"decision": {"allow"}})
	reading, err := h.conf.Exchange(h.ctx(), h.code(bobs, "s"))
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		project, token string
		want           int
	}{
		"nobody": {"drawing", "", 401}, "garbage": {"drawing", "x", 401}, "a member without a role there": {"drawing", bob, 403},
		"a project that is none": {"nothing", ada, 403},
	} {
		if _, status := h.join(c.project, c.token); status != c.want {
			t.Errorf("%s: %d, want %d", what, status, c.want)
		}
	}
	put := func(path string) {
		if status, body := h.ask(http.MethodPut, h.issuer(h.org)+path, h.granted(h.browser(), "ada").AccessToken, nil); status != http.StatusForbidden {
			t.Fatalf("a token for rooms granted a role: %d %s", status, body)
		}
		owner := h.browser()
		h.granted(owner, "ada")
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, h.issuer(h.org)+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", h.issuer(h.org))
		if owner.do(r); owner.status != http.StatusOK {
			t.Fatalf("grant: %d %s", owner.status, owner.body)
		}
	}
	put("/permissions/projects/drawing/users/bob/grants/project:member")
	var his *websocket.Conn
	agenttest.Wait(t, "bob's role has reached the gateway", func() bool {
		c, _ := h.join("drawing", bob)
		his = c
		return c != nil
	})
	if _, status := h.join("other", bob); status != http.StatusForbidden {
		t.Errorf("in another project: %d", status)
	}
	hers, _ := h.join("drawing", ada)
	agenttest.Wait(t, "ada hears bob", func() bool {
		if err := his.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		_, body, err := hers.Read(t.Context())
		return err == nil && string(body) == "hello"
	})
	// With a token for reading he hears, and is not heard.
	quiet, status := h.join("drawing", reading.AccessToken)
	if quiet == nil {
		t.Fatalf("reading: %d", status)
	}
	if err := quiet.Write(t.Context(), websocket.MessageText, []byte("psst")); err != nil {
		t.Fatal(err)
	}
	if code := closed(t, quiet); code != websocket.StatusPolicyViolation {
		t.Errorf("who may only read and writes: %d", code)
	}
	// What is taken from him ends what he has open.
	h.members("ada=owner")
	if code := closed(t, his); code != websocket.StatusPolicyViolation {
		t.Errorf("a removed member's WebSocket ended with %d", code)
	}
	if err := hers.Ping(hers.CloseRead(t.Context())); err != nil {
		t.Errorf("ada was cut off too: %v", err)
	}
}
