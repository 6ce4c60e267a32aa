package reconcile

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/demiurge-platform/demiurge/agent/journal"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

// act does what was decided.
func (a *actor) act(ctx context.Context, act action) {
	switch act.kind {
	case endBegin:
		a.ob.Ending, a.ob.Message, a.ob.notBefore, a.retries = steps.New(endSteps...), "", time.Time{}, 0
		_ = a.save()
	case endStep:
		a.end(ctx, act.step)
	case forget:
		a.forget()
	case begin:
		a.begin()
	case start:
		a.start(ctx)
	case kill:
		a.kill(ctx)
	case probe:
		a.hurried(ctx, a.probe)
	case take:
		a.take()
	case refuse:
		a.refuse()
	case step:
		a.stepGrant(ctx, act.step)
	case update:
		a.hurried(ctx, a.update)
	case fence:
		a.fence(ctx)
	}
}

// begin takes up the wanted incarnation. Nothing of an earlier one is left at this point.
func (a *actor) begin() {
	next := journal.Gateway{
		Gateway: a.id, Wanted: a.w.Wanted, Incarnation: a.w.Incarnation, Ending: a.ob.Ending, Epoch: a.ob.Epoch,
	}
	if err := a.put(next); err != nil { // nothing is started before it is on record
		a.retries++
		a.backOff(a.retries)
		a.ob.unrecorded, a.ob.Message = true, clip(unwritten(err).Error())
		return
	}
	if a.ob.unrecorded {
		a.ob.unrecorded, a.ob.notBefore, a.retries = false, time.Time{}, 0
	}
	a.ob.Gateway = next
	a.ob.failures, a.ob.everUp, a.ob.hung, a.ob.refused = 0, false, false, 0
}

// forget ends the actor: nothing is left of the gateway and nothing is wanted.
func (a *actor) forget() {
	dirs := []string{filepath.Join(a.o.Layout.Dir(), string(a.id))}
	if spec, err := a.o.Layout.Spec(a.id, "", api.Limits{}); err == nil {
		dirs = append(dirs, filepath.Dir(spec.Listen))
	}
	for _, dir := range dirs {
		if err := a.o.FS.RemoveAll("reconcile.forget", dir); err != nil {
			a.logger.Warn("a directory of the gateway cannot be removed", "directory", dir, "error", err)
		}
	}
	if err := a.o.Journal.Remove(a.id); err != nil {
		a.logger.Error("the journal was not written", "error", err)
	}
	a.gone = true
}

// end does one step of taking an incarnation back: the route first, and proven, then the organization,
// then the process and its state. A step that fails is tried again for ever.
func (a *actor) end(ctx context.Context, act steps.Action) {
	if err := a.ob.Ending.Begin(act, a.o.Now().UTC()); err != nil {
		a.logger.Error("a step was out of order", "error", err)
		return
	}
	_ = a.save()
	var err error
	switch act.Step {
	case api.StepUnroute:
		err = a.unroute(ctx)
	case api.StepDeactivate:
		a.deactivate(ctx)
		err = a.leave(ctx)
	case api.StepRecycle:
		err = a.recycle(ctx)
	}
	if ctx.Err() != nil {
		return // the agent ends: the step is on record as begun, and the next agent repeats it
	}
	if err != nil {
		a.retries++
		a.backOff(a.retries)
		a.ob.Message = clip(fmt.Sprintf("cannot %s: %v", act.Step, err))
		a.logger.Error("a gateway cannot be taken back yet", "step", act.Step, "error", err)
		return
	}
	a.retries, a.ob.Message = 0, ""
	if act.Step == api.StepRecycle {
		a.ob.Used, a.ob.Grant, a.ob.Change, a.ob.Code, a.ob.Restarts = false, nil, steps.Change{}, "", 0
		a.ob.everUp, a.ob.failures, a.ob.notBefore = false, 0, time.Time{}
		a.body = nil
		if err := a.o.Journal.DropBody(a.id); err != nil {
			a.logger.Error("the journal was not written", "error", err)
		}
	}
	if err := a.ob.Ending.Report(act, steps.Succeeded, a.o.Now().UTC()); err != nil {
		a.logger.Error("a step was out of order", "error", err)
	}
	_ = a.save()
}

// unroute returns when no new request of the gateway's organization reaches it.
func (a *actor) unroute(ctx context.Context) error {
	g := a.ob.Grant
	if g == nil {
		return nil
	}
	if err := a.o.FS.Step("reconcile.unroute"); err != nil {
		return err
	}
	rctx, cancel := context.WithTimeout(ctx, a.o.Timing.RouteTimeout)
	defer cancel()
	return a.o.Nginx.Unroute(rctx, g.Organization, Route{Gateway: a.id, Epoch: g.Epoch})
}

// deactivate lets the gateway end its organization in order: open connections may go on for the drain.
// It cannot fail for good, because the process is ended afterwards in any case.
func (a *actor) deactivate(ctx context.Context) {
	g := a.ob.Grant
	if g == nil || !a.ob.running || !a.ob.healthy {
		return
	}
	if err := a.o.FS.Step("reconcile.deactivate"); err != nil {
		return
	}
	drain := a.w.Drain
	dctx, cancel := context.WithTimeout(ctx, time.Duration(drain)+a.o.Timing.ActivateTimeout)
	defer cancel()
	err := a.o.Control.Deactivate(dctx, *a.ob.Process, api.Deactivate{Epoch: uint64(g.Epoch), Drain: drain})
	if err != nil && ctx.Err() == nil {
		a.logger.Warn("the gateway did not end its organization in order", "organization", g.Organization, "error", err)
	}
}

// leave ends what the agent itself does for the gateway's organization.
func (a *actor) leave(ctx context.Context) error {
	g := a.ob.Grant
	if g == nil {
		return nil
	}
	return a.o.Services.Leave(ctx, a.id, g.Organization, g.Epoch)
}

// take notes a grant and its steps. They go on record with the beginning of the first one.
func (a *actor) take() {
	w := a.w.grant
	a.chain.begin(a.o.Now(), false)
	a.body = w.body
	a.ob.Grant = &journal.Grant{
		Organization: w.organization, Allocation: w.allocation, Epoch: w.epoch, Version: w.version,
	}
	a.ob.Epoch, a.ob.Change, a.retries = w.epoch, steps.New(takeSteps...), 0
	a.newBody = true
	a.o.Services.Serve(a.id, w.body, w.version)
}

// unwritten is the failure of a step that was not taken because it could not be recorded.
func unwritten(err error) error {
	return fault.New(fault.Internal, "cannot write the agent's journal: %v; free space or repair the disk of its data directory", err)
}

// refuse declines a grant of an epoch below one that this gateway has seen.
func (a *actor) refuse() {
	w := a.w.grant
	a.ob.refused = w.epoch
	now := a.o.Now().UTC()
	message := fmt.Sprintf("the grant's epoch %d is below %d, which this gateway has seen", w.epoch, a.ob.Epoch)
	a.logger.Warn("a grant of the past is refused", "epoch", w.epoch, "seen", a.ob.Epoch)
	a.event(EventRefused, message)
	a.chain.add(api.StepReport{
		AllocationID: string(w.allocation), GatewayID: string(a.id), Epoch: uint64(w.epoch),
		Step: api.Step{
			Step: api.StepActivate, State: api.StepFailed, StartedAt: now, EndedAt: &now,
			Error: message, Code: string(fault.StaleEpoch),
		},
	})
	a.chain.end()
}

// stepGrant does or undoes one step of the grant.
func (a *actor) stepGrant(ctx context.Context, act steps.Action) {
	begun := a.o.Now().UTC()
	if err := a.ob.Change.Begin(act, begun); err != nil {
		a.logger.Error("a step was out of order", "error", err)
		return
	}
	if err := a.recordBegin(act); err != nil && !act.Undo && !a.ob.Grant.Served {
		a.failStep(act, steps.Refused, begun, unwritten(err))
		return
	}
	if act.Undo {
		a.undo(ctx, act)
		return
	}
	actx, cancel := a.abortable(ctx)
	err := a.do(actx, act.Step)
	cancel()
	if ctx.Err() != nil {
		return // the agent ends: the step is on record as begun, and the next agent repeats it
	}
	if err != nil {
		outcome := steps.Unclear
		if act.Step == api.StepVerify {
			outcome = steps.Refused
		}
		a.failStep(act, outcome, begun, err)
		return
	}
	a.retries = 0
	end := a.o.Now().UTC()
	if err := a.ob.Change.Report(act, steps.Succeeded, end); err != nil {
		a.logger.Error("a step was out of order", "error", err)
	}
	a.chain.add(a.stepReport(act.Step, begun, end, nil))
	if a.ob.Change.Complete() {
		g := *a.ob.Grant
		g.Served = true
		a.ob.Grant, a.ob.Message = &g, ""
		a.chain.end()
	}
}

// recordBegin puts on record what the next agent must know if this one dies during the step, and no more,
// because every record is on the way of the first byte. What is served already is on record as such, and the
// next agent takes all its steps again.
func (a *actor) recordBegin(act steps.Action) error {
	switch {
	case act.Undo || act.Step == api.StepActivate:
		return a.save()
	case a.ob.Grant.Served:
		return nil
	case act.Step == api.StepVerify:
		// From here on the organization may be served and the coordinator may count on it: whoever reads
		// this brings it back until the coordinator says otherwise. A failure takes it back.
		g := *a.ob.Grant
		g.Served = true
		record := a.ob.Gateway
		record.Grant = &g
		return a.put(record)
	}
	// A route that is not on record is removed when an agent starts (recover), and led anew by the steps
	// that are.
	return nil
}

// abortable is a context that ends when the coordinator ends the incarnation.
func (a *actor) abortable(ctx context.Context) (context.Context, context.CancelFunc) {
	actx, cancel := context.WithCancel(ctx)
	a.mu.Lock()
	a.abort = cancel
	a.mu.Unlock()
	return actx, func() {
		a.mu.Lock()
		a.abort = nil
		a.mu.Unlock()
		cancel()
	}
}

// do takes one step.
func (a *actor) do(ctx context.Context, name string) error {
	if err := a.o.FS.Step("reconcile." + name); err != nil {
		return err
	}
	t := a.o.Timing
	switch name {
	case api.StepActivate:
		actx, cancel := context.WithTimeout(ctx, t.ActivateTimeout)
		defer cancel()
		return a.o.Control.Activate(actx, *a.ob.Process, a.body)
	case api.StepRoute:
		rctx, cancel := context.WithTimeout(ctx, t.RouteTimeout)
		defer cancel()
		return a.o.Nginx.Route(rctx, a.ob.Grant.Organization, Route{Gateway: a.id, Epoch: a.ob.Grant.Epoch})
	case api.StepVerify:
		return a.verifyForGood(ctx)
	}
	return fmt.Errorf("cannot take the unknown step %q", name)
}

// verifyForGood returns when the organization is verified and that it is served is on record for good: a
// machine that crashes after the report comes back and must not take it for a failed one. Neither needs
// the other, so they go on beside each other.
func (a *actor) verifyForGood(ctx context.Context) error {
	recorded := make(chan error, 1)
	if a.ob.Grant.Served {
		recorded <- nil
	} else {
		go func() { recorded <- a.o.Journal.Sync(ctx) }() // received below
	}
	err := verify(ctx, a.o.Nginx, a.o.Timing.VerifyTimeout, a.identity())
	if failed := <-recorded; err == nil && failed != nil {
		err = unwritten(failed)
	}
	return err
}

// undo takes one step back. A step that cannot be taken back is tried again, with back-off.
func (a *actor) undo(ctx context.Context, act steps.Action) {
	var err error
	switch act.Step {
	case api.StepRoute:
		err = a.unroute(ctx)
	case api.StepActivate:
		a.deactivate(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	outcome := steps.Succeeded
	if err != nil {
		outcome = steps.Unclear
		a.retries++
		a.backOff(a.retries)
		a.logger.Error("a step cannot be taken back yet", "step", act.Step, "error", err)
	}
	if err := a.ob.Change.Report(act, outcome, a.o.Now().UTC()); err != nil {
		a.logger.Error("a step was out of order", "error", err)
	}
	_ = a.save()
}

// failStep ends the forward direction of the grant: it is reported, and the steps before are undone. For
// an organization that was served the step is tried again instead, for ever.
func (a *actor) failStep(act steps.Action, outcome steps.Outcome, begun time.Time, err error) {
	a.logger.Warn("a step failed", "step", act.Step, "organization", a.ob.Grant.Organization, "epoch", a.ob.Grant.Epoch, "error", err)
	if a.ob.Grant.Served {
		a.retries++
		a.backOff(a.retries)
		a.ob.Message = clip(fmt.Sprintf("cannot %s again: %v", act.Step, err))
		return
	}
	f := stepFault(act.Step, err)
	a.ob.Code, a.ob.Message, a.retries = string(f.Code), clip(f.Message), 0
	end := a.o.Now().UTC()
	if err := a.ob.Change.Report(act, outcome, end); err != nil {
		a.logger.Error("a step was out of order", "error", err)
	}
	_ = a.save()
	a.chain.add(a.stepReport(act.Step, begun.UTC(), end, f))
	a.chain.end()
}

// reportFailure reports again why the grant was not taken up.
func (a *actor) reportFailure() {
	for _, s := range a.ob.Change.Steps {
		if s.Ended.IsZero() || s.Status == steps.Done {
			continue
		}
		a.chain.add(a.stepReport(s.Name, s.Started, s.Ended, &fault.Error{Code: fault.Code(a.ob.Code), Message: a.ob.Message}))
		a.chain.end()
		return
	}
}

func (a *actor) stepReport(name string, begun, end time.Time, f *fault.Error) api.StepReport {
	s := api.Step{Step: name, State: api.StepDone, StartedAt: begun, EndedAt: &end}
	if f != nil {
		s.State, s.Error, s.Code = api.StepFailed, f.Message, string(f.Code)
	}
	g := a.ob.Grant
	return api.StepReport{AllocationID: string(g.Allocation), GatewayID: string(a.id), Epoch: uint64(g.Epoch), Step: s}
}

// update hands the gateway the organization's new members and projects at the same epoch.
func (a *actor) update(ctx context.Context) {
	body, version := a.w.grant.body, a.w.grant.version
	err := a.o.Journal.PutBody(a.id, body)
	if err == nil {
		a.body = body // also for a process that is started later
		uctx, cancel := context.WithTimeout(ctx, a.o.Timing.ActivateTimeout)
		err = a.o.Control.Activate(uctx, *a.ob.Process, body)
		cancel()
	}
	if err != nil {
		if ctx.Err() == nil {
			a.retries++
			a.backOff(a.retries)
			a.logger.Warn("members and projects did not reach the gateway yet", "version", version, "error", err)
		}
		return
	}
	g := *a.ob.Grant
	g.Version = version
	a.ob.Grant, a.retries = &g, 0
	_ = a.save()
}

// stepFault gives a failed step its stable code and a message for people.
func stepFault(name string, err error) *fault.Error {
	var f *fault.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, context.Canceled):
		return fault.Wrap(fault.Superseded, err, "the coordinator ended the grant during the step %s", name)
	case name == api.StepRoute:
		return fault.Wrap(fault.RouteApplyFailed, err, "cannot route the organization: %v", err)
	case name == api.StepVerify:
		return fault.Wrap(fault.VerifyFailed, err, "cannot verify the organization: %v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fault.Wrap(fault.ActivationTimeout, err, "the gateway did not take up the organization in time")
	}
	return fault.Wrap(fault.Internal, err, "the gateway did not take up the organization: %v", err)
}
