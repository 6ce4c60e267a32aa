package garbage

import "testing"

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
