// Package peerlink is how coordinators reach each other: one port with mutual TLS, which only coordinators
// can enter. What a connection is for is agreed in its handshake (ALPN, RFC 7301): Raft messages, or API
// calls that a follower passes on to the leader. So wherever Raft reaches the leader, calls do too.
package peerlink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
	"github.com/hashicorp/go-hclog"
)

// The protocols of a connection.
const (
	protocolRaft = "demiurge-raft/1"
	protocolAPI  = "h2"
)

const (
	handshakeTime = 5 * time.Second
	// handshakes bounds the connections that have not shown a certificate yet. One more waits in the
	// kernel: whoever fills the place loses it after handshakeTime.
	handshakes = 128
	dialTime   = 2 * time.Second
	idleTime   = 90 * time.Second
)

// Options of a Link. All but Advertise are needed.
type Options struct {
	Listen    string // host:port to bind
	Advertise string // host:port at which the others reach it; default: the bound address
	// Server and Client let coordinators of this cluster in and nobody else. ALPN is set here.
	Server, Client *tls.Config
	Logger         hclog.Logger
}

// Link is this coordinator's end of the connections to the others.
type Link struct {
	opts      Options
	listener  net.Listener
	advertise address
	raft      *queue
	api       *queue
	server    *tls.Config
	transport *http.Transport
	slots     chan struct{} // handshakes being made
	stop      context.CancelFunc
	stopped   context.Context
	work      sync.WaitGroup
}

// Open binds the port. Close ends everything.
func Open(opts Options) (*Link, error) {
	listener, err := net.Listen("tcp", opts.Listen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for other coordinators at %s: %w; set raft.listen to a free address of this machine", opts.Listen, err)
	}
	if opts.Advertise == "" {
		bound, err := netip.ParseAddrPort(listener.Addr().String())
		if err != nil || bound.Addr().IsUnspecified() {
			return nil, errors.Join(fmt.Errorf("cannot tell other coordinators the address %s: set raft.advertise to one at which they reach this machine", listener.Addr()), listener.Close())
		}
		opts.Advertise = bound.String()
	}
	l := &Link{opts: opts, listener: listener, advertise: address(opts.Advertise), slots: make(chan struct{}, handshakes)}
	l.stopped, l.stop = context.WithCancel(context.Background())
	l.raft, l.api = newQueue(l), newQueue(l)
	l.server = opts.Server.Clone()
	l.server.NextProtos = []string{protocolRaft, protocolAPI}
	l.transport = &http.Transport{
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTime)
			defer cancel()
			return l.dial(ctx, addr, protocolAPI)
		},
		ForceAttemptHTTP2: true, IdleConnTimeout: idleTime, MaxIdleConnsPerHost: 16,
		// A leader that hangs must not hold the calls of everybody for much longer than the election of another takes;
		// one that is only very busy must be given the time to answer.
		HTTP2: &http.HTTP2Config{SendPingTimeout: time.Second, PingTimeout: 3 * time.Second},
	}
	l.work.Go(l.accept)
	return l, nil
}

// Meet tells by what the coordinator at an address has proved who it is.
func (l *Link) Meet(ctx context.Context, addr string) (tls.ConnectionState, error) {
	conn, err := l.dial(ctx, addr, protocolAPI)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer func() { _ = conn.Close() }()
	return conn.(*tls.Conn).ConnectionState(), nil // a tls.Dialer makes no others
}

// Addr is the advertised address.
func (l *Link) Addr() net.Addr { return l.advertise }

// Transport makes API calls to the coordinator whose address stands as host in the URL, https.
func (l *Link) Transport() http.RoundTripper { return l.transport }

// APIListener yields the connections over which the others pass API calls on.
func (l *Link) APIListener() net.Listener { return l.api }

// Raft is the stream layer for the Raft node, which closes it with itself.
func (l *Link) Raft() Streams { return Streams{l.raft} }

// Close ends the port and what has not been taken from it.
func (l *Link) Close() error {
	l.stop()
	err := l.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	l.work.Wait()
	l.transport.CloseIdleConnections()
	return err
}

func (l *Link) accept() {
	var failures int
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.stopped.Done():
			return
		}
		conn, err := l.listener.Accept()
		if err != nil {
			<-l.slots
			if l.stopped.Err() != nil {
				return
			}
			failures++
			l.opts.Logger.Warn("cannot accept a connection of a coordinator", "error", err)
			if !sleep.For(l.stopped, min(time.Second, time.Duration(failures)*5*time.Millisecond)) { // such as too many open files: it may pass
				return
			}
			continue
		}
		failures = 0
		l.work.Go(func() {
			defer func() { <-l.slots }()
			l.enter(conn)
		})
	}
}

// enter makes the handshake and hands the connection to what it is for.
func (l *Link) enter(raw net.Conn) {
	ctx, cancel := context.WithTimeout(l.stopped, handshakeTime)
	defer cancel()
	conn := tls.Server(raw, l.server)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		if l.stopped.Err() == nil {
			l.opts.Logger.Warn("refused a connection to the port of the coordinators", "address", raw.RemoteAddr().String(), "error", err)
		}
		return
	}
	to := l.api
	switch conn.ConnectionState().NegotiatedProtocol {
	case protocolRaft:
		to = l.raft
	case protocolAPI:
	default:
		l.opts.Logger.Warn("refused a connection to the port of the coordinators: it does not say what it is for", "address", raw.RemoteAddr().String())
		_ = conn.Close()
		return
	}
	to.put(conn)
}

func (l *Link) dial(ctx context.Context, addr, protocol string) (net.Conn, error) {
	if l.stopped.Err() != nil {
		return nil, net.ErrClosed
	}
	conf := l.opts.Client.Clone()
	conf.NextProtos = []string{protocol}
	conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the coordinator at %s: %w", addr, err)
	}
	return conn, nil
}

// queue is a net.Listener of connections that were let in.
type queue struct {
	link   *Link
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newQueue(l *Link) *queue {
	return &queue{link: l, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (q *queue) put(conn net.Conn) {
	select {
	case q.conns <- conn:
		return
	case <-q.closed:
	case <-q.link.stopped.Done():
	}
	_ = conn.Close()
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
	case <-q.link.stopped.Done():
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener; the port stays open.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return q.link.advertise }

// Streams is Raft's side: a listener that dials too.
type Streams struct{ *queue }

// Dial connects to the Raft node of the coordinator at an address.
func (s Streams) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	select {
	case <-s.closed:
		return nil, net.ErrClosed
	default:
	}
	if timeout <= 0 {
		timeout = dialTime
	}
	ctx, cancel := context.WithTimeout(s.link.stopped, timeout)
	defer cancel()
	return s.link.dial(ctx, addr, protocolRaft)
}

// address is an advertised host:port.
type address string

// Network implements net.Addr.
func (address) Network() string { return "tcp" }

// String implements net.Addr.
func (a address) String() string { return string(a) }
