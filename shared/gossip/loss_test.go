package gossip_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// relay stands before a node, at the address that the node advertises: datagrams are lost as often as it is
// told, connections pass.
type relay struct {
	udp  *net.UDPConn
	tcp  *net.TCPListener
	loss float64
	dice *rand.Rand // touched by one goroutine

	to            atomic.Pointer[netip.AddrPort] // the node; nil: nothing passes yet
	passed, lost  atomic.Uint64
	running       sync.WaitGroup
	mu            sync.Mutex
	conns         []net.Conn // guarded by mu
	closed        bool       // guarded by mu
	advertisement netip.AddrPort
}

func newRelay(t testing.TB, loss float64, seed uint64) *relay {
	t.Helper()
	ip := address().Addr()
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err != nil {
		t.Fatal(err)
	}
	at := tcp.Addr().(*net.TCPAddr).AddrPort()
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{udp: udp, tcp: tcp, loss: loss, dice: rand.New(rand.NewPCG(seed, 1)), advertisement: at}
	r.running.Go(r.datagrams)
	r.running.Go(r.connections)
	t.Cleanup(r.close)
	return r
}

func (r *relay) close() {
	_ = r.udp.Close()
	_ = r.tcp.Close()
	r.mu.Lock()
	r.closed = true
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.running.Wait()
}

func (r *relay) datagrams() {
	for buf := make([]byte, 64<<10); ; {
		n, err := r.udp.Read(buf)
		if err != nil {
			return
		}
		to := r.to.Load()
		if to == nil || r.dice.Float64() < r.loss {
			r.lost.Add(1)
			continue
		}
		r.passed.Add(1)
		_, _ = r.udp.WriteToUDPAddrPort(buf[:n], *to)
	}
}

func (r *relay) connections() {
	for {
		in, err := r.tcp.Accept()
		if err != nil {
			return
		}
		r.running.Go(func() { r.pipe(in) })
	}
}

func (r *relay) pipe(in net.Conn) {
	defer in.Close()
	to := r.to.Load()
	if to == nil {
		return
	}
	out, err := net.Dial("tcp", to.String())
	if err != nil {
		return
	}
	defer out.Close()
	r.mu.Lock()
	r.conns = append(r.conns, in, out)
	closed := r.closed
	r.mu.Unlock()
	if closed {
		return
	}
	back := make(chan struct{})
	go func() { // waited for below
		defer close(back)
		_, _ = io.Copy(in, out)
		_ = in.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(out, in)
	_ = out.(*net.TCPConn).CloseWrite()
	<-back
}

// With 40 % of all datagrams lost nobody is taken for dead: pings over TCP and the denial of suspicions are
// there for that. All members share this process here: one that was kept off the processors for longer than
// a ping over TCP may take has no right to an answer in time, so such a try proves nothing, and is repeated.
func TestLossKillsNobody(t *testing.T) {
	t.Parallel()
	const tries, stall = 5, 100 * time.Millisecond
	for try := range tries {
		failed, stalled := lossy(t, uint64(try))
		if failed == 0 {
			return
		}
		t.Logf("%d times a live member was taken for dead; the slowest answer over TCP took %v", failed, stalled)
		if stalled < stall {
			t.Fatal("and nothing kept it from answering in time")
		}
	}
	t.Fatalf("in each of %d tries a live member was taken for dead", tries)
}

// lossy runs five members with loss and tells how often one was taken for dead, and how long an answer over TCP took at
// most meanwhile. Datagrams are counted, not seconds: a
// member gets about ten in a probe round here, pings, answers, those through others, and gossip.
func lossy(t *testing.T, seed uint64) (failed uint64, stalled time.Duration) {
	const count, rounds, perRound = 5, 25, 10
	p := newPool(t)
	relays := make([]*relay, count)
	nodes := make([]*gossip.Node, count)
	for i := range nodes {
		relays[i] = newRelay(t, 0.4, 10*seed+uint64(i))
		o := p.options(fmt.Sprintf("h%d", i+1))
		o.Advertise = relays[i].advertisement
		inside := netip.AddrPortFrom(o.Bind.Addr(), freePort(t, o.Bind.Addr()))
		o.Bind = inside
		relays[i].to.Store(&inside)
		nodes[i] = p.addWith(o)
	}
	waitAll(t, nodes, count)
	var failures atomic.Uint64
	var readers sync.WaitGroup
	for _, n := range nodes {
		readers.Go(func() {
			for c := range n.Changes() {
				if c.Kind == gossip.Failed {
					failures.Add(1)
				}
			}
		})
	}
	seen := func(r *relay) uint64 { return r.passed.Load() + r.lost.Load() }
	goals := make([]uint64, count)
	for i, r := range relays {
		goals[i] = seen(r) + rounds*perRound
	}
	slowest := answers(t)
	for i, r := range relays {
		eventually(t, fmt.Sprintf("%d rounds have passed", rounds), func() bool { return seen(r) >= goals[i] })
	}
	stalled = slowest()
	for _, n := range nodes {
		stop(t, n)
	}
	readers.Wait()
	var lost, all uint64
	for _, r := range relays {
		lost += r.lost.Load()
		all += seen(r)
	}
	if share := float64(lost) / float64(all); share < 0.25 || share > 0.55 {
		t.Errorf("the relays lost %.0f %% of %d datagrams", share*100, all)
	}
	return failures.Load(), stalled
}

// answers asks for an answer over TCP through a relay again and again, as a member does whose datagrams are lost. slowest
// ends that and tells how long the slowest took.
func answers(t *testing.T) (slowest func() time.Duration) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(address()))
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // whatever ends it
			})
		}
	})
	r := newRelay(t, 0, 0)
	to := l.Addr().(*net.TCPAddr).AddrPort()
	r.to.Store(&to)
	ask := func() error {
		c, err := net.Dial("tcp", r.tcp.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write([]byte("?")); err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		return err
	}
	var longest time.Duration
	enough := make(chan struct{})
	work.Go(func() {
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			begun := time.Now()
			if err := ask(); err != nil {
				t.Error(err)
				return
			}
			longest = max(longest, time.Since(begun))
			select {
			case <-enough:
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	})
	slowest = sync.OnceValue(func() time.Duration {
		close(enough)
		_ = l.Close()
		r.close()
		work.Wait()
		return longest
	})
	t.Cleanup(func() { slowest() }) // of a test that did not come so far
	return slowest
}

// freePort gives a port of an address that nobody else in this test run uses.
func freePort(t testing.TB, ip netip.Addr) uint16 {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}
