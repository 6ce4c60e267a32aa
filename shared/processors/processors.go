// Package processors lets a program use one of Go's processors while it has little to do, and all that it may when it
// has more. A program with several wakes a thread on another processor for nearly every piece of work, in case there
// is more, and on a host that it shares with hundreds of others this is most of what small pieces cost: the thread, the
// other processor's cold caches, and whoever ran there.
package processors

import (
	"context"
	"os"
	"runtime"
	"syscall"
	"time"
)

const (
	// look is how often the program's load is looked at.
	look = 200 * time.Millisecond
	// calmLooks is how many looks in a row have to see little load before a program goes back to one processor.
	calmLooks = 5
)

// Options say when a program has much to do, and what it gets then.
type Options struct {
	// Much is the load of one processor above which the program gets all of them at once, Little the one below which it
	// goes back to one after a while.
	Much, Little float64
	// Work counts what is done piece by piece, which may wait for the disk: while it does, Go's only processor does nothing
	// else until the runtime notices. More than MuchWork pieces a second are much to do, and fewer than half as many
	// little, however small the load is. Nil: the load alone says it.
	Work     func() uint64
	MuchWork float64
	// Least is how many processors all of them are at least; 0: as many as Go takes by itself.
	Least int
}

// governor decides how many processors there are.
type governor struct {
	opts Options
	all  bool // rather than one
	calm int  // looks with little load in a row
}

// next takes what there was since the last look: the load, in processors, and the pieces of work a second.
func (g *governor) next(load, work float64) {
	switch {
	case load > g.opts.Much || work > g.opts.MuchWork:
		g.all, g.calm = true, 0
	case load > g.opts.Little || work > g.opts.MuchWork/2:
		g.calm = 0
	default:
		if g.calm++; g.calm >= calmLooks {
			g.all = false
		}
	}
}

// variable is what somebody else sets to decide how many processors a process uses.
const variable = "GOMAXPROCS"

// Govern runs a program, gives what it gives, and sets the processors of this whole process by its load meanwhile: one
// or all, and one at first. Where GOMAXPROCS is set it only runs the program. It is for the program's main function.
func Govern[T any](opts Options, run func() T) T {
	if os.Getenv(variable) != "" {
		return run()
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		govern(ctx, opts, processorTime)
	}()
	defer func() {
		stop()
		<-done
	}()
	return run()
}

func govern(ctx context.Context, opts Options, processorTime func() time.Duration) {
	runtime.GOMAXPROCS(1)
	defer all(opts.Least)
	tick := time.NewTicker(look)
	defer tick.Stop()
	g := governor{opts: opts}
	if opts.Work == nil {
		opts.Work = func() uint64 { return 0 }
	}
	at, used, done := time.Now(), processorTime(), opts.Work()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, total := time.Now(), processorTime()
		before, pieces, since := g.all, opts.Work(), now.Sub(at)
		g.next(float64(total-used)/float64(since), float64(pieces-done)/since.Seconds())
		at, used, done = now, total, pieces
		switch {
		case g.all && !before:
			all(opts.Least)
		case before && !g.all:
			runtime.GOMAXPROCS(1)
		}
	}
}

// all gives this process as many processors as Go takes by itself, and not fewer than least.
func all(least int) {
	runtime.SetDefaultGOMAXPROCS()
	if runtime.GOMAXPROCS(0) < least {
		runtime.GOMAXPROCS(least)
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
