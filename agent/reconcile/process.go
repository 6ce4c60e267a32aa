package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/sleep"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

// Events of this package.
const (
	EventExited      = "gateway.exited"       // a process ended that was to run
	EventHung        = "gateway.hung"         // a process does not answer and is ended
	EventStartFailed = "gateway.start_failed" // a process could not be started
	EventGivenUp     = "gateway.given_up"     // too many starts came to nothing
	EventAdopted     = "gateway.adopted"      // a process of an earlier run of the agent was taken up
	EventLeftover    = "gateway.leftover"     // something that nobody wants was found and removed
	EventRefused     = "gateway.grant_refused"
	EventDomain      = "host.domain_mismatch"
)

// adopt takes up the process that an earlier run of the agent left, and what it serves.
func (a *actor) adopt(ctx context.Context) {
	a.chain.begin(a.o.Now(), false)
	if p := a.ob.Process; p != nil {
		err := a.o.Driver.Adopt(ctx, *p)
		switch {
		case err == nil:
			a.ob.running = true
			a.watch(ctx, *p)
			a.logger.Info("gateway adopted", "pid", p.PID)
			a.event(EventAdopted, fmt.Sprintf("pid %d runs on", p.PID))
		case errors.Is(err, driver.ErrGone):
			a.ob.running = true // until the next line has recorded its end
			a.ended(exited{process: *p})
		default:
			a.logger.Error("the gateway's process cannot be adopted and is ended", "pid", p.PID, "error", err)
			if err := a.o.Driver.Stop(ctx, *p, a.o.Timing.StopGrace); err != nil {
				a.logger.Error("the gateway's process cannot be ended", "pid", p.PID, "error", err)
			}
			a.ob.running = true
			a.ended(exited{process: *p})
		}
	}
	if g := a.ob.Grant; g != nil {
		if g.Served {
			a.ob.Change = steps.New(takeSteps...)
		} else if a.ob.Code != "" {
			a.reportFailure() // the report may have been lost with the agent
		}
	}
}

// start runs the program afresh. That the state directory may be in use from now on is on record before.
func (a *actor) start(ctx context.Context) {
	if err := a.tryStart(ctx); err != nil && ctx.Err() == nil {
		a.logger.Error("the gateway was not started", "error", err)
		a.event(EventStartFailed, err.Error())
		a.startFailed(err.Error())
	}
}

func (a *actor) tryStart(ctx context.Context) error {
	spec, err := a.o.Layout.Spec(a.id, a.ob.Wanted.Release, a.ob.Wanted.Limits)
	if err != nil {
		return err
	}
	a.ob.Used = true
	if err := a.save(); err != nil {
		return err
	}
	if err := a.o.FS.MkdirAll("reconcile.statedir", spec.StateDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the gateway's directory: %w", err)
	}
	if err := a.o.FS.MkdirAll("reconcile.socketdir", filepath.Dir(spec.Listen), 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of the gateway's socket: %w", err)
	}
	// A socket that a killed process left would refuse every connection until the new one listens.
	if err := a.o.FS.Remove("reconcile.socket", spec.Listen); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the old socket: %w", err)
	}
	if err := a.o.FS.Step("reconcile.start"); err != nil {
		return err
	}
	p, err := a.o.Driver.Start(ctx, spec)
	if err != nil {
		return err
	}
	a.ob.Process, a.ob.running, a.ob.healthy = &p, true, false
	a.bootID, a.misses, a.probes = "", 0, 0
	a.started, a.upSince = a.o.Now(), time.Time{}
	a.ob.probeAt = a.started
	a.watch(ctx, p)
	if err := a.o.FS.Step("reconcile.started"); err != nil {
		return err
	}
	_ = a.save() // the process is found by its environment when this is lost
	a.logger.Debug("gateway started", "pid", p.PID)
	return nil
}

// startFailed counts a start that came to nothing and sets the back-off.
func (a *actor) startFailed(message string) {
	a.ob.Message = clip(message)
	a.ob.failures++
	a.backOff(a.ob.failures)
	if a.ob.Grant == nil && a.ob.failures == a.o.Timing.FailedStarts {
		a.event(EventGivenUp, fmt.Sprintf("%d starts in a row came to nothing; the last: %s", a.ob.failures, clip(message)))
	}
}

// backOff sets the earliest time of the next try after n failures.
func (a *actor) backOff(n int) {
	t := a.o.Timing
	d := t.BackOff
	for ; n > 1 && d < t.MaxBackOff; n-- {
		d *= 2
	}
	a.ob.notBefore = a.o.Now().Add(min(d, t.MaxBackOff))
}

// ended takes note of a process that ended. Whether it was clean makes no difference: it was to run.
func (a *actor) ended(e exited) {
	if !a.ob.running || a.ob.Process == nil || *a.ob.Process != e.process {
		return // an older one, or one that was ended on purpose
	}
	now := a.o.Now()
	a.ob.running, a.ob.healthy, a.ob.hung = false, false, false
	a.ob.Process = nil
	if _, ending := a.ob.Ending.Next(); ending || mustEnd(a.w, a.ob) {
		_ = a.save()
		return
	}
	message := e.exit.String()
	if tail := a.logTail(); tail != "" {
		message += ": " + tail
	}
	a.logger.Warn("the gateway's process ended", "pid", e.process.PID, "exit", e.exit.String(), "log", a.logTail())
	a.event(EventExited, clip(fmt.Sprintf("pid %d %s", e.process.PID, message)))
	a.ob.Restarts++
	switch {
	case a.upSince.IsZero(): // it never came up
		a.startFailed(message)
	case now.Sub(a.upSince) >= a.o.Timing.Stable:
		a.ob.failures = 0
		a.ob.Message = clip(message)
		a.backOff(1)
	default:
		a.startFailed(message)
	}
	a.lostGrant(message)
	_ = a.save()
}

// lostGrant deals with the organization of a process that ended. One that was served is brought back by
// the same steps; one that never was is given up, and the coordinator chooses another gateway.
func (a *actor) lostGrant(message string) {
	g := a.ob.Grant
	if g == nil || a.ob.Code != "" {
		return
	}
	if g.Served {
		a.bringBack()
		return
	}
	if act, ok := a.ob.Change.Next(); ok && !act.Undo {
		a.failStep(act, steps.Unclear, a.o.Now(), fmt.Errorf("the gateway's process %s", message))
	}
}

// bringBack makes the steps of an organization that is served be taken again, without reporting each.
func (a *actor) bringBack() {
	a.ob.Change, a.retries = steps.New(takeSteps...), 0
	a.chain.begin(a.o.Now(), true)
}

// kill ends a process that hangs. Its end is noted like any other.
func (a *actor) kill(ctx context.Context) {
	p := *a.ob.Process
	a.logger.Warn("the gateway does not answer and is ended", "pid", p.PID, "reason", a.ob.Message)
	a.event(EventHung, a.ob.Message)
	// It did not answer a question, so it is not given long to save.
	if err := a.o.Driver.Stop(ctx, p, min(a.o.Timing.StopGrace, time.Second)); err != nil {
		a.ob.notBefore = a.o.Now().Add(a.o.Timing.BackOff)
		a.logger.Error("the gateway's process cannot be ended", "pid", p.PID, "error", err)
		sleep.For(ctx, a.o.Timing.BackOff)
		return
	}
	a.ended(exited{process: p, exit: driver.Exit{Signal: "the agent: " + a.ob.Message, Known: true}})
}

// probe asks the process who it is. Only an answer of that very process, with the right id and always the
// same boot id, counts.
func (a *actor) probe(ctx context.Context) {
	t := a.o.Timing
	hctx, cancel := context.WithTimeout(ctx, t.HealthTimeout)
	h, err := a.o.Control.Health(hctx, *a.ob.Process)
	cancel()
	switch {
	case err != nil:
	case h.GatewayID != string(a.id):
		err = fmt.Errorf("it says that it is gateway %q", h.GatewayID)
	case h.BootID == "":
		err = errors.New("it names no boot id")
	case a.bootID != "" && h.BootID != a.bootID:
		err = fmt.Errorf("its boot id changed from %q to %q", a.bootID, h.BootID)
	}
	now := a.o.Now()
	if err == nil {
		a.well(now, h.BootID)
		return
	}
	if ctx.Err() != nil {
		return
	}
	a.probes++
	if !a.ob.healthy {
		if a.started.IsZero() {
			a.started = now // adopted: it gets the time of a start
		}
		if now.Sub(a.started) >= t.StartTimeout {
			a.ob.hung = true
			a.ob.Message = clip(fmt.Sprintf("not healthy %s after its start: %v", t.StartTimeout, err))
		}
		a.ob.probeAt = now.Add(min(t.ProbeEvery*time.Duration(a.probes), 10*t.ProbeEvery))
		return
	}
	a.misses++
	a.ob.probeAt = now.Add(t.AskAgain)
	if a.misses >= t.Misses {
		a.ob.healthy, a.ob.hung = false, true
		a.ob.Message = clip(fmt.Sprintf("no healthy answer %d times in a row: %v", a.misses, err))
	}
}

// well takes note of a healthy answer.
func (a *actor) well(now time.Time, bootID string) {
	if !a.ob.healthy {
		a.upSince = now
		a.ob.Message = ""
	}
	a.ob.healthy, a.ob.everUp, a.bootID = true, true, bootID
	a.misses, a.probes = 0, 0
	a.ob.probeAt = now.Add(a.nextLook(now))
	if a.ob.failures > 0 && now.Sub(a.upSince) >= a.o.Timing.Stable {
		a.ob.failures = 0
	}
}

// looks is the time between the moments at which healthy processes are asked. On a host at rest most of what a question
// costs is waking the agent for it, so a few share that; many more would hold up everything else.
const looks = 50 * time.Millisecond

// nextLook is how long after a moment a healthy process is asked again. Gateways that were started or granted together
// are not asked together for ever: the answers of hundreds at one moment would hold up everything else.
func (a *actor) nextLook(now time.Time) time.Duration {
	every := a.o.Timing.IdleEvery
	if a.ob.Grant != nil {
		every = a.o.Timing.HealthEvery
	}
	wait := every - every/4 + rand.N(every/2+1)
	if every < 10*looks {
		return wait
	}
	return wait - now.Add(wait).Sub(a.o.born)%looks
}

// recycle ends the process and wipes what it left, and looks again whether it is gone.
func (a *actor) recycle(ctx context.Context) error {
	if err := a.o.FS.Step("reconcile.stop"); err != nil {
		return err
	}
	if p := a.ob.Process; p != nil {
		a.ob.running, a.ob.healthy, a.ob.hung = false, false, false // its end is wanted: no event
		if err := a.o.Driver.Stop(ctx, *p, a.o.Timing.StopGrace); err != nil {
			return fmt.Errorf("cannot stop the process %d: %w", p.PID, err)
		}
		a.ob.Process = nil
	}
	dir := filepath.Join(a.o.Layout.Dir(), string(a.id))
	state := filepath.Join(dir, StateDir)
	if err := a.o.FS.RemoveAll("reconcile.wipe", state); err != nil {
		return fmt.Errorf("cannot wipe the state directory: %w", err)
	}
	if _, err := a.o.FS.Lstat("reconcile.check", state); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot wipe the state directory: something is still at %s", state)
	}
	if err := a.o.FS.SyncDir("reconcile.wipe.sync", dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot wipe the state directory for good: %w", err)
	}
	return nil
}

// Names below a gateway's directory; a Layout's Spec uses them.
const (
	StateDir = "state" // wiped with every incarnation
	LogFile  = "log"   // kept: it tells why the process before ended
)

// logTail is the end of the gateway's log on one line, for a report of its death.
func (a *actor) logTail() string {
	f, err := os.Open(filepath.Join(a.o.Layout.Dir(), string(a.id), LogFile))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	b := make([]byte, min(size, mostLog))
	if _, err := f.ReadAt(b, size-int64(len(b))); err != nil {
		return ""
	}
	return lastLines(b, size > mostLog)
}

// mostLog is how much of a log is read for a report.
const mostLog = 800

// lastLines puts the last three lines of the end of a log on one line. A cut end begins in the middle of a line.
func lastLines(b []byte, cut bool) string {
	if _, whole, more := bytes.Cut(b, []byte("\n")); more && cut && len(whole) > 0 {
		b = whole // what was cut at its beginning tells nothing
	}
	lines := strings.Split(strings.TrimSpace(string(bytes.ToValidUTF8(b, nil))), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// clip bounds what goes into reports.
func clip(s string) string {
	const most = 600
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
