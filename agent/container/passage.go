package container

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Passage carries requests that the Door has let in, and that may go on for long, to their containers and back what
// these answer, as bytes on one connection for each. It is there to end them: the same question is put again for
// everything that is open, and what would be refused now is cut off. nginx alone would keep a WebSocket of somebody
// who was removed.
type Passage struct {
	logger hclog.Logger
	dialer net.Dialer
	wake   chan struct{} // something may have to end, or the first has begun
	most   int           // of those that wait

	mu      sync.Mutex // guards what follows
	waiting map[string]*crossing
	order   []*crossing // those that wait or waited, oldest first
	open    map[*crossing]struct{}

	ended atomic.Uint64
}

// Bounds of the passage.
const (
	passLife    = 10 * time.Second       // between the Door's answer and nginx's coming
	maxWaiting  = 50_000                 // requests that may be between the two
	headLife    = 10 * time.Second       // of the head of a request on its way from nginx
	reviewEvery = 500 * time.Millisecond // all that is open is looked at, whether or not something has changed
	dialLife    = 5 * time.Second
	bufferSize  = 32 << 10
	largestHead = 256 << 10 // four times what nginx takes from a client, with what it adds
)

func newPassage(log hclog.Logger) *Passage {
	return &Passage{
		logger: log, dialer: net.Dialer{Timeout: dialLife}, wake: make(chan struct{}, 1), most: maxWaiting,
		waiting: map[string]*crossing{}, open: map[*crossing]struct{}{},
	}
}

// crossing is one request that was let in.
type crossing struct {
	key       string
	expires   time.Time // while it waits for nginx
	registry  *Registry
	container ID
	asked     Asked
	who       func() (Caller, bool) // finds the caller again

	mu    sync.Mutex // guards what follows
	over  bool
	conns []net.Conn
}

// decide puts the question of the Door again. The answer is not counted.
func (x *crossing) decide() Decision {
	who, known := x.who()
	if !known {
		who = Caller{}
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

// expect makes a request known that nginx is about to bring. The key that it brings is good once.
func (p *Passage) expect(x *crossing, now time.Time) (key string, ok bool) {
	x.key, x.expires = rand.Text(), now.Add(passLife)
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.order) > 0 {
		first := p.order[0]
		if p.waiting[first.key] == first && now.Before(first.expires) {
			break
		}
		delete(p.waiting, first.key)
		p.order[0], p.order = nil, p.order[1:]
	}
	if len(p.order) >= p.most {
		return "", false
	}
	p.waiting[x.key] = x
	p.order = append(p.order, x)
	return x.key, true
}

// enter takes the request that a key is for. It is open from then on, so whatever changes later is seen by the
// review, and what has changed before by who asks once more after this.
func (p *Passage) enter(key string, now time.Time) (*crossing, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.waiting[key]
	delete(p.waiting, key)
	if x == nil || !now.Before(x.expires) {
		return nil, false
	}
	p.open[x] = struct{}{}
	if len(p.open) == 1 {
		signal(p.wake)
	}
	return x, true
}

func (p *Passage) leave(x *crossing) {
	x.end()
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

// review ends what may not go on: whenever somebody says that something has changed, and twice a second while
// anything is open, because logins and tokens also end by themselves.
func (p *Passage) review(ctx context.Context) {
	timer := time.NewTimer(reviewEvery)
	defer timer.Stop()
	for {
		open := p.list()
		for _, x := range open {
			if !x.holds() && x.end() {
				p.ended.Add(1)
				p.logger.Debug("a request to a container is ended: it would be refused now", "container", x.container)
			}
		}
		timer.Stop()
		if len(open) > 0 {
			timer.Reset(reviewEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
	}
}

// Carry serves the connections of nginx until ctx ends, and ends all of them then.
func (o *Organizations) Carry(ctx context.Context, l net.Listener) error {
	p := o.passage
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = l.Close()
		for _, x := range p.list() {
			x.end()
		}
	})
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
			p.logger.Error("a request to a container is not carried: too many files are open", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if err != nil {
			return err
		}
		all.Go(func() { p.carry(ctx, c, o.opts.Now) })
	}
}

// carry brings one request to its container. Whatever fails, nginx sees the connection end and says so.
func (p *Passage) carry(ctx context.Context, from net.Conn, now func() time.Time) {
	defer func() { _ = from.Close() }()
	undo := context.AfterFunc(ctx, func() { _ = from.Close() }) // also before it is known what it is
	defer undo()
	if from.SetReadDeadline(time.Now().Add(headLife)) != nil {
		return // it is closed already
	}
	key, head, err := readHead(from)
	if err != nil {
		p.logger.Debug("a request to a container cannot be read", "error", err)
		return
	}
	x, ok := p.enter(key, now())
	if !ok {
		p.logger.Debug("a request to a container comes without a pass")
		return
	}
	defer p.leave(x)
	d := x.decide()
	if d.Answer != Passed || !x.has(from) {
		return
	}
	to, err := p.dialer.DialContext(ctx, "tcp", d.Upstream.String())
	if err != nil {
		p.logger.Debug("a container is not reached", "container", x.container, "error", err)
		return
	}
	if !x.has(to) || from.SetReadDeadline(time.Time{}) != nil {
		return
	}
	if _, err := to.Write(head); err != nil {
		return
	}
	var down sync.WaitGroup
	down.Go(func() {
		// The container's end of its answer is told to nginx, which then ends the connection.
		if half, can := from.(interface{ CloseWrite() error }); pump(from, to) != nil || !can || half.CloseWrite() != nil {
			x.end()
		}
	})
	_ = pump(to, from) // nginx ends a connection as a whole
	x.end()
	down.Wait()
}

// passLine is how nginx writes the header with the key.
const passLine = "\r\n" + TellPass + ": "

// readHead reads a request's head and gives it without the header with the key, along with what came behind it.
func readHead(from io.Reader) (key string, head []byte, err error) {
	buf := make([]byte, 0, 4<<10)
	for at := 0; ; {
		if len(buf) == cap(buf) {
			if len(buf) >= largestHead {
				return "", nil, errors.New("its head is too large")
			}
			buf = append(make([]byte, 0, 4*cap(buf)), buf...)
		}
		n, err := from.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if end := bytes.Index(buf[at:], []byte("\r\n\r\n")); end >= 0 {
			at += end
			line := bytes.Index(buf[:at], []byte(passLine))
			if line < 0 {
				return "", nil, errors.New("it has no pass")
			}
			value := buf[line+len(passLine):]
			length := bytes.Index(value, []byte("\r\n"))
			key = string(value[:length])
			return key, append(buf[:line], value[length:]...), nil
		}
		if err != nil {
			return "", nil, err
		}
		at = max(0, len(buf)-3)
	}
}

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// pump copies until the sender ends (nil) or something fails. It holds a buffer only while there is something to
// copy: most of what is open for long is silent.
func pump(to net.Conn, from net.Conn) error {
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
