package state

// Counts is how many gateways are in each state.
type Counts struct {
	n [len(gatewayStates)]int32
}

// Of is how many are in a state.
func (c Counts) Of(s GatewayState) int {
	if i := ordinal(s); i >= 0 {
		return int(c.n[i])
	}
	return 0
}

// Total is how many there are in all.
func (c Counts) Total() int {
	n := 0
	for _, k := range c.n {
		n += int(k)
	}
	return n
}

// InUse is how many hold an organization or its clean-up.
func (c Counts) InUse() int {
	return c.Of(GatewayReserved) + c.Of(GatewayAllocated) + c.Of(GatewayDraining)
}

func (c *Counts) add(s GatewayState, by int32) {
	if i := ordinal(s); i >= 0 {
		c.n[i] += by
	}
}

func (c *Counts) merge(other Counts) {
	for i := range c.n {
		c.n[i] += other.n[i]
	}
}

// gatewayStates are the states of a gateway record; a terminated one has no record any more.
var gatewayStates = [...]GatewayState{
	GatewayPending, GatewayStarting, GatewayReady, GatewayReserved, GatewayAllocated, GatewayDraining,
	GatewayRecycling, GatewayUnhealthy, GatewayLost, GatewayReconciling, GatewayFailed, GatewayQuarantined,
	GatewayTerminating,
}

func ordinal(s GatewayState) int {
	for i, known := range gatewayStates {
		if known == s {
			return i
		}
	}
	return -1
}
