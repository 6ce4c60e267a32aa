package agentlink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Receiver takes in observations: it puts what is new into the log and hands the steps of unfinished
// allocations to the allocator.
type Receiver struct {
	link        *Link
	allocations Allocations
}

// NewReceiver makes a Receiver for the agents of link.
func NewReceiver(link *Link, allocations Allocations) *Receiver {
	return &Receiver{link: link, allocations: allocations}
}

// Stream is Link.Stream.
func (r *Receiver) Stream(ctx context.Context, h id.Host, instance, address string, send func(api.AssignmentFrame) error) error {
	return r.link.Stream(ctx, h, instance, address, send)
}

// RelayedStream is Link.RelayedStream.
func (r *Receiver) RelayedStream(ctx context.Context, h id.Host, instance, address string, send func(api.AssignmentFrame) error) error {
	return r.link.RelayedStream(ctx, h, instance, address, send)
}

// Ephemeral is Link.Ephemeral.
func (r *Receiver) Ephemeral(h id.Host) (api.NginxStatus, time.Time, bool) {
	return r.link.Ephemeral(h)
}

// Gossip is what a host's agent says of its own place in the gossip; zero: nothing.
func (r *Receiver) Gossip(h id.Host) api.HostGossip { return r.link.Contact(h).Gossip }

// Observe takes in one observation of a host and returns the index after what it reported took effect, apart
// from the confirmation of allocations that are served now, which is on its way. Malformed
// reports are refused as a whole with invalid_request, so that an agent's error is seen, and with conflict those of a run
// of the agent while another one speaks for the host.
func (r *Receiver) Observe(ctx context.Context, h id.Host, obs api.Observation) (uint64, error) {
	parsed, err := parse(h, obs)
	if err != nil {
		return 0, err
	}
	l := r.link
	taken, err := r.heard(ctx, h, obs)
	if err != nil {
		return 0, err
	}
	defer taken()
	r.inOrder(ctx, parsed)
	if err := r.renew(ctx, h, parsed.reports); err != nil {
		return 0, err
	}
	view := l.opts.Store.View()
	progress, rest := split(view, h, parsed)
	if cmd, changed := r.command(view, h, obs, parsed, rest); changed {
		result, _, err := l.opts.Proposer.Propose(ctx, cmd)
		if err != nil {
			return 0, err
		}
		if result.Err != nil {
			return 0, result.Err
		}
	}
	r.allocations.Report(ctx, h, progress)
	r.compare(ctx, h, parsed.reports)
	return l.opts.Store.View().Index(), nil
}

// renew has gateways demanded afresh that a host has begun anew more often than a restored state knows. A state that was
// not restored may be behind its hosts too, while a new leader reads the log: nothing is wrong then.
func (r *Receiver) renew(ctx context.Context, h id.Host, reports []command.GatewayReport) error {
	l := r.link
	cmd := command.RenewGateways{
		Meta: command.Meta{At: l.opts.Now(), Actor: "agent/" + string(h)}, Host: h,
		Reason: "the gateway was begun anew, or given to another organization, after the snapshot that was restored",
	}
	view := l.opts.Store.View()
	for _, g := range reports {
		if rec := view.Gateway(nil, g.Gateway); rec != nil && rec.Host == h && rec.Desired.Outrun != 0 && g.Incarnation > rec.Desired.Incarnation {
			cmd.Gateways = append(cmd.Gateways, command.BegunByItsHost{Gateway: g.Gateway, Incarnation: g.Incarnation})
		}
	}
	if len(cmd.Gateways) == 0 {
		return nil
	}
	result, _, err := l.opts.Proposer.Propose(ctx, cmd)
	if err != nil {
		return err
	}
	if result.Err != nil {
		return result.Err
	}
	return nil
}

// compare finds out whether a host knows of grants that are above everything in the state.
func (r *Receiver) compare(ctx context.Context, h id.Host, reports []command.GatewayReport) {
	l := r.link
	var highest id.Epoch
	for _, g := range reports {
		highest = max(highest, g.Epoch)
	}
	if l.opts.VerifyLeader == nil || uint64(highest) <= l.opts.Store.View().Index() {
		return
	}
	// One that leads no longer, without knowing it, has not heard of the grants since.
	if err := l.opts.VerifyLeader(ctx); err != nil || uint64(highest) <= l.opts.Store.View().Index() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	hl := l.hostLocked(h)
	if hl.ahead == 0 {
		l.opts.Logger.Error("a host knows more than the state: was the data directory put back as it had been before? Then stop this coordinator and run demiurge-coordinator recover",
			"host", h, "epoch", highest, "index", l.opts.Store.View().Index())
	}
	hl.ahead, hl.aheadOf = highest, l.opts.Store.Restored()
}

// Ahead is Link.Ahead.
func (r *Receiver) Ahead(h id.Host) id.Epoch { return r.link.Ahead(h) }

// inOrder waits for the confirmations that come of earlier observations and that these reports would overtake.
func (r *Receiver) inOrder(ctx context.Context, p parsed) {
	view := r.link.opts.Store.View()
	for _, g := range p.reports {
		if rec := view.Gateway(nil, g.Gateway); rec != nil && g.Phase != api.PhaseServing && rec.Desired.Allocation != "" {
			r.allocations.Settled(ctx, rec.Desired.Allocation)
		}
	}
}

// parsed is an observation in the log's types.
type parsed struct {
	host    *command.HostReport // nil: nothing is said of it
	reports []command.GatewayReport
	steps   []stepReport
	events  []command.Event
}

type stepReport struct {
	allocation id.Allocation
	epoch      id.Epoch
	step       command.Step
}

// split takes the reports that conclude a reserved allocation out of those that go into the log: the
// confirmation carries them.
func split(view state.View, h id.Host, p parsed) ([]allocator.Progress, []command.GatewayReport) {
	byAllocation := map[id.Allocation]*allocator.Progress{}
	order := []id.Allocation{}
	of := func(a id.Allocation, e id.Epoch) *allocator.Progress {
		pr := byAllocation[a]
		if pr == nil {
			pr = &allocator.Progress{Allocation: a, Epoch: e}
			byAllocation[a] = pr
			order = append(order, a)
		}
		return pr
	}
	for _, s := range p.steps {
		pr := of(s.allocation, s.epoch)
		if pr.Epoch == s.epoch {
			pr.Steps = append(pr.Steps, s.step)
		}
	}
	rest := make([]command.GatewayReport, 0, len(p.reports))
	for _, g := range p.reports {
		rec := view.Gateway(nil, g.Gateway)
		if rec != nil && rec.Host == h && g.Phase == api.PhaseServing && rec.Desired.Allocation != "" &&
			g.Epoch == rec.Desired.Epoch && g.Incarnation == rec.Desired.Incarnation && pending(view, rec) {
			of(rec.Desired.Allocation, g.Epoch).Serving = &g
			continue
		}
		rest = append(rest, g)
	}
	out := make([]allocator.Progress, 0, len(order))
	for _, a := range order {
		out = append(out, *byAllocation[a])
	}
	return out, rest
}

// pending reports whether a gateway's grant is to be confirmed.
func pending(view state.View, g *state.Gateway) bool {
	rec := view.Allocation(nil, g.Desired.Allocation)
	if rec == nil {
		return false
	}
	grant, ok := rec.Pending()
	return ok && grant.Gateway == g.ID
}

// command makes the entry for what is new in an observation; changed is false when nothing is. That a host
// is no longer silent is for the host monitor to say, which knows more than that one report came.
func (r *Receiver) command(view state.View, h id.Host, obs api.Observation, p parsed, rest []command.GatewayReport) (command.ObserveHost, bool) {
	cmd := command.ObserveHost{
		Meta: command.Meta{At: r.link.opts.Now(), Actor: "agent/" + string(h)},
		Host: h, Instance: obs.Instance, Events: p.events,
	}
	host := view.Host(nil, h)
	cmd.StaysSilent = host != nil && host.Status == api.HostSilent
	changed := len(p.events) > 0 || host == nil || host.Instance != obs.Instance || host.Lost()
	if p.host != nil && (host == nil || !sameReport(host.Report, *p.host)) {
		cmd.Report, changed = p.host, true
	}
	for _, g := range p.reports {
		if rec := view.Gateway(nil, g.Gateway); rec != nil && rec.Host == h && isPast(rec, g) {
			cmd.Events = append(cmd.Events, command.Event{
				Type: "gateway.fenced", At: cmd.At, Code: fault.StaleEpoch, Gateway: g.Gateway, Organization: g.Organization,
				Reason: "epoch " + g.Epoch.String() + " ended while the host was lost",
			})
			changed = true
		}
	}
	for _, g := range rest {
		if !sameGateway(view.Gateway(nil, g.Gateway), g) {
			cmd.Gateways = append(cmd.Gateways, g)
			changed = true
		}
	}
	if obs.Full && (changed || missing(view, h, p.reports)) {
		cmd.Full, cmd.Gateways, changed = true, p.reports, true
	}
	return cmd, changed
}

// isPast reports whether a host that was lost still serves an epoch that ended meanwhile. What it says of its
// process is taken in all the same.
func isPast(rec *state.Gateway, g command.GatewayReport) bool {
	return rec.Observed.Stale && g.Epoch != 0 && g.Incarnation < rec.Desired.Incarnation
}

// missing reports whether the state has gateways that were seen on the host and are no longer named.
func missing(view state.View, h id.Host, reports []command.GatewayReport) bool {
	named := make(map[id.Gateway]bool, len(reports))
	for _, g := range reports {
		named[g.Gateway] = true
	}
	for g := range view.GatewaysOfHost(nil, h) {
		if !named[g.ID] && (g.Observed.Phase != "" || g.Desired.Target == api.TargetGone) {
			return true
		}
	}
	return false
}

func sameGateway(rec *state.Gateway, g command.GatewayReport) bool {
	if rec == nil {
		return true // unknown here: the next full frame tells the agent so
	}
	o := rec.Observed
	return !o.Stale && len(g.Undo) == 0 && o.Incarnation == g.Incarnation && o.Phase == g.Phase && o.Epoch == g.Epoch &&
		o.BootID == g.BootID && o.PID == g.PID && o.Restarts == g.Restarts && o.Code == g.Code && o.Message == g.Message
}

func sameReport(a, b command.HostReport) bool {
	same := slices.Equal(a.Quarantined, b.Quarantined)
	a.Quarantined, b.Quarantined = nil, nil
	return same && a.Address == b.Address && a.Capacity == b.Capacity && a.Version == b.Version && a.NginxState == b.NginxState &&
		a.DesiredGeneration == b.DesiredGeneration && a.LiveGeneration == b.LiveGeneration && a.LastError == b.LastError
}

// Bounds of what one observation may say. Texts are for people: of a longer one its beginning is kept.
const (
	maxText = 4 << 10 // bytes of a reason, a message or an error
	maxName = 64      // bytes of the name of an event, a step, a state or a code, of a version or a boot id
	maxUndo = 64      // steps that took a grant back
	// maxIncarnation leaves room above every incarnation that a host can have begun: others are counted on from it.
	maxIncarnation = 1 << 62
)

// parse turns an observation into closed types.
func parse(h id.Host, obs api.Observation) (parsed, error) {
	var p parsed
	if obs.HostID != string(h) {
		return p, fault.New(fault.Forbidden, "this agent may report for host %s only, not for %.80q", h, obs.HostID)
	}
	refuse := func(what string, i int, err error) (parsed, error) {
		return parsed{}, fault.Wrap(fault.InvalidRequest, err, "cannot use %s[%d] of the observation: %v", what, i, err)
	}
	if obs.Host != nil {
		report, err := parseHost(*obs.Host)
		if err != nil {
			return p, fault.Wrap(fault.InvalidRequest, err, "cannot use the host of the observation: %v", err)
		}
		p.host = &report
	}
	p.reports = make([]command.GatewayReport, 0, len(obs.Gateways))
	p.steps = make([]stepReport, 0, len(obs.Steps))
	for i, g := range obs.Gateways {
		report, err := parseGateway(g)
		if err != nil {
			return refuse("gateways", i, err)
		}
		p.reports = append(p.reports, report)
	}
	for i, s := range obs.Steps {
		if s.Nonce != "" {
			continue // an answer to a verify request, handed over in heard
		}
		a, err := id.ParseAllocation(s.AllocationID)
		if err != nil {
			return refuse("steps", i, err)
		}
		parsed, err := step(s.Step)
		if err != nil {
			return refuse("steps", i, err)
		}
		p.steps = append(p.steps, stepReport{a, id.Epoch(s.Epoch), parsed})
	}
	for i, e := range obs.Events {
		event, err := parseEvent(h, e)
		if err != nil {
			return refuse("events", i, err)
		}
		p.events = append(p.events, event)
	}
	return p, nil
}

// parseHost reads what an agent says of its host.
func parseHost(h api.HostReport) (command.HostReport, error) {
	out := command.HostReport{
		Address: text(h.Address), Capacity: h.Capacity, Version: h.Version, NginxState: h.Nginx.State,
		DesiredGeneration: h.Nginx.DesiredGeneration, LiveGeneration: h.Nginx.LiveGeneration, LastError: text(h.Nginx.LastError),
	}
	if err := errors.Join(short("version", h.Version), name("state of nginx", h.Nginx.State)); err != nil {
		return out, err
	}
	for _, q := range h.Nginx.Quarantined {
		since, err := moment(q.Since)
		if err != nil {
			return out, err
		}
		out.Quarantined = append(out.Quarantined, command.Quarantined{Part: text(q.Part), Message: text(q.Message), Since: since})
	}
	return out, nil
}

// parseEvent reads an event of a host. Agents tell of hosts and gateways, and of nothing else.
func parseEvent(h id.Host, e api.AgentEvent) (command.Event, error) {
	out := command.Event{Type: e.Type, Reason: text(e.Reason), Host: h}
	topic, what, _ := strings.Cut(e.Type, ".")
	if what == "" || name("event", what) != nil || topic != "host" && topic != "gateway" {
		return out, fmt.Errorf("%.80q is not the type of an event of a host or gateway", e.Type)
	}
	var err error
	if out.At, err = moment(e.At); err != nil {
		return out, err
	}
	if e.GatewayID != "" {
		if out.Gateway, err = id.ParseGateway(e.GatewayID); err != nil {
			return out, err
		}
	}
	if e.OrganizationID != "" {
		if out.Organization, err = id.ParseOrganization(e.OrganizationID); err != nil {
			return out, err
		}
	}
	return out, nil
}

func parseGateway(g api.GatewayReport) (command.GatewayReport, error) {
	gw, err := id.ParseGateway(g.GatewayID)
	if err != nil {
		return command.GatewayReport{}, err
	}
	out := command.GatewayReport{
		Gateway: gw, Incarnation: g.Incarnation, Phase: g.Phase, Epoch: id.Epoch(g.Epoch), BootID: g.BootID, PID: g.PID,
		Restarts: g.Restarts, Code: fault.Code(g.Code), Message: text(g.Message),
	}
	if g.Incarnation > maxIncarnation {
		return out, fmt.Errorf("%d is not an incarnation of a gateway: they count from 1", g.Incarnation)
	}
	if err := errors.Join(short("boot id", g.BootID), name("code", g.Code)); err != nil {
		return out, err
	}
	switch g.Phase {
	case api.PhaseStarting, api.PhaseReady, api.PhaseServing, api.PhaseUnhealthy, api.PhaseFailed, api.PhaseGone:
	default:
		return out, fmt.Errorf("%.80q is not a phase of a gateway", g.Phase)
	}
	if g.OrganizationID != "" {
		if out.Organization, err = id.ParseOrganization(g.OrganizationID); err != nil {
			return out, err
		}
	}
	if len(g.Undo) > maxUndo {
		return out, fmt.Errorf("%d steps took a grant back, and %d are the most", len(g.Undo), maxUndo)
	}
	for _, s := range g.Undo {
		undo, err := step(s)
		if err != nil {
			return out, err
		}
		out.Undo = append(out.Undo, undo)
	}
	return out, nil
}

func step(s api.Step) (command.Step, error) {
	out := command.Step{Step: s.Step, State: s.State, Error: text(s.Error), Code: fault.Code(s.Code)}
	err := errors.Join(name("step", s.Step), name("state of a step", s.State), name("code", s.Code))
	if err != nil {
		return out, err
	}
	if out.StartedAt, err = moment(s.StartedAt); err == nil && s.EndedAt != nil {
		out.EndedAt, err = moment(*s.EndedAt)
	}
	return out, err
}

// text bounds what is for people.
func text(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "…"
}

// name checks a word of this program's. Which words there are is not looked at: a later agent may know more.
func name(what, s string) error {
	if err := short(what, s); err != nil {
		return err
	}
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return fmt.Errorf("%.80q is not a %s: want characters of [a-z0-9_-]", s, what)
	}
	return nil
}

// short bounds what is kept as it is.
func short(what, s string) error {
	if len(s) > maxName {
		return fmt.Errorf("%.80q is not a %s: it is longer than %d bytes", s, what, maxName)
	}
	return nil
}

// moment is a time in UTC. One that JSON has only with an offset is refused: it would be in the state, and no snapshot
// and no answer of the API could be written any more.
func moment(t time.Time) (time.Time, error) {
	t = t.UTC()
	if y := t.Year(); y < 1 || y > 9999 {
		return t, fmt.Errorf("%d is not a year that a time can be in", y)
	}
	return t, nil
}
