package httpapi

import (
	"net/netip"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// Rate is a limit: so many per second, and so many at once after a pause.
type Rate struct {
	PerSecond float64
	Burst     float64
}

// Limits bound what one caller may ask for. A zero field has its default.
type Limits struct {
	// Token bounds one token's requests; default 10,000/s, 20,000 at once.
	Token Rate
	// User bounds one platform user's requests; default 50/s, 100 at once.
	User Rate
	// Anonymous bounds one address's requests without a token; default 1,000/s, 2,000 at once.
	Anonymous Rate
	// Failed bounds one address's failed authentications that are answered as such; default 10/s, 20 at
	// once. A valid token is let in all the same.
	Failed Rate
}

// limits has one bucket per token, per user and per address.
type limits struct {
	tokens, users, addresses, failures buckets
}

func newLimits(l Limits, now func() time.Time) *limits {
	or := func(r, def Rate) Rate {
		if r == (Rate{}) {
			return def
		}
		return r
	}
	return &limits{
		tokens:    buckets{rate: or(l.Token, Rate{10_000, 20_000}), now: now},
		users:     buckets{rate: or(l.User, Rate{50, 100}), now: now},
		addresses: buckets{rate: or(l.Anonymous, Rate{1_000, 2_000}), now: now},
		failures:  buckets{rate: or(l.Failed, Rate{10, 20}), now: now},
	}
}

func (l *limits) token(tokenID string) *fault.Error {
	return tooFast(l.tokens.take(tokenID), "this token sends requests faster than allowed")
}

func (l *limits) user(user string) *fault.Error {
	return tooFast(l.users.take(user), "this user sends requests faster than allowed")
}

func (l *limits) anonymous(address string) *fault.Error {
	return tooFast(l.addresses.take(network(address)), "this address sends requests faster than allowed")
}

func (l *limits) failed(address string) *fault.Error {
	return tooFast(l.failures.take(network(address)), "too many failed authentications from this address")
}

// tooFast is the refusal for a wait; none for no wait.
func tooFast(wait time.Duration, what string) *fault.Error {
	if wait == 0 {
		return nil
	}
	f := fault.New(fault.RateLimited, "%s; try again after the time in Retry-After", what)
	f.RetryAfter = wait
	return f
}

// storagePause is when a caller that was refused for lack of space should try again.
const storagePause = 30 * time.Second

// roomFor refuses what would add to a log that is running out of space. What ends or eases something goes on, and so
// do the reports of agents, without which nothing that was begun could end.
func (s *Server) roomFor(row *route) *fault.Error {
	if !row.adds() {
		return nil
	}
	low := s.opts.Cluster.StorageLow()
	if low == "" {
		return nil
	}
	f := fault.New(fault.StorageLow, "the leader's disk is nearly full (%s): nothing new is taken until there is room. Free some space there, or let another coordinator lead (`demiurge operator raft transfer-leadership`)", low)
	f.RetryAfter = storagePause
	return f
}

// adds reports whether a call of the route may make the log grow for something new.
func (rt *route) adds() bool {
	return (rt.method == post || rt.method == put) && rt.access&agent == 0 && !easing[rt.name]
}

// easing names the changing calls that help when space is short, or take something away.
var easing = map[string]bool{
	"gateway-stop": true, "cordon-host": true, "recycle-gateway": true, "quarantine-gateway": true,
	"transfer-leadership": true, "restore-snapshot": true,
}

// network is what counts as one address: an IPv6 client has a whole /64 to choose from.
func network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil || a.Is4() {
		return address
	}
	p, err := a.Prefix(64)
	if err != nil {
		return address
	}
	return p.String()
}

// bucketsKept bounds the memory: a bucket that has filled up again is as good as none.
const bucketsKept = 10_000

// buckets is a token bucket per key.
type buckets struct {
	rate Rate
	now  func() time.Time

	mu sync.Mutex
	// all holds the buckets that are not known to be full; guarded by mu.
	all map[string]*bucket
}

type bucket struct {
	level float64
	at    time.Time
}

// take takes one out of a key's bucket and returns zero, or how long to wait for one.
func (b *buckets) take(key string) time.Duration {
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.all[key]
	if k == nil {
		if len(b.all) >= bucketsKept {
			b.prune(now)
		}
		if b.all == nil {
			b.all = map[string]*bucket{}
		}
		k = &bucket{level: b.rate.Burst, at: now}
		b.all[key] = k
	}
	b.refill(k, now)
	if k.level < 1 {
		return max(time.Duration((1-k.level)/b.rate.PerSecond*float64(time.Second)), time.Millisecond)
	}
	k.level--
	return 0
}

func (b *buckets) refill(k *bucket, now time.Time) {
	if passed := now.Sub(k.at).Seconds(); passed > 0 {
		k.level = min(b.rate.Burst, k.level+passed*b.rate.PerSecond)
		k.at = now
	}
}

// prune drops the full buckets; when none is full it drops all: rather too lenient than without memory.
func (b *buckets) prune(now time.Time) {
	for key, k := range b.all {
		if b.refill(k, now); k.level >= b.rate.Burst {
			delete(b.all, key)
		}
	}
	if len(b.all) >= bucketsKept {
		clear(b.all)
	}
}
