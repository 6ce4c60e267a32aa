package state

import (
	"iter"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Grant is a gateway that was given to an allocation, at an epoch.
type Grant struct {
	Gateway    id.Gateway `json:"gateway,omitzero"`
	Host       id.Host    `json:"host,omitzero"`
	Epoch      id.Epoch   `json:"epoch,omitzero"`
	ReservedAt time.Time  `json:"reserved_at,omitzero"`
	Deadline   time.Time  `json:"deadline,omitzero"` // for being confirmed
}

// Why an allocation moves to another gateway.
const (
	CauseLost    = "lost"    // its host was lost
	CauseDrain   = "drain"   // its host is being emptied
	CauseMigrate = "migrate" // somebody asked for it
)

// What holds a stranded allocation back from being placed.
const (
	HeldByLease   = "lease"   // its host, if it only is cut off, may still serve it
	HeldByBackOff = "backoff" // the last gateway did not come to serve it
)

// LongestBackOff bounds how long an allocation is held by HeldByBackOff.
const LongestBackOff = 30 * time.Second

// Move is the way of a relocating allocation to another gateway. It is in one of three places:
//
//   - stranded: it waits for a gateway. It may still have the one on its lost host, which it keeps when that
//     host comes back first.
//   - placed: the allocation has its new gateway, which is not confirmed yet. Nothing else serves it.
//   - with a target: what the allocation has goes on serving it until the target is confirmed.
//
// Records are immutable, and so is what they point to.
type Move struct {
	Cause    string    `json:"cause,omitzero"`
	Reason   string    `json:"reason,omitzero"`
	Since    time.Time `json:"since,omitzero"`
	From     Grant     `json:"from,omitzero"` // what served it last
	Stranded bool      `json:"stranded,omitzero"`
	// Served tells that the gateway which a stranded allocation still has was confirmed: it serves again when
	// its host comes back.
	Served    bool      `json:"served,omitzero"`
	Held      string    `json:"held,omitzero"` // while stranded: HeldBy…, until a command ends it
	HeldUntil time.Time `json:"held_until,omitzero"`
	Attempts  int       `json:"attempts,omitzero"` // gateways that did not come to serve it
	Failure   Failure   `json:"failure,omitzero"`  // of the last of them
	Target    *Grant    `json:"target,omitzero"`
	// TargetWhy is why the target was chosen.
	TargetWhy *Explanation  `json:"target_why,omitzero"`
	Drain     time.Duration `json:"drain,omitzero"` // how long connections of the old gateway may go on
}

// Moved is a relocation that is over.
type Moved struct {
	Cause   string    `json:"cause,omitzero"`
	Reason  string    `json:"reason,omitzero"`
	Since   time.Time `json:"since,omitzero"`
	EndedAt time.Time `json:"ended_at,omitzero"`
	From    Grant     `json:"from,omitzero"`
	To      Grant     `json:"to,omitzero"`      // equal to From when it stayed where it was
	Failure Failure   `json:"failure,omitzero"` // why it stayed; of a move that succeeded: the zero value
}

// keptMoved is how many relocations an allocation remembers.
const keptMoved = 8

// Grant is the gateway that an allocation has; its zero value is none.
func (a *Allocation) Grant() Grant {
	return Grant{Gateway: a.Gateway, Host: a.Host, Epoch: a.Epoch, ReservedAt: a.ReservedAt, Deadline: a.Deadline}
}

// Hold makes a grant the one that the allocation has. The epoch stays when there is none any more: it is the
// highest that this allocation has had.
func (a *Allocation) Hold(g Grant) {
	a.Gateway, a.Host = g.Gateway, g.Host
	if g.Gateway != "" {
		a.Epoch, a.ReservedAt, a.Deadline = g.Epoch, g.ReservedAt, g.Deadline
	}
}

// Pending is the grant that is to be confirmed; ok is false when there is none.
func (a *Allocation) Pending() (pending Grant, ok bool) {
	switch {
	case a.State == AllocationReserved:
		return a.Grant(), true
	case a.State != AllocationRelocating || a.Move.Stranded:
		return Grant{}, false
	case a.Move.Target != nil:
		return *a.Move.Target, true
	}
	return a.Grant(), true
}

// Has reports whether a gateway is granted to the allocation, as what it has or as its target.
func (a *Allocation) Has(gateway id.Gateway) bool {
	switch a.State {
	case AllocationReserved, AllocationActive:
		return a.Gateway == gateway
	case AllocationRelocating:
		return a.Gateway == gateway || a.Move.Target != nil && a.Move.Target.Gateway == gateway
	}
	return false
}

// serves reports whether a gateway that is granted to the allocation was confirmed.
func (a *Allocation) serves(gateway id.Gateway) bool {
	if a.State == AllocationActive {
		return true
	}
	return a.State == AllocationRelocating && a.Gateway == gateway && (a.Move.Target != nil || a.Move.Stranded && a.Move.Served)
}

// Arrive ends an allocation's relocation and remembers it; a failure tells why it stayed where it was.
func (a *Allocation) Arrive(now time.Time, failure Failure) {
	m := a.Move
	a.Move = nil
	moved := Moved{Cause: m.Cause, Reason: m.Reason, Since: m.Since, EndedAt: now, From: m.From, To: a.Grant(), Failure: failure}
	if len(a.Moves) >= keptMoved {
		a.Moves = slices.Clone(a.Moves[len(a.Moves)-keptMoved+1:])
	}
	a.Moves = append(slices.Clip(a.Moves), moved)
}

// strandedPrefix and heldPrefix are places in the tree of lines beside a pool's line, which linePrefix begins.
func strandedPrefix(pool id.Pool) string { return string(pool) + "\x01" }
func heldPrefix(pool id.Pool) string     { return string(pool) + "\x02" }

// Stranded ranges over the allocations of a pool that wait for another gateway, in the order in which they get
// one, which is before everybody in the pool's line.
func (v View) Stranded(ws WatchSet, pool id.Pool) iter.Seq[*Allocation] {
	return v.trees.line.all(ws, strandedPrefix(pool))
}

// Held ranges over the stranded allocations of a pool that may not be placed yet.
func (v View) Held(ws WatchSet, pool id.Pool) iter.Seq[*Allocation] {
	return v.trees.line.all(ws, heldPrefix(pool))
}

// FirstStranded is the allocation of a pool that gets the next gateway; nil when nobody waits for another one.
func (t *Txn) FirstStranded(pool id.Pool) *Allocation {
	for a := range t.Stranded(nil, pool) {
		return a
	}
	return nil
}
