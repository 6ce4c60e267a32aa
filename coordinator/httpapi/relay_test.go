package httpapi

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// A stream that another coordinator passes on is never silent for longer than one from the leader, repeats the
// leader's latest index, never breaks a line, and falls silent with the leader.
func TestSilenceOfARelayedStreamIsFilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := httptest.NewRecorder()
		var leads atomic.Bool
		leads.Store(true)
		b := newBeating(&recorder{ResponseWriter: answer, control: http.NewResponseController(answer)}, leads.Load)
		said := func(during time.Duration) string {
			time.Sleep(during)
			synctest.Wait()
			b.mu.Lock()
			defer b.mu.Unlock()
			text := answer.Body.String()
			answer.Body.Reset()
			return text
		}
		write := func(text string) {
			if _, err := b.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		const beat = api.StreamHeartbeat
		if got := said(5 * beat); got != "" {
			t.Errorf("before the first frame it says %q", got)
		}
		full := `{"index":7,"full":true,"domain":"example.org","gateways":[{"gateway_id":"` + strings.Repeat("x", 200) + `"}]}` + "\n"
		write(full[:9])
		write(full[9:30])
		if got := said(5 * beat); got != full[:30] {
			t.Errorf("within a frame it says %q", got)
		}
		write(full[30:])
		if got, empty := said(10*beat), `{"index":7}`+"\n"; !strings.HasPrefix(got, full[30:]+empty) || strings.Count(got, empty) < 10 || strings.Count(got, empty) > 12 {
			t.Errorf("in ten intervals of silence it says %q", got)
		}
		write(`{"index":9,"ask":true}` + "\n" + `{"index":12}` + "\n")
		if got, want := said(beat), `{"index":9,"ask":true}`+"\n"+`{"index":12}`+"\n"+`{"index":12}`+"\n"; got != want {
			t.Errorf("after newer frames it says %q, want %q", got, want)
		}
		leads.Store(false)
		if got := said(5 * beat); got != "" {
			t.Errorf("without the leader it says %q", got)
		}
		leads.Store(true)
		if got := said(beat); got != `{"index":12}`+"\n" {
			t.Errorf("with the leader again it says %q", got)
		}
		b.stop()
		if got := said(5 * beat); got != "" {
			t.Errorf("after its end it says %q", got)
		}
	})
}

// What an agent asks of a follower comes to the leader as a stream whose silence is filled, whatever the agent says.
func TestRelayedStreamSaysSo(t *testing.T) {
	k, e := newElections(t, patience)
	marked := make(chan string, 1)
	body, leader := io.Pipe()
	e.reply = func(r *http.Request) *http.Response {
		marked <- r.Header.Get(headerBeats)
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body, Request: r}
	}
	e.elect("c2:1")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	secret := k.tokens[agentCaller]
	req, err := http.NewRequestWithContext(ctx, get, k.url(secret)+"/v1/agent/stream?host=h1&instance=i1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(headerBeats, "forged")
	go func() { _, _ = leader.Write([]byte(`{"index":3,"full":true}` + "\n")) }() // ends when the answer is read or closed
	resp, err := k.programs[secret].Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if got := <-marked; got != "made here" {
		t.Errorf("the leader is told %q", got)
	}
	want := `{"index":3,"full":true}` + "\n" + `{"index":3}` + "\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
		t.Errorf("the agent reads %q (%v), want %q", got, err, want)
	}
	cancel()
	_ = leader.Close()
}

// Only another coordinator can say that it fills silence.
func TestOnlyCoordinatorsRelay(t *testing.T) {
	r := httptest.NewRequest(get, streamPath, nil)
	r.Header.Set(headerBeats, "forged")
	if relays(r) {
		t.Error("a caller is believed")
	}
	if !relays(r.WithContext(context.WithValue(r.Context(), forwardedKey{}, true))) {
		t.Error("a coordinator is not believed")
	}
}
