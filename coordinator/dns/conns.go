package dns

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// limited is a listener that closes connections above the limits at once, so that one client, or many that
// send nothing, cannot keep all others from being heard.
type limited struct {
	net.Listener

	mu      sync.Mutex
	open    map[netip.Addr]int // by the client's address; guarded by mu
	total   int                // guarded by mu
	refused uint64             // guarded by mu
}

func limit(l net.Listener) *limited { return &limited{Listener: l, open: map[netip.Addr]int{}} }

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := clientOf(c)
		if l.enter(from) {
			return &conn{Conn: c, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
		}
		_ = c.Close()
	}
}

func (l *limited) enter(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= maxConns || l.open[from] >= maxConnsEach {
		l.refused++
		return false
	}
	l.total++
	l.open[from]++
	return true
}

func (l *limited) leave(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
}

func (l *limited) counts() (open int, refused uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total, l.refused
}

// clientOf is the address behind a connection. One client of IPv6 has a whole /64.
func clientOf(c net.Conn) netip.Addr {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	a := tcp.AddrPort().Addr().Unmap()
	if prefix, err := a.Prefix(64); a.Is6() && err == nil {
		return prefix.Addr()
	}
	return a
}

// conn bounds the time for a write, which the library does not, and says when it is closed.
type conn struct {
	net.Conn
	leave func()
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeConn)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
