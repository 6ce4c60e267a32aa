package syncer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	dialTimeout      = 2 * time.Second
	handshakeTimeout = 3 * time.Second
	// lineIdle is how long a line may wait for its next report: a coordinator hangs up after longer.
	lineIdle = 30 * time.Second
	// maxReply bounds the answer to a report, and maxHead its head with all that comes before it.
	maxReply = 1 << 20
	maxHead  = 64 << 10
)

// lines carry reports to the coordinators, each on the goroutine that reports. net/http's transport has two goroutines
// for each connection, which must be woken in turn for every report; an allocation waits for that. One connection is
// kept, to the coordinator that answered last.
type lines struct {
	conf *tls.Config
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	mu     sync.Mutex // guards what follows
	idle   *line      // nil: none is kept
	closed bool       // none is kept any more
}

// line is a connection to a coordinator.
type line struct {
	net.Conn
	addr  string
	more  *io.LimitedReader // what may still be read of the answer
	in    *bufio.Reader     // of more
	since time.Time         // nobody has used it
}

// RoundTrip implements http.RoundTripper, for requests whose body can be had again. The answer's body is read already.
func (l *lines) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	for kept := l.take(req.URL.Host); ; kept = nil {
		conn := kept
		if conn == nil {
			var err error
			if conn, err = l.connect(ctx, req.URL.Host, req.URL.Hostname()); err != nil {
				return nil, err
			}
		}
		resp, err := l.ask(conn, req)
		if err == nil {
			return resp, nil
		}
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if kept == nil { // one that was kept may have been closed meanwhile
			return nil, err
		}
	}
}

// take gives the connection that is kept, if it leads to an address and nobody has closed it since.
func (l *lines) take(addr string) *line {
	l.mu.Lock()
	defer l.mu.Unlock()
	conn := l.idle
	l.idle = nil
	if conn == nil || conn.addr == addr && time.Since(conn.since) < lineIdle {
		return conn
	}
	_ = conn.Close()
	return nil
}

// keep takes a connection back for the next report.
func (l *lines) keep(conn *line) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.idle != nil || conn.in.Buffered() > 0 {
		return false
	}
	conn.since = time.Now()
	l.idle = conn
	return true
}

// close hangs up. What is under way goes on and hangs up after it.
func (l *lines) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.idle != nil {
		_ = l.idle.Close()
		l.idle = nil
	}
}

// connect makes a connection to a coordinator at an address, which is known by a name.
func (l *lines) connect(ctx context.Context, addr, name string) (*line, error) {
	raw, err := l.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conf := l.conf.Clone()
	if conf.ServerName == "" {
		conf.ServerName = name
	}
	conn := tls.Client(raw, conf)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("cannot make a TLS handshake with %s: %w", addr, err)
	}
	more := &io.LimitedReader{R: conn}
	return &line{Conn: conn, addr: addr, more: more, in: bufio.NewReaderSize(more, 2<<10)}, nil
}

// ask sends the request and reads the whole answer.
func (l *lines) ask(conn *line, req *http.Request) (*http.Response, error) {
	stop := context.AfterFunc(req.Context(), func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.more.N = maxHead + maxReply
	resp, err := exchange(conn, req)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	}
	if len(body) > maxReply || err != nil && conn.more.N <= 0 {
		return nil, fmt.Errorf("the coordinator's answer is longer than %d bytes", maxReply)
	}
	if err != nil {
		return nil, err
	}
	if !stop() || resp.Close || !l.keep(conn) {
		_ = conn.Close()
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// exchange sends the request and reads the head of the answer.
func exchange(conn *line, req *http.Request) (*http.Response, error) {
	again := *req
	var err error
	if again.Body, err = req.GetBody(); err != nil {
		return nil, err
	}
	defer func() { _ = again.Body.Close() }()
	out := bufio.NewWriterSize(conn, 16<<10)
	// A coordinator may refuse before it has read everything: then it is its answer that counts.
	sent := errors.Join(again.Write(out), out.Flush())
	for {
		resp, err := http.ReadResponse(conn.in, &again)
		if err != nil {
			return nil, errors.Join(sent, err)
		}
		if resp.StatusCode >= http.StatusOK {
			resp.Close = resp.Close || sent != nil
			return resp, nil
		}
	}
}
