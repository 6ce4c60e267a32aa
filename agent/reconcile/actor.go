package reconcile

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/journal"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// actor owns one gateway. Its goroutine alone touches what is below "own"; everything others tell it
// goes through the inbox.
type actor struct {
	id     id.Gateway
	o      Options
	logger hclog.Logger

	mu     sync.Mutex // guards the inbox and what others read
	inbox  inbox
	told   journal.Wanted     // what is wanted, whether or not it was read yet
	last   api.GatewayReport  // as published; zero: nothing yet
	abort  context.CancelFunc // ends the action in progress; nil: none, or not to be ended
	hurry  context.CancelFunc // ends what is asked of the process or nginx now, so that the end of a lease is acted on; nil: nothing is
	steady bool               // it has waited at least once
	// sawOver is whether it saw the end of its lease when it looked last.
	sawOver bool

	wake chan struct{}  // capacity 1: the inbox is not empty
	wg   sync.WaitGroup // goroutines of this actor

	// own
	w       desired
	ob      observed
	body    *api.Activate // of ob.Grant
	newBody bool          // body is not on record yet
	bootID  string        // of the process that runs, once it has answered
	misses  int           // health answers missed in a row
	started time.Time     // of the process that runs, by this agent
	upSince time.Time     // when it became healthy
	probes  int           // questions to the starting process
	retries int           // of the step that is tried again and again
	chain   chain
	asked   []api.VerifyRequest
	gone    bool
}

// inbox is what happened since the actor looked last.
type inbox struct {
	desired *desired
	verify  []api.VerifyRequest
	exits   []exited
	slot    bool
}

type exited struct {
	process driver.Process
	exit    driver.Exit
}

// newActor makes an actor from what the journal knows, or for a gateway that is new.
func newActor(o Options, e journal.Entry, w desired) *actor {
	a := &actor{
		id: e.Gateway.Gateway, o: o, logger: o.Logger.With("gateway", string(e.Gateway.Gateway)),
		wake: make(chan struct{}, 1), told: w.Wanted, w: w, ob: observed{Gateway: e.Gateway}, body: e.Body,
	}
	return a
}

// want tells the actor what the coordinator wants now. It ends an action of an incarnation that is over.
func (a *actor) want(w desired) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inbox.desired, a.told = &w, w.Wanted
	if a.abort != nil && (w.Target == api.TargetGone || w.Incarnation > a.last.Incarnation) {
		a.abort()
	}
	a.poke()
}

// drop tells the actor that the gateway is not assigned any more.
func (a *actor) drop() {
	a.mu.Lock()
	w := desired{Wanted: a.told}
	a.mu.Unlock()
	w.Target = api.TargetGone
	a.want(w)
}

// maxBody is the limit of the gateway's request bodies that was wanted last.
func (a *actor) maxBody() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.told.Limits.BodyBytes
}

// verify asks the actor to verify what it serves.
func (a *actor) verify(r api.VerifyRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.inbox.verify) < maxVerifies {
		a.inbox.verify = append(a.inbox.verify, r)
	}
	a.poke()
}

// maxVerifies bounds the questions that wait for one gateway; the coordinator asks one at a time.
const maxVerifies = 16

func (a *actor) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// report is the last published one.
func (a *actor) report() (api.GatewayReport, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last, a.last.GatewayID != ""
}

// run acts until ctx ends or nothing of the gateway is left. It starts with adopting what runs.
func (a *actor) run(ctx context.Context) {
	defer a.wg.Wait()
	defer a.o.Control.Forget(a.id)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.watchSlot(ctx)
	a.adopt(ctx)
	for ctx.Err() == nil && !a.gone {
		a.look() // before what is wanted is read: a renewal counts only after the assignment that came with it
		a.read()
		if len(a.asked) > 0 {
			a.hurried(ctx, a.answerVerify)
			continue
		}
		act := next(a.w, a.ob, a.o.Now(), a.o.Timing.FailedStarts)
		a.publish()
		if act.kind == wait {
			a.sleep(ctx, act.until)
			continue
		}
		a.act(ctx, act)
	}
	if a.gone {
		a.publishGone()
	}
}

// read takes over what is in the inbox.
func (a *actor) read() {
	a.mu.Lock()
	in := a.inbox
	a.inbox = inbox{}
	a.mu.Unlock()
	if in.slot {
		a.ob.slot = true
	}
	for _, e := range in.exits {
		a.ended(e)
	}
	a.asked = append(a.asked, in.verify...)
	if in.desired == nil {
		return
	}
	if in.desired.Incarnation < a.w.Incarnation {
		a.logger.Warn("an assignment of the past is ignored", "incarnation", in.desired.Incarnation, "known", a.w.Incarnation)
		return
	}
	if !reflect.DeepEqual(a.w.Wanted, in.desired.Wanted) {
		a.ob.Wanted = in.desired.Wanted
		if a.ob.Used || a.ob.Incarnation > 0 {
			_ = a.save()
		}
	}
	a.w = *in.desired
	// Again: what came while the grant was being taken up found nothing to update.
	if w, held := a.w.grant, a.ob.Grant; w != nil && held != nil && w.epoch == held.Epoch {
		a.o.Services.Update(w.body, w.version)
	}
}

// sleep waits for the inbox or the time.
func (a *actor) sleep(ctx context.Context, until time.Time) {
	a.mu.Lock()
	a.steady = true
	a.mu.Unlock()
	var timer <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(max(until.Sub(a.o.Now()), 0))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
	case <-a.wake:
	case <-timer:
	}
}

// settled reports whether the actor has come to rest once, so that its report says more than "starting".
func (a *actor) settled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.steady
}

// publish hands the report on when it changed, with the steps that are due.
func (a *actor) publish() {
	r := report(a.w, a.ob, a.o.Timing.FailedStarts)
	if a.ob.running {
		r.BootID = a.bootID
	}
	due := a.chain.due(a.o.Now(), a.o.Timing.ChainQuiet)
	a.mu.Lock()
	same := reflect.DeepEqual(a.last, r)
	known := r.Incarnation > 0
	if known {
		a.last = r
	}
	a.mu.Unlock()
	out := api.Observation{Steps: due}
	// What ends is over for the coordinator already; it waits for the next incarnation, unless that has
	// a difficulty to tell.
	quiet := r.Incarnation < a.w.Incarnation && r.Message == ""
	if !same && known && !quiet {
		out.Gateways = []api.GatewayReport{r}
	}
	if len(out.Gateways) > 0 || len(out.Steps) > 0 {
		a.o.Sink.Observe(out)
	}
}

func (a *actor) publishGone() {
	r := goneReport(a.id, a.w.Incarnation)
	a.mu.Lock()
	a.last = r
	a.mu.Unlock()
	a.o.Sink.Observe(api.Observation{Gateways: []api.GatewayReport{r}})
}

func goneReport(g id.Gateway, incarnation uint64) api.GatewayReport {
	return api.GatewayReport{GatewayID: string(g), Incarnation: incarnation, Phase: api.PhaseGone}
}

// event says what happened.
func (a *actor) event(typ, reason string) {
	e := api.AgentEvent{Type: typ, At: a.o.Now().UTC(), GatewayID: string(a.id), Reason: reason}
	if a.ob.Grant != nil {
		e.OrganizationID = string(a.ob.Grant.Organization)
	}
	a.o.Sink.Observe(api.Observation{Events: []api.AgentEvent{e}})
}

// save stores what is known. An error is logged and returned: only what must not happen unrecorded
// depends on it.
func (a *actor) save() error { return a.put(a.ob.Gateway) }

// put stores a record of the gateway, with the body of its grant when that is new.
func (a *actor) put(g journal.Gateway) error {
	g.Change, g.Ending = g.Change.Clone(), g.Ending.Clone()
	var err error
	if a.newBody && a.body != nil {
		err = a.o.Journal.PutGrant(&g, a.body)
	} else {
		err = a.o.Journal.Put(&g)
	}
	if err != nil {
		a.logger.Error("the journal was not written", "error", err)
		return err
	}
	a.newBody = false
	return nil
}

// watchSlot waits beside everything else until nginx names the gateway. The actor waits for it at its end.
func (a *actor) watchSlot(ctx context.Context) {
	a.wg.Go(func() {
		for ctx.Err() == nil {
			err := a.o.Nginx.WaitSlot(ctx, a.id)
			if err == nil {
				a.mu.Lock()
				a.inbox.slot = true
				a.poke()
				a.mu.Unlock()
				return
			}
			if ctx.Err() == nil {
				a.logger.Warn("nginx does not name the gateway yet", "error", err)
				sleep.For(ctx, time.Second)
			}
		}
	})
}

// watch waits beside everything else until the process ends. The actor waits for it at its end.
func (a *actor) watch(ctx context.Context, p driver.Process) {
	a.wg.Go(func() {
		exit, err := a.o.Driver.Wait(ctx, p)
		for err != nil && ctx.Err() == nil && !errors.Is(err, driver.ErrGone) {
			a.logger.Warn("the process cannot be watched", "pid", p.PID, "error", err)
			sleep.For(ctx, time.Second)
			exit, err = a.o.Driver.Wait(ctx, p)
		}
		if ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		a.inbox.exits = append(a.inbox.exits, exited{p, exit})
		a.poke()
		a.mu.Unlock()
	})
}
