package state

import (
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Token is an API token. Only the hash of its secret is kept.
type Token struct {
	ID          id.Token
	Role        string
	Name        string
	Host        id.Host // of role agent
	Hash        string  // hexadecimal SHA-256
	CreatedAt   time.Time
	ExpiresAt   time.Time // zero: never
	CreateIndex uint64
	ModifyIndex uint64
}
