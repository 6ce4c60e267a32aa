// Package command is the bytes of the Raft log: one byte of type, one byte of version, then the JSON of
// that version's payload. It is a frozen protocol: type numbers are only ever appended, a version's
// payload never changes, and testdata keeps the bytes of every version ever written.
//
// Times and ids are in the payload, made by the proposer, because applying has no clock and no
// randomness.
package command

import (
	"encoding/json"
	"fmt"
	"time"
)

// Type says which command follows. The values are stored in the log: never reorder or reuse one.
type Type uint8

// The commands.
const (
	TypeInitCluster        Type = 1
	TypeReserve            Type = 2
	TypeConfirm            Type = 3
	TypeFail               Type = 4
	TypeRelease            Type = 5
	TypeObserveHost        Type = 6
	TypeSetHostStatus      Type = 7
	TypeSetHostSchedulable Type = 8
	TypeDeleteHost         Type = 9
	TypePutPool            Type = 10
	TypeDeletePool         Type = 11
	TypeNotePool           Type = 12
	TypeCreateGateways     Type = 13
	TypeRetireGateways     Type = 14
	TypeRecycleGateway     Type = 15
	TypeQuarantineGateway  Type = 16
	TypePutOrganization    Type = 17
	TypeEditOrganization   Type = 18
	TypeDeleteOrganization Type = 19
	TypePutToken           Type = 20
	TypeDeleteToken        Type = 21
	TypeCollect            Type = 22
	TypeRecordEvents       Type = 23
	TypePutTrust           Type = 24
	TypePutJoinToken       Type = 25
	TypeDeleteJoinToken    Type = 26
	TypeEnroll             Type = 27
	TypeDeleteEnrolment    Type = 28
	TypeLoseHost           Type = 29
	TypeRelocate           Type = 30
	TypePlace              Type = 31
	TypeDrainHost          Type = 32
	TypeNoteDrain          Type = 33
	TypeRenewGateways      Type = 34
)

// Skippable marks a type that a member which does not know it may pass over. An unknown type without
// this bit stops the node, and so does an unknown version of a known type.
const Skippable Type = 0x80

// Command is one entry of the log.
type Command interface {
	Type() Type     // which command this is
	Version() uint8 // of its payload
}

// Meta is who proposed a command, from where and when. At is the proposer's clock: it is shown to people
// and measures durations against other times of the log; it never orders anything.
type Meta struct {
	At     time.Time `json:"at"`
	Actor  string    `json:"actor,omitempty"`
	Source string    `json:"source,omitempty"`
}

// When is the proposer's time. Every command has it by embedding Meta.
func (m Meta) When() time.Time { return m.At }

// Who is the actor and its network address.
func (m Meta) Who() (actor, source string) { return m.Actor, m.Source }

// Encode gives the bytes of a command.
func Encode(c Command) ([]byte, error) {
	head := []byte{byte(c.Type()), c.Version()}
	if data, ok := appendFast(head, c); ok {
		return data, nil
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("cannot encode command %d: %w", c.Type(), err)
	}
	return append(head, payload...), nil
}
