package state

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Pool is a named set of gateways with one specification, and the pool keeper's note about it.
type Pool struct {
	Name              id.Pool
	MinReady          int
	Step              int
	Max               int
	MaxInFlight       int
	Release           string
	Limits            command.Limits
	Isolation         string
	ActivationTimeout time.Duration
	Deleting          bool
	Breaker           Breaker
	Limited           string
	CreatedAt         time.Time
	CreateIndex       uint64
	ModifyIndex       uint64
}

// Breaker stops the creation of gateways that keep failing.
type Breaker struct {
	State    string // closed, open, half_open
	Until    time.Time
	Failures int
	Reason   string
}
