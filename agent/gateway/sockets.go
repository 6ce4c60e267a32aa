package gateway

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// sockets is every open WebSocket, so that they can be counted and closed. net/http forgets a connection
// when it becomes a WebSocket.
type sockets struct {
	mu     sync.Mutex
	open   map[*websocket.Conn]net.Conn // with what lies beneath each
	closed bool                         // nothing new is let in
	change chan struct{}                // closed and renewed when one ends
}

func newSockets() *sockets {
	return &sockets{open: map[*websocket.Conn]net.Conn{}, change: make(chan struct{})}
}

// add counts a WebSocket, unless there are limit of them.
func (s *sockets) add(c *websocket.Conn, beneath net.Conn, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.open) >= limit {
		return false
	}
	s.open[c] = beneath
	return true
}

func (s *sockets) remove(c *websocket.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	close(s.change)
	s.change = make(chan struct{})
}

func (s *sockets) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// empty waits until none is open and reports whether that is so.
func (s *sockets) empty(ctx context.Context) bool {
	for {
		s.mu.Lock()
		n, change := len(s.open), s.change
		s.mu.Unlock()
		if n == 0 {
			return true
		}
		select {
		case <-change:
		case <-ctx.Done():
			return false
		}
	}
}

// refuseNew lets no further WebSocket in.
func (s *sockets) refuseNew() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
}

// closeAll tells every peer that it is time to go (1001) and waits until all are closed. A peer that does
// not answer within goodbye is cut off. The library's Close waits longer for it and cannot be interrupted,
// so the cut is made beneath it.
func (s *sockets) closeAll(ctx context.Context, reason string) {
	ctx, cancel := context.WithTimeout(ctx, goodbye)
	defer cancel()
	s.mu.Lock()
	all := maps.Clone(s.open)
	s.mu.Unlock()
	var wait sync.WaitGroup
	for c, beneath := range all {
		wait.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = beneath.Close() })
			defer stop()
			_ = c.Close(websocket.StatusGoingAway, reason) // it may have closed by itself
		})
	}
	wait.Wait()
	_ = s.empty(ctx) // a closed one is counted until its handler has seen it
}

// connKey is the key of a request's context under which the server keeps the connection.
type connKey struct{}

func keepConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// upgrade makes a WebSocket of a request and counts it; end forgets it again. Without one (nil) the request has been
// answered. There is none when limit are open.
func (g *Gateway) upgrade(w http.ResponseWriter, r *http.Request, limit int) (c *websocket.Conn, end func()) {
	c, err := websocket.Accept(w, r, nil) // it refuses pages of other names
	if err != nil {
		g.log.Debug("no WebSocket", "error", err) // Accept has answered
		return nil, nil
	}
	beneath, _ := r.Context().Value(connKey{}).(net.Conn)
	if !g.sockets.add(c, beneath, limit) {
		_ = c.Close(websocket.StatusTryAgainLater, "too many connections, or stopping")
		_ = c.CloseNow()
		return nil, nil
	}
	end = func() {
		g.sockets.remove(c)
		_ = c.CloseNow()
	}
	// Between the check of the epoch and the line above the organization may have been taken away, and
	// its sockets closed without this one.
	if s := g.tenant.serving(); s == nil || s.Epoch != epochOf(r) {
		_ = c.Close(websocket.StatusGoingAway, "the organization has moved")
		end()
		return nil, nil
	}
	c.SetReadLimit(maxMessage)
	return c, end
}

// echo sends every message back.
func (g *Gateway) echo(w http.ResponseWriter, r *http.Request) {
	c, end := g.upgrade(w, r, maxPublic)
	if c == nil {
		return
	}
	defer end()
	ctx, cancel := context.WithCancel(context.Background()) // a hijacked request's own context says nothing of the peer
	var pings sync.WaitGroup
	defer pings.Wait()
	defer cancel()
	pings.Go(func() { keepAliveOf(ctx, c) })
	for {
		kind, message, err := c.Read(ctx)
		if err != nil {
			g.log.Trace("WebSocket ended", "error", err)
			return
		}
		write, done := context.WithTimeout(ctx, peerTimeout)
		err = c.Write(write, kind, message)
		done()
		if err != nil {
			return
		}
	}
}

// keepAliveOf pings until the connection ends and cuts off a peer that is gone without a word.
func keepAliveOf(ctx context.Context, c *websocket.Conn) {
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ping, cancel := context.WithTimeout(ctx, peerTimeout)
		err := c.Ping(ping)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			_ = c.CloseNow()
			return
		}
	}
}

// epochOf is the epoch of a request that the routes table let through.
func epochOf(r *http.Request) id.Epoch {
	epoch, _ := id.ParseEpoch(r.Header.Get(headerEpoch))
	return epoch
}

// stale is the answer to a request of another epoch than the one that is served.
func stale(r *http.Request, g *grant) error {
	if g == nil {
		return fault.New(fault.StaleEpoch, "this gateway serves no organization: ask again, the route is about to change")
	}
	if r.Header.Get(headerEpoch) == "" {
		return fault.New(fault.StaleEpoch, "the request carries no %s: it must come through nginx", headerEpoch)
	}
	return fault.New(fault.StaleEpoch, "this gateway serves epoch %s and not the one of the request: ask again", g.Epoch)
}
