package state

import "slices"

// GatewayState is where a gateway stands; the values are those of the API.
type GatewayState string

// AllocationState is where an allocation stands; the values are those of the API that the log knows.
type AllocationState string

// The gateway states.
const (
	GatewayPending     GatewayState = "pending"
	GatewayStarting    GatewayState = "starting"
	GatewayReady       GatewayState = "ready"
	GatewayReserved    GatewayState = "reserved"
	GatewayAllocated   GatewayState = "allocated"
	GatewayDraining    GatewayState = "draining"
	GatewayRecycling   GatewayState = "recycling"
	GatewayUnhealthy   GatewayState = "unhealthy"
	GatewayLost        GatewayState = "lost"
	GatewayReconciling GatewayState = "reconciling"
	GatewayFailed      GatewayState = "failed"
	GatewayQuarantined GatewayState = "quarantined"
	GatewayTerminating GatewayState = "terminating"
	GatewayTerminated  GatewayState = "terminated"
)

// The allocation states of the log.
const (
	AllocationQueued      AllocationState = "queued"
	AllocationReserved    AllocationState = "reserved"
	AllocationActive      AllocationState = "active"
	AllocationReleasing   AllocationState = "releasing"
	AllocationReleased    AllocationState = "released"
	AllocationRollingBack AllocationState = "rolling_back"
	AllocationRolledBack  AllocationState = "rolled_back"
	AllocationFailed      AllocationState = "failed"
	AllocationRelocating  AllocationState = "relocating"
)

// Live reports whether an allocation in this state is its organization's one live allocation: it holds a
// place in line, a gateway, or the clean-up of one.
func (s AllocationState) Live() bool {
	switch s {
	case AllocationReleased, AllocationRolledBack, AllocationFailed:
		return false
	}
	return true
}

// Ending reports whether an allocation in this state waits for its gateway to be recycled.
func (s AllocationState) Ending() bool {
	return s == AllocationReleasing || s == AllocationRollingBack
}

// allocationMoves is every move an allocation may make; from "" are the states it may begin in.
var allocationMoves = map[AllocationState][]AllocationState{
	"":                    {AllocationQueued, AllocationReserved},
	AllocationQueued:      {AllocationReserved, AllocationReleased, AllocationFailed},
	AllocationReserved:    {AllocationActive, AllocationRollingBack, AllocationFailed, AllocationRelocating},
	AllocationActive:      {AllocationReleasing, AllocationReleased, AllocationRelocating},
	AllocationRelocating:  {AllocationReserved, AllocationActive, AllocationReleasing, AllocationReleased},
	AllocationReleasing:   {AllocationReleased},
	AllocationRollingBack: {AllocationRolledBack, AllocationFailed},
}

// gatewayMoves is every move a gateway's record may make. What is not in there is what the design forbids:
// nothing but a ready gateway, or one that comes back to its grant, becomes reserved; a gateway with a grant
// never becomes ready, because ending a grant always demands a new incarnation; and a terminating one only
// goes away.
var gatewayMoves = map[GatewayState][]GatewayState{
	GatewayPending: {
		GatewayStarting, GatewayReady, GatewayReserved, GatewayAllocated, GatewayRecycling, GatewayDraining,
		GatewayUnhealthy, GatewayLost, GatewayFailed, GatewayQuarantined, GatewayTerminating,
	},
	GatewayStarting: {
		GatewayPending, GatewayReady, GatewayReserved, GatewayAllocated, GatewayRecycling, GatewayDraining,
		GatewayUnhealthy, GatewayLost, GatewayFailed, GatewayQuarantined, GatewayTerminating,
	},
	GatewayReady: {
		GatewayPending, GatewayStarting, GatewayReserved, GatewayRecycling, GatewayUnhealthy, GatewayLost,
		GatewayFailed, GatewayQuarantined, GatewayTerminating,
	},
	GatewayReserved: {
		GatewayPending, GatewayStarting, GatewayAllocated, GatewayDraining, GatewayRecycling,
		GatewayUnhealthy, GatewayLost, GatewayFailed, GatewayTerminating,
	},
	GatewayAllocated: {
		GatewayPending, GatewayStarting, GatewayDraining, GatewayRecycling, GatewayUnhealthy, GatewayLost,
		GatewayFailed, GatewayTerminating,
	},
	GatewayDraining: {
		GatewayReady, GatewayRecycling, GatewayUnhealthy, GatewayLost, GatewayFailed, GatewayQuarantined,
		GatewayTerminating,
	},
	GatewayRecycling: {
		GatewayReady, GatewayReserved, GatewayAllocated, GatewayDraining, GatewayUnhealthy, GatewayLost,
		GatewayFailed, GatewayQuarantined, GatewayTerminating,
	},
	GatewayUnhealthy: {
		GatewayPending, GatewayStarting, GatewayReady, GatewayReserved, GatewayAllocated, GatewayDraining,
		GatewayRecycling, GatewayLost, GatewayFailed, GatewayQuarantined, GatewayTerminating,
	},
	GatewayLost: {GatewayReconciling, GatewayTerminating},
	GatewayReconciling: {
		GatewayPending, GatewayStarting, GatewayReady, GatewayReserved, GatewayAllocated, GatewayRecycling, GatewayDraining,
		GatewayUnhealthy, GatewayLost, GatewayFailed, GatewayQuarantined, GatewayTerminating,
	},
	GatewayFailed: {
		GatewayPending, GatewayStarting, GatewayReady, GatewayReserved, GatewayAllocated, GatewayDraining,
		GatewayRecycling, GatewayUnhealthy, GatewayLost, GatewayQuarantined, GatewayTerminating,
	},
	GatewayQuarantined: {
		GatewayPending, GatewayStarting, GatewayReady, GatewayRecycling, GatewayUnhealthy, GatewayLost,
		GatewayFailed, GatewayTerminating,
	},
	GatewayTerminating: {GatewayTerminated},
}

func allowed[S comparable](moves map[S][]S, from, to S) bool { return slices.Contains(moves[from], to) }

// AllowedGatewayMoves gives the table of a gateway's moves. A copy.
func AllowedGatewayMoves() map[GatewayState][]GatewayState { return copyOf(gatewayMoves) }

// AllowedAllocationMoves gives the table of an allocation's moves; from "" are the states it may begin in.
// A copy.
func AllowedAllocationMoves() map[AllocationState][]AllocationState { return copyOf(allocationMoves) }

func copyOf[S comparable](moves map[S][]S) map[S][]S {
	out := make(map[S][]S, len(moves))
	for from, to := range moves { // the order does not matter: it fills a map
		out[from] = slices.Clone(to)
	}
	return out
}
