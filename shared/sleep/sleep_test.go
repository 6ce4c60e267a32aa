package sleep_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
)

func TestSleepEndsAtTheFirstReason(t *testing.T) {
	const never = time.Hour
	for name, tt := range map[string]struct {
		d, woken, ended time.Duration // from the beginning on
		took            time.Duration
		alive           bool
	}{
		"the time":                   {d: time.Minute, woken: never, ended: never, took: time.Minute, alive: true},
		"woken":                      {d: time.Minute, woken: time.Second, ended: never, took: time.Second, alive: true},
		"the end":                    {d: time.Minute, woken: never, ended: time.Second, took: time.Second},
		"no time":                    {woken: never, ended: never, alive: true},
		"less than none":             {d: -time.Minute, woken: never, ended: never, alive: true},
		"ended before":               {d: time.Minute, woken: never, ended: -1},
		"ended before, with no time": {woken: never, ended: -1},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 { // a choice between what is ready at once would differ
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), tt.ended)
					defer cancel()
					woken := make(chan struct{})
					timer := time.AfterFunc(tt.woken, func() { close(woken) })
					defer timer.Stop()
					began := time.Now()
					alive := sleep.Unless(ctx, tt.d, woken)
					if took := time.Since(began); took != tt.took || alive != tt.alive {
						t.Errorf("returned %t after %s, want %t after %s", alive, took, tt.alive, tt.took)
					}
				})
			}
		})
	}
}

func TestSleepNeedsNoChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if !sleep.For(t.Context(), time.Minute) || time.Since(began) != time.Minute {
			t.Errorf("slept for %s, want a minute", time.Since(began))
		}
	})
}
