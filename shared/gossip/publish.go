package gossip

import (
	"context"
	"maps"
	"time"

	"github.com/hashicorp/serf/serf"
)

// SetDigest publishes the host's health with the next tags. It never blocks: the latest digest wins, and
// what was overtaken before it went out is not sent.
func (n *Node) SetDigest(d Digest) error {
	text, err := d.Encode()
	if err != nil {
		return err
	}
	return n.change(func(t *tags) { t.digest = text })
}

// SetTags publishes these tags beside the built-in ones, instead of those of before. It never blocks.
func (n *Node) SetTags(extra map[string]string) error {
	extra = maps.Clone(extra)
	return n.change(func(t *tags) { t.extra = extra })
}

// change takes what is to be published, if it all fits.
func (n *Node) change(with func(*tags)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	// A ring with all keys it may have, so that a rotation never finds the tags too long.
	next := tags{opts: &n.opts, run: n.run, digest: n.digest, extra: n.extra, keys: []Fingerprint{"00000000", "00000000"}}
	with(&next)
	if _, err := next.encode(); err != nil {
		return err
	}
	n.digest, n.extra = next.digest, next.extra
	n.nudge()
	return nil
}

// nudge has the publisher look.
func (n *Node) nudge() {
	select {
	case n.publish <- struct{}{}:
	default:
	}
}

const (
	// burst is how many changes of tags may go out at once after a quiet time.
	burst = 3
	// look is how often the keys, which the library changes by itself, are looked at.
	look = 200 * time.Millisecond
)

// publisher keeps the keys durable and the tags up to date, of which last are out already. It is the only
// goroutine that does either.
func (n *Node) publisher(ctx context.Context, last map[string]string) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	bucket := newBucket(n.opts.TagInterval, time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-n.publish:
		}
		if n.ring != nil {
			if err := n.ring.save(); err != nil { // not published either: nobody may take the key for safe here
				n.log.Error("the gossip keys are not safe on the disk", "error", err)
			}
		}
		next, err := n.tags().encode()
		if err != nil || maps.Equal(next, last) || n.serf.State() != serf.SerfAlive || !bucket.take(time.Now()) {
			continue
		}
		if err := n.serf.SetTags(next); err != nil {
			n.log.Info("new tags reach the pool late", "error", err) // the next exchange of all states has them
		}
		n.mu.Lock()
		n.published++
		n.mu.Unlock()
		last = next
	}
}

// bucket bounds a rate: one per interval, and burst after a quiet time.
type bucket struct {
	interval time.Duration
	full     time.Time // when all of burst is there again
}

func newBucket(interval time.Duration, now time.Time) *bucket { return &bucket{interval, now} }

// take reports whether one more may go now.
func (b *bucket) take(now time.Time) bool {
	if b.full.Before(now) {
		b.full = now
	}
	if b.full.Sub(now) > (burst-1)*b.interval {
		return false
	}
	b.full = b.full.Add(b.interval)
	return true
}
