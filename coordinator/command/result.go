package command

import (
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Result is what applying a command answers to its proposer.
type Result struct {
	// Err is why nothing was changed; nil when the command took effect (or was already in effect).
	Err *fault.Error
	// Reserved has one outcome per item of a Reserve.
	Reserved []ReserveOutcome
	// Existing is true when an idempotency key had been answered before; Object is what it made then.
	Existing bool
	Object   string
	// Count is how many things were made or ended, where a command may do fewer than it names.
	Count int
}

// ReserveOutcome is what became of one item of a Reserve: exactly one of Allocation and Err is set.
type ReserveOutcome struct {
	Allocation id.Allocation
	Existing   bool // the organization had it before, or the idempotency key had been answered with it
	Queued     bool
	Err        *fault.Error
}
