package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// Defects of the platform that this one replaces, by their names in the list of them.

// guarded is a gateway that serves an organization at epoch 7 and asks a scribe.
type guarded struct {
	t      *testing.T
	scribe *scribe
	web    *http.Client
}

func newGuarded(t *testing.T, tune ...func(*Gateway)) *guarded {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := newScribe(t)
	socket := filepath.Join(dir, "gw.sock")
	g, err := New(Options{Gateway: "gw-aaaaaaaaaa", Listen: socket, Control: s.path, StateDir: dir, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	g.recheckEvery = time.Hour // what does not come by itself does not come
	for _, change := range tune {
		change(g)
	}
	g.Start()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := g.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	body, err := json.Marshal(api.Activate{
		OrganizationID: "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11", AllocationID: "al-aaaaaaaaaaaaaaaa", Epoch: 7, Hostname: "org-6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11.example.test",
	})
	if err != nil {
		t.Fatal(err)
	}
	out := &guarded{t: t, scribe: s, web: &http.Client{Transport: transport}}
	res, err := out.web.Post("http://gateway/control/activate", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("activation: %s", res.Status)
	}
	return out
}

// join opens a project's WebSocket as nginx passes it on; the status of the answer where it is refused.
func (g *guarded) join(path, who string) (*websocket.Conn, int) {
	g.t.Helper()
	header := http.Header{api.HeaderEpoch: {"7"}}
	if who != "" {
		header.Set("Authorization", who)
	}
	c, res, err := websocket.Dial(g.t.Context(), "ws://gateway/project/"+path, &websocket.DialOptions{HTTPClient: g.web, HTTPHeader: header})
	if err != nil {
		if res == nil {
			g.t.Fatal(err)
		}
		return nil, res.StatusCode
	}
	g.t.Cleanup(func() { _ = c.CloseNow() })
	return c, res.StatusCode
}

// joined is a WebSocket that others in the project hear and that hears them.
func (g *guarded) joined(path, who string) *websocket.Conn {
	g.t.Helper()
	c, status := g.join(path, who)
	if c == nil {
		g.t.Fatalf("%s cannot join %s: %d", who, path, status)
	}
	return c
}

// hears says a word in a project until the listener hears it, and returns the first that he heard at all.
func (g *guarded) hears(listener, speaker *websocket.Conn, word string) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), patient)
	defer cancel()
	first := make(chan string, 1)
	go func() { // ends with the first message or ctx
		_, text, _ := listener.Read(ctx)
		first <- string(text)
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := speaker.Write(ctx, websocket.MessageText, []byte(word)); err != nil {
			g.t.Fatal(err)
		}
		select {
		case text := <-first:
			return text
		case <-tick.C: // the listener may not be known to the relay yet
		}
	}
}

// ended reads until the other side closes, and says how.
func (g *guarded) ended(c *websocket.Conn) websocket.StatusCode {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), patient)
	defer cancel()
	for {
		if _, _, err := c.Read(ctx); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

// patient is how long a test waits for a condition on a busy machine.
const patient = 30 * time.Second

// P4: an event route that checks only "has some access". Nobody joins a project in which he may not read, and
// whoever may only read is not heard.
func TestP4_EachProjectAndEachEventIsChecked(t *testing.T) {
	g := newGuarded(t)
	for _, may := range []string{"ada room:read drawing", "bob room:read drawing", "eve room:read drawing", "eve room:write drawing"} {
		g.scribe.set(may, true)
	}
	for what, try := range map[string]struct {
		project, who string
		want         int
	}{
		"nobody": {"drawing", "", http.StatusUnauthorized}, "a member without a role": {"drawing", "mia", http.StatusForbidden},
		"a member of another project": {"other", "ada", http.StatusForbidden},
	} {
		if _, status := g.join(try.project, try.who); status != try.want {
			t.Errorf("%s: %d, want %d", what, status, try.want)
		}
	}
	ada, bob := g.joined("drawing", "ada"), g.joined("drawing", "bob")
	if err := bob.Write(t.Context(), websocket.MessageText, []byte("psst")); err != nil {
		t.Fatal(err)
	}
	if how := g.ended(bob); how != websocket.StatusPolicyViolation {
		t.Errorf("who may only read and writes: %v", how)
	}
	if text := g.hears(ada, g.joined("drawing", "eve"), "hello"); text != "hello" {
		t.Errorf("ada heard %q", text)
	}
}

// P5: the check reads the project from one place, the handler from another. Both have that of the path.
func TestP5_AProjectIsThatOfThePath(t *testing.T) {
	g := newGuarded(t)
	for _, may := range []string{"ada room:read drawing", "ada room:write drawing", "eve room:read other", "eve room:write other"} {
		g.scribe.set(may, true)
	}
	listener := g.joined("other", "eve")
	elsewhere := g.joined("drawing?project_id=other&project=other", "ada")
	if g.hears(g.joined("drawing", "ada"), elsewhere, "psst") != "psst" {
		t.Error("nobody hears ada in her own project")
	}
	if text := g.hears(listener, g.joined("other?project_id=drawing", "eve"), "hello"); text != "hello" {
		t.Errorf("eve heard %q of another project", text)
	}
	if _, status := g.join("other?project_id=drawing", "ada"); status != http.StatusForbidden {
		t.Errorf("ada in another project: %d", status)
	}
}

// P8: removal or demotion of a member never reaches the running gateway. It ends what he has open.
func TestP8_ARemovedMembersWebSocketEnds(t *testing.T) {
	g := newGuarded(t)
	for _, may := range []string{"ada room:read drawing", "ada room:write drawing", "bob room:read drawing"} {
		g.scribe.set(may, true)
	}
	ada, bob := g.joined("drawing", "ada"), g.joined("drawing", "bob")
	g.scribe.set("bob room:read drawing", false)
	g.scribe.change()
	if how := g.ended(bob); how != websocket.StatusPolicyViolation {
		t.Errorf("his WebSocket ended with %v", how)
	}
	if _, status := g.join("drawing", "bob"); status != http.StatusForbidden {
		t.Errorf("he is back: %d", status)
	}
	if g.hears(g.joined("drawing", "ada"), ada, "hello") != "hello" {
		t.Error("ada was cut off too")
	}
}

// A credential that ends by itself, of which no change tells, ends what is open as well.
func TestP8_WhatHasEndedByItselfIsNoticed(t *testing.T) {
	g := newGuarded(t, func(g *Gateway) { g.recheckEvery = 10 * time.Millisecond })
	g.scribe.set("ada room:read drawing", true)
	g.scribe.mu.Lock()
	g.scribe.goodFor = 0
	g.scribe.mu.Unlock()
	ada := g.joined("drawing", "ada")
	// The first answer about changes has everybody asked about once more, and that must not be what ends it.
	eventually(t, "she is asked about on and on", func() bool { return g.scribe.count() > 5 })
	g.scribe.set("ada room:read drawing", false)
	if how := g.ended(ada); how != websocket.StatusPolicyViolation {
		t.Errorf("her WebSocket ended with %v", how)
	}
}
