package nginx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// The rhythm of Run.
const (
	quiet        = 200 * time.Millisecond // a burst of changes ends with this much silence,
	longestBurst = 2 * time.Second        // or is cut here
	idleQuiet    = 10 * time.Millisecond  // silence that is enough for an engine that had nothing to do
	checkEvery   = time.Second            // nginx is looked at
	silence      = 2 * time.Second        // and given this long to answer
	scanEvery    = 5 * time.Minute        // all routes are compared
	scanStride   = 128                    // of them at once, and then a pause: switches go before
	scanPause    = time.Millisecond
	auditEvery   = time.Hour        // the live generation is compared with its manifest
	drainSpacing = 30 * time.Second // between generations while too many old workers drain
	firstRetry   = 250 * time.Millisecond
	lastRetry    = 30 * time.Second
)

// Run drives the engine until ctx ends: it applies what SetConfig wants, repairs drift and watches over
// nginx. It owns everything that the engine starts, and gives the directory back when it returns.
func (e *Engine) Run(ctx context.Context) error {
	defer e.close()
	w, err := e.newWatch()
	if err != nil {
		return err
	}
	defer w.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup // all four end with ctx
	group.Go(func() { e.supervise(ctx) })
	group.Go(func() { e.watchDrift(ctx, w) })
	group.Go(func() { e.watchCertificate(ctx) })
	group.Go(func() { e.applyLoop(ctx) })
	group.Wait()
	return nil
}

// applyLoop takes up the newest configuration, one at a time, and tries again by itself after a failure.
func (e *Engine) applyLoop(ctx context.Context) {
	var idleSince time.Time // zero: the first configuration need not wait
	retry := firstRetry
	var timer <-chan time.Time
	e.poke() // something may be left to finish from before
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer:
		case <-e.wake:
			e.settle(ctx, idleSince)
		}
		timer = nil
		if !e.waitForDraining(ctx) {
			return
		}
		err := e.converge(ctx)
		idleSince = time.Now()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			retry = firstRetry
			continue
		}
		if !errors.Is(err, errSettled) {
			timer = time.After(retry)
			retry = min(2*retry, lastRetry)
		}
	}
}

// settle waits until a burst of changes is over. An engine that was idle for longer than a burst takes
// the first change of the next one almost at once; what follows collects while that is on its way.
func (e *Engine) settle(ctx context.Context, idleSince time.Time) {
	wait := quiet
	if time.Since(idleSince) > longestBurst {
		wait = idleQuiet
	}
	end := time.After(longestBurst)
	for {
		select {
		case <-e.wake:
		case <-time.After(wait):
			return
		case <-end:
			return
		case <-ctx.Done():
			return
		}
	}
}

// waitForDraining slows generations down while too many old workers hold connections: each costs memory
// for as long as its WebSockets last.
func (e *Engine) waitForDraining(ctx context.Context) bool {
	end := time.After(drainSpacing)
	for {
		master, err := findMaster(e.l, e.opts.Binary)
		if err != nil || master.draining() <= e.opts.MaxDrainingWorkers || !e.pending() {
			return ctx.Err() == nil
		}
		select {
		case <-time.After(checkEvery / 2):
		case <-end:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// pending tells whether the desired configuration differs from the live one.
func (e *Engine) pending() bool {
	st := e.snapshot()
	if st.desired == nil {
		return false
	}
	cfg, _ := e.wanted(st)
	bad := map[string]bool{}
	for part := range st.quarantine {
		bad[part] = true
	}
	return st.force || e.r.digest(without(cfg, bad)) != st.digest
}

// errSettled marks a failure that waiting does not help: the same text is refused until it changes.
var errSettled = errors.New("refused until it changes")

// wanted is the desired configuration, checked, with the gateways that routes still lead to: a slot goes
// only after its routes.
func (e *Engine) wanted(st state) (Config, []refusal) {
	cfg := *st.desired
	routed := e.routes.gateways()
	for _, s := range cfg.Slots {
		delete(routed, s.Gateway)
	}
	if len(routed) > 0 {
		cfg.Slots = slices.Clone(cfg.Slots)
		for g := range routed {
			if s, live := st.slots[g]; live {
				cfg.Slots = append(cfg.Slots, s)
			}
		}
	}
	return normalize(cfg, e.opts.Domain)
}

// converge makes nginx run what is wanted now, or says why not.
func (e *Engine) converge(ctx context.Context) (err error) {
	defer func() { e.report(ctx, err) }()
	if err := e.resume(ctx); err != nil {
		return err
	}
	if err := e.follow(ctx); err != nil {
		return err
	}
	if err := e.repairPointer(); err != nil {
		return err
	}
	st := e.snapshot()
	if !st.proven {
		if !e.answers(ctx, st.j.Live, patience) {
			return transient(errNoMaster, "nginx does not answer as generation %d", st.j.Live)
		}
		e.change(func(st *state) { st.proven = true })
		e.tidy() // a crash after the proof leaves its fences
	}
	for st.desired != nil {
		cfg, refused := e.wanted(st)
		bad, err := e.review(cfg, refused)
		if err != nil {
			return err
		}
		cfg = without(cfg, bad)
		digest := e.r.digest(cfg)
		if digest == st.digest && !st.force {
			e.change(func(st *state) { st.attempted = st.j.Live })
			return nil
		}
		if words, rejected := st.j.Rejected[digest]; rejected && !st.force {
			return fmt.Errorf("%w: %s", errSettled, words)
		}
		err = e.try(ctx, cfg, digest)
		if err == nil {
			return nil
		}
		if again, err := e.judge(ctx, cfg, digest, err); !again {
			return err
		}
		st = e.snapshot()
	}
	return nil
}

// judge decides what a failed attempt means: parts to quarantine and another try without them, a
// configuration to reject, or only to wait.
func (e *Engine) judge(ctx context.Context, cfg Config, digest string, why error) (again bool, err error) {
	var f *failure
	if !errors.As(why, &f) || f.transient || ctx.Err() != nil {
		return false, why
	}
	if f.refused {
		master, err := findMaster(e.l, e.opts.Binary)
		if err != nil {
			return false, transient(err, "cannot look for the refused part")
		}
		bad, err := e.culprits(ctx, master, cfg, f.reason)
		if err != nil {
			return false, err
		}
		if len(bad) > 0 {
			return true, e.isolate(cfg, bad)
		}
	}
	j := e.snapshot().j
	j.Rejected = maps.Clone(j.Rejected)
	j.reject(digest, f.reason)
	if err := e.record("rejected", j); err != nil {
		return false, errors.Join(why, transient(err, "the disk did not take the refusal"))
	}
	return false, errors.Join(why, errSettled)
}

// report remembers and tells how the last try ended.
func (e *Engine) report(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	before := e.snapshot()
	e.change(func(st *state) { st.lastError = text })
	if err == nil || before.lastError == text {
		return // said before
	}
	var f *failure
	if errors.As(err, &f) && errors.Is(f.err, errNoMaster) {
		e.log.Warn("nginx does not run; its configuration waits", "error", text)
		return
	}
	e.log.Error("the configuration of nginx could not be applied; the last live one serves", "error", text)
	e.event(Event{Type: GenerationFailed, Generation: before.attempted, Reason: text})
}

// supervise looks at nginx and says when its condition changes.
func (e *Engine) supervise(ctx context.Context) {
	audit := time.Now()
	for {
		e.look(ctx)
		if time.Since(audit) > auditEvery {
			audit = time.Now()
			e.audit()
		}
		if !sleep.For(ctx, checkEvery) {
			return
		}
	}
}

func (e *Engine) look(ctx context.Context) {
	condition, reason, draining := e.condition(ctx)
	if ctx.Err() != nil {
		return
	}
	e.identify()
	before := e.snapshot()
	if before.condition == condition && before.draining == draining {
		return
	}
	e.change(func(st *state) { st.condition, st.draining = condition, draining })
	if before.condition == condition {
		return
	}
	types := map[string]EventType{api.NginxServing: NginxServing, api.NginxDown: NginxDown, api.NginxWedged: NginxWedged}
	e.log.Info("nginx changed its condition", "condition", condition, "reason", reason)
	e.event(Event{Type: types[condition], Reason: reason, Generation: before.j.Live})
	if condition != api.NginxDown {
		e.poke() // what waited for nginx can go on, or it was started with another generation
	}
}

// identify notices that another master runs than at the last look, also where nginx died and was started
// again so fast that no look ever missed it: its connections are gone.
func (e *Engine) identify() {
	now, err := findMaster(e.l, e.opts.Binary)
	if err != nil {
		return
	}
	before := e.snapshot().master
	if before.pid == now.pid && before.start == now.start {
		return
	}
	e.change(func(st *state) { st.master = now })
	if before.pid != 0 {
		reason := fmt.Sprintf("pid %d ended, pid %d runs", before.pid, now.pid)
		e.log.Warn("nginx was started anew; open connections were cut", "reason", reason)
		e.event(Event{Type: NginxRestarted, Reason: reason})
	}
}

// condition asks the master's state and the generation socket. While a generation is on its way either
// the live one or the candidate may answer.
func (e *Engine) condition(ctx context.Context) (condition, reason string, draining int) {
	master, err := findMaster(e.l, e.opts.Binary)
	if err != nil {
		return api.NginxDown, err.Error(), 0
	}
	draining = master.draining()
	if master.stopped() {
		return api.NginxWedged, errWedged.Error(), draining
	}
	if master.stray {
		return api.NginxWedged, errStray.Error(), draining
	}
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	err = poll(ctx, func() (bool, error) {
		j := e.snapshot().j
		for _, n := range []uint64{j.Live, j.Candidate} {
			if n != 0 && e.answers(ctx, n, patience) {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		if !master.alive() {
			return api.NginxDown, errNoMaster.Error(), 0
		}
		return api.NginxWedged, "no worker answers on the generation socket", draining
	}
	return api.NginxServing, "", draining
}

// audit compares the live generation with its manifest. A damaged one is replaced by a new one.
func (e *Engine) audit() {
	if _, _, err := readGeneration(e.fs, e.l.generation(e.snapshot().j.Live)); err != nil {
		e.log.Warn("the live generation was changed on disk", "error", err)
		e.event(Event{Type: DriftRepaired, Part: "generations/" + number(e.snapshot().j.Live), Reason: err.Error()})
		e.change(func(st *state) { st.force = true })
		e.poke()
	}
}
