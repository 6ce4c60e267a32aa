package container

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// deadlines is a heap of the containers that are up, each once, by a deadline that is theirs or an earlier one:
// a heartbeat moves the deadline and leaves the heap alone.
type deadlines []deadline

type deadline struct {
	at time.Time
	of *Registry
	c  ID
}

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }

// Push implements heap.Interface.
func (d *deadlines) Push(x any) { *d = append(*d, x.(deadline)) }

// Pop implements heap.Interface.
func (d *deadlines) Pop() any {
	last := len(*d) - 1
	x := (*d)[last]
	(*d)[last] = deadline{}
	*d = (*d)[:last]
	return x
}

// await puts a container that is up on the list of deadlines, once. The registry's mu is held, or nobody else
// has the registry yet.
func (o *Organizations) await(r *Registry, e *entry) {
	if e.awaited {
		return
	}
	e.awaited = true
	o.mu.Lock()
	heap.Push(&o.deadlines, deadline{e.deadline, r, e.ID})
	o.mu.Unlock()
	signal(o.wake)
}

// next takes what is due from the list, or says how long nothing is.
func (o *Organizations) next(now time.Time) (deadline, time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.deadlines) == 0 {
		return deadline{}, longestSleep
	}
	if wait := o.deadlines[0].at.Sub(now); wait > 0 {
		return deadline{}, min(wait, longestSleep)
	}
	return heap.Pop(&o.deadlines).(deadline), 0
}

// longestSleep is how long the loop sleeps though nothing is due: the clock may have been set.
const longestSleep = time.Minute

// Run serves all registries until ctx ends.
func (o *Organizations) Run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { o.watch(ctx) })
	loops.Go(func() { o.finish(ctx) })
	loops.Go(func() { o.passage.review(ctx) })
	loops.Wait()
}

// watch makes containers down when their time is over.
func (o *Organizations) watch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due, wait := o.next(o.opts.Now())
		if due.of != nil {
			if ctx.Err() != nil {
				return
			}
			o.pass(due)
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		case <-timer.C:
		}
	}
}

// pass looks at one container whose deadline may be over.
func (o *Organizations) pass(due deadline) {
	o.claiming.Lock()
	defer o.claiming.Unlock()
	r := due.of
	r.mu.Lock()
	e := r.containers[due.c]
	if e != nil {
		e.awaited = false
		if e.Place != nil && e.beating(o.opts.Now()) {
			o.await(r, e) // its heart has beaten meanwhile
			e = nil
		}
	}
	r.mu.Unlock()
	if e == nil {
		return
	}
	if err := r.fall(due.c, false); err != nil {
		r.logger.Error("a container is down and the journal does not know", "container", due.c, "error", err)
	}
}

// finish ends what could not be ended at once, and containers whose projects are gone; later each time.
func (o *Organizations) finish(ctx context.Context) {
	const first, longest = 250 * time.Millisecond, 30 * time.Second
	pause := first
	for {
		failed := false
		for _, r := range o.list() {
			if err := r.finish(ctx); err != nil && ctx.Err() == nil {
				failed = true
				r.logger.Error("containers cannot be ended", "error", err)
			}
		}
		var later <-chan time.Time
		wake := o.again
		if failed {
			later, wake = time.After(pause), nil // every refusal would wake it
			pause = min(2*pause, longest)
		} else {
			pause = first
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-later:
		}
	}
}
