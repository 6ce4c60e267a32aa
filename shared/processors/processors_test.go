package processors

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

func TestTheGovernorFollowsTheLoad(t *testing.T) {
	const one, all = false, true
	g := governor{opts: Options{Much: 0.6, Little: 0.45}}
	for i, look := range []struct {
		load float64
		want bool
	}{
		{0, one},
		{0.59, one},
		{0.61, all}, // at once
		{0.1, all},
		{0.1, all},
		{0.1, all},
		{0.1, all},
		{0.5, all}, // not calm enough to count
		{0.1, all},
		{0.1, all},
		{0.1, all},
		{0.1, all},
		{0.44, one}, // the fifth in a row
		{0.6, one},
		{1.9, all},
	} {
		if g.next(look.load, 0); g.all != look.want {
			t.Fatalf("look %d, load %v: all processors: %t, want %t", i, look.load, g.all, look.want)
		}
	}
}

func TestTheGovernorFollowsTheWork(t *testing.T) {
	const one, all = false, true
	g := governor{opts: Options{Much: 0.6, Little: 0.45, MuchWork: 1000}}
	for i, look := range []struct {
		load, work float64
		want       bool
	}{
		{0.2, 900, one},
		{0.2, 1100, all}, // at once
		{0.2, 600, all},
		{0.2, 0, all},
		{0.2, 0, all},
		{0.2, 0, all},
		{0.2, 0, all},
		{0.2, 501, all}, // not calm enough to count
		{0.2, 499, all},
		{0.2, 0, all},
		{0.2, 0, all},
		{0.2, 0, all},
		{0.2, 0, one}, // the fifth in a row
		{0.7, 0, all},
	} {
		if g.next(look.load, look.work); g.all != look.want {
			t.Fatalf("look %d, load %v, %v pieces a second: all processors: %t, want %t", i, look.load, look.work, g.all, look.want)
		}
	}
}

func TestAProcessGetsTheProcessorsThatItsLoadTakes(t *testing.T) {
	runtime.SetDefaultGOMAXPROCS()
	most := runtime.GOMAXPROCS(0) + 3
	var load, used, perSecond atomic.Int64 // load is in percent of a processor
	began := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		at := time.Now()
		govern(ctx, Options{
			Much: 0.6, Little: 0.45, Least: most,
			Work: func() uint64 { return uint64(time.Since(began).Seconds() * float64(perSecond.Load())) }, MuchWork: 1000,
		}, func() time.Duration {
			now := time.Now()
			used.Add(now.Sub(at).Nanoseconds() * load.Load() / 100)
			at = now
			return time.Duration(used.Load())
		})
	}()
	is := func(n int) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for limit := time.Now().Add(time.Minute); runtime.GOMAXPROCS(0) != n; <-tick.C {
			if time.Now().After(limit) {
				t.Fatalf("%d processors, want %d", runtime.GOMAXPROCS(0), n)
			}
		}
	}
	is(1)
	load.Store(150)
	is(most)
	load.Store(20)
	is(1)
	perSecond.Store(5000)
	is(most)
	perSecond.Store(0)
	is(1)
	cancel()
	<-done
	if n := runtime.GOMAXPROCS(0); n != most {
		t.Errorf("%d processors are left behind, want %d", n, most)
	}
}

func TestTheProgramRunsWithOneProcessorAndLeavesAllBehind(t *testing.T) {
	t.Setenv(variable, "")
	failed := errors.New("failed")
	err := Govern(Options{Much: 1e9, Least: 7}, func() error {
		for limit := time.Now().Add(time.Minute); runtime.GOMAXPROCS(0) != 1; runtime.Gosched() {
			if time.Now().After(limit) {
				t.Errorf("%d processors", runtime.GOMAXPROCS(0))
				break
			}
		}
		return failed
	})
	if n := runtime.GOMAXPROCS(0); err != failed || n < 7 {
		t.Errorf("%v, %d processors are left behind, want at least 7", err, n)
	}
}

func TestProcessorTimeIsWhatThisProcessUses(t *testing.T) {
	before := processorTime()
	for limit := time.Now().Add(time.Minute); processorTime() < before+20*time.Millisecond; {
		if time.Now().After(limit) {
			t.Fatalf("after a minute of work it is %s, before it was %s", processorTime(), before)
		}
	}
}

func TestWhoeverSetsTheProcessorsDecides(t *testing.T) {
	t.Setenv(variable, "3")
	before := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(before)
	if n := Govern(Options{Least: 7}, func() int { return 42 }); n != 42 {
		t.Errorf("the program gave %d", n)
	}
	if n := runtime.GOMAXPROCS(0); n != 3 {
		t.Errorf("%d processors are left behind", n)
	}
}
