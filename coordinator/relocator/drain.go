package relocator

import (
	"fmt"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Parallel is how many allocations of one host move at the same time.
const Parallel = 8

const (
	firstPause   = time.Second // before an allocation that did not arrive is tried again, doubled each time
	longestPause = 30 * time.Second
)

// Draining is a host that is to be emptied.
type Draining struct {
	Host    id.Host
	Drain   state.Drain
	Leaving []Leaving // active there, by gateway
	Moving  int       // still there, with a gateway elsewhere that is coming up
	Coming  int       // being started there, or moved to it, since before it was cordoned
	Closing int       // gone from there; their gateways wait for connections or are being recycled
	Idle    []id.Gateway
}

// Leaving is an active allocation of a draining host.
type Leaving struct {
	Allocation id.Allocation
	Epoch      id.Epoch
	Pool       id.Pool
	NotBefore  time.Time // zero: no try of this drain has failed
	Failure    string    // of the last try
}

// Elsewhere is what hosts that may be used have for those who move.
type Elsewhere struct {
	Hosts int
	Ready map[id.Pool]int
}

// lookDraining gathers what is to be known of one draining host.
func lookDraining(view state.View, ws state.WatchSet, h *state.Host) Draining {
	d := Draining{Host: h.ID, Drain: *h.Drain}
	for g := range view.GatewaysOfHost(ws, h.ID) {
		switch a := view.Allocation(ws, g.Desired.Allocation); {
		case a == nil && view.Ending(g.ID) != nil:
			d.Closing++
		case a == nil && g.Desired.Target == api.TargetRun && !g.Desired.Quarantined:
			d.Idle = append(d.Idle, g.ID)
		case a == nil:
		case a.State == state.AllocationActive:
			d.Leaving = append(d.Leaving, leaving(a, h.Drain.Since))
		case a.State == state.AllocationRelocating && a.Gateway == g.ID && a.Move.Target != nil:
			d.Moving++
		default:
			d.Coming++
		}
	}
	return d
}

// leaving tells when the next try for an allocation makes sense.
func leaving(a *state.Allocation, since time.Time) Leaving {
	l := Leaving{Allocation: a.ID, Epoch: a.Epoch, Pool: a.Pool}
	pause := firstPause
	for i := len(a.Moves) - 1; i >= 0; i-- {
		m := &a.Moves[i]
		if m.Failure.Code == "" || m.Cause != state.CauseDrain || m.Since.Before(since) {
			break
		}
		if l.Failure == "" {
			l.Failure, l.NotBefore = m.Failure.Message, m.EndedAt
		} else {
			pause = min(2*pause, longestPause)
		}
	}
	if l.Failure != "" {
		l.NotBefore = l.NotBefore.Add(pause)
	}
	return l
}

// lookElsewhere gathers what eligible hosts have ready.
func lookElsewhere(view state.View, ws state.WatchSet) Elsewhere {
	e := Elsewhere{Ready: map[id.Pool]int{}}
	for h := range view.Hosts(ws) {
		if _, eligible := h.Eligible(); !eligible {
			continue
		}
		e.Hosts++
		for p := range view.Pools(ws) {
			e.Ready[p.Name] += view.CountsOfHost(ws, p.Name, h.ID).Of(state.GatewayReady)
		}
	}
	return e
}

// planDrain says what to do about one draining host now. It takes from what there is elsewhere.
func planDrain(d Draining, e *Elsewhere, now time.Time) (actions []command.Command, again time.Time) {
	if d.Drain.State == api.DrainDrained {
		return nil, time.Time{}
	}
	meta := command.Meta{At: now, Actor: actor}
	if len(d.Idle) > 0 {
		actions = append(actions, command.RetireGateways{Meta: meta, Gateways: d.Idle, Reason: "host " + string(d.Host) + " is being drained"})
	}
	left := len(d.Leaving) + d.Moving + d.Coming
	if left+d.Closing == 0 {
		return append(actions, command.NoteDrain{Meta: meta, Host: d.Host, State: api.DrainDrained}), time.Time{}
	}
	overdue := !d.Drain.Deadline.IsZero() && !now.Before(d.Drain.Deadline)
	if !overdue {
		again = d.Drain.Deadline
	}
	force := overdue && d.Drain.Force
	move := command.Relocate{
		Meta: meta, Cause: state.CauseDrain, Drain: d.Drain.Drain, Force: force, Reason: "host " + string(d.Host) + " is being drained",
	}
	var waiting string
	move.Items, waiting, again = choose(d, e, force, now, again)
	for len(move.Items) > 0 {
		n := min(len(move.Items), batch)
		one := move
		one.Items = move.Items[:n]
		actions, move.Items = append(actions, one), move.Items[n:]
	}
	note := command.NoteDrain{Meta: meta, Host: d.Host, State: api.DrainDraining, Reason: waiting}
	if overdue && !force && left > 0 {
		note.State = api.DrainOverdue
	}
	if note.State != d.Drain.State || note.Reason != d.Drain.Reason {
		actions = append(actions, note)
	}
	return actions, again
}

// choose picks who leaves now: as many as there are gateways for elsewhere, up to Parallel at a time; or all,
// when they are forced to. waiting is why nobody is on the way though somebody is left.
func choose(d Draining, e *Elsewhere, force bool, now, until time.Time) (items []command.RelocateItem, waiting string, again time.Time) {
	again = until
	for _, l := range d.Leaving {
		switch {
		case force:
		case d.Moving+len(items) >= Parallel:
			return items, "", again
		case now.Before(l.NotBefore):
			waiting = "the last try failed: " + l.Failure
			again = earlier(again, l.NotBefore)
			continue
		case e.Hosts == 0:
			waiting = "there is no other host that may be used"
			continue
		case e.Ready[l.Pool] == 0:
			waiting = fmt.Sprintf("pool %s has no ready gateway on another host", l.Pool)
			continue
		}
		e.Ready[l.Pool]--
		items = append(items, command.RelocateItem{Allocation: l.Allocation, Epoch: l.Epoch})
	}
	if len(items)+d.Moving > 0 {
		waiting = ""
	}
	return items, waiting, again
}

// earlier gives the earlier of two times, of which the zero value is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
