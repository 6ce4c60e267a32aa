// Package processors lets a program use one of Go's processors while it has little to do, and all that it may when it
// has more. A program with several wakes a thread on another processor for nearly every piece of work, in case there
// is more, and on a host that it shares with hundreds of others this is most of what small pieces cost: the thread, the
// other processor's cold caches, and whoever ran there.
package processors

import (
	"context"
	"runtime"
	"syscall"
	"time"
)

const (
	// look is how often the program's load is looked at.
	look = 200 * time.Millisecond
	// much is the load of one processor above which a program gets all of them at once, little the one below which it
	// goes back to one after calmLooks in a row.
	much, little = 0.6, 0.45
	calmLooks    = 5
)

// governor decides how many processors there are.
type governor struct {
	all  bool // rather than one
	calm int  // looks with little load in a row
}

// next takes the load since the last look, in processors.
func (g *governor) next(load float64) {
	switch {
	case load > much:
		g.all, g.calm = true, 0
	case load > little:
		g.calm = 0
	default:
		if g.calm++; g.calm >= calmLooks {
			g.all = false
		}
	}
}

// Govern sets the processors of this whole process by its load until ctx ends: one, or as many as Go takes by itself.
// It is for the program's main function, where nobody has set GOMAXPROCS, and begins with one.
func Govern(ctx context.Context) { govern(ctx, processorTime) }

func govern(ctx context.Context, processorTime func() time.Duration) {
	runtime.GOMAXPROCS(1)
	defer runtime.SetDefaultGOMAXPROCS()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var g governor
	at, used := time.Now(), processorTime()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, total := time.Now(), processorTime()
		before := g.all
		g.next(float64(total-used) / float64(now.Sub(at)))
		at, used = now, total
		switch {
		case g.all && !before:
			runtime.SetDefaultGOMAXPROCS()
		case before && !g.all:
			runtime.GOMAXPROCS(1)
		}
	}
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // it only fails for wrong arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
