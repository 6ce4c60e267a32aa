package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	maxPacket = 4 << 10 // of one datagram; the library makes them of 1,400 bytes and a little encryption
	maxStream = 4 << 20 // read from one connection: the whole state of thousands of members
	maxConns  = 256     // open at a time, of both directions
)

// transport is the library's own with bounds: packets and streams from allowed addresses only, none longer
// than it has to be, and no dial or connection that outlives Shutdown.
type transport struct {
	*memberlist.NetTransport
	from    netip.Addr // bound
	allowed []netip.Prefix
	note    func(from net.Addr, reason string) // of what was refused

	ctx     context.Context // ends with Shutdown
	cancel  context.CancelFunc
	done    chan struct{} // closed when nothing comes in any more
	pumps   sync.WaitGroup
	once    sync.Once
	closed  error // of the one Shutdown
	packets chan *memberlist.Packet
	streams chan net.Conn

	mu    sync.Mutex
	conns map[*conn]bool // guarded by mu; nil after Shutdown

	sent, sentBytes, received, receivedBytes atomic.Uint64 // datagrams
}

func newTransport(inner *memberlist.NetTransport, from netip.Addr, allowed []netip.Prefix, note func(net.Addr, string)) *transport {
	t := &transport{
		NetTransport: inner, from: from, allowed: allowed, note: note, done: make(chan struct{}),
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), conns: map[*conn]bool{},
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.pumps.Add(2)
	go t.pumpPackets() // both are waited for by Shutdown
	go t.pumpStreams()
	return t
}

// PacketCh gives the packets that passed.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh gives the connections that passed.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

func (t *transport) pumpPackets() {
	defer t.pumps.Done()
	for {
		select {
		case <-t.done:
			return
		case p := <-t.NetTransport.PacketCh():
			t.received.Add(1)
			t.receivedBytes.Add(uint64(len(p.Buf)))
			if err := t.admit(p.From); err != nil {
				t.note(p.From, err.Error())
				continue
			}
			if len(p.Buf) > maxPacket {
				t.note(p.From, fmt.Sprintf("a packet of more than %d bytes", maxPacket))
				continue
			}
			select {
			case t.packets <- p:
			case <-t.done:
				return
			}
		}
	}
}

func (t *transport) pumpStreams() {
	defer t.pumps.Done()
	for {
		select {
		case <-t.done:
			return
		case raw := <-t.NetTransport.StreamCh():
			err := t.admit(raw.RemoteAddr())
			var c *conn
			if err == nil {
				c, err = t.track(raw)
			}
			if err != nil {
				t.note(raw.RemoteAddr(), err.Error())
				_ = raw.Close()
				continue
			}
			select {
			case t.streams <- c:
			case <-t.done:
				_ = c.Close()
				return
			}
		}
	}
}

// admit checks where something comes from.
func (t *transport) admit(from net.Addr) error {
	if len(t.allowed) == 0 {
		return nil
	}
	at, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return err
	}
	for _, p := range t.allowed {
		if p.Contains(at.Addr().Unmap()) {
			return nil
		}
	}
	return errors.New("its address is not among those that may gossip")
}

// WriteTo sends a datagram.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a datagram.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	t.sent.Add(1)
	t.sentBytes.Add(uint64(len(b)))
	return t.NetTransport.WriteToAddress(b, a)
}

// DialTimeout opens a connection.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a connection. Shutdown ends it, and the dialling.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout}
	if !t.from.IsUnspecified() { // like the datagrams: the other side looks at where it comes from
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.from, 0))
	}
	raw, err := dialer.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	c, err := t.track(raw)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

func (t *transport) track(raw net.Conn) (*conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.conns == nil:
		return nil, errors.New("the gossip is stopping")
	case len(t.conns) >= maxConns:
		return nil, fmt.Errorf("there are %d connections already", maxConns)
	}
	c := &conn{Conn: raw, of: t, left: maxStream}
	t.conns[c] = true
	return c, nil
}

// Shutdown closes the sockets and every connection, and waits until nothing comes in any more. The library
// keeps on taking what is in flight until then.
func (t *transport) Shutdown() error {
	t.abort()
	t.once.Do(func() {
		t.closed = t.NetTransport.Shutdown()
		close(t.done)
		t.pumps.Wait()
	})
	return t.closed
}

// abort ends dials and connections, now and from now on. Datagrams go on.
func (t *transport) abort() {
	t.cancel()
	t.mu.Lock()
	open := t.conns
	t.conns = nil
	t.mu.Unlock()
	for c := range open {
		_ = c.Conn.Close()
	}
}

// conn is a connection that is read only so far. Reads come from one goroutine at a time.
type conn struct {
	net.Conn
	of   *transport
	left int
}

func (c *conn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		c.of.note(c.RemoteAddr(), fmt.Sprintf("more than %d bytes on one connection", maxStream))
		return 0, fmt.Errorf("cannot read more than %d bytes of gossip from one connection", maxStream)
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
