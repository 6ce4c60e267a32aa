package api

import (
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// ProblemContentType is the media type of every error answer (RFC 9457).
const ProblemContentType = "application/problem+json"

// Problem is the body of every error answer (RFC 9457) with a stable code.
type Problem struct {
	Status int              `json:"status"`
	Title  string           `json:"title"`
	Detail string           `json:"detail"`
	Code   string           `json:"code"`
	Errors []fault.Location `json:"errors,omitempty"`
}

// EventsDropped is the comment of an event stream where events before the next one are no longer kept.
const EventsDropped = "events before the next one are no longer kept"

// Event is one thing that happened. ID is "<index>.<n>" and orders all events.
type Event struct {
	ID             string    `json:"id"`
	Index          uint64    `json:"index"`
	At             time.Time `json:"at"`
	Type           string    `json:"type" doc:"Such as allocation.reserved"`
	Topic          string    `json:"topic" doc:"First part of the type: allocation, gateway, pool, host, organization, token, config"`
	Actor          string    `json:"actor" doc:"Who caused it: a token's id, an agent, or a leader loop"`
	Source         string    `json:"source,omitempty" doc:"Network address of the caller"`
	Reason         string    `json:"reason,omitempty"`
	OrganizationID string    `json:"organization_id,omitempty"`
	AllocationID   string    `json:"allocation_id,omitempty"`
	GatewayID      string    `json:"gateway_id,omitempty"`
	HostID         string    `json:"host_id,omitempty"`
	Pool           string    `json:"pool,omitempty"`
	Before         string    `json:"before,omitempty"`
	After          string    `json:"after,omitempty"`
	Code           string    `json:"code,omitempty"`
}

// Roles of API tokens.
const (
	RoleAdmin    = "admin"
	RoleOperator = "operator"
	RolePlatform = "platform"
	RoleReader   = "reader"
)

// CreateToken is the body of POST /v1/tokens.
type CreateToken struct {
	Role string    `json:"role" enum:"admin,operator,platform,reader"`
	Name string    `json:"name,omitempty" maxLength:"100"`
	TTL  *Duration `json:"ttl,omitempty" doc:"Default: does not expire"`
}

// Token is an API token without its secret.
type Token struct {
	TokenID   string     `json:"token_id"`
	Role      string     `json:"role"`
	Name      string     `json:"name,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	Index     uint64     `json:"index"`
}

// CreatedToken is a new token with its secret, which is shown this once.
type CreatedToken struct {
	Token
	Secret string `json:"secret"`
}

// Peer is a coordinator.
type Peer struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader"`
}

// Rate is how many of something succeeded and failed since this coordinator leads.
type Rate struct {
	Succeeded uint64  `json:"succeeded"`
	Failed    uint64  `json:"failed"`
	Refused   uint64  `json:"refused"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
}

// Status is the state of the whole system, the worst first.
type Status struct {
	ClusterID   string         `json:"cluster_id"`
	Healthy     bool           `json:"healthy"`
	Problems    []StatusNote   `json:"problems" doc:"What is wrong, the worst first"`
	Leader      string         `json:"leader"`
	Peers       []Peer         `json:"peers"`
	Index       uint64         `json:"index"`
	Applied     uint64         `json:"applied"`
	Term        uint64         `json:"term"`
	Version     string         `json:"version"`
	Domain      string         `json:"domain"`
	Pools       []Pool         `json:"pools"`
	Hosts       []Host         `json:"hosts"`
	Allocations map[string]int `json:"allocations" doc:"Live allocations by state"`
	Utilization float64        `json:"utilization" doc:"Gateways in use as a part of all that can serve"`
	Rates       Rate           `json:"rates"`
}

// StatusNote is one thing that is wrong and what to do about it.
type StatusNote struct {
	Severity string `json:"severity" enum:"critical,warning"`
	Subject  string `json:"subject"`
	Message  string `json:"message"`
	Remedy   string `json:"remedy,omitempty"`
}

// DevFile is <data-dir>/dev.json of `demiurge dev`.
type DevFile struct {
	API            string       `json:"api"`     // the first of Servers
	Servers        []string     `json:"servers"` // URLs of all coordinators
	Token          string       `json:"token"`
	HTTP           string       `json:"http"` // where the first of Hosts serves organizations
	Hosts          []DevHost    `json:"hosts"`
	DNS            string       `json:"dns,omitempty"` // address of a name server that leads to an organization's host; with several hosts
	Domain         string       `json:"domain"`
	OrganizationID string       `json:"organization_id"`
	PID            int          `json:"pid"`
	Processes      []DevProcess `json:"processes"`
}

// DevHost is one host of `demiurge dev`.
type DevHost struct {
	HostID string `json:"host_id"`
	HTTP   string `json:"http"` // where it serves organizations
}

// DevProcess is one process of `demiurge dev`: coordinator-N, agent-N, nginx-N, gateway-<id>.
type DevProcess struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
}
