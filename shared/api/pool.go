package api

// Limits bound one gateway process. Zero means no limit.
type Limits struct {
	MemoryBytes int64 `json:"memory_bytes,omitempty" minimum:"0" doc:"At least 1 MiB"`
	CPUPercent  int   `json:"cpu_percent,omitempty" minimum:"0" doc:"100 is one core"`
	Tasks       int   `json:"tasks,omitempty" minimum:"0"`
	BodyBytes   int64 `json:"body_bytes,omitempty" minimum:"0" doc:"Largest request body that nginx lets through; default 64 MiB"`
}

// PutPool is the wanted shape of a pool. Body of PUT /v1/pools/{name}. What is absent keeps its value,
// or its default in a new pool.
type PutPool struct {
	MinReady          *int      `json:"min_ready,omitempty" minimum:"0" maximum:"10000" doc:"Refill below this many ready, pending and starting gateways; default 2"`
	Step              *int      `json:"step,omitempty" minimum:"1" maximum:"1000" doc:"Create at least this many at a time; default 3"`
	Max               *int      `json:"max,omitempty" minimum:"0" maximum:"100000" doc:"Never more gateways than this; default 50"`
	MaxInFlight       *int      `json:"max_in_flight,omitempty" minimum:"1" maximum:"1000" doc:"Most gateways that may be starting at once; default 10"`
	Release           *string   `json:"release,omitempty" maxLength:"64" doc:"Version of the gateway program; default: the one installed on the host"`
	Limits            *Limits   `json:"limits,omitempty"`
	Isolation         *string   `json:"isolation,omitempty" enum:"serve,stop"`
	ActivationTimeout *Duration `json:"activation_timeout,omitempty" doc:"Undo an allocation that is not served after this time; default 10s"`
}

// PoolCounts is how many gateways of a pool are in each state.
type PoolCounts struct {
	Pending     int `json:"pending"`
	Starting    int `json:"starting"`
	Ready       int `json:"ready"`
	Reserved    int `json:"reserved"`
	Allocated   int `json:"allocated"`
	Draining    int `json:"draining"`
	Recycling   int `json:"recycling"`
	Unhealthy   int `json:"unhealthy"`
	Lost        int `json:"lost"`
	Reconciling int `json:"reconciling"`
	Failed      int `json:"failed"`
	Quarantined int `json:"quarantined"`
	Terminating int `json:"terminating"`
	Total       int `json:"total"`
}

// Pool is a named set of gateways with one specification.
type Pool struct {
	Name              string     `json:"name"`
	MinReady          int        `json:"min_ready"`
	Step              int        `json:"step"`
	Max               int        `json:"max"`
	MaxInFlight       int        `json:"max_in_flight"`
	Release           string     `json:"release,omitempty"`
	Limits            Limits     `json:"limits"`
	Isolation         string     `json:"isolation"`
	ActivationTimeout Duration   `json:"activation_timeout"`
	Counts            PoolCounts `json:"counts"`
	Queued            int        `json:"queued" doc:"Allocations waiting in line"`
	Breaker           string     `json:"breaker" enum:"closed,open,half_open" doc:"open: creating is stopped because gateways keep failing"`
	BreakerReason     string     `json:"breaker_reason,omitempty" doc:"What the last gateways failed of, while the breaker is not closed"`
	Limited           string     `json:"limited,omitempty" doc:"What keeps the pool from growing: max, in_flight, capacity, breaker"`
	Index             uint64     `json:"index"`
}
