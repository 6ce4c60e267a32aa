package reconcile

import (
	"context"
	"time"
)

// aheadFor bounds the question to nginx that goes out before its turn. Nothing is lost when it comes to nothing: it
// is asked again in its turn, and meanwhile the gateway's answer waits.
const aheadFor = 250 * time.Millisecond

// goAhead begins what comes after the activation while the gateway takes the organization up: the record goes to the
// disk, the route is led, and nginx is asked for the organization. A gateway that is not ready yet refuses the epoch,
// and an answer that carries the whole identity can only be that of one that is; so what is asked early proves as much
// as what is asked later. What fails here says nothing: each step has its turn.
func (a *actor) goAhead(actor, ctx context.Context) {
	a.sync(actor)
	if a.route(ctx) != nil {
		return
	}
	a.verified = verify(ctx, a.o.Nginx, min(aheadFor, a.o.Timing.VerifyTimeout), a.identity()) == nil
}

// sync begins to make the record durable that says that the organization is served. The actor waits for it at its end.
func (a *actor) sync(actor context.Context) {
	recorded := make(chan error, 1)
	a.recorded = recorded
	if a.ob.Grant.Served {
		recorded <- nil
		return
	}
	a.wg.Go(func() { recorded <- a.o.Journal.Sync(actor) })
}

// verifyForGood returns when the organization is verified and that it is served is on record for good: a
// machine that crashes after the report comes back and must not take it for a failed one. Neither needs
// the other, so they go on beside each other.
func (a *actor) verifyForGood(actor, ctx context.Context) error {
	if a.recorded == nil {
		a.sync(actor)
	}
	var err error
	if !a.verified {
		err = verify(ctx, a.o.Nginx, a.o.Timing.VerifyTimeout, a.identity())
	}
	failed := <-a.recorded
	a.recorded, a.verified = nil, false
	if err == nil && failed != nil {
		err = unwritten(failed)
	}
	return err
}
