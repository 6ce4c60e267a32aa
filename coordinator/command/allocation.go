package command

import (
	"errors"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Reserve takes ready gateways for organizations, all in one entry: per item the live allocation if there
// is one, else a grant, a place in line, or a typed refusal. The epoch of a grant is the entry's index.
type Reserve struct {
	Meta
	Pool       id.Pool           `json:"pool"`
	Items      []ReserveItem     `json:"items"`
	QueueUntil time.Time         `json:"queue_until,omitzero"` // zero: refuse rather than wait in line
	TTL        time.Duration     `json:"ttl,omitempty"`        // zero: never expires
	Metadata   map[string]string `json:"metadata,omitempty"`
	Key        string            `json:"key,omitempty"`    // digest of caller, route and Idempotency-Key
	Digest     string            `json:"digest,omitempty"` // of the request's body, to refuse a key used for another one
	// PoolNamed tells that the caller asked for this pool by its name: then it has to exist also for an organization that
	// has a gateway, whatever pool that is of. Version 1 has no such field and looks for the pool only to take from it.
	PoolNamed bool `json:"pool_named,omitempty"`
}

// decodeReserve1 reads version 1. Every allocation of a caller that names no pool is one, so it takes the quick way.
func decodeReserve1(payload []byte) (Command, error) {
	c, err := decode[Reserve](payload)
	if err == nil && c.(Reserve).PoolNamed {
		return nil, errors.New("version 1 has no field pool_named")
	}
	return c, err
}

// ReserveItem is one organization and the id its allocation gets if one is made.
type ReserveItem struct {
	Organization id.Organization `json:"o"`
	Allocation   id.Allocation   `json:"a"`
}

// Confirm ends an allocation's steps: it is served and verified.
type Confirm struct {
	Meta
	Allocation id.Allocation `json:"allocation"`
	Epoch      id.Epoch      `json:"epoch"`
	Journal    []Step        `json:"journal"`
	Timings    Timings       `json:"timings"`
	Observed   GatewayReport `json:"observed"` // the agent's words, which the confirmation rests on
}

// Fail ends an allocation that did not become active: one in line is over, a reserved one is undone
// (its gateway is recycled).
type Fail struct {
	Meta
	Allocation id.Allocation `json:"allocation"`
	Epoch      id.Epoch      `json:"epoch,omitempty"` // zero for one in line
	Code       fault.Code    `json:"code"`
	Message    string        `json:"message"`
	Journal    []Step        `json:"journal,omitempty"`
	// BlameGateway counts against the gateway: it is passed over while others are ready, and retired
	// after repeated failures.
	BlameGateway bool `json:"blame_gateway,omitempty"`
}

// Release ends an allocation on request: one in line is over, an unfinished one is undone, an active one
// is drained and its gateway recycled. Releasing what is ending or has ended changes nothing.
type Release struct {
	Meta
	Allocation id.Allocation `json:"allocation"`
	Drain      time.Duration `json:"drain,omitempty"`
	Reason     string        `json:"reason,omitempty"`
}

// Step is one line of an allocation's journal.
type Step struct {
	Step      string     `json:"step"`
	State     string     `json:"state"`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   time.Time  `json:"ended_at,omitzero"`
	Error     string     `json:"error,omitempty"`
	Code      fault.Code `json:"code,omitempty"`
}

// Timings is how long each step took.
type Timings struct {
	Queue    time.Duration `json:"queue,omitempty"`
	Reserve  time.Duration `json:"reserve,omitempty"`
	Activate time.Duration `json:"activate,omitempty"`
	Route    time.Duration `json:"route,omitempty"`
	DNS      time.Duration `json:"dns,omitempty"`
	Verify   time.Duration `json:"verify,omitempty"`
	Confirm  time.Duration `json:"confirm,omitempty"`
	Total    time.Duration `json:"total,omitempty"`
}

// Collect removes what is only history: ended allocations, answered requests and expired tokens that are
// older than Before.
type Collect struct {
	Meta
	Before time.Time `json:"before"`
}

// InitCluster names the cluster, once.
type InitCluster struct {
	Meta
	ClusterID string `json:"cluster_id"`
}

// RecordEvents puts events into the feed that change nothing else, such as refusals.
type RecordEvents struct {
	Meta
	Events []Event `json:"events"`
}

// Event is an event of RecordEvents.
type Event struct {
	Type         string          `json:"type"`
	At           time.Time       `json:"at"`
	Reason       string          `json:"reason,omitempty"`
	Code         fault.Code      `json:"code,omitempty"`
	Organization id.Organization `json:"organization,omitempty"`
	Allocation   id.Allocation   `json:"allocation,omitempty"`
	Gateway      id.Gateway      `json:"gateway,omitempty"`
	Host         id.Host         `json:"host,omitempty"`
	Pool         id.Pool         `json:"pool,omitempty"`
}

func (Reserve) Type() Type      { return TypeReserve }
func (Confirm) Type() Type      { return TypeConfirm }
func (Fail) Type() Type         { return TypeFail }
func (Release) Type() Type      { return TypeRelease }
func (Collect) Type() Type      { return TypeCollect }
func (InitCluster) Type() Type  { return TypeInitCluster }
func (RecordEvents) Type() Type { return TypeRecordEvents }

// Version is the lowest that says everything.
func (c Reserve) Version() uint8 {
	if c.PoolNamed {
		return 2
	}
	return 1
}

func (Confirm) Version() uint8      { return 1 }
func (Fail) Version() uint8         { return 1 }
func (Release) Version() uint8      { return 1 }
func (Collect) Version() uint8      { return 1 }
func (InitCluster) Version() uint8  { return 1 }
func (RecordEvents) Version() uint8 { return 1 }
