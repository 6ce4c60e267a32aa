package reconcile

import (
	"context"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Lease tells how long organizations may be served that must not be served by a host that is cut off.
type Lease interface {
	// Held reports whether a lease of this length goes on now.
	Held(length time.Duration) bool
	// Assigned notes the index of an assignment that is followed from now on.
	Assigned(index uint64)
}

// EventFenced says that an organization was closed because the host is cut off from its coordinators.
const EventFenced = "gateway.fenced"

const fencedMessage = "the host is cut off from its coordinators and its lease has ended"

// leaseLook is how often leases are looked at. Coordinators give a second between the end of a lease and the
// closing of what was served with it.
const leaseLook = 100 * time.Millisecond

// lease is the one that was assigned last; zero: none.
func (a *actor) lease() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Duration(a.told.Lease)
}

// leaseOver reports whether the gateway must not serve now.
func (a *actor) leaseOver() bool {
	length := a.lease()
	return length > 0 && (a.o.Lease == nil || !a.o.Lease.Held(length))
}

// look takes over what the lease says. What was closed is brought back by the steps that took it up.
func (a *actor) look() {
	a.ob.fenced = a.leaseOver()
	a.mu.Lock()
	a.sawOver = a.ob.fenced
	a.mu.Unlock()
	if a.ob.closed && !a.ob.fenced {
		a.ob.closed = false
		if a.ob.Code == "" {
			a.ob.Message = ""
		}
	}
}

// hurried runs what can be given up when a lease ends.
func (a *actor) hurried(ctx context.Context, f func(context.Context)) {
	hctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	a.hurry = cancel
	a.mu.Unlock()
	f(hctx)
	a.mu.Lock()
	a.hurry = nil
	a.mu.Unlock()
}

// leaseIs tells the actor that its lease has ended or goes on, if that is not what it saw last.
func (a *actor) leaseIs(held bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if held != a.sawOver {
		return
	}
	if !held && a.abort != nil {
		a.abort()
	}
	if !held && a.hurry != nil {
		a.hurry()
	}
	a.poke()
}

// fence closes what is served: the route first and proven, then the organization and its process, which
// saves. The state stays where it is, for the same organization and epoch. It is tried again until it is done.
func (a *actor) fence(ctx context.Context) {
	again := func(what string, err error) {
		if ctx.Err() == nil {
			a.logger.Error("the lease has ended, and "+what+"; it is tried again", "organization", a.ob.Grant.Organization, "error", err)
			sleep.For(ctx, a.o.Timing.BackOff)
		}
	}
	if err := a.unroute(ctx); err != nil {
		again("the route of the organization is not closed", err)
		return
	}
	if p := a.ob.Process; a.ob.running && p != nil {
		a.deactivateNow(ctx, *p)
		if err := a.o.Driver.Stop(ctx, *p, a.o.Timing.StopGrace); err != nil {
			again("the gateway has not ended", err)
			return
		}
	}
	a.logger.Warn("an organization is closed: "+fencedMessage, "organization", a.ob.Grant.Organization, "epoch", a.ob.Grant.Epoch)
	a.event(EventFenced, fencedMessage)
	a.ob.running, a.ob.healthy, a.ob.hung, a.ob.Process = false, false, false, nil // its end was wanted
	a.ob.closed, a.ob.failures, a.ob.notBefore = true, 0, time.Time{}
	a.lostGrant("was ended: " + fencedMessage)
	if a.ob.Code == "" {
		a.ob.Message = fencedMessage
	}
	_ = a.save()
}

// deactivateNow has the gateway end its organization without a drain. A failure does not matter: its process
// is ended next.
func (a *actor) deactivateNow(ctx context.Context, p driver.Process) {
	if !a.ob.healthy {
		return
	}
	dctx, cancel := context.WithTimeout(ctx, a.o.Timing.HealthTimeout)
	defer cancel()
	if err := a.o.Control.Deactivate(dctx, p, api.Deactivate{Epoch: uint64(a.ob.Grant.Epoch)}); err != nil && ctx.Err() == nil {
		a.logger.Debug("the gateway did not end its organization in order", "organization", a.ob.Grant.Organization, "error", err)
	}
}

// assigned tells the lease what is followed. mu is held.
func (e *Engine) assigned(index uint64) {
	if e.o.Lease != nil {
		e.o.Lease.Assigned(index)
	}
}

// Leases gives the shortest lease that any gateway is assigned with; zero: none is.
func (e *Engine) Leases() (shortest time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.shortestLease()
}

// shortestLease is Leases; mu is held. Everything that is said to a coordinator asks for it, and hundreds of
// gateways have the same one, so it is counted only after a change.
func (e *Engine) shortestLease() time.Duration {
	if e.leased {
		return e.shortest
	}
	e.shortest, e.leased = 0, true
	for _, a := range e.actors {
		if l := a.lease(); l > 0 && (e.shortest == 0 || l < e.shortest) {
			e.shortest = l
		}
	}
	return e.shortest
}

// watchLease tells the actors when their lease ends and when it goes on.
func (e *Engine) watchLease(ctx context.Context) {
	if e.o.Lease == nil {
		return
	}
	tick := time.NewTicker(leaseLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.lookAtLeases()
	}
}

// lookAtLeases tells those who last saw their lease otherwise than it is. What it was at the last look does not matter: a
// lease may end, be seen by an actor, and go on again between two looks.
func (e *Engine) lookAtLeases() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.shortestLease() == 0 {
		return
	}
	held := map[time.Duration]bool{}
	for _, a := range e.actors {
		l := a.lease()
		if l == 0 {
			continue
		}
		if _, looked := held[l]; !looked {
			held[l] = e.o.Lease.Held(l)
		}
		a.leaseIs(held[l])
	}
}
