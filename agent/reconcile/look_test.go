package reconcile

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/journal"
)

func TestHealthyProcessesAreAskedAtCommonMoments(t *testing.T) {
	born := time.Now()
	a := &actor{o: Options{Timing: Timing{}.withDefaults(), born: born}}
	for _, granted := range []bool{false, true} {
		every, seen := a.o.Timing.IdleEvery, map[time.Duration]bool{}
		if granted {
			every, a.ob.Grant = a.o.Timing.HealthEvery, &journal.Grant{}
		}
		for i := range 1000 {
			now := born.Add(time.Duration(i) * 12345 * time.Microsecond)
			wait := a.nextLook(now)
			if wait <= every*3/4-looks || wait > every*5/4 {
				t.Fatalf("granted: %t: asked again after %s, about every %s", granted, wait, every)
			}
			at := now.Add(wait).Sub(born)
			if at%looks != 0 {
				t.Fatalf("granted: %t: asked again at %s, which is none of the moments", granted, at)
			}
			seen[wait.Truncate(looks)] = true
		}
		if len(seen) < int(every/2/looks)/2 {
			t.Errorf("granted: %t: all are asked again after one of %d times", granted, len(seen))
		}
	}
	a.o.Timing.HealthEvery = time.Millisecond // of a test, which waits for it
	if wait := a.nextLook(born.Add(time.Second)); wait <= 0 || wait > 2*time.Millisecond {
		t.Errorf("every millisecond: asked again after %s", wait)
	}
}
