package fsm

import (
	"iter"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// A restored state is older than its hosts: after it was saved, gateways were granted, released and begun anew. An
// agent takes no assignment of an incarnation below the one it knows, and nothing in the state tells which that is.
// So a restore prepares every gateway (outrun), and what it cannot know by itself comes with the hosts' reports
// (renewGateways):
//
//   - A gateway without a grant may have got one meanwhile, in the very incarnation that the state knows. Its next
//     incarnation is demanded at once, far above all that its host can have begun: the host takes back whatever the
//     gateway serves and wipes it, and only then it is ready.
//   - A gateway with a grant is left alone, because most of them still serve it, and that must not be interrupted. When
//     its host reports a later incarnation, the grant has ended meanwhile: the allocation gets another gateway, with an
//     epoch above all others. When the grant ends otherwise, the next incarnation is far above all others too, and not
//     one that the host may have begun, and given to somebody else, already.
//
// Incarnations are not compared with anything but each other, so nothing is lost by leaving some out.

// restoreLeap is how far incarnations leap at a restore. No gateway is begun anew so often between a snapshot and its
// loss.
const restoreLeap = 1 << 20

// restoreGrace is what grants that were not confirmed when the snapshot was made get besides their usual time, so that
// hosts which serve them by now come to say so.
const restoreGrace = 30 * time.Second

// restored is why gateways are begun anew, for people.
const restored = "the state was restored from a snapshot: what the gateway has known since is not known"

// rewritten is how many records of a restored state are prepared in one transaction. What a transaction replaces stays in
// memory until it ends, and so do its events: all in one took more than the state itself.
const rewritten = 1000

// outrun prepares the gateways and the unconfirmed grants of a restored state, in transactions of rewrite.
func outrun(rewrite func(change func(*state.Txn))) {
	some(rewrite, (*state.Txn).GatewaysAfter, func(t *state.Txn, g *state.Gateway) id.Gateway {
		outrunGateway(t, g)
		return g.ID
	})
	some(rewrite, (*state.Txn).UnendedAllocationsAfter, func(t *state.Txn, a *state.Allocation) id.Allocation {
		extend(t, a)
		return a.ID
	})
}

// some changes the records of a list, so many in each transaction. change gives the id of what it has changed.
func some[K ~string, R any](rewrite func(func(*state.Txn)), after func(*state.Txn, state.WatchSet, K) iter.Seq[R], change func(*state.Txn, R) K) {
	var last K
	for more := true; more; {
		rewrite(func(t *state.Txn) {
			batch := make([]R, 0, rewritten) // first: changing while ranging would range over two states
			for r := range after(t, nil, last) {
				if batch = append(batch, r); len(batch) == rewritten {
					break
				}
			}
			for _, r := range batch {
				last = change(t, r)
			}
			more = len(batch) == rewritten
		})
	}
}

func outrunGateway(t *state.Txn, g *state.Gateway) {
	next := *g
	next.Desired.Outrun = max(next.Desired.Incarnation+restoreLeap, next.Desired.Outrun)
	if next.Desired.Allocation == "" && !next.Desired.Quarantined {
		next.Desired.Index, next.Desired.Reason = t.EntryIndex(), restored
		demandFresh(t, &next)
	}
	t.PutGateway(next, restored)
}

// extend gives the grant of an allocation that was not confirmed more time.
func extend(t *state.Txn, a *state.Allocation) {
	grant, pending := a.Pending()
	if !pending {
		return
	}
	next := *a
	grant.Deadline = t.Now().Add(activationOf(a) + restoreGrace)
	if a.Move != nil && a.Move.Target != nil {
		m := *a.Move
		m.Target, next.Move = &grant, &m
	} else {
		next.Deadline = grant.Deadline
	}
	t.PutAllocation(next, "")
}

func renewGateways(t *state.Txn, c command.RenewGateways) command.Result {
	if t.Host(nil, c.Host) == nil {
		return refuse(fault.NotFound, "host %s does not exist; `demiurge host list` shows those that do", c.Host)
	}
	renewed := 0
	for _, begun := range c.Gateways {
		g := t.Gateway(begun.Gateway)
		if g == nil || g.Host != c.Host || begun.Incarnation <= g.Desired.Incarnation {
			continue // it was demanded, by an entry that the proposer had not seen yet
		}
		fresh := ungrant(t, g, 0, c.Reason)
		fresh.Desired.Incarnation = max(fresh.Desired.Incarnation, begun.Incarnation+1)
		if a := t.Allocation(g.Desired.Allocation); a != nil && a.Has(g.ID) {
			takenAway(t, a, g.ID, c.Reason)
		}
		t.PutGateway(fresh, c.Reason)
		renewed++
	}
	return command.Result{Count: renewed}
}

// takenAway deals with an allocation one of whose gateways does not know it any more. Nothing is left of it there.
func takenAway(t *state.Txn, a *state.Allocation, gateway id.Gateway, reason string) {
	next, m := *a, a.Move
	switch {
	case m != nil && m.Stranded: // it goes on waiting, and will not get this one back
		next.Hold(state.Grant{})
		t.PutAllocation(next, "")
		return
	case m != nil && m.Target != nil && m.Target.Gateway == gateway: // what it has goes on serving it
		stay(t, a, state.Failure{Code: fault.Superseded, Message: reason})
		return
	case m != nil && m.Target != nil:
		promote(t, next, reason)
		return
	case m == nil:
		m = &state.Move{Since: t.Now(), From: a.Grant()}
	}
	stranded := *m
	stranded.Cause, stranded.Reason, stranded.Stranded, stranded.Served = state.CauseLost, reason, true, false
	next.Hold(state.Grant{})
	strand(t, next, stranded, reason)
}
