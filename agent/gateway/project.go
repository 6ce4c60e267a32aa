package gateway

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// relay is who is connected to which project.
type relay struct {
	mu    sync.Mutex
	peers map[string]map[*peer]bool
}

// peer is one WebSocket in a project. What is for it waits in a short line: one that is slow is cut off, and does
// not hold up the others.
type peer struct {
	out  chan message
	slow context.CancelFunc
}

type message struct {
	kind websocket.MessageType
	body []byte
}

// maxWaiting is how many messages wait for a slow peer.
const maxWaiting = 64

func (r *relay) add(project string, p *peer) (remove func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peers == nil {
		r.peers = map[string]map[*peer]bool{}
	}
	if r.peers[project] == nil {
		r.peers[project] = map[*peer]bool{}
	}
	r.peers[project][p] = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.peers[project], p)
		if len(r.peers[project]) == 0 {
			delete(r.peers, project)
		}
	}
}

func (r *relay) send(project string, from *peer, m message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.peers[project] {
		if p == from {
			continue
		}
		select {
		case p.out <- m:
		default:
			p.slow()
		}
	}
}

// project connects the members of a project: what one sends reaches the others who are there. Whoever may only
// read gets what the others send. Each message is checked, and each change of who may do what.
func (g *Gateway) project(w http.ResponseWriter, r *http.Request) {
	_, name := g.find(r.URL.Path)
	c, end := g.upgrade(w, r, maxSockets)
	if c == nil {
		return
	}
	defer end()
	ctx, cancel := context.WithCancel(context.Background()) // a hijacked request's own context says nothing of the peer
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	who := credentialsOf(r)
	p := &peer{out: make(chan message, maxWaiting), slow: cancel}
	defer g.relay.add(name, p)()
	beside.Go(func() { keepAliveOf(ctx, c) })
	beside.Go(func() { p.write(ctx, c) })
	beside.Go(func() { g.recheck(ctx, c, asking{who, readRoom, name}) })
	for {
		kind, body, err := c.Read(ctx)
		if err != nil {
			g.log.Trace("WebSocket ended", "error", err)
			return
		}
		if _, err := g.guard.ask(ctx, asking{who, writeRoom, name}); err != nil {
			_ = c.Close(websocket.StatusPolicyViolation, reason(err))
			return
		}
		g.relay.send(name, p, message{kind, body})
	}
}

// write sends what waits for a peer.
func (p *peer) write(ctx context.Context, c *websocket.Conn) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-p.out:
			wctx, cancel := context.WithTimeout(ctx, peerTimeout)
			err := c.Write(wctx, m.kind, m.body)
			cancel()
			if err != nil {
				p.slow()
				return
			}
		}
	}
}

// recheck closes the WebSocket of whoever may not be there any more.
func (g *Gateway) recheck(ctx context.Context, c *websocket.Conn, a asking) {
	tick := time.NewTicker(g.recheckEvery)
	defer tick.Stop()
	for {
		changed := g.guard.changes()
		_, err := g.guard.ask(ctx, a)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			_ = c.Close(websocket.StatusPolicyViolation, reason(err))
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// reason is a refusal in the 123 bytes that a WebSocket's end has room for.
func reason(err error) string {
	const most = 120
	text := fault.From(err).Message
	if len(text) > most {
		return text[:most]
	}
	return text
}
