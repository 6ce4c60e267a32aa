package gateway_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// dial opens a WebSocket as nginx passes it on.
func (r *running) dial(ctx context.Context, epoch string, header ...string) (*websocket.Conn, *http.Response, error) {
	h := http.Header{api.HeaderEpoch: {epoch}}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	client := *r.client
	client.Timeout = 0
	return websocket.Dial(ctx, "ws://gateway/echo", &websocket.DialOptions{HTTPClient: &client, HTTPHeader: h})
}

func (r *running) open(ctx context.Context) *websocket.Conn {
	r.Helper()
	c, _, err := r.dial(ctx, "7")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = c.CloseNow() })
	r.echoed(ctx, c, "hello")
	return c
}

func (r *running) echoed(ctx context.Context, c *websocket.Conn, text string) {
	r.Helper()
	if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		r.Fatal(err)
	}
	if _, got, err := c.Read(ctx); err != nil || string(got) != text {
		r.Fatalf("echo of %d bytes = %d bytes, %v", len(text), len(got), err)
	}
}

// ended reads until the connection ends and returns how.
func ended(ctx context.Context, c *websocket.Conn) <-chan websocket.StatusCode {
	out := make(chan websocket.StatusCode, 1)
	go func() { // ends with the connection or ctx
		for {
			if _, _, err := c.Read(ctx); err != nil {
				out <- websocket.CloseStatus(err)
				return
			}
		}
	}()
	return out
}

func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestEcho(t *testing.T) {
	r, ctx := start(t), patience(t)
	r.activate(orgA, 7)
	c := r.open(ctx)
	c.SetReadLimit(2 << 20)
	r.echoed(ctx, c, strings.Repeat("x", 1<<20))
	if got := r.Health().Connections; got != 1 {
		t.Errorf("connections = %d, want 1", got)
	}
	end := ended(ctx, c)
	if err := c.Write(ctx, websocket.MessageText, make([]byte, 1<<20+1)); err != nil && ctx.Err() != nil {
		t.Fatal(err)
	}
	if got := <-end; got != websocket.StatusMessageTooBig {
		t.Errorf("a message that is too long ends with %v", got)
	}
	waitUntilGone := func() {
		for r.Health().Connections != 0 {
			if ctx.Err() != nil {
				t.Fatal("the connection is still counted")
			}
			time.Sleep(time.Millisecond)
		}
	}
	waitUntilGone()
}

func TestEchoIsForTheEpochAndTheOrigin(t *testing.T) {
	r, ctx := start(t), patience(t)
	r.activate(orgA, 7)
	if _, resp, err := r.dial(ctx, "8"); err == nil || resp == nil || resp.StatusCode != http.StatusConflict {
		t.Errorf("another epoch: %v, %v", resp, err)
	}
	if _, resp, err := r.dial(ctx, "7", "Origin", "https://elsewhere.test"); err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("another origin: %v, %v", resp, err)
	}
	c, _, err := r.dial(ctx, "7", "Origin", "https://gateway")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.CloseNow()
	r.get("/echo", "7").expectStatus(t, http.StatusUpgradeRequired)
}

func (a answer) expectStatus(t *testing.T, want int) {
	t.Helper()
	if a.status != want {
		t.Errorf("status %d, want %d: %s", a.status, want, a.body)
	}
}

func TestDeactivationClosesWebSockets(t *testing.T) {
	r, ctx := start(t), patience(t)
	r.activate(orgA, 7)
	var ends []<-chan websocket.StatusCode
	for range 20 {
		ends = append(ends, ended(ctx, r.open(ctx)))
	}
	r.post("/control/deactivate", api.Deactivate{Epoch: 7}).expect(t, "deactivate", http.StatusOK, "")
	for _, end := range ends {
		if got := <-end; got != websocket.StatusGoingAway {
			t.Errorf("ended with %v, want 1001", got)
		}
	}
	if h := r.Health(); h.Connections != 0 || h.OrganizationID != "" {
		t.Errorf("after it: %+v", h)
	}
}

func TestDrainLetsConnectionsGoOn(t *testing.T) {
	r, ctx := start(t), patience(t)
	r.activate(orgA, 7)
	c := r.open(ctx)
	done := make(chan answer, 1)
	go func() {
		done <- r.post("/control/deactivate", api.Deactivate{Epoch: 7, Drain: api.Duration(time.Minute)})
	}()
	for r.get("/collab/ping", "7").status != http.StatusConflict { // until the door is closed
		if ctx.Err() != nil {
			t.Fatal("requests are still let in")
		}
	}
	r.echoed(ctx, c, "still here")
	if h := r.Health(); h.OrganizationID != orgA || h.Connections != 1 {
		t.Errorf("while draining: %+v", h)
	}
	if _, resp, err := r.dial(ctx, "7"); err == nil || resp == nil || resp.StatusCode != http.StatusConflict {
		t.Errorf("a new WebSocket while draining: %v, %v", resp, err)
	}
	r.post("/control/activate", activation(orgA, 7)).expect(t, "activate while draining", http.StatusConflict, fault.Conflict)
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	select { // the last one has gone: the rest of the minute is not waited for
	case a := <-done:
		a.expect(t, "deactivate", http.StatusOK, "")
	case <-ctx.Done():
		t.Error("the drain goes on without a connection")
	}
}

func TestDrainThatIsCutOffCanBeRepeated(t *testing.T) {
	r, ctx := start(t), patience(t)
	r.activate(orgA, 7)
	end := ended(ctx, r.open(ctx))
	impatient, cancel := context.WithCancel(ctx)
	req, err := http.NewRequestWithContext(impatient, http.MethodPost, "http://gateway/control/deactivate", strings.NewReader(`{"epoch":7,"drain":"10m"}`))
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { // waited for below
		resp, err := r.client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		gone <- err
	}()
	for r.get("/collab/ping", "7").status != http.StatusConflict {
		if ctx.Err() != nil {
			t.Fatal("requests are still let in")
		}
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatalf("the first call: %v", err)
	}
	r.post("/control/deactivate", api.Deactivate{Epoch: 7}).expect(t, "the second call", http.StatusOK, "")
	if got := <-end; got != websocket.StatusGoingAway {
		t.Errorf("ended with %v, want 1001", got)
	}
}

func TestStopSaysGoodbye(t *testing.T) {
	r, ctx := start(t), patience(t)
	r.activate(orgA, 7)
	end := ended(ctx, r.open(ctx))
	stop(t, r.Gateway)
	if got := <-end; got != websocket.StatusGoingAway {
		t.Errorf("ended with %v, want 1001", got)
	}
	if _, err := r.client.Get("http://gateway/healthz"); err == nil {
		t.Error("still accepting")
	}
}

func TestPeerThatDoesNotAnswerIsCutOff(t *testing.T) {
	r, ctx := start(t), patience(t)
	r.activate(orgA, 7)
	c := r.open(ctx) // nobody reads from it, so the goodbye is not answered
	r.post("/control/deactivate", api.Deactivate{Epoch: 7}).expect(t, "deactivate", http.StatusOK, "")
	if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the goodbye did not arrive: %v", err)
	}
}

func TestStopIsBoundByItsContext(t *testing.T) {
	r, ctx := start(t), patience(t)
	r.activate(orgA, 7)
	c := r.open(ctx)
	over, cancel := context.WithCancel(ctx)
	cancel()
	_ = r.Stop(over) // whether all was in time is not the matter here: it must end, and the peer be cut off
	if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the peer was not cut off: %v", err)
	}
}
