package httpapi

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// firstByteTime is how long a caller may take to begin.
	firstByteTime = 5 * time.Second
	// tlsHandshake is the first byte of every TLS connection (RFC 8446, section 5.1), and of no HTTP request.
	tlsHandshake = 0x16
)

// Listen wraps a listener so that callers may speak TLS or plain HTTP on one port. Whether plain HTTP is
// answered is up to Options.Plain: a caller that may not gets an answer that says so, rather than a
// connection that breaks.
func Listen(inner net.Listener, conf *tls.Config) net.Listener {
	l := &listener{Listener: inner, conf: conf, conns: make(chan net.Conn), closed: make(chan struct{}), waiting: map[net.Conn]bool{}}
	l.work.Go(l.accept)
	return l
}

// listener looks at the first byte of each connection, without letting one hold up the others.
type listener struct {
	net.Listener
	conf   *tls.Config
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	work   sync.WaitGroup // accept and the looks
	err    error          // of accept; read after closed

	mu      sync.Mutex
	waiting map[net.Conn]bool // connections that have not begun; nil after Close; guarded by mu
}

func (l *listener) accept() {
	for failures := 0; ; {
		conn, err := l.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				l.end(err)
				return
			}
			failures++
			select { // such as too many open files: it may pass
			case <-time.After(min(time.Second, time.Duration(failures)*5*time.Millisecond)):
				continue
			case <-l.closed:
				return
			}
		}
		failures = 0
		if l.enter(conn) {
			l.work.Go(func() { l.look(conn) })
		}
	}
}

// enter notes a connection, so that Close ends it.
func (l *listener) enter(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting == nil {
		_ = conn.Close()
		return false
	}
	l.waiting[conn] = true
	return true
}

// look reads the first byte and hands the connection on.
func (l *listener) look(conn net.Conn) {
	begun := &begunConn{Conn: conn}
	_ = conn.SetReadDeadline(time.Now().Add(firstByteTime))
	_, err := conn.Read(begun.first[:])
	l.mu.Lock()
	delete(l.waiting, conn)
	l.mu.Unlock()
	if err != nil || conn.SetReadDeadline(time.Time{}) != nil {
		_ = conn.Close()
		return
	}
	var out net.Conn = begun
	if begun.first[0] == tlsHandshake {
		out = tls.Server(begun, l.conf) // the HTTP server makes the handshake, within its own time
	}
	select {
	case l.conns <- out:
	case <-l.closed:
		_ = conn.Close()
	}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, l.err
	}
}

func (l *listener) end(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.closed)
	})
}

// Close implements net.Listener. Connections that have not begun end with it.
func (l *listener) Close() error {
	l.end(net.ErrClosed)
	err := l.Listener.Close()
	if errors.Is(err, net.ErrClosed) { // by the HTTP server, which closes what accepts no more
		err = nil
	}
	l.mu.Lock()
	for conn := range l.waiting {
		_ = conn.Close()
	}
	l.waiting = nil
	l.mu.Unlock()
	l.work.Wait()
	return err
}

// begunConn is a connection whose first byte was read already.
type begunConn struct {
	net.Conn
	first [1]byte
	given bool
}

// Read implements net.Conn.
func (c *begunConn) Read(b []byte) (int, error) {
	if c.given || len(b) == 0 {
		return c.Conn.Read(b)
	}
	c.given = true
	b[0] = c.first[0]
	return 1, nil
}
