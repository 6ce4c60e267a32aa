package state

import (
	"iter"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Allocation is the grant of one gateway to one organization, or its place in line.
type Allocation struct {
	ID                id.Allocation     `json:"id,omitzero"`
	Organization      id.Organization   `json:"organization,omitzero"`
	Pool              id.Pool           `json:"pool,omitzero"`
	Gateway           id.Gateway        `json:"gateway,omitzero"`
	Host              id.Host           `json:"host,omitzero"`
	Epoch             id.Epoch          `json:"epoch,omitzero"`
	State             AllocationState   `json:"state,omitzero"`
	Warm              bool              `json:"warm,omitzero"` // a ready gateway was there at once
	CreatedAt         time.Time         `json:"created_at,omitzero"`
	ReservedAt        time.Time         `json:"reserved_at,omitzero"`
	ActiveAt          time.Time         `json:"active_at,omitzero"`
	EndedAt           time.Time         `json:"ended_at,omitzero"`
	QueueUntil        time.Time         `json:"queue_until,omitzero"` // while in line
	QueueIndex        uint64            `json:"queue_index,omitzero"` // orders the line, and those who lost their gateway; with QueueSeq
	QueueSeq          int               `json:"queue_seq,omitzero"`
	ActivationTimeout time.Duration     `json:"activation_timeout,omitzero"` // of the pool when it was asked for
	Deadline          time.Time         `json:"deadline,omitzero"`           // for becoming active: ReservedAt + ActivationTimeout
	TTL               time.Duration     `json:"ttl,omitzero"`
	ExpiresAt         time.Time         `json:"expires_at,omitzero"` // ActiveAt + TTL; zero: never
	Metadata          map[string]string `json:"metadata,omitzero"`
	Timings           command.Timings   `json:"timings,omitzero"`
	Journal           []command.Step    `json:"journal,omitzero"`
	Failure           Failure           `json:"failure,omitzero"`
	Explanation       Explanation       `json:"explanation,omitzero"`
	Move              *Move             `json:"move,omitzero"`  // while it is relocating
	Moves             []Moved           `json:"moves,omitzero"` // the latest, oldest first
	Left              *Grant            `json:"left,omitzero"`  // the gateway that it left and that is not clean yet
	Actor             string            `json:"actor,omitzero"`
	CreateIndex       uint64            `json:"create_index,omitzero"`
	ModifyIndex       uint64            `json:"modify_index,omitzero"`
}

// Failure is why an allocation did not become or stay active; the zero value is no failure.
type Failure struct {
	Code    fault.Code `json:"code,omitzero"`
	Message string     `json:"message,omitzero"`
}

// Explanation is why a gateway was chosen: the rule, and the hosts that were looked at (at most eight).
type Explanation struct {
	Index      uint64      `json:"index,omitzero"`
	Reason     string      `json:"reason,omitzero"`
	Candidates []Candidate `json:"candidates,omitzero"`
}

// Candidate is a host that was looked at.
type Candidate struct {
	Host     id.Host `json:"host,omitzero"`
	Ready    int     `json:"ready,omitzero"`
	Load     float64 `json:"load,omitzero"`
	Eligible bool    `json:"eligible,omitzero"`
	Reason   string  `json:"reason,omitzero"`
}

// allocationTrees have each live allocation in the first tree and each ended one in the second. The others have some
// of the live ones.
type allocationTrees struct {
	allocations tree[*Allocation]      // those that have not ended, by id
	ended       tree[packedAllocation] // by id
	live        tree[*Allocation]      // the one live allocation of an organization, by that
	line        tree[*Allocation]      // the queued, stranded and held ones by pool and place
	ending      tree[*Allocation]      // the one that is being cleaned up on a gateway, or left it, by that
}

func allocationTable() table {
	return table{
		kind: 7,
		save: func(v View, put func(any) error) error { return saveTree(v.Allocations(nil), put) },
		restore: restoreTree("allocations", func(t *Txn, a *Allocation, in interner) error {
			if a.ID == "" {
				return errNoKey
			}
			t.keep(t.Allocation(a.ID), a)
			intern(in, &a.Pool)
			intern(in, &a.Host)
			intern(in, &a.State)
			intern(in, &a.Actor)
			return nil
		}),
	}
}

func unendedKey(a *Allocation) string {
	if a.State.Live() {
		return string(a.ID)
	}
	return ""
}

func liveKey(a *Allocation) string {
	if a.State.Live() {
		return string(a.Organization)
	}
	return ""
}

func lineKey(a *Allocation) string {
	place := ordered(a.QueueIndex) + ordered(uint64(a.QueueSeq))
	switch {
	case a.State == AllocationQueued:
		return linePrefix(a.Pool) + place
	case a.State != AllocationRelocating || !a.Move.Stranded:
		return ""
	case a.Move.Held != "":
		return heldPrefix(a.Pool) + place
	}
	return strandedPrefix(a.Pool) + place
}

func linePrefix(pool id.Pool) string { return string(pool) + "\x00" }

func endingKey(a *Allocation) string {
	switch {
	case a.State.Ending():
		return string(a.Gateway)
	case a.Left != nil:
		return string(a.Left.Gateway)
	}
	return ""
}

// keep puts an allocation where it is found, in the place of what it was before, which may be nil. A nil
// after takes it out.
func (t *Txn) keep(before, after *Allocation) {
	rekey(&t.trees.allocations, before, after, unendedKey)
	if before != nil && !before.State.Live() && (after == nil || after.State.Live()) {
		t.trees.ended.remove(string(before.ID))
	}
	if after != nil && !after.State.Live() {
		packed := pack(after)
		t.trees.ended.put(packed.id(), packed)
	}
	rekey(&t.trees.live, before, after, liveKey)
	rekey(&t.trees.line, before, after, lineKey)
	rekey(&t.trees.ending, before, after, endingKey)
}

// rekey is keep in one tree; "" keeps a record out of it. A key that another record has meanwhile is that one's.
func rekey(in *tree[*Allocation], before, after *Allocation, key func(*Allocation) string) {
	next := ""
	if after != nil {
		next = key(after)
	}
	if before != nil {
		if was := key(before); was != "" && was != next && in.get(nil, was) == before {
			in.remove(was)
		}
	}
	if next != "" {
		in.put(next, after)
	}
}

// Allocation gives an allocation; nil when it is unknown.
func (v View) Allocation(ws WatchSet, allocation id.Allocation) *Allocation {
	if a := v.trees.allocations.get(ws, string(allocation)); a != nil {
		return a
	}
	if packed := v.trees.ended.get(ws, string(allocation)); packed != "" {
		return packed.unpack()
	}
	return nil
}

// Allocations ranges over all allocations, ended ones too, by id. Each ended one costs its unpacking.
func (v View) Allocations(ws WatchSet) iter.Seq[*Allocation] { return v.AllocationsAfter(ws, "") }

// AllocationsAfter is Allocations for those after one.
func (v View) AllocationsAfter(ws WatchSet, after id.Allocation) iter.Seq[*Allocation] {
	unended, ended := v.trees.allocations.after(ws, string(after)), v.trees.ended.after(ws, string(after))
	return func(yield func(*Allocation) bool) {
		next, stop := iter.Pull(unended)
		defer stop()
		a, more := next()
		for packed := range ended {
			for ; more && string(a.ID) < packed.id(); a, more = next() {
				if !yield(a) {
					return
				}
			}
			if !yield(packed.unpack()) {
				return
			}
		}
		for ; more; a, more = next() {
			if !yield(a) {
				return
			}
		}
	}
}

// UnendedAllocations ranges over the live allocations by id.
func (v View) UnendedAllocations(ws WatchSet) iter.Seq[*Allocation] {
	return v.UnendedAllocationsAfter(ws, "")
}

// UnendedAllocationsAfter is UnendedAllocations for those after one.
func (v View) UnendedAllocationsAfter(ws WatchSet, after id.Allocation) iter.Seq[*Allocation] {
	return v.trees.allocations.after(ws, string(after))
}

// EndedBefore lists the allocations that ended before a moment, by id.
func (v View) EndedBefore(moment time.Time) []id.Allocation {
	var found []id.Allocation
	for packed := range v.trees.ended.all(nil, "") {
		if packed.endedAt().Before(moment) {
			found = append(found, id.Allocation(packed.id()))
		}
	}
	return found
}

// LiveAllocations ranges over the live allocations by organization.
func (v View) LiveAllocations(ws WatchSet) iter.Seq[*Allocation] {
	return v.trees.live.all(ws, "")
}

// LiveAllocation gives the one live allocation of an organization; nil when it has none.
func (v View) LiveAllocation(ws WatchSet, organization id.Organization) *Allocation {
	return v.trees.live.get(ws, string(organization))
}

// Line ranges over the allocations that wait for a gateway of a pool, in the order they are served in.
func (v View) Line(ws WatchSet, pool id.Pool) iter.Seq[*Allocation] {
	return v.trees.line.all(ws, linePrefix(pool))
}

// Ending gives the allocation that is being released or rolled back on a gateway, or that has left it for
// another one; nil when there is none.
func (v View) Ending(gateway id.Gateway) *Allocation {
	return v.trees.ending.get(nil, string(gateway))
}

// Allocation gives an allocation as this transaction left it; nil when it is unknown.
func (t *Txn) Allocation(allocation id.Allocation) *Allocation {
	return t.View.Allocation(nil, allocation)
}

// LiveAllocation gives the one live allocation of an organization as this transaction left it.
func (t *Txn) LiveAllocation(organization id.Organization) *Allocation {
	return t.View.LiveAllocation(nil, organization)
}

// Head is the first in a pool's line; nil when nobody waits.
func (t *Txn) Head(pool id.Pool) *Allocation {
	for a := range t.Line(nil, pool) {
		return a
	}
	return nil
}

// PutAllocation stores an allocation.
func (t *Txn) PutAllocation(next Allocation, reason string) *Allocation {
	before := t.Allocation(next.ID)
	a := &next
	a.ModifyIndex = t.about.Index
	if before == nil {
		a.CreatedAt, a.CreateIndex, a.Actor = t.at, t.about.Index, t.actor
	}
	t.keep(before, a)
	if before == nil || before.State != a.State {
		t.allocationMoved(before, a, reason)
	}
	return a
}

func (t *Txn) allocationMoved(before, after *Allocation, reason string) {
	e := Event{
		Type: "allocation." + string(after.State), Allocation: after.ID, Organization: after.Organization,
		Pool: after.Pool, Gateway: after.Gateway, Host: after.Host, Reason: reason,
		Code: after.Failure.Code, After: string(after.State),
	}
	was := AllocationState("")
	if before != nil {
		was, e.Before = before.State, string(before.State)
	}
	if !allowed(allocationMoves, was, after.State) {
		t.violation(e, "allocation "+string(after.ID)+" may not go from "+e.Before+" to "+e.After)
		return
	}
	t.Emit(e)
}

// RemoveAllocation forgets an ended allocation.
func (t *Txn) RemoveAllocation(allocation id.Allocation) {
	t.keep(t.Allocation(allocation), nil)
}
