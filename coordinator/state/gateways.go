package state

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Gateway is one gateway process slot on a host. Desired is written by the coordinator's commands only,
// Observed by the host's agent only; State follows from both (see moves.go).
type Gateway struct {
	ID          id.Gateway
	Pool        id.Pool
	Host        id.Host
	State       GatewayState
	Desired     GatewayDesired
	Observed    GatewayObserved
	Failures    int // activations in a row that failed on it; cleared by a successful one
	ReadyIndex  uint64
	CreatedAt   time.Time
	CreateIndex uint64
	ModifyIndex uint64
}

// GatewayDesired is what the coordinator wants of a gateway.
type GatewayDesired struct {
	Index        uint64 // of the last change to this part, or to the granted organization's members and projects
	Target       string // api.TargetRun or api.TargetGone
	Incarnation  uint64 // from 1; rises with every demand for a fresh process
	Release      string
	Limits       command.Limits
	Organization id.Organization // the grant; empty without one
	Allocation   id.Allocation
	Epoch        id.Epoch
	Drain        time.Duration
	Quarantined  bool
	Reason       string // of the last demand, for people
}

// GatewayObserved is what the host's agent saw last. The zero value is a gateway nobody has seen yet.
type GatewayObserved struct {
	Index       uint64
	At          time.Time
	Incarnation uint64
	Phase       string // api.Phase…
	Epoch       id.Epoch
	BootID      string
	PID         int
	Restarts    int
	Code        fault.Code
	Message     string
	ReadyAt     time.Time
	Stale       bool // the host was lost since; true until the next report
}
