package fsm

import (
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func createGateways(t *state.Txn, c command.CreateGateways) command.Result {
	pool := t.Pool(nil, c.Pool)
	if pool == nil || pool.Deleting {
		return refuse(fault.NotFound, "pool %q does not exist; `demiurge pool list` shows those that do", c.Pool)
	}
	counts := t.Counts(nil, pool.Name)
	before := counts.Total() - counts.Of(state.GatewayTerminating)
	if c.BesidesLost {
		before -= counts.Of(state.GatewayLost)
	}
	room := pool.Max - before
	onHost := map[id.Host]int{}
	created := 0
	for _, n := range c.Gateways {
		host := t.Host(nil, n.Host)
		if created >= room || host == nil || host.Lost() || n.ID == "" || t.Gateway(n.ID) != nil {
			continue
		}
		if _, known := onHost[host.ID]; !known {
			onHost[host.ID] = t.HostCounts(nil, host.ID).Total()
		}
		if onHost[host.ID] >= host.Report.Capacity {
			continue
		}
		onHost[host.ID]++
		created++
		t.PutGateway(state.Gateway{
			ID: n.ID, Pool: pool.Name, Host: host.ID,
			Desired: state.GatewayDesired{
				Index: t.EntryIndex(), Target: api.TargetRun, Incarnation: 1, Release: pool.Release, Limits: pool.Limits,
			},
		}, c.Reason)
	}
	if created > 0 {
		t.Emit(state.Event{
			Type: "pool.grown", Pool: pool.Name, Reason: c.Reason, Before: number(before), After: number(before + created),
		})
	}
	return command.Result{Count: created}
}

func retireGateways(t *state.Txn, c command.RetireGateways) command.Result {
	retired := 0
	for _, gateway := range c.Gateways {
		g := t.Gateway(gateway)
		if g == nil || g.Desired.Allocation != "" || g.Desired.Target == api.TargetGone {
			continue
		}
		retire(t, g, c.Reason)
		retired++
	}
	return command.Result{Count: retired}
}

func retire(t *state.Txn, g *state.Gateway, reason string) {
	next := *g
	next.Desired.Index, next.Desired.Target, next.Desired.Reason = t.EntryIndex(), api.TargetGone, reason
	t.PutGateway(next, reason)
}

func recycleGateway(t *state.Txn, c command.RecycleGateway) command.Result {
	g, refusal := changeable(t, c.Gateway)
	if refusal != nil {
		return command.Result{Err: refusal}
	}
	if g.Desired.Allocation != "" {
		return refuse(fault.OrganizationActive, "gateway %s serves organization %s; release allocation %s first",
			g.ID, g.Desired.Organization, g.Desired.Allocation)
	}
	next := *g
	next.Desired.Index, next.Desired.Quarantined, next.Desired.Reason = t.EntryIndex(), false, c.Reason
	if g.Observed.Incarnation == g.Desired.Incarnation {
		demandFresh(t, &next) // otherwise a fresh process is on its way already
	}
	t.PutGateway(next, c.Reason)
	return command.Result{Count: 1}
}

func quarantineGateway(t *state.Txn, c command.QuarantineGateway) command.Result {
	g, refusal := changeable(t, c.Gateway)
	if refusal != nil {
		return command.Result{Err: refusal}
	}
	if g.Desired.Quarantined {
		return command.Result{}
	}
	next := *g
	next.Desired.Index, next.Desired.Quarantined, next.Desired.Reason = t.EntryIndex(), true, c.Reason
	t.PutGateway(next, c.Reason)
	return command.Result{Count: 1}
}

// changeable is a gateway that stays.
func changeable(t *state.Txn, gateway id.Gateway) (*state.Gateway, *fault.Error) {
	g := t.Gateway(gateway)
	switch {
	case g == nil:
		return nil, fault.New(fault.NotFound, "gateway %s does not exist; `demiurge gateway list` shows those that do", gateway)
	case g.Desired.Target == api.TargetGone:
		return nil, fault.New(fault.Conflict, "gateway %s is being removed", gateway)
	}
	return g, nil
}

// removeGateway forgets a gateway, and its pool when that was the last one it waited for.
func removeGateway(t *state.Txn, g *state.Gateway, reason string) {
	t.RemoveGateway(g, reason)
	if pool := t.Pool(nil, g.Pool); pool != nil && pool.Deleting && t.Counts(nil, pool.Name).Total() == 0 {
		removePool(t, pool)
	}
}
