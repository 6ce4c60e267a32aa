package api

import "time"

// Allocation states, as in the architecture. activating, routing and verifying are known to the leader
// only while it drives the steps; the log knows reserved and then active or a failure.
const (
	AllocationQueued      = "queued"
	AllocationReserved    = "reserved"
	AllocationActivating  = "activating"
	AllocationRouting     = "routing"
	AllocationVerifying   = "verifying"
	AllocationActive      = "active"
	AllocationReleasing   = "releasing"
	AllocationReleased    = "released"
	AllocationRollingBack = "rolling_back"
	AllocationRolledBack  = "rolled_back"
	AllocationFailed      = "failed"
	AllocationRelocating  = "relocating"
)

// StartAllocation asks for the gateway of an organization. Body of POST /v1/allocations.
type StartAllocation struct {
	OrganizationID string            `json:"organization_id" doc:"The organization (UUID)" example:"6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"`
	Pool           string            `json:"pool,omitempty" doc:"The pool to take the gateway from; default: \"default\""`
	Wait           *Duration         `json:"wait,omitempty" doc:"How long to wait in line when the pool is empty; default 0s"`
	WaitFor        string            `json:"wait_for,omitempty" enum:"routable,reserved" doc:"Answer when the organization is served (routable, default) or as soon as the gateway is reserved"`
	TTL            *Duration         `json:"ttl,omitempty" doc:"Release by itself after this time; default: never"`
	Metadata       map[string]string `json:"metadata,omitempty" doc:"At most 16 pairs, keys up to 64 and values up to 256 characters; kept with the allocation"`
}

// StartBatch asks for the gateways of many organizations in one Raft entry. Body of POST /v1/allocations/batch.
type StartBatch struct {
	OrganizationIDs []string  `json:"organization_ids" minItems:"1" maxItems:"10000"`
	Pool            string    `json:"pool,omitempty"`
	Wait            *Duration `json:"wait,omitempty"`
	WaitFor         string    `json:"wait_for,omitempty" enum:"routable,reserved" doc:"Default for a batch: reserved"`
}

// BatchResult is what became of one organization of a batch: an allocation or a problem.
type BatchResult struct {
	OrganizationID string      `json:"organization_id"`
	Allocation     *Allocation `json:"allocation,omitempty"`
	Problem        *Problem    `json:"problem,omitempty"`
}

// Timings is how long each step of an allocation took, in milliseconds. A step that did not run is 0.
type Timings struct {
	Queue    float64 `json:"queue"`
	Reserve  float64 `json:"reserve"`
	Activate float64 `json:"activate"`
	Route    float64 `json:"route"`
	DNS      float64 `json:"dns"`
	Verify   float64 `json:"verify"`
	Confirm  float64 `json:"confirm"`
	Total    float64 `json:"total"`
}

// Allocation is the grant of one gateway to one organization.
type Allocation struct {
	AllocationID   string            `json:"allocation_id"`
	OrganizationID string            `json:"organization_id"`
	Pool           string            `json:"pool"`
	GatewayID      string            `json:"gateway_id,omitempty"`
	HostID         string            `json:"host_id,omitempty"`
	HostAddress    string            `json:"host_address,omitempty" doc:"Public name or address of that host"`
	Hostname       string            `json:"hostname" doc:"The name the organization is served under"`
	URL            string            `json:"url"`
	Epoch          uint64            `json:"epoch,omitempty"`
	State          string            `json:"state" enum:"queued,reserved,activating,routing,verifying,active,releasing,released,rolling_back,rolled_back,failed,relocating"`
	Warm           bool              `json:"warm" doc:"True when a ready gateway was there at once"`
	Position       int               `json:"position,omitempty" doc:"Place in line while queued, from 1"`
	CreatedAt      time.Time         `json:"created_at"`
	ActiveAt       *time.Time        `json:"active_at,omitempty"`
	EndedAt        *time.Time        `json:"ended_at,omitempty"`
	ExpiresAt      *time.Time        `json:"expires_at,omitempty"`
	Timings        Timings           `json:"timings"`
	Metadata       map[string]string `json:"metadata,omitempty"`
	Failure        *Failure          `json:"failure,omitempty"`
	Relocation     *Relocation       `json:"relocation,omitempty" doc:"While it moves to another gateway. What the allocation names itself goes on serving it until the other one does, unless its host is lost"`
	Moves          []Moved           `json:"moves,omitempty" doc:"Its latest moves, oldest first"`
	Index          uint64            `json:"index" doc:"Raft index of the last change"`
}

// Failure is why an allocation did not become or stay active.
type Failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// MigrateAllocation is the body of POST /v1/allocations/{id}/migrate.
type MigrateAllocation struct {
	HostID string `json:"host_id,omitempty" doc:"The host to go to; default: the one that a start would choose"`
}

// Relocation is the way of an allocation to another gateway.
type Relocation struct {
	Cause       string     `json:"cause" enum:"lost,drain,migrate"`
	Reason      string     `json:"reason"`
	Since       time.Time  `json:"since"`
	FromHost    string     `json:"from_host_id,omitempty"`
	FromGateway string     `json:"from_gateway_id,omitempty"`
	ToHost      string     `json:"to_host_id,omitempty" doc:"Absent while it waits for a gateway"`
	ToGateway   string     `json:"to_gateway_id,omitempty"`
	ToEpoch     uint64     `json:"to_epoch,omitempty"`
	Waiting     bool       `json:"waiting,omitempty" doc:"It waits for a gateway, before everybody in the pool's line"`
	HeldBy      string     `json:"held_by,omitempty" doc:"lease: its host, if it only is cut off, may still serve it; backoff: the last gateway did not come to serve it" enum:"lease,backoff,"`
	HeldUntil   *time.Time `json:"held_until,omitempty"`
	Attempts    int        `json:"attempts,omitempty" doc:"Gateways that did not come to serve it"`
	Failure     *Failure   `json:"failure,omitempty" doc:"Of the last of them"`
}

// Moved is a move of an allocation that is over.
type Moved struct {
	Cause       string    `json:"cause" enum:"lost,drain,migrate"`
	Reason      string    `json:"reason"`
	Since       time.Time `json:"since"`
	EndedAt     time.Time `json:"ended_at"`
	FromHost    string    `json:"from_host_id,omitempty"`
	FromGateway string    `json:"from_gateway_id,omitempty"`
	ToHost      string    `json:"to_host_id,omitempty"`
	ToGateway   string    `json:"to_gateway_id,omitempty"`
	Epoch       uint64    `json:"epoch,omitempty"`
	Failure     *Failure  `json:"failure,omitempty" doc:"Why it stayed where it was"`
}

// Names of the steps of an allocation, in order, of a move to another gateway, which begins with relocate and
// state in the place of queue and reserve, and of a release.
const (
	StepRelocate   = "relocate"
	StepState      = "state"
	StepQueue      = "queue"
	StepReserve    = "reserve"
	StepActivate   = "activate"
	StepRoute      = "route"
	StepDNS        = "dns"
	StepVerify     = "verify"
	StepConfirm    = "confirm"
	StepUndoDNS    = "undo_dns"
	StepUnroute    = "unroute"
	StepDeactivate = "deactivate"
	StepRecycle    = "recycle"
)

// States of a step.
const (
	StepDoing   = "doing"
	StepDone    = "done"
	StepFailed  = "failed"
	StepUndone  = "undone"
	StepSkipped = "skipped"
)

// Step is one line of an allocation's journal.
type Step struct {
	Step      string     `json:"step"`
	State     string     `json:"state" enum:"doing,done,failed,undone,skipped"`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at,omitempty"`
	Error     string     `json:"error,omitempty"`
	Code      string     `json:"code,omitempty" doc:"Stable code of the error"`
	Undo      *Undo      `json:"undo,omitempty"`
}

// Undo is how a completed step was taken back.
type Undo struct {
	Step      string     `json:"step"`
	State     string     `json:"state"`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at,omitempty"`
	Error     string     `json:"error,omitempty"`
}

// Candidate is a host that was looked at for an allocation.
type Candidate struct {
	HostID   string  `json:"host_id"`
	Ready    int     `json:"ready"`
	Load     float64 `json:"load" doc:"Gateways in use as a part of the host's capacity"`
	Eligible bool    `json:"eligible"`
	Reason   string  `json:"reason,omitempty" doc:"Why it was passed over"`
}

// Explanation tells why a gateway was chosen.
type Explanation struct {
	AllocationID string      `json:"allocation_id"`
	GatewayID    string      `json:"gateway_id,omitempty"`
	HostID       string      `json:"host_id,omitempty"`
	Index        uint64      `json:"index" doc:"Raft index at which the choice was made"`
	Rule         string      `json:"rule"`
	Reason       string      `json:"reason"`
	Candidates   []Candidate `json:"candidates"`
}

// GatewayStart is the body of the platform's old POST /gateway/start.
type GatewayStart struct {
	OrganizationID string `json:"organization_id"`
}

// GatewayStarted is the answer of the platform's old POST /gateway/start.
type GatewayStarted struct {
	GatewayHostname string `json:"gateway_hostname"`
	GatewayID       string `json:"gateway_id"`
	Epoch           uint64 `json:"epoch"`
	State           string `json:"state"`
}

// GatewayStopped is the answer of the platform's old POST /gateway/stop.
type GatewayStopped struct {
	Success bool `json:"success"`
}
