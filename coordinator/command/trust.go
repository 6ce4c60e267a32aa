package command

import (
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// PutTrust sets the authority, the trusted roots and the gossip keys, all at once. It is refused when the
// record has changed since Base, so that no rotation undoes another.
type PutTrust struct {
	Meta
	Base      uint64 `json:"base"` // ModifyIndex of the record that the change was made from; 0: there is none
	Bundle    []byte `json:"bundle"`
	Authority []byte `json:"authority"` // sealed
	Keyring   []byte `json:"keyring"`   // sealed
	Reason    string `json:"reason,omitempty"`
}

// PutJoinToken lets one program join once. Only the SHA-256 of the secret is in the log.
type PutJoinToken struct {
	Meta
	Token     id.JoinToken `json:"token"`
	Role      string       `json:"role"` // agent or coordinator
	Name      string       `json:"name,omitempty"`
	Hash      string       `json:"hash"` // hexadecimal SHA-256 of the secret
	ExpiresAt time.Time    `json:"expires_at"`
	Key       string       `json:"key,omitempty"`
	Digest    string       `json:"digest,omitempty"`
}

// DeleteJoinToken takes a join token back.
type DeleteJoinToken struct {
	Meta
	Token id.JoinToken `json:"token"`
}

// Enroll uses a join token up and lets the program in. The secret was compared before. A program whose
// answer was lost asks again with the same key and name, and is answered again.
type Enroll struct {
	Meta
	Token     id.JoinToken `json:"token"`
	Name      string       `json:"name"`       // host id, or node id of a coordinator
	PublicKey string       `json:"public_key"` // hexadecimal SHA-256 of the key that a certificate is asked for
}

// DeleteEnrolment ends the enrolment of a program: its certificates are refused from then on.
type DeleteEnrolment struct {
	Meta
	Role   string `json:"role"`
	Name   string `json:"name"`
	Reason string `json:"reason,omitempty"`
}

func (PutTrust) Type() Type        { return TypePutTrust }
func (PutJoinToken) Type() Type    { return TypePutJoinToken }
func (DeleteJoinToken) Type() Type { return TypeDeleteJoinToken }
func (Enroll) Type() Type          { return TypeEnroll }
func (DeleteEnrolment) Type() Type { return TypeDeleteEnrolment }

func (PutTrust) Version() uint8        { return 1 }
func (PutJoinToken) Version() uint8    { return 1 }
func (DeleteJoinToken) Version() uint8 { return 1 }
func (Enroll) Version() uint8          { return 1 }
func (DeleteEnrolment) Version() uint8 { return 1 }
