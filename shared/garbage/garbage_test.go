package garbage

import (
	"runtime/debug"
	"testing"
)

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		liveMiB, allowedMiB uint64
		want                int
	}{{0, 64, 400}, {10, 64, 400}, {16, 64, 400}, {64, 64, 100}, {100, 64, 64}, {128, 64, 50}, {1200, 64, 50}, {4, 12, 300}} {
		if got := percent(c.liveMiB<<20, c.allowedMiB<<20); got != c.want {
			t.Errorf("%d MiB live and %d allowed: %d %%, want %d %%", c.liveMiB, c.allowedMiB, got, c.want)
		}
	}
}

func TestAllowancesOfOneProcessAddUp(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	first, second := enter(64<<20), enter(5<<20)
	if got := allowed(); got != 69<<20 {
		t.Errorf("%d bytes are allowed, want 69 MiB", got)
	}
	first()
	if got := allowed(); got != 5<<20 {
		t.Errorf("%d bytes are allowed after the first has left, want 5 MiB", got)
	}
	debug.SetGCPercent(77) // as the second one's loop does
	second()
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("the collector is left at %d %%, want the 100 %% of before", got)
	}
}
