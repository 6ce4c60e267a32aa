package httpapi

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/version"
)

type statusInput struct {
	Consistency string `query:"consistency" enum:"default,stale" doc:"default: the leader answers, if there is one; stale: the coordinator that is asked"`
}

type statusOutput struct {
	Index uint64 `header:"X-Demiurge-Index"`
	Body  api.Status
}

// status sums up the system from what is known here; it is answered without a leader too, because that
// is when it is asked for.
func (s *Server) status(_ context.Context, _ *statusInput) (*statusOutput, error) {
	v := s.opts.Store.View()
	conv := s.converter(v, nil)
	cluster := s.opts.Cluster
	leader, _ := cluster.Leader()
	term, applied := cluster.Progress()
	out := api.Status{
		ClusterID: v.Cluster(), Leader: leader, Peers: cluster.Peers(), Index: v.Index(), Applied: applied, Term: term,
		Version: version.Get().Version, Domain: s.opts.Domain, Rates: s.opts.Metrics.Rates(),
		Pools: []api.Pool{}, Hosts: []api.Host{}, Allocations: map[string]int{},
	}
	if out.Peers == nil {
		out.Peers = []api.Peer{}
	}
	inUse, able := 0, 0
	for p := range v.Pools(nil) {
		body := conv.pool(p)
		out.Pools = append(out.Pools, body)
		used := body.Counts.Reserved + body.Counts.Allocated
		inUse, able = inUse+used, able+used+body.Counts.Ready
	}
	for h := range v.Hosts(nil) {
		out.Hosts = append(out.Hosts, conv.host(h))
	}
	if able > 0 {
		out.Utilization = float64(inUse) / float64(able)
	}
	var stuck notes
	var stranded stranded
	now := s.opts.Now()
	wanted := map[id.Host]*hostRoutes{}
	for a := range v.LiveAllocations(nil) { // once, and looking at little: there may be very many
		out.Allocations[conv.state(a)]++
		allocationNotes(&stuck, v, a, now)
		stranded.add(a, now)
		of := wanted[a.Host]
		if of == nil {
			of = &hostRoutes{}
			wanted[a.Host] = of
		}
		of.add(a, now)
	}
	stranded.note(&stuck)
	out.Problems = s.problems(&out, stuck, drifted(v, out.Hosts, wanted, now))
	out.Healthy = len(out.Problems) == 0
	return &statusOutput{Index: v.Index(), Body: out}, nil
}

// stuckAfter is how long after its deadline an unfinished allocation is a problem: the leader has ended
// it long before.
const stuckAfter = 2 * time.Second

// allocationNotes tells what is wrong with a live allocation: it neither comes nor goes.
func allocationNotes(n *notes, v state.View, a *state.Allocation, now time.Time) {
	switch {
	case a.State == state.AllocationReserved && now.After(a.Deadline.Add(stuckAfter)):
		n.add(critical, "allocation "+string(a.ID), fmt.Sprintf("demiurge alloc steps %s", a.ID), "reserved for organization %s and past its deadline of %s", a.Organization, a.Deadline.UTC().Format(time.RFC3339))
	case a.State.Ending():
		g := v.Gateway(nil, a.Gateway)
		if g == nil || g.State != state.GatewayDraining || g.Observed.Message == "" {
			return
		}
		n.add(critical, "allocation "+string(a.ID), "correct that; the agent tries again by itself",
			"gateway %s cannot be taken back from organization %s, which cannot be started meanwhile: %s", g.ID, a.Organization, g.Observed.Message)
	}
}

// stranded are organizations that nothing serves, mostly because their host was lost, for longer than a move takes.
type stranded struct {
	count int
	first *state.Allocation // that was stranded
}

// add looks at a live allocation.
func (s *stranded) add(a *state.Allocation, now time.Time) {
	if a.Move == nil || !a.Move.Stranded || now.Sub(a.Move.Since) < quietAfter {
		return
	}
	if s.count++; s.first == nil || a.Move.Since.Before(s.first.Move.Since) {
		s.first = a
	}
}

func (s *stranded) note(n *notes) {
	if s.count == 0 {
		return
	}
	n.add(critical, "allocations", "make room for them: add a host, give a cordoned one back (demiurge host uncordon …), or raise the maximum of their pool. demiurge alloc list --state relocating shows them",
		"%d lost their gateway and are served nowhere else yet; the first is organization %s of pool %s, since %s", s.count, s.first.Organization, s.first.Pool, s.first.Move.Since.UTC().Format(time.RFC3339))
}

// Severities of a problem.
const (
	critical = "critical"
	warning  = "warning"
)

// notes collects what is wrong.
type notes []api.StatusNote

func (n *notes) add(severity, subject, remedy, format string, args ...any) {
	*n = append(*n, api.StatusNote{Severity: severity, Subject: subject, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// problems lists what is wrong, the worst first; within a severity in the order of the checks.
func (s *Server) problems(st *api.Status, stuck notes, drifted map[string]bool) []api.StatusNote {
	n := notes{}
	if st.Leader == "" {
		n.add(critical, "coordinators", "start the other coordinators, or look into the log for why none is elected", "there is no leader: nothing can be allocated or released; what is served goes on")
	}
	if low := s.opts.Cluster.StorageLow(); low != "" {
		n.add(critical, "coordinator "+s.opts.Operator.NodeID(), "free some space on the disk of its data directory, or let another one lead: demiurge operator raft transfer-leadership",
			"its disk is nearly full (%s): while it leads, nothing new is allocated", low)
	}
	s.peerNotes(&n, st)
	// Hosts before pools: what is wrong with a host is often why its pools lack gateways.
	for i := range st.Hosts {
		s.hostNotes(&n, &st.Hosts[i])
		s.memberNotes(&n, &st.Hosts[i], drifted[st.Hosts[i].HostID])
	}
	if len(st.Hosts) > 0 {
		placeNotes(&n, st.Hosts)
	}
	for i := range st.Pools {
		poolNotes(&n, &st.Pools[i])
	}
	n = append(n, stuck...)
	if len(st.Pools) == 0 {
		n.add(warning, "pools", "demiurge pool set default", "there is no pool: no gateway is kept ready")
	}
	if len(st.Hosts) == 0 {
		n.add(warning, "hosts", "start an agent", "no host has registered: no gateway can run")
	}
	if s.opts.Users != nil {
		problems := s.opts.Users.Problems()
		for _, name := range slices.Sorted(maps.Keys(problems)) {
			n.add(warning, "issuer "+name, "look into its jwks_file or jwks_url (auth.issuers of the configuration)", "its keys cannot be read: %s", problems[name])
		}
	}
	slices.SortStableFunc(n, func(a, b api.StatusNote) int { return strings.Compare(a.Severity, b.Severity) }) // critical < warning
	return n
}

// peerNotes tells of coordinators that are gone, and how many more may go.
func (s *Server) peerNotes(n *notes, st *api.Status) {
	there, low := map[string]string{s.opts.Operator.NodeID(): "alive"}, map[string]string{}
	for _, m := range s.opts.Operator.Members() {
		if m.Role == "coordinator" && there[m.Name] == "" {
			there[m.Name], low[m.Name] = m.Status, m.StorageLow
		}
	}
	unreached := s.opts.Cluster.Unreached()
	voters, following := 0, 0
	for _, p := range st.Peers {
		if p.Voter {
			voters++
			if there[p.ID] == "alive" && unreached[p.ID] == nil {
				following++
			}
		}
	}
	for _, p := range st.Peers {
		how, cause := there[p.ID], unreached[p.ID]
		if how == "" {
			how = "not heard of"
		}
		remedy := "start it again, or take it out for good: demiurge operator raft remove-peer " + p.ID
		switch {
		case how == "alive" && cause == nil:
			if low[p.ID] != "" {
				n.add(warning, "coordinator "+p.ID, "free some space on the disk of its data directory, before it comes to lead", "its disk is nearly full (%s): it ends when it is full", low[p.ID])
			}
			continue
		case how == "alive":
			how = fmt.Sprintf("it runs, and does not take the log (%v)", cause)
			remedy = "let its port 7401 through and look into its log; if its certificate is not accepted any more, let it join with --again"
		case st.Leader == "": // nobody can be taken out
			remedy = "start it again; if a majority is lost for good, make this one a cluster of its own: demiurge-coordinator recover"
		}
		n.add(warning, "coordinator "+p.ID, remedy, "%s: %d of %d that vote are there, and %d must be", how, following, voters, voters/2+1)
	}
}

// poolNotes tells what is wrong with a pool, why it lacks gateways before that it does.
func poolNotes(n *notes, p *api.Pool) {
	subject := "pool " + p.Name
	switch p.Breaker {
	case "open":
		n.add(critical, subject, fmt.Sprintf("correct that, or the pool's release (demiurge pool set %s --release …); one gateway is tried again by itself from time to time", p.Name),
			"creating gateways is stopped because they keep failing: %s", orNothing(p.BreakerReason))
	case "half_open":
		n.add(warning, subject, "demiurge events --topic gateway shows what becomes of it", "gateways kept failing; one is being tried: %s", orNothing(p.BreakerReason))
	}
	coming := p.Counts.Pending + p.Counts.Starting + p.Counts.Recycling
	lacking := lackRemedy(p, coming)
	switch {
	case p.Queued > 0 && p.Counts.Ready == 0:
		n.add(critical, subject, lacking, "exhausted: no gateway is ready, %d waiting in line, %d on their way", p.Queued, coming)
	case p.MinReady > 0 && p.Counts.Ready == 0:
		n.add(critical, subject, lacking, "exhausted: no gateway is ready, %d on their way", coming)
	case p.Counts.Ready < p.MinReady:
		n.add(warning, subject, lacking, "below its minimum: %d of %d ready, %d on their way", p.Counts.Ready, p.MinReady, coming)
	case p.Counts.Ready == 0 && coming == 0 && p.Max > 0 && p.Counts.Total >= p.Max:
		n.add(warning, subject, lacking, "all %d gateways are taken and it has no more: starts are refused", p.Max)
	}
	if p.Limited == "max" || p.Limited == "capacity" {
		n.add(warning, subject, lacking, "cannot grow: limited by %s", p.Limited)
	}
	if bad := p.Counts.Failed + p.Counts.Unhealthy; bad > 0 {
		n.add(warning, subject, whyNotReady(p), "%d gateways failed, %d do not answer", p.Counts.Failed, p.Counts.Unhealthy)
	}
	if p.Counts.Lost+p.Counts.Reconciling > 0 {
		n.add(warning, subject, "bring the hosts back", "%d gateways are on lost hosts, %d are being reconciled", p.Counts.Lost, p.Counts.Reconciling)
	}
}

func whyNotReady(p *api.Pool) string {
	return fmt.Sprintf("demiurge gateway list --pool %s shows why", p.Name)
}

// lackRemedy is what to do about a pool that lacks ready gateways: it depends on what keeps it from having more.
func lackRemedy(p *api.Pool, coming int) string {
	switch {
	case p.Breaker == "open":
		return "its gateways keep failing: correct that first"
	case p.Limited == "capacity":
		return "add a host, give a cordoned one back (demiurge host uncordon …), or raise capacity in an agent's configuration"
	case p.Limited == "" && p.Counts.Total < p.Max && coming == 0:
		return "more are about to be started; if they are not, demiurge events --topic pool shows what was decided"
	case p.Limited != "max" && coming > 0:
		return fmt.Sprintf("nothing, if they become ready within seconds; otherwise demiurge gateway list --pool %s shows what they wait for", p.Name)
	}
	return fmt.Sprintf("raise the pool's maximum (demiurge pool set %s --max …) or add a host", p.Name)
}

// placeNotes tells when no host can be given an organization, however many gateways are ready.
func placeNotes(n *notes, hosts []api.Host) {
	var cordoned []string
	for i := range hosts {
		h := &hosts[i]
		if h.State == api.HostAlive && h.Schedulable && h.Nginx.State == api.NginxServing {
			return
		}
		if h.State == api.HostAlive && !h.Schedulable {
			cordoned = append(cordoned, h.HostID)
		}
	}
	remedy, why := "bring a host back, or add one", "none is alive with its nginx serving"
	if len(cordoned) > 0 {
		remedy = fmt.Sprintf("demiurge host uncordon %s, or add a host", cordoned[0])
		why = "cordoned: " + strings.Join(cordoned, ", ")
	}
	n.add(critical, "hosts", remedy, "no host can take an organization, so starts are refused (%s)", why)
}

// hostNotes tells what is wrong with a host.
func (s *Server) hostNotes(n *notes, h *api.Host) {
	subject := "host " + h.HostID
	agentLog := fmt.Sprintf("look into the agent's log on %s", h.HostID)
	switch h.State {
	case api.HostLost:
		if h.Member != nil && h.Member.Status == string(gossip.StatusAlive) {
			n.add(critical, subject, agentLog+"; if its certificate is not accepted any more, let it join with --again",
				"lost: its agent runs, and does not get through to the coordinators")
			return
		}
		n.add(critical, subject, fmt.Sprintf("bring the host back, or forget it: demiurge host delete %s", h.HostID), "lost: %s", orNothing(h.Reason))
		return // nothing else is known of it
	case api.HostSilent:
		remedy := agentLog
		if h.Member != nil && h.Member.Status == string(gossip.StatusAlive) && h.Member.Flaps >= gossip.FlapLimit {
			remedy = fmt.Sprintf("look into what comes and goes there: its line, its load. It is used again once it has stayed for some minutes (at most %.0f)", gossip.FlapWindow.Minutes())
		}
		n.add(critical, subject, remedy, "silent, so it gets nothing new, and what it serves goes on: %s", orNothing(h.Reason))
		return
	}
	if epoch := s.opts.Agents.Ahead(id.Host(h.HostID)); epoch != 0 {
		n.add(critical, subject, "if the data directory of the coordinators was put back as it had been before: stop the coordinator and run demiurge-coordinator recover; else find out what this host is",
			"it knows epoch %d, which is above all that the state has known: the state is older than its hosts, so epochs may be given twice and gateways stay unusable", epoch)
	}
	if first, second := s.opts.Agents.Copied(id.Host(h.HostID)); second != "" {
		n.add(critical, subject, "if one of the machines is a copy of the other: stop one of the two agents. To keep both machines, empty the data directory of the copy and let it join as a host of its own (demiurge host join-token)",
			"two agents speak for it: the one at %s stays, the one at %s is refused", first, second)
	}
	if !s.connected(h) {
		n.add(warning, subject, agentLog, "its agent is not connected")
	}
	switch h.Nginx.State {
	case api.NginxDown:
		n.add(critical, subject, "start nginx; the agent's log has its last words", "nginx is down: %s", orNothing(h.Nginx.LastError))
	case api.NginxWedged:
		n.add(critical, subject, "restart nginx", "nginx does not take new configurations: %s", orNothing(h.Nginx.LastError))
	case api.NginxServing:
		if h.Nginx.LastError != "" {
			n.add(critical, subject, "correct what it names; the agent tries again by itself. "+agentLog+" for more",
				"nginx did not take its newest configuration, so new gateways do not become ready (generation %d serves on): %s", h.Nginx.LiveGeneration, h.Nginx.LastError)
		}
	}
	for _, q := range h.Nginx.Quarantined {
		n.add(warning, subject, "correct that part", "nginx refused %s: %s", q.Part, q.Message)
	}
}

// connected reports whether the host's agent follows this coordinator at the moment.
func (s *Server) connected(h *api.Host) bool {
	_, _, connected := s.opts.Agents.Ephemeral(id.Host(h.HostID))
	return connected
}

func orNothing(s string) string {
	if s == "" {
		return "it says nothing"
	}
	return s
}
