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

// Allow keeps the collector's percentage in step with the size of the state until ctx ends, so that about so
// many bytes of garbage gather before they are collected.
func Allow(ctx context.Context, bytes uint64) {
	before := debug.SetGCPercent(mostPercent)
	defer debug.SetGCPercent(before)
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		metrics.Read(sample)
		debug.SetGCPercent(percent(sample[0].Value.Uint64(), bytes))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
