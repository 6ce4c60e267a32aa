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
	Schedulable bool        `json:"schedulable" doc:"False when cordoned or draining"`
	Address     string      `json:"address" doc:"Public address of the host's nginx"`
	Capacity    int         `json:"capacity" doc:"Most gateways the host may hold"`
	Gateways    int         `json:"gateways"`
	Allocated   int         `json:"allocated"`
	Version     string      `json:"version" doc:"Of the agent"`
	Nginx       NginxStatus `json:"nginx"`
	LastSeen    *time.Time  `json:"last_seen,omitempty"`
	CreatedAt   time.Time   `json:"created_at"`
	Index       uint64      `json:"index"`
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
