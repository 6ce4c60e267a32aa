package allocator

import (
	"context"
	"errors"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// MigrateRequest brings an allocation to another host.
type MigrateRequest struct {
	Actor, Source string
	Allocation    id.Allocation
	To            id.Host       // empty: the best one
	Drain         time.Duration // how long connections of the old gateway may go on
	Key, Digest   string        // of the Idempotency-Key and the body; empty without one
}

// Migrate returns when the allocation is served by its new gateway. The old one serves it until then, and goes
// on with its open connections for the drain. Faults: not_found, conflict (not active, moving already, there
// already), no_eligible_host, pool_exhausted; and what kept the new gateway from serving, after which the
// allocation is where it was. A caller that goes away does not end it.
func (r *Runner) Migrate(ctx context.Context, req MigrateRequest) error {
	result, _, err := r.opts.Proposer.Propose(ctx, command.Relocate{
		Meta: r.meta(req.Actor, req.Source), Items: []command.RelocateItem{{Allocation: req.Allocation}},
		Cause: state.CauseMigrate, To: req.To, Drain: req.Drain, Reason: "migrated", Key: req.Key, Digest: req.Digest,
	})
	switch {
	case errors.Is(err, consensus.ErrUnknown):
		f := fault.Wrap(fault.NoLeader, err, "the leader changed while the request was in flight and its outcome is not known yet; look at the allocation, or ask again with the same Idempotency-Key")
		f.RetryAfter = time.Second
		return f
	case err != nil:
		return err
	case result.Err != nil:
		return result.Err
	case result.Reserved[0].Err != nil:
		return r.withEstimate(result.Reserved[0].Err, r.poolOf(req.Allocation))
	}
	rec, err := r.watch(ctx, req.Allocation, func(a *state.Allocation) bool { return a == nil || a.State != state.AllocationRelocating })
	if err != nil {
		if err := stopped(ctx, req.Allocation); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		return fault.Wrap(fault.ActivationTimeout, err, "the caller stopped waiting for allocation %s, which goes on moving; `demiurge alloc steps %s` shows it", req.Allocation, req.Allocation)
	case rec == nil || !rec.State.Live():
		return fault.New(fault.Superseded, "allocation %s was released while it moved", req.Allocation)
	}
	if n := len(rec.Moves); n > 0 && rec.Moves[n-1].Failure.Code != "" {
		last := rec.Moves[n-1].Failure
		return fault.New(last.Code, "allocation %s stays on host %s: %s", rec.ID, rec.Host, last.Message)
	}
	return nil
}

// poolOf is the pool of an allocation; empty when that is unknown.
func (r *Runner) poolOf(a id.Allocation) id.Pool {
	if rec := r.opts.Store.View().Allocation(nil, a); rec != nil {
		return rec.Pool
	}
	return ""
}

// confirmMove ends a relocation: the new gateway serves.
func (r *Runner) confirmMove(ctx context.Context, n naming) {
	now := r.opts.Now()
	result, _, err := r.opts.Proposer.Propose(ctx, command.Confirm{
		Meta: r.meta("allocator", ""), Allocation: n.rec.ID, Epoch: n.grant.Epoch, Timings: timingsOf(n.steps), Observed: n.serving,
		Journal: moveJournal(n.rec, n.grant, n.steps, now),
	})
	r.concluded(n.rec, n.grant.Epoch, "confirm", result.Err, err)
	if err == nil && result.Err == nil {
		r.mu.Lock()
		r.verified[n.rec.ID] = now
		r.mu.Unlock()
	}
}

// moveJournal is the journal of a relocation: from its beginning to the choice of the gateway, the
// organization's state, the agent's steps, the name, and the confirmation. What ends the old gateway is added when it is
// clean.
func moveJournal(rec *state.Allocation, grant state.Grant, steps []command.Step, now time.Time) []command.Step {
	all := []command.Step{
		{Step: api.StepRelocate, State: api.StepDone, StartedAt: rec.Move.Since, EndedAt: grant.ReservedAt},
		carry(grant),
	}
	all = append(all, steps...)
	return append(all, command.Step{Step: api.StepConfirm, State: api.StepDone, StartedAt: now})
}

// carry is the step in which the organization's state comes along to the new gateway. An organization has none
// yet beyond what its grant tells every gateway (name, members, projects), so the step is passed by.
func carry(grant state.Grant) command.Step {
	return command.Step{Step: api.StepState, State: api.StepSkipped, StartedAt: grant.ReservedAt, EndedAt: grant.ReservedAt}
}

// MoveSteps are the steps of an unfinished relocation, before those that the agent reported.
func MoveSteps(rec *state.Allocation) []command.Step {
	if rec.Move == nil {
		return nil
	}
	grant, pending := rec.Pending()
	if !pending {
		return []command.Step{{Step: api.StepRelocate, State: api.StepDoing, StartedAt: rec.Move.Since, Code: rec.Move.Failure.Code, Error: rec.Move.Failure.Message}}
	}
	return []command.Step{
		{Step: api.StepRelocate, State: api.StepDone, StartedAt: rec.Move.Since, EndedAt: grant.ReservedAt},
		carry(grant),
	}
}
