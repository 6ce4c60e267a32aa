package process

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// Whoever asks while the processes are being read shares one further reading, which sees what happened before.
func TestThoseWhoAskAtTheSameTimeShareAReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var readings, pid atomic.Int64
		gate := make(chan struct{})
		tab := newTable(func() []member {
			readings.Add(1)
			seen := member{pid: int(pid.Load())}
			<-gate
			return []member{seen}
		})
		var asking sync.WaitGroup
		asking.Go(func() { tab.look() })
		synctest.Wait() // the first reading is on its way
		pid.Store(7)
		var wrong atomic.Int64
		for range 50 {
			asking.Go(func() {
				if all := tab.look(); len(all) != 1 || all[0].pid != 7 {
					wrong.Add(1)
				}
			})
		}
		synctest.Wait()
		close(gate)
		asking.Wait()
		if n := readings.Load(); n != 2 {
			t.Errorf("the processes were read %d times for 51 who asked, want twice", n)
		}
		if n := wrong.Load(); n != 0 {
			t.Errorf("%d were told what was before they asked", n)
		}
	})
}
