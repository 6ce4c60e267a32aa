package allocator

import (
	"context"
	"errors"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/failpoint"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Names makes the names of organizations lead to hosts, where records have to be written for that. Errors are
// faults for the caller: dns_failed, or superseded.
type Names interface {
	// Point makes an organization's name lead to a host, and returns when that is seen to be so.
	Point(ctx context.Context, org id.Organization, host id.Host, epoch id.Epoch) error
	// Remove takes an organization's name away, unless it is of a later epoch.
	Remove(ctx context.Context, org id.Organization, upTo id.Epoch) error
	// Passing reports whether an error may be over soon.
	Passing(err error) bool
}

const (
	// namingSlots bounds the names that are written at the same time.
	namingSlots = 32
	// firstRename and lastRename are the pauses between tries to write a name.
	firstRename = 100 * time.Millisecond
	lastRename  = time.Second
	// removePatience bounds how long the end of an allocation waits until its name is gone. What is not gone
	// by then is found and removed by the loop that holds all records against the state.
	removePatience = 5 * time.Second
)

// name is the step dns of a grant that is served by now: after it the grant is confirmed, or failed. It runs
// beside the reports, because those of a host must not wait for a name server.
func (r *Runner) name(ctx context.Context, rec *state.Allocation, serving command.GatewayReport, steps []command.Step, asked time.Time, reserve time.Duration) {
	step := command.Step{Step: api.StepDNS, State: api.StepDoing, StartedAt: r.opts.Now()}
	r.mu.Lock()
	if rn := r.runs[rec.ID]; rn != nil && rn.epoch == rec.Epoch {
		rn.steps = mergeSteps(rn.steps, []command.Step{step})
	}
	r.mu.Unlock()
	before := r.seen(rec)
	failpoint.Hit("allocate.dns.before")
	err := r.point(ctx, rec, rec.Deadline.Sub(step.StartedAt))
	failpoint.Hit("allocate.dns.after")
	step.EndedAt = r.opts.Now()
	switch {
	case ctx.Err() != nil:
		r.concluded(rec, rec.Epoch, "dns", nil, ctx.Err()) // the next leader does it
	case err == nil:
		step.State = api.StepDone
		r.confirmNamed(ctx, rec, before, func() { r.confirm(ctx, rec, serving, append(steps, step), asked, reserve) })
	default:
		f := fault.From(err)
		step.State, step.Code, step.Error = api.StepFailed, fault.DNSFailed, f.Message
		steps = append(steps, step, r.unname(ctx, rec))
		// The gateway did its part, so it is not blamed.
		r.fail(ctx, rec, rec.Epoch, failure{fault.DNSFailed, "step dns failed: " + f.Message, false}, steps)
	}
}

// seen is the index of the last word in the log about a grant's gateway.
func (r *Runner) seen(rec *state.Allocation) uint64 {
	if g := r.opts.Store.View().Gateway(nil, rec.Gateway); g != nil {
		return g.Observed.Index
	}
	return 0
}

// confirmNamed confirms a grant whose name was written meanwhile, unless its host had another word about the
// gateway since: the next report concludes it then.
func (r *Runner) confirmNamed(ctx context.Context, rec *state.Allocation, before uint64, confirm func()) {
	confirmed := make(chan struct{})
	defer close(confirmed)
	r.mu.Lock()
	if rn := r.runs[rec.ID]; rn != nil && rn.epoch == rec.Epoch {
		rn.confirmed = confirmed // what the host says from now on waits (Settled)
	}
	r.mu.Unlock()
	if r.seen(rec) != before {
		r.concluded(rec, rec.Epoch, "dns", nil, errOtherWord)
		return
	}
	confirm()
	if now := r.opts.Store.View().Allocation(nil, rec.ID); now == nil || now.State.Ending() || !now.State.Live() {
		_ = r.remove(ctx, rec) // it was ended meanwhile; a failure is logged
	}
}

var errOtherWord = errors.New("the host has reported something else about the gateway")

// point writes the name, again and again while what is in the way may pass, for as long as there is time.
func (r *Runner) point(ctx context.Context, rec *state.Allocation, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case r.naming <- struct{}{}:
		defer func() { <-r.naming }()
	case <-ctx.Done():
		return fault.New(fault.DNSFailed, "the DNS records of too many organizations are waiting to be written")
	}
	for wait := firstRename; ; wait = min(2*wait, lastRename) {
		err := r.opts.Names.Point(ctx, rec.Organization, rec.Host, rec.Epoch)
		if err == nil || !r.opts.Names.Passing(err) || ctx.Err() != nil {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err // says more than that the time is up
		}
	}
}

// unname is the undo of the step dns.
func (r *Runner) unname(ctx context.Context, rec *state.Allocation) command.Step {
	step := command.Step{Step: api.StepUndoDNS, State: api.StepDone, StartedAt: r.opts.Now()}
	failpoint.Hit("allocate.undo_dns.before")
	if err := r.remove(ctx, rec); err != nil {
		step.State, step.Code, step.Error = api.StepFailed, fault.CodeOf(err), fault.From(err).Message
	}
	step.EndedAt = r.opts.Now()
	return step
}

// remove takes the name of a grant away. That it could not be is no failure of what ends the grant.
func (r *Runner) remove(ctx context.Context, rec *state.Allocation) error {
	ctx, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	err := r.opts.Names.Remove(ctx, rec.Organization, rec.Epoch)
	if err != nil {
		r.opts.Logger.Warn("cannot remove the DNS record of an allocation that ends; it is tried again", "allocation", rec.ID, "organization", rec.Organization, "error", err)
	}
	return err
}

// ended removes the name of an allocation that was ended by another entry than a failed step, beside what
// waits for the rest of the end. The returned function waits for it.
func (r *Runner) ended(ctx context.Context, a id.Allocation) (wait func()) {
	rec := r.opts.Store.View().Allocation(nil, a)
	if r.opts.Names == nil || rec == nil || rec.Epoch == 0 || rec.State == state.AllocationActive || rec.State == state.AllocationRelocating {
		return func() {}
	}
	ctx = context.WithoutCancel(ctx) // a caller that goes away does not keep the name
	done := make(chan struct{})
	go func() { // within removePatience, and the caller waits
		defer close(done)
		_ = r.remove(ctx, rec) // it is logged
	}()
	return func() { <-done }
}

// moved makes the name of an allocation lead to its new host, once that is confirmed: a name must never carry
// the epoch of a grant that may still be taken back. Should it fail, the loop that holds all records against
// the state does it.
func (r *Runner) moved(a id.Allocation) {
	if r.opts.Names == nil {
		return
	}
	r.beside(func(ctx context.Context) { // and if nobody leads here any more, the next leader's loop does it
		rec := r.opts.Store.View().Allocation(nil, a)
		if rec == nil || rec.State != state.AllocationActive {
			return
		}
		if err := r.point(ctx, rec, removePatience); err != nil && ctx.Err() == nil {
			r.opts.Logger.Warn("cannot make the DNS record of an organization lead to its new host; it is tried again", "allocation", rec.ID, "host", rec.Host, "error", err)
		}
	})
}
