package state

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Organization is a tenant as the platform told it.
type Organization struct {
	ID          id.Organization
	Name        string
	Members     []command.Member  // sorted by user
	Projects    []command.Project // sorted by id
	CreatedAt   time.Time
	UpdatedAt   time.Time
	CreateIndex uint64
	ModifyIndex uint64
}
