package dns

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// An answer by UDP goes to whoever the query says it is from, and is longer than the query. So that nobody can have a
// stranger flooded by this server, a network gets no more than so many answers a second; of the queries above that every
// other is answered with the word that it be asked again by TCP, which no false address can be, and the rest with nothing.
// A resolver with many users loses a little time by that, and no answer.
const (
	udpPerSecond = 1000
	udpBurst     = 2 * udpPerSecond
	// networksKept bounds the memory: one that has its whole burst is as good as none.
	networksKept = 10_000
)

// verdict is what becomes of a query by UDP.
type verdict int

const (
	answered verdict = iota
	shortened
	dropped
)

// rates counts the answers by UDP for each network.
type rates struct {
	now func() time.Time

	mu  sync.Mutex
	all map[netip.Prefix]*rate // guarded by mu
}

type rate struct {
	left float64
	at   time.Time
	over uint64 // queries that were too many
}

func newRates(now func() time.Time) *rates { return &rates{now: now, all: map[netip.Prefix]*rate{}} }

// take counts one query of an address. This machine's own cannot come from elsewhere.
func (r *rates) take(from net.Addr) verdict {
	network := networkOf(from)
	if network.Addr().IsLoopback() {
		return answered
	}
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.all[network]
	if n == nil {
		if len(r.all) >= networksKept {
			r.prune(now)
		}
		n = &rate{left: udpBurst, at: now}
		r.all[network] = n
	}
	n.refill(now)
	if n.left >= 1 {
		n.left--
		return answered
	}
	if n.over++; n.over%2 == 1 {
		return shortened
	}
	return dropped
}

func (n *rate) refill(now time.Time) {
	if passed := now.Sub(n.at).Seconds(); passed > 0 {
		n.left, n.at = min(udpBurst, n.left+passed*udpPerSecond), now
	}
}

// prune forgets who has asked little; when nobody has, all: rather too many answers than more memory.
func (r *rates) prune(now time.Time) {
	for network, n := range r.all {
		if n.refill(now); n.left >= udpBurst {
			delete(r.all, network)
		}
	}
	if len(r.all) >= networksKept {
		clear(r.all)
	}
}

// networkOf is what counts as one client: whoever is flooded has a line, and not one address.
func networkOf(from net.Addr) netip.Prefix {
	udp, ok := from.(*net.UDPAddr)
	if !ok {
		return netip.Prefix{}
	}
	a, bits := udp.AddrPort().Addr().Unmap().WithZone(""), 24
	if a.Is6() {
		bits = 56
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
