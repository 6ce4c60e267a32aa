//go:build e2e

package booted

import (
	"context"
	"fmt"
	"net/http"

	"github.com/coder/websocket"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// socket is an open WebSocket of a user. It is read all the time: that answers the gateway's pings.
type socket struct {
	conn   *websocket.Conn
	heard  chan string
	closed chan struct{}
	why    error // of the end; to be read when closed is closed
}

// open opens a WebSocket to the organization.
func (w *world) open(m *machine) *socket {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	browser := &http.Client{Transport: &http.Transport{DialContext: w.client.Dial}}
	c, _, err := websocket.Dial(ctx, "ws://"+m.address+"/echo", &websocket.DialOptions{HTTPClient: browser, Host: id.Hostname(id.Organization(w.org), domain)})
	w.must(err)
	s := &socket{conn: c, heard: make(chan string, 1), closed: make(chan struct{})}
	w.t.Cleanup(func() { _ = c.CloseNow() })
	go func() { // ends with the connection
		for {
			_, text, err := c.Read(w.ctx)
			if err != nil {
				s.why = err
				close(s.closed)
				return
			}
			s.heard <- string(text)
		}
	}()
	return s
}

// open reports whether the WebSocket still leads to its gateway.
func (s *socket) echo(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.conn.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		return err
	}
	select {
	case got := <-s.heard:
		if got != text {
			return fmt.Errorf("heard %q, said %q", got, text)
		}
		return nil
	case <-s.closed:
		return s.why
	case <-ctx.Done():
		return ctx.Err()
	}
}
