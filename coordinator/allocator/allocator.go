// Package allocator drives allocations: it asks the state machine for a gateway, follows the steps that
// the host's agent reports, confirms or undoes, and ends what passed its deadline.
//
// Only reserve, confirm, fail and release are entries of the Raft log. The steps in between live in the
// leader's memory; a new leader re-derives them from what agents observe, because an agent repeats in
// its full observations which organization and epoch each gateway serves. So nothing here has to be
// handed over: losing the memory costs one round of observations.
package allocator

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Proposer puts a command into the Raft log and returns after it was applied here. An error that wraps
// consensus.ErrUnknown means that the command may or may not take effect.
type Proposer interface {
	Propose(ctx context.Context, c command.Command) (command.Result, uint64, error)
}

// Verifier asks the agent of a host whether an organization is served right now, by that gateway and
// epoch. It returns nil only on the agent's word, and a fault (verify_failed, host_lost) otherwise.
type Verifier interface {
	Verify(ctx context.Context, host id.Host, req api.VerifyRequest) error
}

// Options configure a Runner. All fields but Names are needed.
type Options struct {
	Store    *state.Store
	Proposer Proposer
	Verifier Verifier
	// Names writes the records of organizations. Nil: none has to be written, and there is no step dns.
	Names  Names
	Logger hclog.Logger
	Now    func() time.Time
	// RetryAfter estimates when a gateway of an empty pool will be free, for the caller's next try.
	RetryAfter func(id.Pool) time.Duration
}

// Runner is the allocator of one coordinator. Its calls work only while this coordinator leads; Run must
// be running then.
type Runner struct {
	opts Options

	mu sync.Mutex
	// runs are the allocations whose steps are being reported; guarded by mu. A run is dropped when its
	// allocation has ended or is active.
	runs map[id.Allocation]*run
	// waiters counts the callers that wait for an allocation; guarded by mu. The last one to leave takes
	// a queued allocation out of the line.
	waiters map[id.Allocation]int
	// verified remembers when an active allocation was last seen to be served; guarded by mu.
	verified map[id.Allocation]time.Time
	// reigning is the context of Run while it runs, nil otherwise; guarded by mu.
	reigning context.Context
	// confirming counts confirmations on their way, and places in line that may be given up. It is added to under mu while reigning is set, and Run
	// waits for it after it has taken reigning away.
	confirming sync.WaitGroup
	// naming bounds the names that are written at the same time.
	naming chan struct{}
}

// run is what the leader knows of an unfinished allocation beyond the log.
type run struct {
	epoch     id.Epoch
	asked     time.Time     // when the caller's request arrived; zero when a predecessor took it
	reserve   time.Duration // how long the reserve entry took
	steps     []command.Step
	concluded bool          // a confirmation or failure is on its way
	confirmed chan struct{} // closed when the confirmation is no longer on its way; nil: there was none
}

// New makes a Runner.
func New(opts Options) *Runner {
	return &Runner{
		opts: opts, runs: map[id.Allocation]*run{},
		waiters: map[id.Allocation]int{}, verified: map[id.Allocation]time.Time{}, naming: make(chan struct{}, namingSlots),
	}
}

// Phase tells what the leader knows of an unfinished allocation: the step it is in as an allocation
// state, and the steps so far. ok is false when it knows nothing beyond the log.
func (r *Runner) Phase(a id.Allocation) (phase string, steps []command.Step, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rn, ok := r.runs[a]
	if !ok {
		return "", nil, false
	}
	return phaseAfter(rn.steps), append([]command.Step(nil), rn.steps...), true
}

// phaseAfter names the state of an allocation whose agent has reported these steps.
func phaseAfter(steps []command.Step) string {
	phase := api.AllocationReserved
	for _, s := range steps {
		switch {
		case s.State == api.StepDoing && s.Step == api.StepActivate:
			phase = api.AllocationActivating
		case s.Step == api.StepActivate && s.State == api.StepDone, s.State == api.StepDoing && s.Step == api.StepRoute:
			phase = api.AllocationRouting
		case s.Step == api.StepRoute && s.State == api.StepDone, s.State == api.StepDoing && s.Step == api.StepVerify:
			phase = api.AllocationVerifying
		}
	}
	return phase
}

// trackLocked returns the run of a grant that is not confirmed yet, making it when it is not there yet. The
// caller holds mu.
func (r *Runner) trackLocked(a id.Allocation, epoch id.Epoch) *run {
	rn := r.runs[a]
	if rn == nil || rn.epoch != epoch {
		rn = &run{epoch: epoch}
		r.runs[a] = rn
	}
	return rn
}

func (r *Runner) forget(a id.Allocation) {
	r.mu.Lock()
	delete(r.runs, a)
	r.mu.Unlock()
}

func (r *Runner) meta(actor, source string) command.Meta {
	return command.Meta{At: r.opts.Now(), Actor: actor, Source: source}
}

// failureOf turns the recorded failure of an ended allocation into the caller's error.
func failureOf(a *state.Allocation) error {
	if a.Failure.Code == "" {
		return fault.New(fault.Superseded, "allocation %s of organization %s was released before it could be used; start it again", a.ID, a.Organization)
	}
	return fault.New(a.Failure.Code, "%s", a.Failure.Message)
}
