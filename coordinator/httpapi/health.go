package httpapi

import (
	"fmt"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// quietAfter is how long nothing may have happened on a host before its routes must be those of the state:
// its health reaches the coordinators some seconds after a change.
const quietAfter = 10 * time.Second

// hostRoutes is what the state wants a host to route; its zero value is nothing.
type hostRoutes struct {
	digest gossip.RouteDigest
	busy   bool // something is under way
}

// add takes in a live allocation of the host.
func (r *hostRoutes) add(a *state.Allocation, now time.Time) {
	if r.busy = r.busy || a.State != state.AllocationActive || now.Sub(a.ActiveAt) < quietAfter; !r.busy {
		r.digest.Add(a.Organization, a.Gateway, a.Epoch)
	}
}

// drifted names the hosts that route something else than the state says, though nothing is under way there.
func drifted(v state.View, hosts []api.Host, wanted map[id.Host]*hostRoutes, now time.Time) map[string]bool {
	out := map[string]bool{}
	for i := range hosts {
		h := &hosts[i]
		host, want := id.Host(h.HostID), hostRoutes{}
		if w := wanted[host]; w != nil {
			want = *w
		}
		if m := h.Member; h.State != api.HostAlive || want.busy || emptied(h.Drain, now) || m == nil || m.Status != string(gossip.StatusAlive) || m.Digest == nil ||
			m.Digest.RouteDigest == uint64(want.digest) {
			continue
		}
		out[h.HostID] = quiet(v, host, now)
	}
	return out
}

// emptied reports whether a host was emptied just now: then the gateways are gone that would tell.
func emptied(d *api.HostDrain, now time.Time) bool {
	return d != nil && d.EndedAt != nil && now.Sub(*d.EndedAt) < quietAfter
}

// quiet reports whether all gateways of a host have been what they shall be for a while.
func quiet(v state.View, host id.Host, now time.Time) bool {
	for g := range v.GatewaysOfHost(nil, host) {
		if g.Observed.Stale || g.Observed.Incarnation != g.Desired.Incarnation || now.Sub(g.Observed.At) < quietAfter {
			return false
		}
	}
	return true
}

// memberNotes tells what is wrong with a host as its agent and the gossip see it. That nginx is not well is
// told elsewhere, with its words.
func (s *Server) memberNotes(n *notes, h *api.Host, drifted bool) {
	if h.State == api.HostLost {
		return
	}
	subject := "host " + h.HostID
	own := s.opts.Agents.Gossip(id.Host(h.HostID))
	if own.Problem != "" {
		n.add(warning, subject, "open port 7402 (TCP and UDP) between all hosts and coordinators; the agent's log says more",
			"it is not in the gossip, so its death would be noticed late: %s", own.Problem)
	}
	m := h.Member
	if m == nil {
		return
	}
	switch {
	case own.Address != "" && own.Address != m.Address && m.Status == string(gossip.StatusAlive):
		n.add(critical, subject, "find out what runs at that address; rotate the gossip key (demiurge operator gossip rotate) if it does not belong there",
			"another member of the gossip, at %s, has its name; it is not believed", m.Address)
	case own.Joined && m.Status != string(gossip.StatusAlive) && s.connected(h):
		n.add(warning, subject, "open port 7402 (TCP and UDP) between all hosts and coordinators",
			"it answers its coordinator, and the gossip holds it for %s", m.Status)
	}
	if m.Digest == nil || m.Status != string(gossip.StatusAlive) {
		return
	}
	// Load is told by `demiurge host show` alone: it is no fault by itself, and comes and goes.
	if slices.Contains(m.Digest.Problems, string(gossip.ProblemDisk)) {
		n.add(warning, subject, "free space where the agent keeps its data", "its disk is nearly full: %d MiB free", m.Digest.DiskFreeMiB)
	}
	if drifted {
		n.add(critical, subject, fmt.Sprintf("look into the agent's log on %s", h.HostID), "its routes are not those that the state says")
	}
}
