package allocator

import (
	"container/heap"
	"context"
	"math"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

const (
	eventBatch     = 1024
	settle         = 10 * time.Millisecond // events gather so long before they are read: deadlines are seconds away
	maxConcluders  = 64                    // deadlines that are concluded at the same time
	retryConclude  = time.Second           // between tries to conclude one that could not be
	collectEvery   = 5 * time.Minute       // history is collected this often
	historyKeptFor = 24 * time.Hour        // ended allocations and answered idempotency keys
)

// Run ends what passes its time: places in line, unfinished allocations, allocations with a time to
// live, and history. It runs while this coordinator leads, beginning with all that it finds in the
// state, and forgets everything it knew when it returns.
func (r *Runner) Run(ctx context.Context) {
	r.reign(ctx)
	defer r.reset()
	q := newQueue()
	last := r.opts.Store.LastEvent()
	r.scan(q)
	slots := make(chan struct{}, maxConcluders)
	collect := time.NewTicker(collectEvery)
	defer collect.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var read []state.Event
	for {
		events, more, truncated := r.opts.Store.EventsInto(read, last, eventBatch)
		read = events
		if truncated {
			q = newQueue()
			last = r.opts.Store.LastEvent()
			r.scan(q)
			continue
		}
		for _, e := range events {
			last = state.EventID{Index: e.Index, Seq: e.Seq}
			if e.Allocation != "" {
				r.schedule(q, e.Allocation)
			}
		}
		if len(events) == eventBatch {
			continue
		}
		r.fire(ctx, q, slots)
		timer.Reset(q.wait(r.opts.Now()))
		select {
		case <-ctx.Done():
			return
		case <-more:
			sleep.For(ctx, settle)
		case <-timer.C:
		case <-r.opts.Store.Restored():
			q = newQueue()
			last = r.opts.Store.LastEvent()
			r.scan(q)
		case <-collect.C:
			r.collect(ctx)
		}
	}
}

// reign lets Report leave confirmations to goroutines that end with ctx.
func (r *Runner) reign(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reigning = ctx
}

// reset waits for the confirmations that are on their way and forgets everything.
func (r *Runner) reset() {
	r.mu.Lock()
	r.reigning = nil
	r.mu.Unlock()
	r.confirming.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.runs)
	clear(r.verified)
}

func (r *Runner) scan(q *queue) {
	for a := range r.opts.Store.View().LiveAllocations(nil) {
		r.schedule(q, a.ID)
	}
}

// schedule puts the time at which something is due for an allocation into the queue. One whose allocation has moved on
// is seen to be over when it comes up, or leaves with the others when they are many.
//
// The time on record is of the clock of the coordinator that led then. How far away it is is found out when it is first
// seen, never further than it was when it was set, and from then on counted by the clock that nobody sets: a clock that
// is wrong for a while neither ends anything early nor keeps it for hours.
func (r *Runner) schedule(q *queue, a id.Allocation) {
	rec := r.opts.Store.View().Allocation(nil, a)
	if rec == nil || !rec.State.Live() {
		delete(q.seen, a)
		r.mu.Lock()
		delete(r.runs, a)
		delete(r.verified, a)
		r.mu.Unlock()
		return
	}
	a = rec.ID // that of an event may be a small part of a long string
	until, longest := dueAt(rec)
	if until.IsZero() || q.seen[a].Equal(until) {
		return
	}
	now := r.opts.Now()
	q.seen[a] = until
	q.push(due{now.Add(min(until.Sub(now), longest)), until, a})
}

// dueAt is when an allocation's present state ends by itself, and how long such a state lasts at most; zero: never.
func dueAt(a *state.Allocation) (until time.Time, longest time.Duration) {
	switch a.State {
	case state.AllocationQueued:
		return a.QueueUntil, a.QueueUntil.Sub(a.CreatedAt)
	case state.AllocationActive:
		return a.ExpiresAt, math.MaxInt64
	}
	grant, pending := a.Pending()
	switch {
	case !pending && a.State != state.AllocationRelocating:
		return time.Time{}, 0
	case !pending, expires(a, grant.Deadline):
		return a.ExpiresAt, math.MaxInt64
	}
	// A grant that was taken over from another time, as out of a snapshot, got more than the usual time.
	return grant.Deadline, max(a.ActivationTimeout, grant.Deadline.Sub(grant.ReservedAt))
}

// expires reports whether an allocation's time to live ends before a deadline.
func expires(a *state.Allocation, deadline time.Time) bool {
	return !a.ExpiresAt.IsZero() && a.ExpiresAt.Before(deadline)
}

// fire concludes what is due. Each is looked at again in a second, until it has moved on.
func (r *Runner) fire(ctx context.Context, q *queue, slots chan struct{}) {
	now := r.opts.Now()
	for len(q.heap) > 0 && !q.heap[0].at.After(now) {
		d := q.pop()
		rec := r.opts.Store.View().Allocation(nil, d.allocation)
		if rec == nil {
			continue
		}
		if until, _ := dueAt(rec); !until.Equal(d.until) {
			continue // it moved on, and its new time is in the queue
		}
		q.push(due{now.Add(retryConclude), d.until, d.allocation})
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		go func() { // bounded by slots; Propose returns when ctx ends
			defer func() { <-slots }()
			r.overdue(ctx, rec)
		}()
	}
}

// overdue ends an allocation whose time is up.
func (r *Runner) overdue(ctx context.Context, rec *state.Allocation) {
	switch rec.State {
	case state.AllocationQueued:
		r.fail(ctx, rec, 0, failure{
			code: fault.PoolExhausted, message: "no gateway of pool " + string(rec.Pool) + " became free within the wait; wait longer, raise the pool's maximum or add a host",
		}, nil)
	case state.AllocationReserved, state.AllocationRelocating, state.AllocationActive:
		if grant, pending := rec.Pending(); pending && !expires(rec, grant.Deadline) {
			r.timeOut(ctx, rec, grant)
			return
		}
		result, _, err := r.opts.Proposer.Propose(ctx, command.Release{
			Meta: r.meta("allocator", ""), Allocation: rec.ID, Reason: "its time to live is over",
		})
		r.concluded(rec, rec.Epoch, "release", result.Err, err)
		if err == nil && result.Err == nil {
			r.ended(ctx, rec.ID)()
		}
	}
}

// timeOut ends a grant that was not confirmed in time.
func (r *Runner) timeOut(ctx context.Context, rec *state.Allocation, grant state.Grant) {
	r.mu.Lock()
	rn := r.trackLocked(rec.ID, grant.Epoch)
	steps, concluded := append([]command.Step(nil), rn.steps...), rn.concluded
	rn.concluded = true
	r.mu.Unlock()
	if !concluded {
		r.fail(ctx, rec, grant.Epoch, failure{fault.ActivationTimeout, overdueMessage(rec, grant, steps), true}, steps)
	}
}

func overdueMessage(rec *state.Allocation, grant state.Grant, steps []command.Step) string {
	done := "host " + string(grant.Host) + " reported no step"
	if n := len(steps); n > 0 {
		done = "the last step that host " + string(grant.Host) + " reported is " + steps[n-1].Step
	}
	return "gateway " + string(grant.Gateway) + " was not served within " + rec.ActivationTimeout.String() + ": " + done + "; it was taken back, try again"
}

func (r *Runner) collect(ctx context.Context) {
	_, _, err := r.opts.Proposer.Propose(ctx, command.Collect{
		Meta: r.meta("allocator", ""), Before: r.opts.Now().Add(-historyKeptFor),
	})
	if err != nil {
		r.opts.Logger.Warn("cannot collect history now", "error", err)
	}
}

// due is the moment at which an allocation has to be looked at, and the time on record that this stands for.
type due struct {
	at, until  time.Time
	allocation id.Allocation
}

// queue has what is due, and of each allocation the time on record that was last put into it.
type queue struct {
	heap dues
	seen map[id.Allocation]time.Time
}

func newQueue() *queue { return &queue{seen: map[id.Allocation]time.Time{}} }

// mostOver is how many entries that are over the queue may have beside as many as it needs.
const mostOver = 1024

func (q *queue) push(d due) {
	heap.Push(&q.heap, d)
	if len(q.heap) <= 2*len(q.seen)+mostOver {
		return
	}
	// A time to live may be years away when its allocation ends.
	q.heap = slices.DeleteFunc(q.heap, func(d due) bool { return !q.seen[d.allocation].Equal(d.until) })
	heap.Init(&q.heap)
}

func (q *queue) pop() due { return heap.Pop(&q.heap).(due) }

func (q *queue) wait(now time.Time) time.Duration {
	if len(q.heap) == 0 {
		return time.Hour
	}
	return max(q.heap[0].at.Sub(now), 0)
}

// dues is a heap, the earliest first.
type dues []due

func (q dues) Len() int           { return len(q) }
func (q dues) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q dues) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *dues) Push(x any)        { *q = append(*q, x.(due)) }

// Pop removes the last element, as container/heap wants it.
func (q *dues) Pop() any {
	old := *q
	d := old[len(old)-1]
	*q = old[:len(old)-1]
	return d
}
