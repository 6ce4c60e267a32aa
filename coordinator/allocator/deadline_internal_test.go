package allocator

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/state"
)

// TestARestoredGrantHasItsGrace: a grant that was not confirmed when the snapshot was made gets more than the usual time
// from the restore on, so that a host which serves it by now comes to say so. A grant of now does not, whatever the clock
// says.
func TestARestoredGrantHasItsGrace(t *testing.T) {
	then := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	now := then.Add(26 * time.Hour)
	for name, c := range map[string]struct {
		reserved, deadline time.Time
		want               time.Duration // from now
	}{
		"of now":                     {now, now.Add(10 * time.Second), 10 * time.Second},
		"restored":                   {then, now.Add(40 * time.Second), 40 * time.Second},
		"the clock went far forward": {now.Add(6 * time.Hour), now.Add(6*time.Hour + 10*time.Second), 10 * time.Second},
	} {
		for _, moving := range []bool{false, true} {
			a := &state.Allocation{State: state.AllocationReserved, ActivationTimeout: 10 * time.Second}
			a.Hold(state.Grant{Gateway: "gw-aaaaaaaaaa", Host: "h1", Epoch: 7, ReservedAt: c.reserved, Deadline: c.deadline})
			if moving {
				target := a.Grant()
				a.State, a.Move = state.AllocationRelocating, &state.Move{Target: &target}
			}
			until, longest := dueAt(a)
			if got := min(until.Sub(now), longest); got != c.want {
				t.Errorf("%s, moving %t: it has %s, want %s", name, moving, got, c.want)
			}
		}
	}
}
