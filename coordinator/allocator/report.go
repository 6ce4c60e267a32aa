package allocator

import (
	"context"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Progress is what an agent reported of one unfinished allocation: steps, and its word that the
// organization is served (Serving), which concludes it even when the steps went to a former leader.
type Progress struct {
	Allocation id.Allocation
	Epoch      id.Epoch
	Steps      []command.Step
	Serving    *command.GatewayReport // nil: not served yet
}

// Report takes in what an agent reported. It returns when the failures that follow from it are in the log.
// Confirmations go on by themselves while Run runs, so that the agent's next report does not wait for the
// disk: if one is lost with this coordinator, the agent's full observation leads to it again, as after any
// change of leader. Reports of another epoch are dropped: they are of a grant that has ended.
func (r *Runner) Report(ctx context.Context, host id.Host, progress []Progress) {
	var wg sync.WaitGroup
	for _, p := range progress {
		failed, confirm := r.conclude(host, p)
		if failed != nil {
			wg.Go(func() { failed(ctx) })
		}
		if confirm != nil && !r.beside(confirm) {
			wg.Go(func() { confirm(ctx) })
		}
	}
	wg.Wait()
}

// beside runs fn on its own while Run runs, which waits for it; false: Run does not run.
func (r *Runner) beside(fn func(context.Context)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx := r.reigning
	if ctx == nil {
		return false
	}
	r.confirming.Go(func() { fn(ctx) })
	return true
}

// conclude records the steps and returns what there is to propose: a failure, a confirmation or neither.
func (r *Runner) conclude(host id.Host, p Progress) (failed, confirm func(context.Context)) {
	rec := r.opts.Store.View().Allocation(nil, p.Allocation)
	if rec == nil {
		return nil, nil
	}
	grant, pending := rec.Pending()
	if !pending || grant.Epoch != p.Epoch || grant.Host != host {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rn := r.trackLocked(rec.ID, grant.Epoch)
	rn.steps = mergeSteps(rn.steps, p.Steps)
	if rn.concluded {
		return nil, nil
	}
	steps := append([]command.Step(nil), rn.steps...)
	if bad := failedStep(steps); bad != nil {
		rn.concluded = true
		return func(ctx context.Context) {
			r.fail(ctx, rec, grant.Epoch, failure{bad.Code, "step " + bad.Step + " failed: " + bad.Error, true}, steps)
		}, nil
	}
	if p.Serving == nil {
		return nil, nil
	}
	rn.concluded = true
	n := naming{rec: rec, grant: grant, serving: *p.Serving, steps: steps, asked: rn.asked, reserve: rn.reserve}
	if r.opts.Names != nil {
		return nil, func(ctx context.Context) { r.name(ctx, n) }
	}
	rn.confirmed = make(chan struct{})
	confirmed := rn.confirmed
	return nil, func(ctx context.Context) {
		defer close(confirmed)
		if rec.State == state.AllocationRelocating {
			r.confirmMove(ctx, n)
		} else {
			r.confirm(ctx, n)
		}
	}
}

// Settled waits for the allocation's confirmation when one is on its way. What an agent reports of its gateway
// afterwards must not get into the log before it: it would be taken for the older word.
func (r *Runner) Settled(ctx context.Context, a id.Allocation) {
	r.mu.Lock()
	rn := r.runs[a]
	if rn == nil || rn.confirmed == nil {
		r.mu.Unlock()
		return
	}
	confirmed := rn.confirmed
	r.mu.Unlock()
	select {
	case <-confirmed:
	case <-ctx.Done():
	}
}

// confirm makes the allocation active. When the entry cannot be placed the agent's next full
// observation leads here again.
func (r *Runner) confirm(ctx context.Context, n naming) {
	now, rec := r.opts.Now(), n.rec
	began := rec.CreatedAt
	if !n.asked.IsZero() {
		began = n.asked
	}
	timings := timingsOf(n.steps)
	timings.Reserve = n.reserve
	if !rec.Warm {
		timings.Queue = rec.ReservedAt.Sub(rec.CreatedAt)
	}
	timings.Total = now.Sub(began)
	result, _, err := r.opts.Proposer.Propose(ctx, command.Confirm{
		Meta: r.meta("allocator", ""), Allocation: rec.ID, Epoch: rec.Epoch, Timings: timings, Observed: n.serving,
		Journal: journal(rec, n.steps, now),
	})
	r.concluded(rec, rec.Epoch, "confirm", result.Err, err)
	if err == nil && result.Err == nil {
		r.mu.Lock()
		r.verified[rec.ID] = now
		r.mu.Unlock()
	}
}

// journal completes what the agent reported by the two entries of the log. The last one has no end: that it
// is in the log is its success.
func journal(rec *state.Allocation, steps []command.Step, now time.Time) []command.Step {
	all := make([]command.Step, 0, len(steps)+2)
	all = append(all, command.Step{Step: api.StepReserve, State: api.StepDone, StartedAt: rec.CreatedAt, EndedAt: rec.ReservedAt})
	all = append(all, steps...)
	return append(all, command.Step{Step: api.StepConfirm, State: api.StepDone, StartedAt: now})
}

// failure is why a grant did not come to serve.
type failure struct {
	code    fault.Code
	message string
	blame   bool // it counts against the gateway
}

// fail ends a grant that was not confirmed, or a place in line (epoch 0); its undo follows from the new
// assignment. With the grant ends the allocation, unless that is relocating: it stays where it is or gets another
// gateway.
func (r *Runner) fail(ctx context.Context, rec *state.Allocation, epoch id.Epoch, why failure, steps []command.Step) {
	if why.code == "" {
		why.code = fault.Internal
	}
	result, _, err := r.opts.Proposer.Propose(ctx, command.Fail{
		Meta: r.meta("allocator", ""), Allocation: rec.ID, Epoch: epoch, Code: why.code, Message: why.message,
		Journal: steps, BlameGateway: why.blame,
	})
	r.concluded(rec, epoch, "fail", result.Err, err)
}

// concluded drops the run after its last entry, or lets it be concluded again when the entry did not
// get into the log.
func (r *Runner) concluded(rec *state.Allocation, epoch id.Epoch, what string, refused *fault.Error, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rn := r.runs[rec.ID]
	if rn != nil && rn.epoch != epoch {
		rn = nil // the next grant's
	}
	if err != nil {
		if rn != nil {
			rn.concluded = false
		}
		r.opts.Logger.Warn("cannot conclude allocation now", "allocation", rec.ID, "with", what, "error", err)
		return
	}
	if rn != nil {
		delete(r.runs, rec.ID)
	}
	if refused != nil {
		r.opts.Logger.Info("allocation was concluded otherwise", "allocation", rec.ID, "with", what, "refused", refused.Message)
	}
}

// maxSteps is more than any allocation has. Agents name them, and each of an agent's is looked for among those that are known.
const maxSteps = 64

// mergeSteps replaces steps of the same name and appends new ones, as long as they are no more than maxSteps.
func mergeSteps(have, more []command.Step) []command.Step {
next:
	for _, s := range more {
		for i := range have {
			if have[i].Step == s.Step {
				have[i] = s
				continue next
			}
		}
		if len(have) < maxSteps {
			have = append(have, s)
		}
	}
	return have
}

func failedStep(steps []command.Step) *command.Step {
	for i := range steps {
		if steps[i].State == api.StepFailed {
			return &steps[i]
		}
	}
	return nil
}

func timingsOf(steps []command.Step) command.Timings {
	var t command.Timings
	for _, s := range steps {
		if s.EndedAt.IsZero() {
			continue
		}
		d := s.EndedAt.Sub(s.StartedAt)
		switch s.Step {
		case api.StepActivate:
			t.Activate = d
		case api.StepRoute:
			t.Route = d
		case api.StepDNS:
			t.DNS = d
		case api.StepVerify:
			t.Verify = d
		}
	}
	return t
}
