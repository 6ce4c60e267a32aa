package api

import "time"

// Gateway states, as in the architecture, and quarantined (an operator took it out).
const (
	GatewayPending     = "pending"
	GatewayStarting    = "starting"
	GatewayReady       = "ready"
	GatewayReserved    = "reserved"
	GatewayAllocated   = "allocated"
	GatewayDraining    = "draining"
	GatewayRecycling   = "recycling"
	GatewayUnhealthy   = "unhealthy"
	GatewayLost        = "lost"
	GatewayReconciling = "reconciling"
	GatewayFailed      = "failed"
	GatewayQuarantined = "quarantined"
	GatewayTerminating = "terminating"
	GatewayTerminated  = "terminated"
)

// Gateway is one gateway process on a host.
type Gateway struct {
	GatewayID      string     `json:"gateway_id"`
	Pool           string     `json:"pool"`
	HostID         string     `json:"host_id"`
	State          string     `json:"state" enum:"pending,starting,ready,reserved,allocated,draining,recycling,unhealthy,lost,reconciling,failed,quarantined,terminating,terminated"`
	OrganizationID string     `json:"organization_id,omitempty"`
	AllocationID   string     `json:"allocation_id,omitempty"`
	Epoch          uint64     `json:"epoch,omitempty"`
	Incarnation    uint64     `json:"incarnation" doc:"How many times it was demanded afresh; rises with every recycling"`
	Release        string     `json:"release,omitempty"`
	PID            int        `json:"pid,omitempty"`
	BootID         string     `json:"boot_id,omitempty" doc:"Identity of the running process"`
	Restarts       int        `json:"restarts" doc:"Restarts of this incarnation after a crash"`
	Message        string     `json:"message,omitempty"`
	ReadyAt        *time.Time `json:"ready_at,omitempty"`
	CreatedAt      time.Time  `json:"created_at"`
	Index          uint64     `json:"index"`
}

// Activate is what a gateway is handed with its organization. Body of POST /control/activate on the
// gateway's socket. A second call with the same epoch replaces members and projects.
type Activate struct {
	OrganizationID string            `json:"organization_id"`
	AllocationID   string            `json:"allocation_id"`
	Epoch          uint64            `json:"epoch"`
	Name           string            `json:"name"`
	Hostname       string            `json:"hostname"`
	Members        []Member          `json:"members"`
	Projects       []Project         `json:"projects"`
	Sections       map[string][]byte `json:"sections,omitempty" doc:"State to restore, by section"`
}

// Deactivate ends a gateway's organization. Body of POST /control/deactivate. Drain is how long open
// connections may go on.
type Deactivate struct {
	Epoch uint64   `json:"epoch"`
	Drain Duration `json:"drain,omitempty"`
}

// GatewayHealth is a gateway's answer to GET /healthz on its socket, and to GET /collab/ping through nginx.
type GatewayHealth struct {
	GatewayID      string `json:"gateway_id"`
	BootID         string `json:"boot_id"`
	OrganizationID string `json:"organization_id,omitempty"`
	Epoch          uint64 `json:"epoch,omitempty"`
	Release        string `json:"release,omitempty"`
	Connections    int    `json:"connections" doc:"Open WebSockets"`
}

// Headers between nginx, gateways and clients.
const (
	HeaderEpoch   = "X-Demiurge-Epoch"   // set by nginx from the route; a gateway refuses another epoch with 409 stale_epoch
	HeaderGateway = "X-Demiurge-Gateway" // on every answer of an organization's host name
	HeaderIndex   = "X-Demiurge-Index"   // on every answer of the coordinator: the index it was made from

	// HeaderKnownLeader is "false" on what a coordinator answers by itself because it reaches no leader. Another one may.
	HeaderKnownLeader = "X-Demiurge-Known-Leader"
)
