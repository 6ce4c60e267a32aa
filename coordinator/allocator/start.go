package allocator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// breakerOpen is what the pool keeper notes of a pool whose gateways keep failing.
const breakerOpen = "open"

const (
	// endingPatience is how long a start waits for the organization's last allocation to end.
	endingPatience = 15 * time.Second
	// undoPatience is how long a failed start waits for its undo, so that the caller's error comes after
	// it. The undo is the leader's in any case.
	undoPatience = 5 * time.Second
	// unknownPatience is how long an entry with an unknown outcome is looked for in the state.
	unknownPatience = 2 * time.Second
	// verifiedFor is how long a verification of an active allocation is believed.
	verifiedFor = time.Second
	// movingPatience is how long a start waits for an organization that nothing serves until it has come to
	// another host.
	movingPatience = 15 * time.Second
	// reverifyPatience is how long a start of a served organization waits for it to answer.
	reverifyPatience = 5 * time.Second
)

// ErrStopping is the cause of a context that ends because this coordinator does, and not because its caller went
// away: what was asked for goes on, a place in line is kept, and the caller asks again.
var ErrStopping = errors.New("this coordinator is being stopped")

// stopped is the answer to a caller that waited for an allocation when this coordinator was stopped; nil when that is
// not why the waiting ended.
func stopped(ctx context.Context, a id.Allocation) error {
	if !errors.Is(context.Cause(ctx), ErrStopping) {
		return nil
	}
	f := fault.Wrap(fault.NoLeader, ErrStopping, "this coordinator is being stopped, and what was asked of allocation %s goes on; make the same call again", a)
	f.RetryAfter = time.Second
	return f
}

// StartRequest asks for the gateway of an organization.
type StartRequest struct {
	Actor, Source string
	Organization  id.Organization
	Pool          id.Pool
	PoolNamed     bool          // by the caller: it has to exist also when the organization is served already
	Wait          time.Duration // in line, when the pool is empty
	WaitFor       string        // "routable" (default) or "reserved"
	TTL           time.Duration
	Metadata      map[string]string
	Key, Digest   string // of the Idempotency-Key and the body; empty without one
}

// StartResult is the allocation that answers a start.
type StartResult struct {
	Allocation id.Allocation
	Existing   bool
	// Confirm and Total are what this caller waited for the confirmation and altogether. They are in no
	// record, because an entry of the log cannot say how long it took to get there. Zero unless this call
	// saw the allocation become active.
	Confirm, Total time.Duration
}

// BatchRequest asks for the gateways of many organizations in one entry.
type BatchRequest struct {
	Actor, Source string
	Organizations []id.Organization
	Pool          id.Pool
	PoolNamed     bool // by the caller, as of a StartRequest
	Wait          time.Duration
	WaitFor       string // "reserved" (default) or "routable"
	Key, Digest   string
}

// BatchOutcome is what became of one organization of a batch.
type BatchOutcome struct {
	Organization id.Organization
	Allocation   id.Allocation
	Existing     bool
	Err          error
}

// Start returns the organization's allocation once it is served and verified (or reserved, as asked).
// A second start of the same organization answers with the same allocation, after looking whether it is
// really served. Errors are faults: pool_exhausted, no_eligible_host, activation_timeout and the
// others of a failed step, after the undo; no_leader when the outcome cannot be known here.
//
// A caller that goes away takes an allocation in line with it if nobody else waits for it. One that is
// already being activated goes on: the next start finds it.
func (r *Runner) Start(ctx context.Context, req StartRequest) (StartResult, error) {
	asked := r.opts.Now()
	outcome, err := r.reserve(ctx, req, asked)
	if err != nil {
		return StartResult{}, err
	}
	res := StartResult{Allocation: outcome.Allocation, Existing: outcome.Existing}
	if rec := r.opts.Store.View().Allocation(nil, res.Allocation); req.Key != "" && res.Existing && rec != nil && !rec.ActiveAt.IsZero() && rec.State != state.AllocationActive {
		return res, nil // the key's first answer, which has come to its end since
	}
	until := api.AllocationActive
	if req.WaitFor == "reserved" {
		until = api.AllocationReserved
	}
	if err := r.await(ctx, outcome.Allocation, until, outcome.Existing); err != nil || outcome.Existing {
		return res, err
	}
	if rec := r.opts.Store.View().Allocation(nil, res.Allocation); rec != nil && !rec.ActiveAt.IsZero() {
		now := r.opts.Now()
		res.Confirm, res.Total = now.Sub(rec.ActiveAt), now.Sub(asked)
	}
	return res, nil
}

// reserve proposes the entry, again while the organization's last allocation is still ending.
func (r *Runner) reserve(ctx context.Context, req StartRequest, asked time.Time) (command.ReserveOutcome, error) {
	for {
		outcome, err := r.reserveOnce(ctx, req, asked)
		if err != nil || outcome.Err == nil {
			return outcome, err
		}
		left := asked.Add(max(endingPatience, req.Wait)).Sub(r.opts.Now())
		ending := r.opts.Store.View().LiveAllocation(nil, req.Organization)
		if outcome.Err.Code != fault.Conflict || ending == nil || !isEnding(ending) || left <= 0 {
			return outcome, r.withEstimate(outcome.Err, req.Pool)
		}
		waitCtx, cancel := context.WithTimeout(ctx, left)
		_, err = r.watch(waitCtx, ending.ID, func(a *state.Allocation) bool { return a == nil || !a.State.Live() })
		cancel()
		if err != nil {
			return outcome, outcome.Err
		}
	}
}

func isEnding(a *state.Allocation) bool {
	return a.State == state.AllocationReleasing || a.State == state.AllocationRollingBack
}

func (r *Runner) reserveOnce(ctx context.Context, req StartRequest, asked time.Time) (command.ReserveOutcome, error) {
	cmd := command.Reserve{
		Meta: r.meta(req.Actor, req.Source), Pool: req.Pool, PoolNamed: req.PoolNamed, TTL: req.TTL, Metadata: req.Metadata,
		Items: []command.ReserveItem{{Organization: req.Organization, Allocation: id.NewAllocation()}},
		Key:   req.Key, Digest: req.Digest,
	}
	if req.Wait > 0 {
		cmd.QueueUntil = asked.Add(req.Wait)
	}
	began := r.opts.Now()
	result, _, err := r.opts.Proposer.Propose(ctx, cmd)
	if err != nil {
		return r.settleUnknown(ctx, cmd.Items[0].Allocation, err)
	}
	if result.Err != nil {
		return command.ReserveOutcome{}, result.Err
	}
	outcome := result.Reserved[0]
	if outcome.Err == nil && !outcome.Existing && !outcome.Queued {
		r.note(outcome.Allocation, asked, r.opts.Now().Sub(began))
	}
	return outcome, nil
}

// note keeps how long the caller has waited and what reserving cost, for the timings.
func (r *Runner) note(a id.Allocation, asked time.Time, took time.Duration) {
	rec := r.opts.Store.View().Allocation(nil, a)
	if rec == nil || rec.State != state.AllocationReserved {
		return // confirmed already: the agent was faster than this goroutine
	}
	r.mu.Lock()
	rn := r.trackLocked(rec.ID, rec.Epoch)
	rn.asked, rn.reserve = asked, took
	r.mu.Unlock()
}

// settleUnknown answers from state after an entry whose outcome is unknown. It is never called failed
// while it may have taken effect.
func (r *Runner) settleUnknown(ctx context.Context, a id.Allocation, cause error) (command.ReserveOutcome, error) {
	if !errors.Is(cause, consensus.ErrUnknown) {
		return command.ReserveOutcome{}, cause
	}
	waitCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unknownPatience)
	defer cancel()
	rec, err := r.watch(waitCtx, a, func(a *state.Allocation) bool { return a != nil })
	if err != nil {
		f := fault.Wrap(fault.NoLeader, cause, "the leader changed while the request was in flight and its outcome is not known yet; ask again, an organization never gets two gateways")
		f.RetryAfter = time.Second
		return command.ReserveOutcome{}, f
	}
	return command.ReserveOutcome{Allocation: rec.ID, Queued: rec.State == state.AllocationQueued}, nil
}

// withEstimate adds when it makes sense to come back to a refusal for lack of gateways.
func (r *Runner) withEstimate(f *fault.Error, pool id.Pool) error {
	if f.Code != fault.PoolExhausted && f.Code != fault.NoEligibleHost {
		return f
	}
	g := *f
	g.RetryAfter = max(r.opts.RetryAfter(pool), time.Second)
	p := r.opts.Store.View().Pool(nil, pool)
	if p == nil || g.Code != fault.PoolExhausted || p.Breaker.State != breakerOpen {
		return &g
	}
	// Why they fail is for those who run the system: it is what programs said last.
	g.Message = fmt.Sprintf("pool %s has no ready gateway, and creating more is stopped because they keep failing; `demiurge status` says why; try again later, or name another pool", pool)
	g.RetryAfter = max(g.RetryAfter, p.Breaker.Until.Sub(r.opts.Now()))
	return &g
}

// await returns when the allocation is as far as asked, or with the fault it ended with.
func (r *Runner) await(ctx context.Context, a id.Allocation, until string, existing bool) error {
	r.enter(a)
	defer r.leave(a)
	rec, err := r.watch(ctx, a, func(rec *state.Allocation) bool {
		if rec == nil {
			return true
		}
		switch rec.State {
		case state.AllocationQueued:
			return false
		case state.AllocationReserved:
			return until == api.AllocationReserved
		}
		return true
	})
	if err == nil && unserved(rec) {
		movingCtx, cancel := context.WithTimeout(ctx, movingPatience)
		rec, err = r.watch(movingCtx, a, func(rec *state.Allocation) bool { return !unserved(rec) })
		cancel()
		if err != nil && ctx.Err() == nil {
			f := fault.Wrap(fault.HostLost, err, "organization %s lost its host and waits for a gateway on another one; `demiurge alloc steps %s` shows how far it is", rec.Organization, a)
			f.RetryAfter = time.Second
			return f
		}
		existing = true // whatever was there at first is not what is now
	}
	if err != nil {
		if err := stopped(ctx, a); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		r.abandon(a)
		return fault.Wrap(fault.ActivationTimeout, err, "the caller stopped waiting for allocation %s; if it was past the line it goes on, and the next start of the organization finds it", a)
	case rec == nil:
		return fault.New(fault.Superseded, "allocation %s is no longer on record; start the organization again", a)
	case served(rec) && existing && until == api.AllocationActive:
		return r.reverify(ctx, rec)
	case served(rec), rec.State == state.AllocationReserved:
		return nil
	}
	return r.awaitUndo(ctx, rec)
}

// served reports whether what an allocation has was confirmed to serve it; it may be about to move.
func served(a *state.Allocation) bool {
	return a.State == state.AllocationActive || a.State == state.AllocationRelocating && a.Move.Target != nil
}

// unserved reports whether an allocation is on its way to another gateway and nothing serves it for certain.
func unserved(a *state.Allocation) bool {
	return a != nil && a.State == state.AllocationRelocating && a.Move.Target == nil
}

// awaitUndo waits for the clean-up of a failed allocation, so that the caller's error comes after it.
func (r *Runner) awaitUndo(ctx context.Context, rec *state.Allocation) error {
	waitCtx, cancel := context.WithTimeout(ctx, undoPatience)
	defer cancel()
	ended, err := r.watch(waitCtx, rec.ID, func(a *state.Allocation) bool { return a == nil || !a.State.Live() })
	if err != nil || ended == nil {
		ended = rec
	}
	return r.withEstimate(fault.From(failureOf(ended)), ended.Pool)
}

// reverify looks whether an allocation that is on record as active is really served, and gives the
// host a moment to bring it back. The allocation is left as it is: its agent never gives it up.
func (r *Runner) reverify(ctx context.Context, rec *state.Allocation) error {
	r.mu.Lock()
	fresh := r.opts.Now().Sub(r.verified[rec.ID]) < verifiedFor
	r.mu.Unlock()
	if fresh {
		return nil
	}
	waitCtx, cancel := context.WithTimeout(ctx, reverifyPatience)
	defer cancel()
	err := r.opts.Verifier.Verify(waitCtx, rec.Host, api.VerifyRequest{
		Nonce: id.Secret()[:16], GatewayID: string(rec.Gateway), OrganizationID: string(rec.Organization), Epoch: uint64(rec.Epoch),
	})
	if err != nil {
		f := fault.Wrap(fault.VerifyFailed, err, "organization %s has gateway %s (epoch %d), which does not answer at the moment; its host is bringing it back, try again", rec.Organization, rec.Gateway, rec.Epoch)
		f.RetryAfter = time.Second
		return f
	}
	r.mu.Lock()
	r.verified[rec.ID] = r.opts.Now()
	r.mu.Unlock()
	return nil
}

// StartBatch reserves for many organizations in one entry and waits for them as asked. The error is for
// the batch as a whole; what one organization was refused for is in its outcome.
func (r *Runner) StartBatch(ctx context.Context, req BatchRequest) ([]BatchOutcome, error) {
	asked := r.opts.Now()
	cmd := command.Reserve{
		Meta: r.meta(req.Actor, req.Source), Pool: req.Pool, PoolNamed: req.PoolNamed, Key: req.Key, Digest: req.Digest,
		Items: make([]command.ReserveItem, len(req.Organizations)),
	}
	for i, o := range req.Organizations {
		cmd.Items[i] = command.ReserveItem{Organization: o, Allocation: id.NewAllocation()}
	}
	if req.Wait > 0 {
		cmd.QueueUntil = asked.Add(req.Wait)
	}
	result, _, err := r.opts.Proposer.Propose(ctx, cmd)
	if err != nil {
		return nil, err
	}
	if result.Err != nil {
		return nil, result.Err
	}
	out := make([]BatchOutcome, len(result.Reserved))
	for i, o := range result.Reserved {
		out[i] = BatchOutcome{Organization: req.Organizations[i], Allocation: o.Allocation, Existing: o.Existing}
		if o.Err != nil {
			out[i].Err = r.withEstimate(o.Err, req.Pool)
		}
	}
	if req.WaitFor == "routable" {
		for i := range out { // in turn: they proceed at the same time, and the last to finish decides
			if out[i].Err == nil {
				out[i].Err = r.await(ctx, out[i].Allocation, api.AllocationActive, out[i].Existing)
			}
		}
	}
	return out, nil
}

// watch returns the allocation's record as soon as done accepts it, or the context's error.
func (r *Runner) watch(ctx context.Context, a id.Allocation, done func(*state.Allocation) bool) (*state.Allocation, error) {
	for {
		ws := state.WatchSet{}
		rec := r.opts.Store.View().Allocation(ws, a)
		if done(rec) {
			return rec, nil
		}
		ws.Add(r.opts.Store.Restored())
		if err := changed(ctx, ws); err != nil {
			return rec, err
		}
	}
}

// fewWatched is how many channels wait for one allocation, and more.
const fewWatched = 4

// changed is WatchCtx for few channels, of which that makes a select of 33 cases: a call that waits needs a larger stack
// for that than for all else.
func changed(ctx context.Context, ws state.WatchSet) error {
	if len(ws) > fewWatched {
		return ws.WatchCtx(ctx)
	}
	var c [fewWatched]<-chan struct{}
	n := 0
	for watched := range ws { // the order does not matter
		c[n] = watched
		n++
	}
	select {
	case <-c[0]:
	case <-c[1]:
	case <-c[2]:
	case <-c[3]:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (r *Runner) enter(a id.Allocation) {
	r.mu.Lock()
	r.waiters[a]++
	r.mu.Unlock()
}

func (r *Runner) leave(a id.Allocation) {
	r.mu.Lock()
	if r.waiters[a]--; r.waiters[a] <= 0 {
		delete(r.waiters, a)
	}
	r.mu.Unlock()
}

// abandonAfter is how long a place in line is kept when nobody waits for it any more: the coordinator that passed the
// request on may have been stopped, and then the caller asks another one.
const abandonAfter = time.Second

// abandon takes a queued allocation out of the line when its last waiter has gone and none came back. Others that wait
// for the same organization keep it.
func (r *Runner) abandon(a id.Allocation) {
	r.beside(func(ctx context.Context) {
		sleep.For(ctx, abandonAfter)
		r.mu.Lock()
		waited := r.waiters[a] > 0
		r.mu.Unlock()
		rec := r.opts.Store.View().Allocation(nil, a)
		if waited || ctx.Err() != nil || rec == nil || rec.State != state.AllocationQueued {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, unknownPatience)
		defer cancel()
		r.fail(ctx, rec, 0, failure{code: fault.Superseded, message: "the caller stopped waiting in line"}, nil)
	})
}
