package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// LoopOptions configure a Loop. Zero durations and numbers mean the defaults; all else is needed.
type LoopOptions struct {
	Provider Provider
	Domain   string
	// Wanted returns a record for every allocation that is live, and a channel that is closed when that
	// may have changed. It is called after List, so that a record made by then is wanted by then. Those of
	// allocations that are not active yet, or no longer, are Pending.
	Wanted func() ([]Wanted, <-chan struct{})
	// Current fails unless this coordinator led when it was called, and had all in its state that was decided by then. It is
	// asked before a record is replaced that belongs to no grant of the state: to one that leads no longer, without
	// knowing it, the records of all later grants look like that.
	Current func(context.Context) error
	Logger  hclog.Logger
	Now     func() time.Time

	Interval time.Duration // between looks when nothing changes; 1 minute
	Settle   time.Duration // between looks in any case: a look reads the whole zone; 5 seconds
	Limit    int           // actions per look; 100, or one in a hundred of the names of a large zone
}

// Loop keeps a provider's records as the state wants them, while this coordinator leads. It is behind the
// steps of the allocations, which make and remove records themselves: it repairs what others changed, what
// a failed undo left, and what happened while nobody led.
type Loop struct {
	opts   LoopOptions
	looked time.Duration // how long the latest reading of the zone took; only Run uses it

	mu     sync.Mutex
	status LoopStatus // guarded by mu
}

// LoopStatus is how a Loop is.
type LoopStatus struct {
	LastSuccess time.Time // when it last found or made everything right; zero: never
	Held        int       // names at the last look
	Made        uint64    // actions that succeeded, since the start
	Removed     uint64
	Err         error // of the last look; nil when all went well
}

// NewLoop makes a Loop.
func NewLoop(opts LoopOptions) *Loop {
	if opts.Interval == 0 {
		opts.Interval = time.Minute
	}
	if opts.Settle == 0 {
		opts.Settle = 5 * time.Second
	}
	if opts.Limit == 0 {
		opts.Limit = 100
	}
	return &Loop{opts: opts}
}

// firstBackoff is the wait after the first failure in a row; it doubles up to the interval.
const firstBackoff = time.Second

// share is how much longer than a look the pause after it is, unless there is more to do. A look at a large zone is work for
// the provider, which has steps of allocations to answer beside it.
const share = 9

// maxRefusals is how many actions of one look may fail for reasons of their own before it is given up.
const maxRefusals = 3

// Status tells how the loop is.
func (l *Loop) Status() LoopStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Run looks and repairs until ctx ends. It returns at once where the provider keeps nothing.
func (l *Loop) Run(ctx context.Context) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		changed, more, err := l.round(ctx)
		switch {
		case errors.Is(err, ErrKeepsNothing) || ctx.Err() != nil:
			return
		case err != nil:
			l.failed(err, backoff)
			sleep.For(ctx, backoff)
			backoff = min(2*backoff, l.opts.Interval)
			continue
		}
		l.succeeded(more)
		backoff = firstBackoff
		if more {
			sleep.For(ctx, l.opts.Settle)
			continue
		}
		settle := max(l.opts.Settle, share*l.looked)
		sleep.For(ctx, settle)
		sleep.Unless(ctx, l.opts.Interval-settle, changed)
	}
}

// round looks once and does what Plan says.
func (l *Loop) round(ctx context.Context) (changed <-chan struct{}, more bool, err error) {
	began := time.Now()
	observed, err := l.opts.Provider.List(ctx)
	l.looked = time.Since(began)
	if err != nil {
		return nil, false, err
	}
	wanted, changed := l.opts.Wanted()
	limit := max(l.opts.Limit, (len(observed)+2*len(wanted))/200) // each wanted one has a wildcard too
	actions, more := Plan(l.opts.Domain, wanted, observed, limit)
	if slices.ContainsFunc(actions, func(a Action) bool { return a.Record.Instead > 0 }) {
		if err := l.opts.Current(ctx); err != nil {
			return nil, false, fmt.Errorf("cannot tell whether records are of grants that this coordinator has not heard of: %w", err)
		}
		wanted, changed = l.opts.Wanted() // with every grant that a record was listed of
		actions, more = Plan(l.opts.Domain, wanted, observed, limit)
	}
	l.mu.Lock()
	l.status.Held = len(observed)
	l.mu.Unlock()
	refusals := 0
	for _, a := range actions {
		actErr := l.act(ctx, a)
		if actErr == nil {
			continue
		}
		l.opts.Logger.Warn("cannot repair a DNS record", "verb", a.Verb, "name", a.Record.Name, "reason", a.Reason, "error", actErr)
		err = actErr
		if refusals++; KindOf(actErr) == Temporary || refusals == maxRefusals {
			break
		}
	}
	return changed, more, err
}

func (l *Loop) act(ctx context.Context, a Action) error {
	var err error
	if a.Verb == Make {
		err = l.opts.Provider.Ensure(ctx, a.Record)
	} else {
		err = l.opts.Provider.Remove(ctx, a.Record.Name, a.UpTo)
	}
	if fault.Is(err, fault.Superseded) {
		return nil // a later grant was quicker than this look
	}
	if err != nil {
		return err
	}
	l.opts.Logger.Info("repaired a DNS record", "verb", a.Verb, "name", a.Record.Name, "addresses", a.Record.Addresses, "epoch", max(a.Record.Epoch, a.UpTo), "reason", a.Reason)
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.Verb == Make {
		l.status.Made++
	} else {
		l.status.Removed++
	}
	return nil
}

// failed notes a failure, and says so once for every run of them.
func (l *Loop) failed(err error, wait time.Duration) {
	l.mu.Lock()
	before := l.status.Err
	l.status.Err = err
	l.mu.Unlock()
	if before == nil {
		l.opts.Logger.Error("cannot hold the DNS records against the state", "kind", KindOf(err), "error", err, "again_in", wait)
	}
}

func (l *Loop) succeeded(more bool) {
	l.mu.Lock()
	before := l.status.Err
	l.status.Err = nil
	if !more {
		l.status.LastSuccess = l.opts.Now()
	}
	l.mu.Unlock()
	if before != nil {
		l.opts.Logger.Info("the DNS records can be held against the state again")
	}
}
