package nginx

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// straight asks nginx on the goroutine that wants to know, over connections that are kept. net/http's transport
// has two goroutines for each connection, which must be woken in turn for every question; an allocation waits
// for that. It takes GET over plain HTTP; everything else goes to other.
type straight struct {
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
	other http.RoundTripper

	mu   sync.Mutex
	idle []*keptConn // guarded by mu; the last one was used last
}

const (
	mostKept = 64
	keptFor  = 30 * time.Second // nginx closes them after 75
	// maxHead bounds the head of an answer with all that comes before it. Who asks bounds the rest.
	maxHead = 64 << 10
)

// keptConn is a connection to a listener of nginx.
type keptConn struct {
	net.Conn
	addr  string
	more  *io.LimitedReader // what may still be read of the answer
	in    *bufio.Reader     // of more
	since time.Time         // nobody has used it
}

// RoundTrip implements http.RoundTripper.
func (s *straight) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "http" || req.Method != http.MethodGet || req.Body != nil {
		return s.other.RoundTrip(req)
	}
	ctx := req.Context()
	for {
		conn, kept, err := s.take(ctx, req.URL.Host)
		if err != nil {
			return nil, err
		}
		resp, err := s.ask(conn, req)
		if err == nil {
			return resp, nil
		}
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !kept { // a kept one may have been closed by nginx meanwhile
			return nil, err
		}
	}
}

// take gives a connection that is kept, or else a new one.
func (s *straight) take(ctx context.Context, addr string) (conn *keptConn, kept bool, err error) {
	if conn := s.reuse(addr); conn != nil {
		return conn, true, nil
	}
	raw, err := s.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, false, err
	}
	more := &io.LimitedReader{R: raw}
	return &keptConn{Conn: raw, addr: addr, more: more, in: bufio.NewReaderSize(more, 2<<10)}, false, nil
}

// reuse takes the kept connection that was used last; those that nobody has used for long are closed.
func (s *straight) reuse(addr string) *keptConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = slices.DeleteFunc(s.idle, func(c *keptConn) bool {
		old := time.Since(c.since) >= keptFor
		if old {
			_ = c.Close()
		}
		return old
	})
	for i := len(s.idle) - 1; i >= 0; i-- {
		if c := s.idle[i]; c.addr == addr {
			s.idle = slices.Delete(s.idle, i, i+1)
			return c
		}
	}
	return nil
}

// ask sends the request and reads the head of the answer. The connection is kept when the answer was read to its
// end before it was closed and before the context ended.
func (s *straight) ask(conn *keptConn, req *http.Request) (*http.Response, error) {
	stop := context.AfterFunc(req.Context(), func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	resp, err := exchange(conn, req)
	if err != nil {
		stop()
		return nil, err
	}
	resp.Body = &keptBody{ReadCloser: resp.Body, whole: resp.ContentLength == 0, done: func(whole bool) {
		if !stop() || !whole || resp.Close || !s.keep(conn) {
			_ = conn.Close()
		}
	}}
	return resp, nil
}

// exchange sends the request and reads the head of the answer.
func exchange(conn *keptConn, req *http.Request) (*http.Response, error) {
	conn.more.N = maxHead
	out := bufio.NewWriterSize(conn, 1<<10)
	if err := req.Write(out); err != nil {
		return nil, err
	}
	if err := out.Flush(); err != nil {
		return nil, err
	}
	for {
		resp, err := http.ReadResponse(conn.in, req)
		if err != nil && conn.more.N <= 0 {
			return nil, fmt.Errorf("the head of nginx's answer is longer than %d bytes", maxHead)
		}
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= http.StatusOK || resp.StatusCode == http.StatusSwitchingProtocols {
			conn.more.N = math.MaxInt64
			return resp, nil
		}
	}
}

// keep puts a connection back, if there is room for it.
func (s *straight) keep(conn *keptConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) >= mostKept || conn.in.Buffered() > 0 {
		return false
	}
	conn.since = time.Now()
	s.idle = append(s.idle, conn)
	return true
}

// CloseIdleConnections is found by http.Client.
func (s *straight) CloseIdleConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.idle {
		_ = c.Close()
	}
	s.idle = nil
	if o, ok := s.other.(interface{ CloseIdleConnections() }); ok {
		o.CloseIdleConnections()
	}
}

// keptBody tells when it is closed, and whether it was read to its end.
type keptBody struct {
	io.ReadCloser
	whole bool
	once  sync.Once
	done  func(whole bool)
}

// Read implements io.Reader.
func (b *keptBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.whole = b.whole || err == io.EOF
	return n, err
}

// Close implements io.Closer. What was not read is not waited for: the connection ends with it.
func (b *keptBody) Close() error {
	b.once.Do(func() { b.done(b.whole) })
	return nil
}
