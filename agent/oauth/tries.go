package oauth

import (
	"sync"
	"time"
)

// tries limits how often somebody may be wrong: ten times at once, then five times a second. Whoever is right
// is not counted, so a busy client is never slowed, and since callers are counted apart nobody locks out
// another.
type tries struct {
	now func() time.Time

	mu      sync.Mutex // guards buckets
	buckets map[string]*bucket
}

// bucket holds what is left to be wrong with, at a time.
type bucket struct {
	left float64
	at   time.Time
}

const (
	tryBurst   = 10
	tryRate    = 5.0 // a second
	maxBuckets = 4096
)

func newTries(now func() time.Time) *tries {
	return &tries{now: now, buckets: make(map[string]*bucket)}
}

// wait is how long a caller has to wait until the next try, zero if it need not.
func (t *tries) wait(caller string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.buckets[caller]
	if b == nil && len(t.buckets) >= maxBuckets {
		b = t.buckets[""]
	}
	if b == nil {
		return 0
	}
	b.fill(t.now())
	if b.left >= 1 {
		return 0
	}
	return time.Duration((1 - b.left) / tryRate * float64(time.Second))
}

// failed counts a failed try.
func (t *tries) failed(caller string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	b := t.buckets[caller]
	if b == nil {
		if len(t.buckets) >= maxBuckets {
			for name, old := range t.buckets {
				if old.fill(now); old.left >= tryBurst {
					delete(t.buckets, name)
				}
			}
		}
		if len(t.buckets) >= maxBuckets { // an attack from everywhere: the rest share one
			caller = ""
		}
		if b = t.buckets[caller]; b == nil {
			b = &bucket{left: tryBurst, at: now}
			t.buckets[caller] = b
		}
	}
	b.fill(now)
	b.left = max(0, b.left-1)
}

func (b *bucket) fill(now time.Time) {
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.left = min(tryBurst, b.left+passed*tryRate)
	}
	b.at = now
}
