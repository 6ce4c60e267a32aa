package container

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
	"github.com/hashicorp/go-hclog"
)

// Passage has the requests that the Door carries to their containers and back what these answer, as bytes on one
// connection for each. It is there to end them: the same question is put again for everything that is open, and what
// would be refused now is cut off. nginx alone would keep a WebSocket of somebody who was removed.
type Passage struct {
	logger   hclog.Logger
	dial     func(context.Context, netip.AddrPort) (net.Conn, error)
	headLife time.Duration
	wake     chan struct{} // something may have to end

	mu   sync.Mutex // guards what follows
	open map[*crossing]struct{}

	ended atomic.Uint64
}

// Bounds of the passage.
const (
	headLife    = 10 * time.Second       // of the head of a request on its way from nginx, and of the end of one that is refused
	reviewEvery = 500 * time.Millisecond // all that is open is looked at, whether or not something has changed
	dialLife    = 5 * time.Second
	bufferSize  = 32 << 10
)

func newPassage(log hclog.Logger) *Passage {
	dialer := net.Dialer{Timeout: dialLife}
	return &Passage{
		logger: log, headLife: headLife, wake: make(chan struct{}, 1), open: map[*crossing]struct{}{},
		dial: func(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
			return dialer.DialTCP(ctx, "tcp", netip.AddrPort{}, at)
		},
	}
}

// crossing is one request that somebody makes.
type crossing struct {
	registry  *Registry
	container ID
	asked     Asked
	who       func() (Caller, bool) // finds the caller again; nil: nobody is known

	mu    sync.Mutex // guards what follows
	over  bool
	conns []net.Conn
}

// decide puts the question. The answer is not counted.
func (x *crossing) decide() Decision {
	var who Caller
	if x.who != nil {
		if found, known := x.who(); known {
			who = found
		}
	}
	return decide(x.registry.people.Policy(), who, x.registry.target(x.container), x.asked)
}

// holds reports whether an open request may go on. A container that is down for want of a heartbeat loses
// nobody by that who has reached it.
func (x *crossing) holds() bool {
	a := x.decide().Answer
	return a == Passed || a == Away
}

// has gives the crossing a connection to end; false when it is over already.
func (x *crossing) has(c net.Conn) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		_ = c.Close()
		return false
	}
	x.conns = append(x.conns, c)
	return true
}

// end closes both sides, and reports whether that was not done yet.
func (x *crossing) end() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return false
	}
	x.over = true
	for _, c := range x.conns {
		_ = c.Close()
	}
	x.conns = nil
	return true
}

// enter makes a request known. It is open from then on, so whatever changes later is seen by the review, and what has
// changed before by who decides after this.
func (p *Passage) enter(x *crossing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[x] = struct{}{}
}

func (p *Passage) leave(x *crossing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, x)
}

func (p *Passage) list() []*crossing {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*crossing, 0, len(p.open))
	for x := range p.open {
		out = append(out, x)
	}
	return out
}

// review ends what may not go on: whenever somebody says that something has changed, and twice a second, because
// logins and tokens also end by themselves.
func (p *Passage) review(ctx context.Context) {
	ticker := time.NewTicker(reviewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-ticker.C:
		}
		for _, x := range p.list() {
			if !x.holds() && x.end() {
				p.ended.Add(1)
				p.logger.Debug("a request to a container is ended: it would be refused now", "container", x.container)
			}
		}
	}
}

// Carry serves the connections on which nginx brings requests, until ctx ends, and ends all of them then.
func (d *Door) Carry(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return nil
		}
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			d.logger.Error("a request to a container is not carried: too many files are open", "error", err)
			sleep.For(ctx, 100*time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		all.Go(func() { d.carry(ctx, c) })
	}
}

// carry decides about one request and brings it to its container, or says why not. Whatever else fails, nginx sees
// the connection end.
func (d *Door) carry(ctx context.Context, from net.Conn) {
	x := &crossing{conns: []net.Conn{from}}
	defer x.end()
	undo := context.AfterFunc(ctx, func() { x.end() })
	defer undo()
	p := d.passage
	if from.SetReadDeadline(time.Now().Add(p.headLife)) != nil {
		return // it is closed already
	}
	r, err := readRequest(from)
	if err != nil {
		d.logger.Debug("a request to a container cannot be read", "error", err)
		return
	}
	q, ok := d.question(ctx, r.asked)
	switch {
	case !ok:
		p.say(from, r.method, noticeOf(Missing))
		return
	case d.overheard(q):
		p.say(from, r.method, noticeOf(Refused))
		return
	}
	v := d.visit(q)
	x.registry, x.container, x.asked, x.who = q.registry, q.container, v.asked, v.again
	p.enter(x)
	defer p.leave(x)
	decision := x.decide()
	q.registry.count(decision.Answer)
	if decision.Answer != Passed {
		p.leave(x) // nobody ended it
		d.logger.Debug("a request to a container is refused", "container", q.container, "answer", decision.Answer, "reason", decision.Reason)
		p.say(from, r.method, d.refusal(q, decision.Answer))
		return
	}
	p.through(ctx, x, from, r, v.told(decision), decision.Upstream)
}

// through brings a request to its container and back what that answers.
func (p *Passage) through(ctx context.Context, x *crossing, from net.Conn, r request, t told, at netip.AddrPort) {
	to, err := p.dial(ctx, at)
	if err != nil {
		p.logger.Debug("a container is not reached", "container", x.container, "error", err)
		p.say(from, r.method, silent)
		return
	}
	if !x.has(to) || from.SetReadDeadline(time.Time{}) != nil {
		return
	}
	if _, err := to.Write(r.as(t)); err != nil {
		return
	}
	var down sync.WaitGroup
	down.Go(func() {
		// The container's end of its answer is told to nginx, which then ends the connection.
		back := &answer{to: from, user: t.user}
		err := pump(back, to)
		if !back.past {
			err = silent.send(from, r.method)
		}
		if err != nil || closeWrite(from) != nil {
			x.end()
		}
	})
	_ = pump(to, from) // nginx ends a connection as a whole
	x.end()
	down.Wait()
}

// say answers a request that goes nowhere. nginx may still be sending it, and would lose the answer if it could not
// send on.
func (p *Passage) say(to net.Conn, method string, n notice) {
	if n.send(to, method) == nil && closeWrite(to) == nil && to.SetReadDeadline(time.Now().Add(p.headLife)) == nil {
		_, _ = io.Copy(io.Discard, to)
	}
}

func closeWrite(c net.Conn) error {
	half, can := c.(interface{ CloseWrite() error })
	if !can {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// pump copies until the sender ends (nil) or something fails. It holds a buffer only while there is something to
// copy: most of what is open for long is silent.
func pump(to io.Writer, from net.Conn) error {
	raw, err := from.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var buf *[bufferSize]byte
	var n int
	var failed error
	read := func(fd uintptr) bool {
		buf = buffers.Get().(*[bufferSize]byte)
		for {
			n, failed = syscall.Read(int(fd), buf[:])
			if failed != syscall.EINTR {
				break
			}
		}
		if failed == syscall.EAGAIN {
			buffers.Put(buf)
			return false
		}
		return true
	}
	for {
		if err := raw.Read(read); err != nil {
			return err
		}
		if failed == nil && n > 0 {
			_, failed = to.Write(buf[:n])
		}
		buffers.Put(buf)
		if failed != nil || n <= 0 {
			return failed
		}
	}
}

// figures are how many requests are open, and how many were ended.
func (p *Passage) figures() (open int, ended uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.open), p.ended.Load()
}
