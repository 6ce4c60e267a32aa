package coordinator_test

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// neighbours watches what others on the same machine take of the processors that this one seems to have: in that time
// nothing runs here, whatever a program does, so a figure says little about the program without it.
type neighbours struct {
	b    *testing.B
	from time.Time
	took []processorTime // of each quarter of a second
	sum  processorTime
}

// processorTime is in ticks of proc_stat(5): what was stolen, and all there was.
type processorTime struct{ stolen, all float64 }

const watched = 250 * time.Millisecond

// watch begins to watch. The returned function ends it.
func (n *neighbours) watch() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.from = time.Now()
	before := processorTimes(n.b)
	go func() { // until end is called, which waits
		defer close(done)
		tick := time.NewTicker(watched)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
			now := processorTimes(n.b)
			since := processorTime{now.stolen - before.stolen, now.all - before.all}
			n.sum.stolen, n.sum.all, before = n.sum.stolen+since.stolen, n.sum.all+since.all, now
			for len(n.took) < int(time.Since(n.from)/watched) {
				n.took = append(n.took, since) // of several, when the look came late
			}
			if ctx.Err() != nil {
				n.took = append(n.took, since)
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// quiet reports whether others took no more than a fiftieth of the processors around a moment: in the quarter of a second
// in which it lies, the one before, and the one after. How long what began then took has no part in it.
func (n *neighbours) quiet(at time.Time) bool {
	piece := int(at.Sub(n.from) / watched)
	for _, t := range n.took[max(piece-1, 0):min(piece+2, len(n.took))] {
		if t.stolen > t.all/50 {
			return false
		}
	}
	return true
}

// processorTimes reads the first eight numbers of proc_stat(5) and the eighth of them.
func processorTimes(b *testing.B) (sum processorTime) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Error(err)
		return sum
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, f := range strings.Fields(line) {
		if i == 0 || i > 8 {
			continue
		}
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			b.Error(err)
		}
		sum.stolen, sum.all = n, sum.all+n
	}
	return sum
}
