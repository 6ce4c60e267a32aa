// Package garbage keeps Go's collector from running all the time in programs whose state is small and whose
// work is short-lived. The collector runs each time the heap has doubled, which for a small state is several
// times a second under load and a quarter of the work. Here garbage may grow to a fixed amount beyond the
// state before it is collected, and never to less than half of it. A program may let it grow further while it is
// busy: a collection takes as long as the state is large, and delays what comes meanwhile.
package garbage

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	leastPercent = 50
	mostPercent  = 400
	busyPercent  = 1000
	usualPercent = 100 // Go's own
	look         = 2 * time.Second
	// busyFor is how many seconds' worth of garbage a busy program may gather.
	busyFor = 5
)

// Allowance is what a program allows.
type Allowance struct {
	// Garbage is how many bytes of it may gather.
	Garbage uint64
	// Busy is how large the heap may grow, in bytes, while the program makes garbage quickly: before it is collected
	// so much gathers that collections are some seconds apart. Zero: no larger than at any other time.
	Busy uint64
}

// percent is how much the heap may grow over its live part before it is collected, in a program that makes so many
// bytes of garbage a second.
func percent(live uint64, allowed Allowance, perSecond float64) int {
	if live == 0 {
		return mostPercent
	}
	of := func(bytes float64) float64 { return bytes * 100 / float64(live) }
	usual := min(max(of(float64(allowed.Garbage)), leastPercent), mostPercent)
	busy := min(perSecond*busyFor, float64(allowed.Busy)-float64(live))
	return int(max(usual, min(of(busy), busyPercent)))
}

// allowances are what the programs of this process allow, which has one heap and one collector: what they allow adds
// up, as their states do.
var allowances struct {
	mu     sync.Mutex
	total  Allowance
	users  int
	before int // the percentage to go back to after the last one
}

// enter adds an allowance, which the returned function takes away again. It does nothing, and ok is false, where
// whoever started the process has decided about its collector, with GOGC or GOMEMLIMIT.
func enter(more Allowance) (leave func(), ok bool) {
	a := &allowances
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.users == 0 && decided() {
		return nil, false
	}
	if a.users++; a.users == 1 {
		a.before = debug.SetGCPercent(mostPercent)
	}
	a.total.Garbage += more.Garbage
	a.total.Busy += more.Busy
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.total.Garbage -= more.Garbage
		a.total.Busy -= more.Busy
		if a.users--; a.users == 0 {
			debug.SetGCPercent(a.before)
		}
	}, true
}

// decided reports whether the collector is another than Go's own.
func decided() bool {
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/gomemlimit:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64() != usualPercent || sample[1].Value.Uint64() != math.MaxInt64
}

// allowed is what may gather in this process.
func allowed() Allowance {
	allowances.mu.Lock()
	defer allowances.mu.Unlock()
	return allowances.total
}

// Allow keeps the collector's percentage in step with the size of the state and with the work until ctx ends, so that
// about as much garbage gathers as is allowed here and by others in this process. Where GOGC or GOMEMLIMIT is set it
// leaves the collector alone.
func Allow(ctx context.Context, a Allowance) {
	leave, ok := enter(a)
	if !ok {
		return
	}
	defer leave()
	collected := collections(ctx)
	tick := time.NewTicker(look)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	var rate pace
	for set := 0; ; {
		metrics.Read(sample)
		rate.note(sample[1].Value.Uint64(), time.Now())
		// Each change stops the program for a moment.
		if p := percent(sample[0].Value.Uint64(), allowed(), rate.perSecond); p < set*9/10 || p > set*11/10 {
			debug.SetGCPercent(p)
			set = p
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-collected: // the state may have become much larger, and with it what the percentage stands for
		}
	}
}

// pace is how quickly a program allocates. It follows a rise at once and a fall by halves.
type pace struct {
	perSecond float64
	total     uint64
	at        time.Time // of total; zero: there was none yet
}

func (p *pace) note(total uint64, now time.Time) {
	since := now.Sub(p.at).Seconds()
	if !p.at.IsZero() && since < look.Seconds()/2 {
		return // too short to say much
	}
	if !p.at.IsZero() {
		p.perSecond = max(float64(total-p.total)/since, p.perSecond/2)
	}
	p.total, p.at = total, now
}

// collections gives a value after each collection until ctx ends, or one for several.
func collections(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	var watch func(struct{})
	watch = func(struct{}) {
		if ctx.Err() != nil {
			return
		}
		select {
		case c <- struct{}{}:
		default:
		}
		runtime.AddCleanup(new([16]byte), watch, struct{}{})
	}
	watch(struct{}{})
	return c
}
