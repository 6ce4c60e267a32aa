package command

import (
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Limits bound one gateway process; zero means no limit.
type Limits struct {
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	CPUPercent  int   `json:"cpu_percent,omitempty"`
	Tasks       int   `json:"tasks,omitempty"`
	BodyBytes   int64 `json:"body_bytes,omitempty"`
}

// PutPool sets a pool's whole specification.
type PutPool struct {
	Meta
	Pool              id.Pool       `json:"pool"`
	MinReady          int           `json:"min_ready"`
	Step              int           `json:"step"`
	Max               int           `json:"max"`
	MaxInFlight       int           `json:"max_in_flight"`
	Release           string        `json:"release,omitempty"`
	Limits            Limits        `json:"limits,omitzero"`
	Isolation         string        `json:"isolation"`
	ActivationTimeout time.Duration `json:"activation_timeout"`
}

// DeletePool retires a pool's gateways and removes the pool when the last is gone. It is refused while
// the pool holds an organization or somebody waits in its line.
type DeletePool struct {
	Meta
	Pool id.Pool `json:"pool"`
}

// NotePool records what the pool keeper decided about creating: its breaker and what limits the pool.
type NotePool struct {
	Meta
	Pool     id.Pool   `json:"pool"`
	Breaker  string    `json:"breaker"` // closed, open, half_open
	Until    time.Time `json:"until,omitzero"`
	Failures int       `json:"failures,omitempty"`
	Limited  string    `json:"limited,omitempty"` // max, in_flight, capacity, breaker
	Reason   string    `json:"reason,omitempty"`
}

// Member is a user of an organization with a role.
type Member struct {
	User     id.User `json:"user"`
	Username string  `json:"username,omitempty"`
	Role     string  `json:"role"` // owner, admin, member
}

// Project is a part of an organization.
type Project struct {
	ID   id.Project `json:"id"`
	Name string     `json:"name,omitempty"`
}

// PutOrganization sets the whole of an organization. Version 1 has no KeepOwner.
type PutOrganization struct {
	Meta
	Organization id.Organization `json:"organization"`
	Name         string          `json:"name"`
	Members      []Member        `json:"members,omitempty"`
	Projects     []Project       `json:"projects,omitempty"`
	KeepOwner    bool            `json:"keep_owner,omitempty"` // refused if it would take the last owner away
}

type putOrganization1 struct {
	Meta
	Organization id.Organization `json:"organization"`
	Name         string          `json:"name"`
	Members      []Member        `json:"members,omitempty"`
	Projects     []Project       `json:"projects,omitempty"`
}

func (putOrganization1) Type() Type     { return TypePutOrganization }
func (putOrganization1) Version() uint8 { return 1 }

func decodePutOrganization1(payload []byte) (Command, error) {
	c, err := decode[putOrganization1](payload)
	if err != nil {
		return nil, err
	}
	one := c.(putOrganization1)
	return PutOrganization{Meta: one.Meta, Organization: one.Organization, Name: one.Name, Members: one.Members, Projects: one.Projects}, nil
}

// EditOrganization changes members and projects one by one, so that no change overwrites another.
type EditOrganization struct {
	Meta
	Organization  id.Organization `json:"organization"`
	PutMember     *Member         `json:"put_member,omitempty"`
	DeleteMember  id.User         `json:"delete_member,omitempty"`
	PutProject    *Project        `json:"put_project,omitempty"`
	DeleteProject id.Project      `json:"delete_project,omitempty"`
}

// DeleteOrganization forgets an organization without a live allocation.
type DeleteOrganization struct {
	Meta
	Organization id.Organization `json:"organization"`
}

// PutToken adds an API token. Only the SHA-256 of the secret is in the log.
type PutToken struct {
	Meta
	Token     id.Token  `json:"token"`
	Role      string    `json:"role"`
	Name      string    `json:"name,omitempty"`
	Host      id.Host   `json:"host,omitempty"`
	Hash      string    `json:"hash"` // hexadecimal SHA-256 of the secret
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	Key       string    `json:"key,omitempty"`
	Digest    string    `json:"digest,omitempty"`
}

// DeleteToken revokes an API token.
type DeleteToken struct {
	Meta
	Token id.Token `json:"token"`
}

func (PutPool) Type() Type            { return TypePutPool }
func (DeletePool) Type() Type         { return TypeDeletePool }
func (NotePool) Type() Type           { return TypeNotePool }
func (PutOrganization) Type() Type    { return TypePutOrganization }
func (EditOrganization) Type() Type   { return TypeEditOrganization }
func (DeleteOrganization) Type() Type { return TypeDeleteOrganization }
func (PutToken) Type() Type           { return TypePutToken }
func (DeleteToken) Type() Type        { return TypeDeleteToken }

func (PutPool) Version() uint8            { return 1 }
func (DeletePool) Version() uint8         { return 1 }
func (NotePool) Version() uint8           { return 1 }
func (EditOrganization) Version() uint8   { return 1 }
func (DeleteOrganization) Version() uint8 { return 1 }
func (PutToken) Version() uint8           { return 1 }
func (DeleteToken) Version() uint8        { return 1 }

// Version is the lowest that says everything.
func (c PutOrganization) Version() uint8 {
	if c.KeepOwner {
		return 2
	}
	return 1
}
