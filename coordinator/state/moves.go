package state

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
