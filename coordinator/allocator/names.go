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
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Names makes the names of organizations lead to hosts, where records have to be written for that. Errors are
// faults for the caller: dns_failed, or superseded.
type Names interface {
	// Point makes an organization's name lead to a host, and returns when that is seen to be so.
	Point(ctx context.Context, n Name) error
	// Remove takes an organization's name away, unless it is of a later epoch.
	Remove(ctx context.Context, org id.Organization, upTo id.Epoch) error
	// Passing reports whether an error may be over soon.
	Passing(err error) bool
}

// Name is where an organization's name leads, by which grant.
type Name struct {
	Organization id.Organization
	Host         id.Host
	Epoch        id.Epoch
	Instead      id.Epoch // the one higher epoch that it takes the place of: of a grant that is taken back; 0: none
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
	// strandedPatience bounds how long an allocation that nothing else serves waits for its name on its way.
	strandedPatience = 2 * time.Second
)

// naming is a grant that is served by now and has its name still to come.
type naming struct {
	rec     *state.Allocation
	grant   state.Grant
	serving command.GatewayReport
	steps   []command.Step
	asked   time.Time     // of a start
	reserve time.Duration // of a start
}

// name is the step dns of a grant that is served by now: after it the grant is confirmed, or failed. It runs
// beside the reports, because those of a host must not wait for a name server. Of one that moves to where nothing else
// serves it, it is no condition: it is served, and its name comes when it can.
func (r *Runner) name(ctx context.Context, n naming) {
	step := command.Step{Step: api.StepDNS, State: api.StepDoing, StartedAt: r.opts.Now()}
	r.mu.Lock()
	if rn := r.runs[n.rec.ID]; rn != nil && rn.epoch == n.grant.Epoch {
		rn.steps = mergeSteps(rn.steps, []command.Step{step})
	}
	r.mu.Unlock()
	before := r.seen(n.grant)
	limit := n.grant.Deadline.Sub(step.StartedAt)
	if r.onlyPlace(n) {
		limit = min(limit, strandedPatience)
	}
	failpoint.Hit(n.label("dns.before"))
	err := r.point(ctx, Name{Organization: n.rec.Organization, Host: n.grant.Host, Epoch: n.grant.Epoch}, limit)
	failpoint.Hit(n.label("dns.after"))
	step.EndedAt = r.opts.Now()
	if err == nil {
		step.State = api.StepDone
	} else {
		step.State, step.Code, step.Error = api.StepFailed, fault.DNSFailed, fault.From(err).Message
	}
	n.steps = append(n.steps, step)
	switch {
	case ctx.Err() != nil:
		r.concluded(n.rec, n.grant.Epoch, "dns", nil, ctx.Err()) // the next leader does it
	case err == nil || r.onlyPlace(n):
		r.confirmNamed(ctx, n, before)
	default:
		if n.rec.State != state.AllocationRelocating {
			n.steps = append(n.steps, r.unname(ctx, n))
		}
		// The gateway did its part, so it is not blamed.
		r.fail(ctx, n.rec, n.grant.Epoch, failure{fault.DNSFailed, "step dns failed: " + step.Error, false}, n.steps)
		r.back(ctx, n)
	}
}

// label is the failpoint at a step of a start or of a move.
func (n naming) label(at string) string {
	if n.rec.State == state.AllocationRelocating {
		return "move." + at
	}
	return "allocate." + at
}

// onlyPlace reports whether a grant is of an allocation that moves and that nothing else serves.
func (r *Runner) onlyPlace(n naming) bool {
	if n.rec.State != state.AllocationRelocating {
		return false
	}
	now := r.opts.Store.View().Allocation(nil, n.rec.ID) // what served it may be lost by now
	return now != nil && now.State == state.AllocationRelocating && now.Epoch == n.grant.Epoch
}

// seen is the index of the last word in the log about a grant's gateway.
func (r *Runner) seen(grant state.Grant) uint64 {
	if g := r.opts.Store.View().Gateway(nil, grant.Gateway); g != nil {
		return g.Observed.Index
	}
	return 0
}

// confirmNamed confirms a grant whose name was written meanwhile, unless its host had another word about the
// gateway since: the next report concludes it then.
func (r *Runner) confirmNamed(ctx context.Context, n naming, before uint64) {
	confirmed := make(chan struct{})
	defer close(confirmed)
	r.mu.Lock()
	if rn := r.runs[n.rec.ID]; rn != nil && rn.epoch == n.grant.Epoch {
		rn.confirmed = confirmed // what the host says from now on waits (Settled)
	}
	r.mu.Unlock()
	if r.seen(n.grant) != before {
		r.concluded(n.rec, n.grant.Epoch, "dns", nil, errOtherWord)
		return
	}
	if n.rec.State == state.AllocationRelocating {
		r.confirmMove(ctx, n)
	} else {
		r.confirm(ctx, n)
	}
	if now := r.opts.Store.View().Allocation(nil, n.rec.ID); now == nil || now.State.Ending() || !now.State.Live() {
		_ = r.remove(ctx, n) // it was ended meanwhile; a failure is logged
		return
	}
	r.back(ctx, n)
}

var errOtherWord = errors.New("the host has reported something else about the gateway")

// point writes the name, again and again while what is in the way may pass, for as long as there is time.
func (r *Runner) point(ctx context.Context, name Name, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case r.naming <- struct{}{}:
		defer func() { <-r.naming }()
	case <-ctx.Done():
		return fault.New(fault.DNSFailed, "the DNS records of too many organizations are waiting to be written")
	}
	for wait := firstRename; ; wait = min(2*wait, lastRename) {
		err := r.opts.Names.Point(ctx, name)
		if err == nil || !r.opts.Names.Passing(err) || ctx.Err() != nil {
			return err
		}
		if !sleep.For(ctx, wait) {
			return err // says more than that the time is up
		}
	}
}

// unname is the undo of the step dns of a start.
func (r *Runner) unname(ctx context.Context, n naming) command.Step {
	step := command.Step{Step: api.StepUndoDNS, State: api.StepDone, StartedAt: r.opts.Now()}
	failpoint.Hit(n.label("undo_dns.before"))
	if err := r.remove(ctx, n); err != nil {
		step.State, step.Code, step.Error = api.StepFailed, fault.CodeOf(err), fault.From(err).Message
	}
	step.EndedAt = r.opts.Now()
	return step
}

// remove takes the name of a grant away. That it could not be is no failure of what ends the grant.
func (r *Runner) remove(ctx context.Context, n naming) error {
	ctx, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	err := r.opts.Names.Remove(ctx, n.rec.Organization, n.grant.Epoch)
	if err != nil {
		r.opts.Logger.Warn("cannot remove the DNS record of an allocation that ends; it is tried again", "allocation", n.rec.ID, "organization", n.rec.Organization, "error", err)
	}
	return err
}

// back is the undo of the step dns of a move: the name of an allocation that stays where it was leads there again. That it
// stays is in the log before: until then another leader may decide otherwise, and write the name of this grant. Should it
// fail, or nobody come to do it, the loop that holds all records against the state does.
func (r *Runner) back(ctx context.Context, n naming) {
	now := r.opts.Store.View().Allocation(nil, n.rec.ID)
	if now == nil || now.State != state.AllocationActive || now.Epoch >= n.grant.Epoch {
		return // confirmed, or on another way that has its own step
	}
	failpoint.Hit(n.label("undo_dns.before"))
	pointing, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	err := r.opts.Names.Point(pointing, Name{Organization: now.Organization, Host: now.Host, Epoch: now.Epoch, Instead: n.grant.Epoch})
	if err != nil {
		r.opts.Logger.Warn("cannot make the DNS record of an allocation that stays lead to its host again; it is tried again", "allocation", now.ID, "host", now.Host, "error", err)
	}
	r.tellBack(ctx, now, err)
}

// tellBack puts the undo of a move's step dns into the feed, where the undos of the other steps are. The journal of an
// allocation that is served is of its present gateway, so this has no place there.
func (r *Runner) tellBack(ctx context.Context, rec *state.Allocation, err error) {
	e := command.Event{
		Type: "allocation.undo_dns", At: r.opts.Now(), Allocation: rec.ID, Organization: rec.Organization, Pool: rec.Pool,
		Gateway: rec.Gateway, Host: rec.Host, Reason: "it did not move, and its name leads to host " + string(rec.Host) + " again",
	}
	if err != nil {
		e.Code, e.Reason = fault.DNSFailed, "it did not move, and its name cannot be made to lead to host "+string(rec.Host)+" again yet: "+fault.From(err).Message
	}
	if _, _, err := r.opts.Proposer.Propose(ctx, command.RecordEvents{Meta: r.meta("allocator", ""), Events: []command.Event{e}}); err != nil && ctx.Err() == nil {
		r.opts.Logger.Warn("cannot record that the DNS step of a move was undone", "allocation", rec.ID, "error", err)
	}
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
		_ = r.remove(ctx, naming{rec: rec, grant: rec.Grant()}) // it is logged
	}()
	return func() { <-done }
}
