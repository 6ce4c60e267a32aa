// Package garbage keeps Go's collector from running all the time in programs whose state is small and whose
// work is short-lived. The collector runs each time the heap has doubled, which for a small state is several
// times a second under load and a quarter of the work. Here garbage may grow to a fixed amount beyond the
// state before it is collected, and never to less than half of it.
package garbage

import (
	"context"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	leastPercent = 50
	mostPercent  = 400
	look         = 5 * time.Second
)

// percent is how much the heap may grow over its live part before it is collected.
func percent(live, allowed uint64) int {
	if live == 0 {
		return mostPercent
	}
	return int(math.Min(math.Max(float64(allowed)*100/float64(live), leastPercent), mostPercent))
}

// allowances are what the programs of this process allow, which has one heap and one collector: what they allow adds
// up, as their states do.
var allowances struct {
	mu     sync.Mutex
	total  uint64
	users  int
	before int // the percentage to go back to after the last one
}

// enter adds an allowance, which the returned function takes away again.
func enter(bytes uint64) (leave func()) {
	a := &allowances
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.users++; a.users == 1 {
		a.before = debug.SetGCPercent(mostPercent)
	}
	a.total += bytes
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.total -= bytes
		if a.users--; a.users == 0 {
			debug.SetGCPercent(a.before)
		}
	}
}

// allowed is what may gather in this process.
func allowed() uint64 {
	allowances.mu.Lock()
	defer allowances.mu.Unlock()
	return allowances.total
}

// Allow keeps the collector's percentage in step with the size of the state until ctx ends, so that about so
// many bytes of garbage gather before they are collected, beside those that others in this process allow.
func Allow(ctx context.Context, bytes uint64) {
	defer enter(bytes)()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		metrics.Read(sample)
		debug.SetGCPercent(percent(sample[0].Value.Uint64(), allowed()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
