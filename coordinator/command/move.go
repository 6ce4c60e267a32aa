package command

import (
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// LoseHost gives a host up, for good or until it reports again. Its gateways are lost, what was ending there
// is over, and every live allocation that has a gateway there is given one on another host at once, with a
// higher epoch; or as soon as one is ready. A host that is lost already loses what it still has.
type LoseHost struct {
	Meta
	Host   id.Host `json:"host"`
	Reason string  `json:"reason"`
	// FencedBy is when the host, if it only is cut off, has stopped serving pools with isolation stop. Their
	// allocations wait until a Place says that this is so; the state machine has no clock to know it by.
	FencedBy time.Time `json:"fenced_by"`
}

// Relocate brings active allocations to other hosts. Each gets a second gateway, with a higher epoch; it keeps
// the first one until the second is confirmed. Items are decided one by one.
type Relocate struct {
	Meta
	Items []RelocateItem `json:"items"`
	Cause string         `json:"cause"`           // drain or migrate
	To    id.Host        `json:"to,omitempty"`    // this host and no other
	Drain time.Duration  `json:"drain,omitempty"` // how long connections of the first gateway may go on
	// Force takes the first gateway away at once and lets the allocation wait in line, where no other one is
	// ready.
	Force  bool   `json:"force,omitempty"`
	Reason string `json:"reason,omitempty"`
	Key    string `json:"key,omitempty"`
	Digest string `json:"digest,omitempty"`
}

// RelocateItem is one allocation, as the proposer knows it.
type RelocateItem struct {
	Allocation id.Allocation `json:"a"`
	Epoch      id.Epoch      `json:"e,omitempty"` // zero: whatever it is
}

// Place ends what held allocations back from being placed: a lease that is over, or a pause after a failed
// try. They take their place in the line of those that lost their gateway.
type Place struct {
	Meta
	Allocations []id.Allocation `json:"allocations"`
}

// DrainHost cordons a host and wants everything that it serves to be elsewhere. Once more on a host that is
// being drained it changes the deadline, the drain and force.
type DrainHost struct {
	Meta
	Host     id.Host       `json:"host"`
	Deadline time.Time     `json:"deadline,omitzero"` // zero: however long it takes
	Drain    time.Duration `json:"drain,omitempty"`   // how long connections of each gateway may go on
	Force    bool          `json:"force,omitempty"`   // at the deadline, what is left is taken off the host all the same
}

// NoteDrain records how far the draining of a host is, when that has changed.
type NoteDrain struct {
	Meta
	Host   id.Host `json:"host"`
	State  string  `json:"state"` // draining, overdue, drained
	Reason string  `json:"reason,omitempty"`
}

func (LoseHost) Type() Type { return TypeLoseHost }
func (Relocate) Type() Type { return TypeRelocate }
func (Place) Type() Type    { return TypePlace }

func (DrainHost) Type() Type { return TypeDrainHost }
func (NoteDrain) Type() Type { return TypeNoteDrain }

func (DrainHost) Version() uint8 { return 1 }
func (NoteDrain) Version() uint8 { return 1 }

func (LoseHost) Version() uint8 { return 1 }
func (Relocate) Version() uint8 { return 1 }
func (Place) Version() uint8    { return 1 }
