package coordinator

import "testing"

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		liveMiB uint64
		want    int
	}{{0, 400}, {10, 400}, {16, 400}, {64, 100}, {100, 64}, {128, 50}, {1200, 50}} {
		if got := gcPercent(c.liveMiB << 20); got != c.want {
			t.Errorf("%d MiB live: %d %%, want %d %%", c.liveMiB, got, c.want)
		}
	}
}
