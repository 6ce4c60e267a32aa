package coordinator

import (
	"context"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A coordinator makes much short-lived garbage beside a state that is small at first and grows with the
// cluster. Go's collector runs each time the heap has doubled, which for a small state is several times a
// second under load and a quarter of the work. So garbage may grow to a fixed amount beyond the state
// before it is collected, and never to less than half of it.
const (
	garbageAllowed = 64 << 20
	leastPercent   = 50
	mostPercent    = 400
	memoryLook     = 5 * time.Second
)

// gcPercent is how much the heap may grow over its live part before it is collected.
func gcPercent(live uint64) int {
	if live == 0 {
		return mostPercent
	}
	return int(math.Min(math.Max(garbageAllowed*100/float64(live), leastPercent), mostPercent))
}

// tuneMemory keeps the collector's percentage in step with the size of the state until ctx ends.
func tuneMemory(ctx context.Context) {
	before := debug.SetGCPercent(mostPercent)
	defer debug.SetGCPercent(before)
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(memoryLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			metrics.Read(sample)
			debug.SetGCPercent(gcPercent(sample[0].Value.Uint64()))
		}
	}
}
