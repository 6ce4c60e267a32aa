package state

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Host is a machine with an agent and an nginx.
type Host struct {
	ID          id.Host
	Status      string // api.HostAlive, HostSilent, HostLost
	StatusAt    time.Time
	Reason      string
	Cordoned    bool
	Instance    string // of the agent's run that reported last
	Report      command.HostReport
	CreatedAt   time.Time
	CreateIndex uint64
	ModifyIndex uint64
}
