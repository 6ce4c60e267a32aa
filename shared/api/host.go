package api

import "time"

// Host states. silent: its agent does not answer; lost: given up.
const (
	HostAlive  = "alive"
	HostSilent = "silent"
	HostLost   = "lost"
)

// Host is a machine with an agent and an nginx.
type Host struct {
	HostID      string      `json:"host_id"`
	State       string      `json:"state" enum:"alive,silent,lost"`
	Reason      string      `json:"reason,omitempty" doc:"Why it is not alive"`
	Schedulable bool        `json:"schedulable" doc:"False when cordoned or draining"`
	Address     string      `json:"address" doc:"Public address of the host's nginx"`
	Capacity    int         `json:"capacity" doc:"Most gateways the host may hold"`
	Gateways    int         `json:"gateways"`
	Allocated   int         `json:"allocated"`
	Version     string      `json:"version" doc:"Of the agent"`
	Nginx       NginxStatus `json:"nginx"`
	Drain       *HostDrain  `json:"drain,omitempty" doc:"While the host is being emptied, and after that until it is uncordoned"`
	LastSeen    *time.Time  `json:"last_seen,omitempty"`
	// Member is missing where the gossip does not know the agent.
	Member    *GossipMember `json:"member,omitempty" doc:"Its agent as the gossip knows it; not part of the index"`
	CreatedAt time.Time     `json:"created_at"`
	Index     uint64        `json:"index"`
}

// States of a drain. overdue: its deadline has passed, and it goes on.
const (
	DrainDraining = "draining"
	DrainOverdue  = "overdue"
	DrainDrained  = "drained"
)

// HostDrain is how far the emptying of a host is.
type HostDrain struct {
	State    string     `json:"state" enum:"draining,overdue,drained"`
	Since    time.Time  `json:"since"`
	EndedAt  *time.Time `json:"ended_at,omitempty" doc:"When nothing was left"`
	Deadline *time.Time `json:"deadline,omitempty"`
	Drain    Duration   `json:"drain,omitempty" doc:"How long open connections of each gateway may go on"`
	Force    bool       `json:"force,omitempty" doc:"At the deadline, what is left is taken off the host all the same, and waits for a gateway elsewhere"`
	Total    int        `json:"total" doc:"Allocations that the host had at the beginning"`
	Left     int        `json:"left" doc:"Allocations that it still serves"`
	Moving   int        `json:"moving" doc:"How many of those have a gateway elsewhere that is coming up"`
	Closing  int        `json:"closing" doc:"Gateways whose organization has left, and which wait for open connections or are being recycled"`
	Waiting  string     `json:"waiting,omitempty" doc:"What those that are left wait for"`
}

// Conditions of a host's nginx.
const (
	NginxServing = "serving"
	NginxDown    = "down"
	NginxWedged  = "wedged"
)

// NginxStatus is what an agent sees of its nginx.
type NginxStatus struct {
	State             string            `json:"state" enum:"serving,down,wedged,"`
	DesiredGeneration uint64            `json:"desired_generation"`
	LiveGeneration    uint64            `json:"live_generation"`
	Routes            int               `json:"routes"`
	DrainingWorkers   int               `json:"draining_workers"`
	Quarantined       []QuarantinedPart `json:"quarantined,omitempty"`
	LastError         string            `json:"last_error,omitempty"`
}

// QuarantinedPart is a part of a configuration that nginx refused, with nginx's words.
type QuarantinedPart struct {
	Part    string    `json:"part"`
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
}
