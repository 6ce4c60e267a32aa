package garbage

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

const mib = 1 << 20

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		liveMiB, garbageMiB, busyMiB uint64
		perSecondMiB                 float64
		want                         int
	}{
		{0, 64, 0, 0, 400},
		{10, 64, 0, 0, 400},
		{16, 64, 0, 0, 400},
		{64, 64, 0, 0, 100},
		{100, 64, 0, 0, 64},
		{128, 64, 0, 0, 50},
		{1200, 64, 0, 0, 50},
		{4, 12, 0, 0, 300},
		{64, 64, 0, 100, 100},    // no more is allowed
		{64, 64, 256, 4, 100},    // not busy
		{64, 64, 256, 16, 125},   // five seconds of it
		{64, 64, 256, 100, 300},  // as large as it may become
		{200, 64, 256, 100, 50},  // hardly any room
		{400, 64, 256, 100, 50},  // none
		{10, 64, 256, 100, 1000}, // it could grow beyond any bound before the next look
	} {
		allowed := Allowance{c.garbageMiB * mib, c.busyMiB * mib}
		if got := percent(c.liveMiB*mib, allowed, c.perSecondMiB*mib); got != c.want {
			t.Errorf("%d MiB live, %d and %d allowed, %v a second: %d %%, want %d %%",
				c.liveMiB, c.garbageMiB, c.busyMiB, c.perSecondMiB, got, c.want)
		}
	}
}

func TestPaceRisesAtOnceAndFallsByHalves(t *testing.T) {
	var p pace
	at, total := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), uint64(1000)
	p.note(total, at)
	for i, c := range []struct {
		after time.Duration
		more  uint64
		want  float64
	}{{look, 200, 100}, {look, 2000, 1000}, {look / 4, 99999, 1000}, {look, 0, 99999 / 2.5}, {look, 0, 99999 / 5.0}, {look, 0, 99999 / 10.0}} {
		total, at = total+c.more, at.Add(c.after)
		if p.note(total, at); p.perSecond != c.want {
			t.Errorf("look %d: %v a second, want %v", i, p.perSecond, c.want)
		}
	}
}

func TestAllowancesOfOneProcessAddUp(t *testing.T) {
	before := debug.SetGCPercent(usualPercent)
	defer debug.SetGCPercent(before)
	enter := func(a Allowance) func() {
		leave, ok := enter(a)
		if !ok {
			t.Fatal("the collector is taken for one that somebody has set")
		}
		return leave
	}
	first, second := enter(Allowance{64 * mib, 200 * mib}), enter(Allowance{5 * mib, 0})
	if got := allowed(); got != (Allowance{69 * mib, 200 * mib}) {
		t.Errorf("%v is allowed, want 69 MiB and 200", got)
	}
	first()
	if got := allowed(); got != (Allowance{5 * mib, 0}) {
		t.Errorf("%v is allowed after the first has left, want 5 MiB", got)
	}
	debug.SetGCPercent(77) // as the second one's loop does
	second()
	if got := debug.SetGCPercent(usualPercent); got != usualPercent {
		t.Errorf("the collector is left at %d %%, want the 100 %% of before", got)
	}
}

func TestWhoeverStartsTheProcessDecides(t *testing.T) {
	before := debug.SetGCPercent(usualPercent)
	defer debug.SetGCPercent(before)
	check := func(what string) {
		t.Helper()
		Allow(t.Context(), Allowance{Garbage: 64 * mib}) // would not return otherwise
		if leave, ok := enter(Allowance{Garbage: 64 * mib}); ok {
			leave()
			t.Error(what + " is overridden")
		}
	}
	debug.SetGCPercent(150)
	check("GOGC")
	debug.SetGCPercent(usualPercent)
	debug.SetMemoryLimit(8 << 30)
	defer debug.SetMemoryLimit(math.MaxInt64)
	check("GOMEMLIMIT")
}

func TestCollectionsAreNoticed(t *testing.T) {
	c := collections(t.Context())
	<-c // the first one stands for those before
	for range 3 {
		for limit := time.Now().Add(time.Minute); len(c) == 0; runtime.GC() {
			if time.Now().After(limit) {
				t.Fatal("a collection was not noticed within a minute")
			}
		}
		<-c
	}
}
