package nginx

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fsx"
)

// goBack undoes an attempt that may have reached nginx. It returns why the attempt failed, and why going
// back failed if it did. The caller holds the apply lock.
func (e *Engine) goBack(ctx context.Context, a *attempt, why error) error {
	if ctx.Err() != nil {
		return why // the engine is being stopped; the journal says what is left to do
	}
	if !a.pushed || !a.master.alive() || a.master.stopped() {
		// nginx runs the live generation, or none: nothing to load. If it is only stopped, the signal
		// that waits for it will find the pointer where it was.
		return errors.Join(why, e.abandon(a.n))
	}
	e.log.Warn("going back to the last live generation", "generation", a.n, "reason", why.Error())
	backErr := e.rollback(ctx, a.master)
	if backErr == nil {
		return why
	}
	if e.canWait(ctx, backErr) {
		return errors.Join(why, fmt.Errorf("cannot go back to the last live generation yet: %w", backErr))
	}
	return errors.Join(why, fmt.Errorf("cannot go back to the last live generation: %w", backErr), e.restart(a.master, a.n))
}

// canWait tells whether a rollback that failed can be tried again later (the disk is full, say) because
// nginx still serves one generation or the other. The journal says what is left to do.
func (e *Engine) canWait(ctx context.Context, err error) bool {
	var f *failure
	if !errors.As(err, &f) || !f.transient {
		return false
	}
	j := e.snapshot().j
	return e.answers(ctx, j.Live, patience) || e.answers(ctx, j.Candidate, patience)
}

// abandon puts the pointer back to the live generation without loading it.
func (e *Engine) abandon(n uint64) error {
	j := e.snapshot().j
	if err := e.point(j.Live); err != nil {
		return fmt.Errorf("cannot put the pointer back: %w", err)
	}
	if j.Candidate != 0 {
		j.Candidate, j.RollingBack = 0, false
		if err := e.record("abandoned", j); err != nil {
			return err
		}
	}
	_ = e.fs.Remove("nginx.fence.remove", e.l.fence(j.Live))
	return e.discard(n)
}

// rollback makes the last live content live again under a number of its own, with the same push and the
// same proof as anything else: the failed push may have left sockets and workers of its number behind.
func (e *Engine) rollback(ctx context.Context, master process) error {
	st := e.snapshot()
	a := &attempt{n: e.nextNumber(), digest: st.digest, rollback: true, master: master, begun: e.opts.Now()}
	a.files = e.r.renumber(st.live, st.j.Live, a.n)
	if err := stage(e.fs, e.l, a.n, a.files, a.digest); err != nil {
		return transient(err, "the disk did not take it")
	}
	return e.push(ctx, a)
}

// restart is the last resort: nginx is ended, and whoever runs it starts it with the live generation,
// which Prepare has put the pointer back to. The journal names the attempt until nginx has ended: an agent that
// dies before that would otherwise leave an nginx that serves nothing, and nobody would know that it has to end.
func (e *Engine) restart(master process, n uint64) error {
	e.log.Error("ending nginx: neither the new nor the last live generation could be proven", "pid", master.pid)
	if err := e.fs.Step("nginx.restart"); err != nil {
		return err
	}
	if err := master.signal(syscall.SIGTERM); err != nil && !errors.Is(err, errNoMaster) {
		return err
	}
	for end := time.Now().Add(2 * time.Second); master.alive() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	var err error
	if master.alive() {
		err = master.signal(syscall.SIGKILL)
	}
	return errors.Join(err, e.abandon(n))
}

// resume ends what a crash or a full disk has cut. A candidate that nginx runs and that can be proven
// becomes live; a cut rollback, and everything that cannot be proven, is rolled back under a new number.
// Without nginx it only puts the pointer back.
func (e *Engine) resume(ctx context.Context) error {
	j := e.snapshot().j
	if j.Candidate == 0 {
		return nil
	}
	unlock, err := fsx.Lock(ctx, e.l.applyLock())
	if err != nil {
		return transient(err, "another program prepares nginx")
	}
	defer unlock()
	master, err := findMaster(e.l, e.opts.Binary)
	if err != nil {
		return e.abandon(j.Candidate)
	}
	e.log.Info("finishing a generation that was cut off", "generation", j.Candidate, "rolling_back", j.RollingBack)
	if e.answers(ctx, j.Live, patience) && !e.answers(ctx, j.Candidate, patience) && e.pointsTo(j.Live) {
		return e.abandon(j.Candidate) // it never reached nginx
	}
	if !j.RollingBack && e.pointsTo(j.Candidate) && e.answers(ctx, j.Candidate, patience) {
		if err := e.finish(ctx, j.Candidate, master); err == nil {
			return nil
		}
	}
	a := &attempt{n: j.Candidate, master: master, pushed: true}
	if err := e.rollback(ctx, master); err != nil {
		if ctx.Err() != nil || !master.alive() || master.stopped() {
			return err
		}
		if e.canWait(ctx, err) {
			return err
		}
		return errors.Join(err, e.restart(master, a.n))
	}
	return nil
}

// follow takes over what a start of nginx has begun anew with (Prepare), because the live generation was damaged or could
// listen no more where it did. The apply loop calls it between generations.
func (e *Engine) follow(ctx context.Context) error {
	known := e.snapshot().j
	j, found, err := loadJournal(e.fs, e.l)
	if err != nil || !found || j.Live == known.Live || j.Last < known.Last || known.Candidate != 0 {
		return nil // the next generation writes the journal anew, whatever has become of it
	}
	if e.answers(ctx, known.Live, patience) {
		return nil // nginx was not started, so nobody has prepared it
	}
	files, m, err := readGeneration(e.fs, e.l.generation(j.Live))
	if err != nil {
		return transient(err, "cannot read generation %d, with which nginx was started", j.Live)
	}
	e.log.Warn("nginx was started with another generation; going on from it", "generation", j.Live, "before", known.Live)
	e.change(func(st *state) {
		st.j, st.proven, st.force = j, false, false
		st.adopt(files, m.digest)
	})
	return nil
}

func (e *Engine) pointsTo(n uint64) bool {
	b, err := e.fs.ReadFile("nginx.pointer.read", e.l.pointer())
	got, ok := parsePointer(b)
	return err == nil && ok && got == n
}

// finish proves a candidate that nginx already runs.
func (e *Engine) finish(ctx context.Context, n uint64, master process) error {
	files, m, err := readGeneration(e.fs, e.l.generation(n))
	if err != nil {
		return err
	}
	a := &attempt{n: n, files: files, digest: m.digest, master: master, begun: e.opts.Now(), pushed: true}
	fences, err := e.fences(n)
	if err != nil {
		return err
	}
	if err := e.prove(ctx, a, fences, nil, tailFrom(e.l.errorLog())); err != nil {
		return err
	}
	return e.commit(a)
}
