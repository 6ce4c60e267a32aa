package httpapi

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// converter makes bodies of the API from the records of one view.
type converter struct {
	server *Server
	view   state.View
	ws     state.WatchSet
	// lines remembers the places in each pool's line, because a list asks for many.
	lines map[id.Pool]map[id.Allocation]int
	// members are the agents that the gossip knows; nil: not looked at yet.
	members map[string]api.GossipMember
}

func (s *Server) converter(v state.View, ws state.WatchSet) *converter {
	return &converter{server: s, view: v, ws: ws, lines: map[id.Pool]map[id.Allocation]int{}}
}

// allocation converts a record and lays over it what only the leader knows.
func (c *converter) allocation(a *state.Allocation) api.Allocation {
	hostname := id.Hostname(a.Organization, c.server.opts.Domain)
	out := api.Allocation{
		AllocationID: string(a.ID), OrganizationID: string(a.Organization), Pool: string(a.Pool),
		GatewayID: string(a.Gateway), HostID: string(a.Host), Hostname: hostname, URL: c.server.opts.PublicURL(hostname),
		Epoch: uint64(a.Epoch), State: c.state(a), Warm: a.Warm, CreatedAt: a.CreatedAt.UTC(),
		ActiveAt: instant(a.ActiveAt), EndedAt: instant(a.EndedAt), ExpiresAt: instant(a.ExpiresAt),
		Timings: timings(a.Timings), Metadata: a.Metadata, Index: a.ModifyIndex,
	}
	if h := c.view.Host(nil, a.Host); h != nil { // not watched: a host changes far more often than its address
		out.HostAddress = h.Report.Address
	}
	out.Relocation, out.Moves = relocation(a), moved(a)
	if a.Failure.Code != "" {
		out.Failure = &api.Failure{Code: string(a.Failure.Code), Message: a.Failure.Message}
	}
	if a.State == state.AllocationQueued {
		out.Position = c.position(a)
	}
	return out
}

// state is an allocation's state as callers see it: of one that is reserved the leader knows how far it is.
func (c *converter) state(a *state.Allocation) string {
	if a.State == state.AllocationReserved {
		if phase, _, ok := c.server.opts.Allocations.Phase(a.ID); ok {
			return phase
		}
	}
	return string(a.State)
}

// position is a queued allocation's place in its pool's line, from 1.
func (c *converter) position(a *state.Allocation) int {
	line, ok := c.lines[a.Pool]
	if !ok {
		line = map[id.Allocation]int{}
		n := 0
		for q := range c.view.Line(c.ws, a.Pool) {
			n++
			line[q.ID] = n
		}
		c.lines[a.Pool] = line
	}
	return line[a.ID]
}

// steps converts an allocation's journal, and for an unfinished one the steps that the leader knows. A
// line that tells of an undo is put into the step that it takes back.
func (c *converter) steps(a *state.Allocation) []api.Step {
	journal := a.Journal
	if a.State == state.AllocationReserved || a.State == state.AllocationRelocating {
		live := allocator.MoveSteps(a)
		if _, reported, ok := c.server.opts.Allocations.Phase(a.ID); ok {
			live = append(live, reported...)
		}
		journal = append(withoutAny(journal, live), live...)
	}
	out := []api.Step{}
	for _, st := range journal {
		out = append(out, api.Step{
			Step: st.Step, State: st.State, StartedAt: st.StartedAt.UTC(), EndedAt: instant(st.EndedAt), Error: st.Error, Code: string(st.Code),
		})
	}
	if a.State == state.AllocationActive || a.State == state.AllocationRelocating {
		return out // what was taken back is of a gateway that it has left
	}
	return withUndo(out)
}

// withoutAny drops the steps of a journal that newer ones replace.
func withoutAny(journal, newer []command.Step) []command.Step {
	out := []command.Step{}
	for _, st := range journal {
		replaced := false
		for _, n := range newer {
			replaced = replaced || n.Step == st.Step
		}
		if !replaced {
			out = append(out, st)
		}
	}
	return out
}

// undoes maps an undo to the step it takes back, as the architecture names them.
func undoes(step string) string {
	switch step {
	case api.StepUndoDNS:
		return api.StepDNS
	case api.StepUnroute:
		return api.StepRoute
	case api.StepDeactivate:
		return api.StepActivate
	case api.StepRecycle:
		return api.StepReserve
	}
	return ""
}

// withUndo puts every undo beside its step as well as leaving it in its place in the order of time.
func withUndo(steps []api.Step) []api.Step {
	for _, u := range steps {
		for i := range steps {
			if target := undoes(u.Step); target == "" || steps[i].Step != target {
				continue
			}
			steps[i].Undo = &api.Undo{Step: u.Step, State: u.State, StartedAt: u.StartedAt, EndedAt: u.EndedAt, Error: u.Error}
			if u.State == api.StepDone && steps[i].State == api.StepDone {
				steps[i].State = api.StepUndone
			}
		}
	}
	return steps
}

// explanation converts why a gateway was chosen.
func explanation(a *state.Allocation) api.Explanation {
	out := api.Explanation{
		AllocationID: string(a.ID), GatewayID: string(a.Gateway), HostID: string(a.Host), Index: a.Explanation.Index,
		Rule: placementRule, Reason: a.Explanation.Reason, Candidates: []api.Candidate{},
	}
	for _, k := range a.Explanation.Candidates {
		out.Candidates = append(out.Candidates, api.Candidate{
			HostID: string(k.Host), Ready: k.Ready, Load: k.Load, Eligible: k.Eligible, Reason: k.Reason,
		})
	}
	return out
}

// placementRule is the rule of the state machine in words.
const placementRule = "eligible host (alive, not cordoned, nginx serving) with the lowest load, then the most ready gateways, then the lowest id; " +
	"on it the ready gateway with the fewest failures, then the longest ready, then the lowest id"

// gateway converts a record.
func gateway(g *state.Gateway) api.Gateway {
	return api.Gateway{
		GatewayID: string(g.ID), Pool: string(g.Pool), HostID: string(g.Host), State: string(g.State),
		OrganizationID: string(g.Desired.Organization), AllocationID: string(g.Desired.Allocation), Epoch: uint64(g.Desired.Epoch),
		Incarnation: g.Desired.Incarnation, Release: g.Desired.Release, PID: g.Observed.PID, BootID: g.Observed.BootID,
		Restarts: g.Observed.Restarts, Message: g.Observed.Message, ReadyAt: instant(g.Observed.ReadyAt),
		CreatedAt: g.CreatedAt.UTC(), Index: g.ModifyIndex,
	}
}

// organization converts a record and names its live allocation.
func (c *converter) organization(o *state.Organization) api.Organization {
	out := api.Organization{
		OrganizationID: string(o.ID), Name: o.Name, Hostname: id.Hostname(o.ID, c.server.opts.Domain),
		Members: []api.Member{}, Projects: []api.Project{},
		CreatedAt: o.CreatedAt.UTC(), UpdatedAt: o.UpdatedAt.UTC(), Index: o.ModifyIndex,
	}
	for _, m := range o.Members {
		out.Members = append(out.Members, api.Member{UserID: string(m.User), Username: m.Username, Role: m.Role})
	}
	for _, p := range o.Projects {
		out.Projects = append(out.Projects, api.Project{ProjectID: string(p.ID), Name: p.Name})
	}
	if a := c.view.LiveAllocation(c.ws, o.ID); a != nil {
		out.AllocationID = string(a.ID)
	}
	return out
}

// pool converts a record and counts its gateways and its line.
func (c *converter) pool(p *state.Pool) api.Pool {
	n := c.view.Counts(c.ws, p.Name)
	out := api.Pool{
		Name: string(p.Name), MinReady: p.MinReady, Step: p.Step, Max: p.Max, MaxInFlight: p.MaxInFlight, Release: p.Release,
		Limits: api.Limits(p.Limits), Isolation: p.Isolation, ActivationTimeout: api.Duration(p.ActivationTimeout),
		Counts: api.PoolCounts{
			Pending: n.Of(state.GatewayPending), Starting: n.Of(state.GatewayStarting), Ready: n.Of(state.GatewayReady),
			Reserved: n.Of(state.GatewayReserved), Allocated: n.Of(state.GatewayAllocated), Draining: n.Of(state.GatewayDraining),
			Recycling: n.Of(state.GatewayRecycling), Unhealthy: n.Of(state.GatewayUnhealthy), Lost: n.Of(state.GatewayLost),
			Reconciling: n.Of(state.GatewayReconciling), Failed: n.Of(state.GatewayFailed), Quarantined: n.Of(state.GatewayQuarantined),
			Terminating: n.Of(state.GatewayTerminating), Total: n.Total(),
		},
		Breaker: p.Breaker.State, Limited: p.Limited, Index: p.ModifyIndex,
	}
	if out.Breaker == "" {
		out.Breaker = breakerClosed
	}
	if out.Breaker != breakerClosed {
		out.BreakerReason = p.Breaker.Reason
	}
	for range c.view.Line(c.ws, p.Name) {
		out.Queued++
	}
	return out
}

// breakerClosed is the breaker of a pool that the keeper has not noted anything about.
const breakerClosed = "closed"

// host converts a record and lays over it what its agent said last.
func (c *converter) host(h *state.Host) api.Host {
	n := c.view.HostCounts(c.ws, h.ID)
	out := api.Host{
		HostID: string(h.ID), State: h.Status, Schedulable: !h.Cordoned, Address: h.Report.Address, Capacity: h.Report.Capacity,
		Gateways: n.Total(), Allocated: n.Of(state.GatewayReserved) + n.Of(state.GatewayAllocated), Version: h.Report.Version,
		Nginx: api.NginxStatus{
			State: h.Report.NginxState, DesiredGeneration: h.Report.DesiredGeneration,
			LiveGeneration: h.Report.LiveGeneration, LastError: h.Report.LastError,
		},
		CreatedAt: h.CreatedAt.UTC(), Index: h.ModifyIndex,
	}
	if h.Status != api.HostAlive {
		out.Reason = h.Reason
	}
	for _, q := range h.Report.Quarantined {
		out.Nginx.Quarantined = append(out.Nginx.Quarantined, api.QuarantinedPart(q))
	}
	out.Drain = c.drain(h)
	nginx, seen, connected := c.server.opts.Agents.Ephemeral(h.ID)
	if connected && nginx.State != "" {
		out.Nginx = nginx
	}
	out.LastSeen = instant(seen)
	if m, known := c.member(h.ID); known {
		out.Member = &m
	}
	return out
}

// member is a host's agent as the gossip knows it.
func (c *converter) member(h id.Host) (api.GossipMember, bool) {
	if c.members == nil {
		c.members = map[string]api.GossipMember{}
		for _, m := range c.server.opts.Operator.Members() {
			if m.Role == string(gossip.RoleAgent) {
				c.members[m.HostID] = m
			}
		}
	}
	m, known := c.members[string(h)]
	return m, known
}

// drain tells how far the emptying of a host is; nil when it is not being emptied.
func (c *converter) drain(h *state.Host) *api.HostDrain {
	d := h.Drain
	if d == nil {
		return nil
	}
	out := &api.HostDrain{
		State: d.State, Since: d.Since.UTC(), EndedAt: instant(d.EndedAt), Deadline: instant(d.Deadline), Drain: api.Duration(d.Drain),
		Force: d.Force, Total: d.Total, Waiting: d.Reason,
	}
	for g := range c.view.GatewaysOfHost(c.ws, h.ID) {
		switch a := c.view.Allocation(c.ws, g.Desired.Allocation); {
		case a != nil:
			out.Left++
			if a.Move != nil && a.Move.Target != nil && a.Gateway == g.ID {
				out.Moving++
			}
		case c.view.Ending(g.ID) != nil:
			out.Closing++
		}
	}
	return out
}

// relocation converts the move of an allocation; nil when it does not move.
func relocation(a *state.Allocation) *api.Relocation {
	m := a.Move
	if m == nil {
		return nil
	}
	out := &api.Relocation{
		Cause: m.Cause, Reason: m.Reason, Since: m.Since.UTC(), FromHost: string(m.From.Host), FromGateway: string(m.From.Gateway),
		Waiting: m.Stranded, HeldBy: m.Held, HeldUntil: instant(m.HeldUntil), Attempts: m.Attempts,
	}
	if to, ok := a.Pending(); ok {
		out.ToHost, out.ToGateway, out.ToEpoch = string(to.Host), string(to.Gateway), uint64(to.Epoch)
	}
	if m.Failure.Code != "" {
		out.Failure = &api.Failure{Code: string(m.Failure.Code), Message: m.Failure.Message}
	}
	return out
}

// moved converts the latest moves of an allocation.
func moved(a *state.Allocation) []api.Moved {
	var out []api.Moved
	for _, m := range a.Moves {
		one := api.Moved{
			Cause: m.Cause, Reason: m.Reason, Since: m.Since.UTC(), EndedAt: m.EndedAt.UTC(), FromHost: string(m.From.Host),
			FromGateway: string(m.From.Gateway), ToHost: string(m.To.Host), ToGateway: string(m.To.Gateway), Epoch: uint64(m.To.Epoch),
		}
		if m.Failure.Code != "" {
			one.Failure = &api.Failure{Code: string(m.Failure.Code), Message: m.Failure.Message}
		}
		out = append(out, one)
	}
	return out
}

// token converts a record.
func token(t *state.Token) api.Token {
	return api.Token{
		TokenID: string(t.ID), Role: t.Role, Name: t.Name,
		CreatedAt: t.CreatedAt.UTC(), ExpiresAt: instant(t.ExpiresAt), Index: t.ModifyIndex,
	}
}

// timings converts durations to milliseconds.
func timings(t command.Timings) api.Timings {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return api.Timings{
		Queue: ms(t.Queue), Reserve: ms(t.Reserve), Activate: ms(t.Activate), Route: ms(t.Route),
		DNS: ms(t.DNS), Verify: ms(t.Verify), Confirm: ms(t.Confirm), Total: ms(t.Total),
	}
}

// instant is a time of the wire; the zero time is absent.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	u := t.UTC()
	return &u
}
