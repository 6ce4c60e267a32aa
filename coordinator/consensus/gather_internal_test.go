package consensus

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// crowd is a gatherer with what was given out to be proposed.
type crowd struct {
	gatherer
	lock   sync.Mutex
	groups []int // their sizes; guarded by lock
}

func (c *crowd) come(n int) {
	for range n {
		c.went(c.join(&proposal{}, time.Now(), func() { c.went(c.take()) }))
	}
}

func (c *crowd) went(group []*proposal) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if len(group) > 0 {
		c.groups = append(c.groups, len(group))
	}
}

// answered ends the oldest group.
func (c *crowd) answered() {
	size := c.groups[0]
	c.groups = c.groups[1:]
	c.over(size, time.Now())
}

func (c *crowd) want(t *testing.T, when string, groups ...int) {
	t.Helper()
	synctest.Wait()
	c.lock.Lock()
	defer c.lock.Unlock()
	if !slices.Equal(c.groups, groups) {
		t.Fatalf("%s: groups %v are on their way, want %v", when, c.groups, groups)
	}
}

func TestFewProposalsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c crowd
		for range 100 { // as quickly as they are answered
			c.come(1)
			c.want(t, "alone", 1)
			c.answered()
		}
		c.come(fewInFlight)
		c.want(t, "together", 1, 1, 1, 1)
	})
}

func TestABusyMomentMakesAGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c crowd
		c.come(20)
		c.want(t, "at once", 1, 1, 1, 1)
		c.answered()
		c.want(t, "after an answer", 1, 1, 1)
		c.come(1)
		c.want(t, "when who was answered has come back", 1, 1, 1, 17)
		for range 3 {
			c.answered()
		}
		c.come(5)
		c.want(t, "behind a group", 17)
		c.answered()
		c.come(16)
		c.want(t, "as one is still missing")
		c.come(1)
		c.want(t, "as all are back", 22)
		c.answered()
		c.come(6)
		time.Sleep(gatherFor - time.Nanosecond)
		c.want(t, "just before the longest wait is over")
		time.Sleep(time.Nanosecond)
		c.want(t, "when it is over", 6)
		c.answered()
		time.Sleep(gatherFor)
		c.come(1)
		c.want(t, "after a rest", 1)
	})
}

func TestAGroupDoesNotWaitLongForAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c crowd
		c.come(fewInFlight + 3)
		time.Sleep(gatherFor)
		c.want(t, "without any answer", 1, 1, 1, 1, 3)
		c.come(2)
		time.Sleep(gatherFor)
		c.want(t, "without any answer", 1, 1, 1, 1, 3, 2)
	})
}
