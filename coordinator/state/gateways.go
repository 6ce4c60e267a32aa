package state

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Gateway is one gateway process slot on a host. Desired is written by the coordinator's commands only,
// Observed by the host's agent only; State follows from both (see moves.go).
type Gateway struct {
	ID          id.Gateway      `json:"id,omitzero"`
	Pool        id.Pool         `json:"pool,omitzero"`
	Host        id.Host         `json:"host,omitzero"`
	State       GatewayState    `json:"state,omitzero"`
	Desired     GatewayDesired  `json:"desired,omitzero"`
	Observed    GatewayObserved `json:"observed,omitzero"`
	Failures    int             `json:"failures,omitzero"` // activations in a row that failed on it; cleared by a successful one
	ReadyIndex  uint64          `json:"ready_index,omitzero"`
	CreatedAt   time.Time       `json:"created_at,omitzero"`
	CreateIndex uint64          `json:"create_index,omitzero"`
	ModifyIndex uint64          `json:"modify_index,omitzero"`
}

// GatewayDesired is what the coordinator wants of a gateway.
type GatewayDesired struct {
	Index       uint64 `json:"index,omitzero"`       // of the last change to this part, or to the granted organization's members and projects
	Target      string `json:"target,omitzero"`      // api.TargetRun or api.TargetGone
	Incarnation uint64 `json:"incarnation,omitzero"` // from 1; rises with every demand for a fresh process
	Release     string `json:"release,omitzero"`
	// Outrun is what the next fresh process must at least have for its incarnation. A restore sets it where the host
	// may have begun incarnations that the restored state does not know of; zero: one more is enough.
	Outrun       uint64          `json:"outrun,omitzero"`
	Limits       command.Limits  `json:"limits,omitzero"`
	Organization id.Organization `json:"organization,omitzero"` // the grant; empty without one
	Allocation   id.Allocation   `json:"allocation,omitzero"`
	Epoch        id.Epoch        `json:"epoch,omitzero"`
	Drain        time.Duration   `json:"drain,omitzero"`
	Quarantined  bool            `json:"quarantined,omitzero"`
	Reason       string          `json:"reason,omitzero"` // of the last demand, for people
}

// GatewayObserved is what the host's agent saw last. The zero value is a gateway nobody has seen yet.
type GatewayObserved struct {
	Index       uint64     `json:"index,omitzero"`
	At          time.Time  `json:"at,omitzero"`
	Incarnation uint64     `json:"incarnation,omitzero"`
	Phase       string     `json:"phase,omitzero"` // api.Phase…
	Epoch       id.Epoch   `json:"epoch,omitzero"`
	BootID      string     `json:"boot_id,omitzero"`
	PID         int        `json:"pid,omitzero"`
	Restarts    int        `json:"restarts,omitzero"`
	Code        fault.Code `json:"code,omitzero"`
	Message     string     `json:"message,omitzero"`
	ReadyAt     time.Time  `json:"ready_at,omitzero"`
	Stale       bool       `json:"stale,omitzero"` // the host was lost since; true until the next report
}

// gatewayTable has no other tree: a host's and a pool's gateways and the ready ones are found through the
// tallies.
func gatewayTable() table {
	return table{
		kind: 8,
		save: func(v View, put func(any) error) error { return saveTree(v.trees.gateways.all(nil, ""), put) },
		restore: restoreTree("gateways", func(t *Txn, g *Gateway, in interner) error {
			if g.ID == "" {
				return errNoKey
			}
			intern(in, &g.Pool)
			intern(in, &g.Host)
			intern(in, &g.State)
			intern(in, &g.Desired.Target)
			intern(in, &g.Desired.Release)
			intern(in, &g.Desired.Reason)
			intern(in, &g.Observed.Phase)
			intern(in, &g.Observed.Message)
			c := t.tallyOf(g.Host)
			if c == nil {
				return fmt.Errorf("gateway %s is on host %s, which does not exist", g.ID, g.Host)
			}
			t.trees.gateways.put(string(g.ID), g)
			t.count(c, nil, g)
			c.since = max(c.since, g.Desired.Index)
			return nil
		}),
	}
}

// Gateway gives a gateway; nil when it is unknown.
func (v View) Gateway(ws WatchSet, gateway id.Gateway) *Gateway {
	return v.trees.gateways.get(ws, string(gateway))
}

// Gateways ranges over all gateways by id.
func (v View) Gateways(ws WatchSet) iter.Seq[*Gateway] {
	return v.GatewaysAfter(ws, "")
}

// GatewaysAfter is Gateways for those after one.
func (v View) GatewaysAfter(ws WatchSet, after id.Gateway) iter.Seq[*Gateway] {
	return v.trees.gateways.after(ws, string(after))
}

// Gateway gives a gateway as this transaction left it; nil when it is unknown.
func (t *Txn) Gateway(gateway id.Gateway) *Gateway { return t.View.Gateway(nil, gateway) }

// PutGateway stores a gateway. Its state follows from the rest of the record, its host and its allocation,
// so those are put first. The host must exist.
func (t *Txn) PutGateway(next Gateway, reason string) *Gateway {
	before := t.Gateway(next.ID)
	c := t.tallyOf(next.Host)
	if c == nil {
		panic("cannot store gateway " + string(next.ID) + ": its host " + string(next.Host) + " does not exist")
	}
	g := &next
	g.State = t.gatewayState(g, c.host)
	g.ModifyIndex = t.about.Index
	var was GatewayState
	if before == nil {
		g.CreatedAt, g.CreateIndex = t.at, t.about.Index
	} else {
		was = before.State
	}
	if g.State == GatewayReady && was != GatewayReady {
		g.ReadyIndex = t.about.Index
	}
	t.trees.gateways.put(string(g.ID), g)
	t.count(c, before, g)
	if before == nil || before.Desired.Index != g.Desired.Index {
		c.noteDesired(g)
	}
	if g.State == GatewayReady {
		t.MayServe(g.Pool)
	}
	if g.State != was {
		t.gatewayMoved(before, g, reason)
	}
	return g
}

func (t *Txn) gatewayMoved(before, after *Gateway, reason string) {
	e := Event{
		Type: "gateway." + string(after.State), Gateway: after.ID, Host: after.Host, Pool: after.Pool,
		Organization: after.Desired.Organization, Allocation: after.Desired.Allocation,
		After: string(after.State), Reason: reason,
	}
	if before == nil {
		e.Type = "gateway.created"
		t.Emit(e)
		return
	}
	e.Before = string(before.State)
	if !allowed(gatewayMoves, before.State, after.State) {
		t.violation(e, "gateway "+string(after.ID)+" may not go from "+e.Before+" to "+e.After)
		return
	}
	t.Emit(e)
}

// RemoveGateway forgets a gateway.
func (t *Txn) RemoveGateway(g *Gateway, reason string) {
	t.trees.gateways.remove(string(g.ID))
	t.count(t.tallyOf(g.Host), g, nil)
	t.Emit(Event{
		Type: "gateway.removed", Gateway: g.ID, Host: g.Host, Pool: g.Pool, Reason: reason,
		Before: string(g.State), After: string(GatewayTerminated),
	})
}

// MayServe notes that a pool may have something to give out, for TakeServing.
func (t *Txn) MayServe(pool id.Pool) { t.granted[pool] = true }

// TakeServing lists the pools noted since the last call, by name.
func (t *Txn) TakeServing() []id.Pool {
	if len(t.granted) == 0 {
		return nil
	}
	pools := slices.Sorted(maps.Keys(t.granted))
	clear(t.granted)
	return pools
}
