package state

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Allocation is the grant of one gateway to one organization, or its place in line.
type Allocation struct {
	ID                id.Allocation
	Organization      id.Organization
	Pool              id.Pool
	Gateway           id.Gateway
	Host              id.Host
	Epoch             id.Epoch
	State             AllocationState
	Warm              bool // a ready gateway was there at once
	CreatedAt         time.Time
	ReservedAt        time.Time
	ActiveAt          time.Time
	EndedAt           time.Time
	QueueUntil        time.Time // while in line
	QueueIndex        uint64    // orders the line, with QueueSeq
	QueueSeq          int
	ActivationTimeout time.Duration // of the pool when it was asked for
	Deadline          time.Time     // for becoming active: ReservedAt + ActivationTimeout
	TTL               time.Duration
	ExpiresAt         time.Time // ActiveAt + TTL; zero: never
	Metadata          map[string]string
	Timings           command.Timings
	Journal           []command.Step
	Failure           Failure
	Explanation       Explanation
	Actor             string
	CreateIndex       uint64
	ModifyIndex       uint64
}

// Failure is why an allocation did not become or stay active; the zero value is no failure.
type Failure struct {
	Code    fault.Code
	Message string
}

// Explanation is why a gateway was chosen: the rule, and the hosts that were looked at (at most eight).
type Explanation struct {
	Index      uint64
	Reason     string
	Candidates []Candidate
}

// Candidate is a host that was looked at.
type Candidate struct {
	Host     id.Host
	Ready    int
	Load     float64
	Eligible bool
	Reason   string
}
