package fsm

import (
	"slices"
	"strconv"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func observeHost(t *state.Txn, c command.ObserveHost) command.Result {
	host := t.Host(nil, c.Host)
	if host == nil && c.Report == nil {
		return refuse(fault.NotFound, "host %s is not registered; report the host itself first", c.Host)
	}
	host = observeHostItself(t, host, &c)
	for i := range c.Gateways {
		observeGateway(t, host, &c.Gateways[i])
	}
	if c.Full {
		named := make(map[id.Gateway]bool, len(c.Gateways))
		for i := range c.Gateways {
			named[c.Gateways[i].Gateway] = true
		}
		for _, g := range t.HostGateways(host.ID) {
			if !named[g.ID] {
				notThere(t, g, nil)
			}
		}
	}
	for _, e := range c.Events {
		e.Host = host.ID
		record(t, e)
	}
	return command.Result{Object: string(host.ID)}
}

// observeHostItself registers or updates the host's record.
func observeHostItself(t *state.Txn, host *state.Host, c *command.ObserveHost) *state.Host {
	if host == nil {
		host = t.PutHost(state.Host{
			ID: c.Host, Status: api.HostAlive, StatusAt: t.Now(), Instance: c.Instance, Report: *c.Report,
		})
		t.Emit(state.Event{Type: "host.registered", Host: host.ID, After: api.HostAlive})
		return host
	}
	next, changed := *host, host.Instance != c.Instance
	next.Instance = c.Instance
	if c.Report != nil && !sameReport(&host.Report, c.Report) {
		next.Report, changed = *c.Report, true
		reportEvents(t, host.ID, &host.Report, c.Report)
	}
	if host.Lost() || host.Status != api.HostAlive && !c.StaysSilent {
		next.Status, next.StatusAt, next.Reason, changed = api.HostAlive, t.Now(), "it reports again", true
		t.Emit(state.Event{Type: "host.alive", Host: host.ID, Before: host.Status, After: api.HostAlive, Reason: next.Reason})
	}
	if !changed {
		return host
	}
	return replaceHost(t, host, next)
}

// replaceHost stores a host's record, lets its gateways' states follow, and offers what is ready on it to
// those who wait.
func replaceHost(t *state.Txn, before *state.Host, next state.Host) *state.Host {
	host := t.PutHost(next)
	if before.Lost() != host.Lost() {
		recoverStranded(t, host)
		for _, g := range t.HostGateways(host.ID) {
			t.PutGateway(*g, host.Reason)
		}
	}
	if _, eligible := host.Eligible(); eligible {
		for _, pool := range t.PoolsOfHost(host.ID) {
			t.MayServe(pool)
		}
	}
	return host
}

func sameReport(a, b *command.HostReport) bool {
	same := func(x, y command.Quarantined) bool {
		return x.Part == y.Part && x.Message == y.Message && x.Since.Equal(y.Since)
	}
	return a.Address == b.Address && a.Capacity == b.Capacity && a.Version == b.Version &&
		a.NginxState == b.NginxState && a.DesiredGeneration == b.DesiredGeneration &&
		a.LiveGeneration == b.LiveGeneration && a.LastError == b.LastError &&
		slices.EqualFunc(a.Quarantined, b.Quarantined, same)
}

// reportEvents tells what changed on a host's nginx.
func reportEvents(t *state.Txn, host id.Host, before, after *command.HostReport) {
	if before.LiveGeneration != after.LiveGeneration {
		t.Emit(state.Event{
			Type: "host.generation", Host: host,
			Before: strconv.FormatUint(before.LiveGeneration, 10), After: strconv.FormatUint(after.LiveGeneration, 10),
		})
	}
	if before.NginxState != after.NginxState {
		t.Emit(state.Event{
			Type: "host.nginx", Host: host, Before: before.NginxState, After: after.NginxState, Reason: after.LastError,
		})
	}
	for _, q := range after.Quarantined {
		known := slices.ContainsFunc(before.Quarantined, func(old command.Quarantined) bool { return old.Part == q.Part })
		if !known {
			t.Emit(state.Event{
				Type: "host.quarantined", Host: host, After: q.Part, Reason: q.Message, Code: fault.RouteApplyFailed,
			})
		}
	}
}

// observeGateway takes one gateway's report, unless it is about another time or place than the record.
func observeGateway(t *state.Txn, host *state.Host, r *command.GatewayReport) {
	g := t.Gateway(r.Gateway)
	if g == nil && r.Phase == api.PhaseGone {
		return // removed already: the report was sent again
	}
	if why := fenced(g, host.ID, r); why != "" {
		t.Emit(state.Event{
			Type: "gateway.fenced", Code: fault.StaleEpoch, Reason: why,
			Gateway: r.Gateway, Host: host.ID, Organization: r.Organization,
		})
		return
	}
	o := &g.Observed
	if r.Phase == api.PhaseGone {
		notThere(t, g, r.Undo)
		return
	}
	if !o.Stale && o.Incarnation == r.Incarnation && o.Phase == r.Phase && o.Epoch == r.Epoch && o.BootID == r.BootID &&
		o.PID == r.PID && o.Restarts == r.Restarts && o.Code == r.Code && o.Message == r.Message {
		return
	}
	wanted := r.Incarnation == g.Desired.Incarnation && g.Desired.Target == api.TargetRun
	if o.BootID != "" && r.Incarnation == o.Incarnation && wanted && (r.BootID != o.BootID || r.Restarts > o.Restarts) {
		t.Emit(state.Event{
			Type: "gateway.died", Gateway: g.ID, Host: g.Host, Pool: g.Pool, Code: r.Code, Reason: r.Message,
			Organization: g.Desired.Organization, Allocation: g.Desired.Allocation, Before: o.BootID, After: r.BootID,
		})
	}
	if o.Incarnation < g.Desired.Incarnation && r.Incarnation == g.Desired.Incarnation {
		finish(t, g.ID, r.Undo)
	}
	next := *g
	next.Observed = seen(t, g, r)
	t.PutGateway(next, r.Message)
}

// fenced tells why a report must not be believed; "" when it may.
func fenced(g *state.Gateway, host id.Host, r *command.GatewayReport) string {
	switch {
	case g == nil:
		return "the gateway is unknown"
	case g.Host != host:
		return "the gateway belongs to host " + string(g.Host)
	case r.Incarnation > g.Desired.Incarnation:
		return "incarnation " + strconv.FormatUint(r.Incarnation, 10) + " was never demanded"
	case r.Phase == api.PhaseGone:
		return ""
	case r.Incarnation < g.Observed.Incarnation:
		return "incarnation " + strconv.FormatUint(r.Incarnation, 10) + " is over"
	case r.Incarnation < g.Desired.Incarnation:
		return "" // still at the one before, whose grant may have ended
	case r.Epoch != 0 && r.Epoch != g.Desired.Epoch:
		return "epoch " + r.Epoch.String() + " is not the grant's epoch " + g.Desired.Epoch.String()
	case r.Organization != "" && r.Organization != g.Desired.Organization:
		return "the gateway is not granted to organization " + string(r.Organization)
	case r.Phase == api.PhaseServing && (r.Epoch == 0 || g.Desired.Epoch == 0):
		return "it serves without a grant"
	}
	return ""
}

// seen is the observed part of a gateway's record after a report.
func seen(t *state.Txn, g *state.Gateway, r *command.GatewayReport) state.GatewayObserved {
	o := state.GatewayObserved{
		Index: t.EntryIndex(), At: t.Now(), Incarnation: r.Incarnation, Phase: phase(r.Phase), Epoch: r.Epoch,
		BootID: r.BootID, PID: r.PID, Restarts: r.Restarts, Code: r.Code, Message: r.Message,
	}
	if g.Observed.BootID == r.BootID {
		o.BootID = g.Observed.BootID
	}
	if r.Incarnation == g.Observed.Incarnation {
		o.ReadyAt = g.Observed.ReadyAt
	}
	if o.ReadyAt.IsZero() && (o.Phase == api.PhaseReady || o.Phase == api.PhaseServing) {
		o.ReadyAt = t.Now()
	}
	return o
}

// phase gives the constant instead of a string of its own for every record.
func phase(s string) string {
	switch s {
	case api.PhaseReady:
		return api.PhaseReady
	case api.PhaseServing:
		return api.PhaseServing
	case api.PhaseUnhealthy:
		return api.PhaseUnhealthy
	case api.PhaseFailed:
		return api.PhaseFailed
	}
	return api.PhaseStarting
}

// notThere takes in that a gateway does not exist on its host.
func notThere(t *state.Txn, g *state.Gateway, undo []command.Step) {
	if g.Desired.Target == api.TargetGone {
		finish(t, g.ID, undo)
		removeGateway(t, g, "it is gone from its host")
		return
	}
	if o := &g.Observed; o.Incarnation == 0 && o.Phase == "" && !o.Stale {
		return
	}
	next := *g
	next.Observed = state.GatewayObserved{Index: t.EntryIndex(), At: t.Now()}
	t.PutGateway(next, "it does not exist on its host")
}
