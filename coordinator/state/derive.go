package state

import "github.com/demiurge-platform/demiurge/shared/api"

// gatewayState is the state of a gateway: a pure function of what is wanted of it, what was seen of it, its
// host, and the allocation it serves or cleans up after.
func (t *Txn) gatewayState(g *Gateway, host *Host) GatewayState {
	var grant, ending *Allocation
	if g.Desired.Allocation != "" {
		grant = t.Allocation(g.Desired.Allocation)
	}
	if g.Observed.Incarnation < g.Desired.Incarnation {
		ending = t.Ending(g.ID)
	}
	return deriveGateway(g, host.Lost(), grant, ending)
}

func deriveGateway(g *Gateway, hostLost bool, grant, ending *Allocation) GatewayState {
	d, o := &g.Desired, &g.Observed
	switch {
	case d.Target == api.TargetGone:
		return GatewayTerminating
	case hostLost:
		return GatewayLost
	case o.Stale:
		return GatewayReconciling
	case o.Incarnation < d.Incarnation && ending != nil:
		return GatewayDraining
	case o.Incarnation < d.Incarnation && d.Incarnation == 1:
		return GatewayPending
	case o.Incarnation < d.Incarnation:
		return GatewayRecycling
	}
	switch o.Phase {
	case api.PhaseFailed:
		return GatewayFailed
	case api.PhaseUnhealthy:
		return GatewayUnhealthy
	case api.PhaseReady, api.PhaseServing:
	default:
		if d.Incarnation == 1 {
			return GatewayStarting
		}
		return GatewayRecycling
	}
	switch {
	case grant != nil && grant.serves(g.ID):
		return GatewayAllocated
	case grant != nil:
		return GatewayReserved
	case d.Quarantined:
		return GatewayQuarantined
	}
	return GatewayReady
}
