package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Errors of Decode that a node must stop for: to go on would build another state than the members that do
// know the command.
var (
	// ErrUnknownType is a type without the Skippable bit that this version does not have.
	ErrUnknownType = errors.New("unknown type of command")
	// ErrUnknownVersion is a version of a known type that this version does not have.
	ErrUnknownVersion = errors.New("unknown version of command")
)

// Skipped is a command that this version does not know and that its writer marked as skippable.
type Skipped struct {
	Kind     Type
	Revision uint8
}

// Type implements Command.
func (s Skipped) Type() Type { return s.Kind }

// Version implements Command.
func (s Skipped) Version() uint8 { return s.Revision }

// decoders is every version of every command that was ever written.
var decoders = map[Type]map[uint8]func([]byte) (Command, error){
	TypeInitCluster:        {1: decode[InitCluster]},
	TypeReserve:            {1: decodeReserve1, 2: decode[Reserve]},
	TypeConfirm:            {1: decode[Confirm]},
	TypeFail:               {1: decode[Fail]},
	TypeRelease:            {1: decode[Release]},
	TypeObserveHost:        {1: decodeObserveHost1, 2: decode[ObserveHost]},
	TypeSetHostStatus:      {1: decode[SetHostStatus]},
	TypeSetHostSchedulable: {1: decode[SetHostSchedulable]},
	TypeDeleteHost:         {1: decode[DeleteHost]},
	TypePutPool:            {1: decode[PutPool]},
	TypeDeletePool:         {1: decode[DeletePool]},
	TypeNotePool:           {1: decode[NotePool]},
	TypeCreateGateways:     {1: decodeCreateGateways1, 2: decode[CreateGateways]},
	TypeRetireGateways:     {1: decode[RetireGateways]},
	TypeRecycleGateway:     {1: decode[RecycleGateway]},
	TypeQuarantineGateway:  {1: decode[QuarantineGateway]},
	TypePutOrganization:    {1: decodePutOrganization1, 2: decode[PutOrganization]},
	TypeEditOrganization:   {1: decode[EditOrganization]},
	TypeDeleteOrganization: {1: decode[DeleteOrganization]},
	TypePutToken:           {1: decode[PutToken]},
	TypeDeleteToken:        {1: decode[DeleteToken]},
	TypeCollect:            {1: decode[Collect]},
	TypeRecordEvents:       {1: decode[RecordEvents]},
	TypePutTrust:           {1: decode[PutTrust]},
	TypePutJoinToken:       {1: decode[PutJoinToken]},
	TypeDeleteJoinToken:    {1: decode[DeleteJoinToken]},
	TypeEnroll:             {1: decode[Enroll]},
	TypeDeleteEnrolment:    {1: decode[DeleteEnrolment]},
	TypeLoseHost:           {1: decode[LoseHost]},
	TypeRelocate:           {1: decode[Relocate]},
	TypePlace:              {1: decode[Place]},
	TypeDrainHost:          {1: decode[DrainHost]},
	TypeNoteDrain:          {1: decode[NoteDrain]},
	TypeRenewGateways:      {1: decode[RenewGateways]},
}

// Decode reads the bytes of a command. A payload with a field that its version does not have is an error.
func Decode(data []byte) (Command, error) {
	if len(data) < 2 {
		return nil, fmt.Errorf("cannot decode a command of %d bytes: type and version are missing", len(data))
	}
	kind, version := Type(data[0]), data[1]
	versions, ok := decoders[kind]
	if !ok && kind&Skippable != 0 {
		return Skipped{Kind: kind, Revision: version}, nil
	}
	if !ok {
		return nil, fmt.Errorf("cannot decode command %d: %w; install the version of the coordinator that wrote it", kind, ErrUnknownType)
	}
	read, ok := versions[version]
	if !ok {
		return nil, fmt.Errorf("cannot decode command %d, version %d: %w; install the version of the coordinator that wrote it",
			kind, version, ErrUnknownVersion)
	}
	c, err := read(data[2:])
	if err != nil {
		return nil, fmt.Errorf("cannot decode command %d, version %d: %w", kind, version, err)
	}
	return c, nil
}

func decode[C Command](payload []byte) (Command, error) {
	var c C
	if readFast(payload, &c) {
		return c, nil
	}
	c = *new(C) // it may be read halfway
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the payload")
	}
	return c, nil
}
