package consensus

import "testing"

func TestRoomNext(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	var r Room
	for _, step := range []struct {
		why              string
		free, total, min uint64
		floor            uint64
		low              bool
	}{
		{"plenty", 9000 * mib, 100_000 * mib, 512 * mib, 512 * mib, false},
		{"at the floor", 512 * mib, 100_000 * mib, 512 * mib, 512 * mib, false},
		{"below it", 511 * mib, 100_000 * mib, 512 * mib, 512 * mib, true},
		{"a little above is not enough to go back", 530 * mib, 100_000 * mib, 512 * mib, 512 * mib, true},
		{"an eighth above is", 576 * mib, 100_000 * mib, 512 * mib, 512 * mib, false},
		{"a small disk has a small floor", 40 * mib, 640 * mib, 512 * mib, 32 * mib, false},
		{"nothing", 0, 640 * mib, 512 * mib, 32 * mib, true},
	} {
		r = r.next(step.free, step.total, step.min)
		if r != (Room{step.free, step.floor, step.low}) {
			t.Errorf("%s: %+v", step.why, r)
		}
	}
}
