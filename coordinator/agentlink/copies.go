package agentlink

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// One agent speaks for a host. When its machine is copied there are two, with one certificate, and each would undo what
// the other one does. What tells them apart is the run, the random name of each start of an agent. So a run that is new
// does not take the place of another one that is there: that one is asked, and while it answers, the new one is refused.
// After an ordinary restart nobody has to answer: the stream of the run before has ended, or ends now.

const (
	// answerTime is how long a run whose stream is open may take to answer when another one comes. One that lives
	// answers at once; of a machine without power, or cut off, the stream stays open for long, and the next run must not
	// wait longer than an agent waits for a first frame.
	answerTime = 1500 * time.Millisecond
	// copyCertain is how long a run has to be refused to be a copy. One that is refused only once came while the last
	// words of the run before were still on their way.
	copyCertain = 2 * time.Second
	// copyPatience is how long a copy stays refused after the last word of the other one: longer than it takes to
	// restart or to upgrade an agent, and shorter than until a silent host is lost.
	copyPatience = 10 * time.Second
	// copyForgotten is how long after its last try a run counts as a copy. An agent tries at least every five seconds.
	copyForgotten = 15 * time.Second
	// oldAcquaintance is how long after it began to lead a coordinator holds a place for the run that was the last to
	// report, while the gossip takes its host for alive: that run looks for the new leader as others do, who may be first.
	oldAcquaintance = 5 * time.Second
	// mostCopies bounds how many runs of a host are told apart.
	mostCopies = 8
)

// EventCopied tells that two agents speak for a host, once for as long as they do.
const EventCopied = "host.copied"

// run is one start of a host's agent.
type run struct {
	instance string // its random name
	address  string // where it speaks from, without the port
}

func (r run) String() string { return fmt.Sprintf("%s (run %s)", r.address, r.instance) }

// copies are the runs that were refused because another one speaks for their host.
type copies struct {
	refused map[string]refusal // by instance
	told    bool               // in the event feed, since there are any
}

// refusal is what is known of a run that was refused.
type refusal struct {
	address     string
	first, last time.Time
}

// certain reports whether a run is a copy, and not the next run of the agent.
func (r refusal) certain() bool { return r.last.Sub(r.first) >= copyCertain }

// add notes that a run was refused. tell: it is certain now that there is a copy, and nobody has been told.
func (c *copies) add(r run, now time.Time) (tell bool) {
	c.prune(now)
	known, ok := c.refused[r.instance]
	if !ok {
		if len(c.refused) >= mostCopies {
			return false
		}
		known.first = now
	}
	known.address, known.last = r.address, now
	if c.refused == nil {
		c.refused = map[string]refusal{}
	}
	c.refused[r.instance] = known
	tell = known.certain() && !c.told
	c.told = c.told || tell
	return tell
}

// has reports whether a run is a copy.
func (c *copies) has(instance string, now time.Time) bool {
	c.prune(now)
	return c.refused[instance].certain()
}

// latest is the copy that was refused last.
func (c *copies) latest(now time.Time) (latest run, found bool) {
	c.prune(now)
	var at time.Time
	for instance, r := range c.refused {
		if r.certain() && r.last.After(at) {
			latest, at = run{instance, r.address}, r.last
		}
	}
	return latest, !at.IsZero()
}

// prune forgets those that have stopped trying.
func (c *copies) prune(now time.Time) {
	maps.DeleteFunc(c.refused, func(_ string, r refusal) bool { return now.Sub(r.last) >= copyForgotten })
	c.told = c.told && len(c.refused) > 0
}

// Leads has the link know that this coordinator begins to lead: who speaks for a host was last known to another one.
func (l *Link) Leads() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leads = l.opts.Now()
}

// expects reports whether another run than this one is to be expected at any moment. The caller holds l.mu.
func (l *Link) expects(h id.Host, hl *hostLink, instance string) bool {
	if l.opts.Alive == nil || hl.cancel != nil || hl.opened.After(l.leads) || l.opts.Now().Sub(l.leads) >= oldAcquaintance {
		return false
	}
	rec := l.opts.Store.View().Host(nil, h)
	return rec != nil && rec.Instance != "" && rec.Instance != instance && l.opts.Alive(h)
}

// alone returns nil when a run may speak for its host, and conflict when another one does; it waits for the answer of one
// whose stream is open, or for one that is expected. The caller holds l.mu, which is released meanwhile.
func (l *Link) alone(ctx context.Context, h id.Host, hl *hostLink, instance string) error {
	taken := func() bool { return hl.cancel != nil && hl.holder.instance != instance }
	lives, expected := false, l.expects(h, hl, instance)
	if taken() || expected {
		words, limit := hl.words, time.NewTimer(answerTime)
		defer limit.Stop()
		if taken() {
			l.askLocked(hl)
		}
		for over := false; (taken() || expected) && hl.words == words && !over; {
			if hl.moved == nil {
				hl.moved = make(chan struct{})
			}
			moved := hl.moved
			l.mu.Unlock()
			select {
			case <-moved:
			case <-limit.C:
				over = true
			case <-ctx.Done():
				over = true
			}
			l.mu.Lock()
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		// An agent makes one report at a time: while one waits for a slow disk here, it cannot answer.
		lives = taken() && (hl.words != words || hl.taking > 0)
	}
	now := l.opts.Now()
	if lives || hl.holder.instance != instance && now.Sub(hl.seen) < copyPatience && hl.copies.has(instance, now) {
		return fault.New(fault.Conflict, "another agent speaks for host %s, from %s, and run %s is refused while it lives: is one of the machines a copy? Stop one of the two agents. "+
			"To keep both machines, empty the data directory of the copy and let it join as a host of its own (demiurge host join-token)", h, hl.holder, instance)
	}
	return nil
}

// stirLocked lets those look again who wait for the run that has the stream.
func (hl *hostLink) stirLocked() {
	if hl.moved != nil {
		close(hl.moved)
		hl.moved = nil
	}
}

// takesLocked counts a report of a run, if it is the one that has the stream, until taken is called.
func (l *Link) takesLocked(hl *hostLink, instance string) (taken func()) {
	if hl.holder.instance != instance {
		return func() {}
	}
	hl.words++
	hl.stirLocked()
	hl.taking++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		hl.taking--
	}
}

// tellOfCopy puts a copy into the event feed. When that fails, the next refusal tries again.
func (l *Link) tellOfCopy(ctx context.Context, h id.Host, first, second run) {
	l.opts.Logger.Error("two agents speak for one host, and the second is refused: is one of the machines a copy? Stop one of the agents", "host", h, "first", first, "second", second)
	now := l.opts.Now()
	_, _, err := l.opts.Proposer.Propose(ctx, command.RecordEvents{
		Meta: command.Meta{At: now, Actor: "agent/" + string(h), Source: second.address},
		Events: []command.Event{{
			Type: EventCopied, At: now, Host: h, Code: fault.Conflict,
			Reason: fmt.Sprintf("two agents speak for it: %s stays, %s is refused", first, second),
		}},
	})
	if err == nil {
		return
	}
	l.opts.Logger.Debug("cannot record the copy of a host now", "host", h, "error", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hostLocked(h).copies.told = false
}

// Copied tells where the agent that speaks for a host is, and where another one that is refused because of it; both are
// empty when there is none.
func (l *Link) Copied(h id.Host) (first, second string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hl := l.hosts[h]
	if hl == nil {
		return "", ""
	}
	if latest, found := hl.copies.latest(l.opts.Now()); found && latest.instance != hl.holder.instance {
		return hl.holder.String(), latest.String()
	}
	return "", ""
}

// Copied is Link.Copied.
func (r *Receiver) Copied(h id.Host) (first, second string) { return r.link.Copied(h) }
