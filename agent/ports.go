package agent

import (
	"context"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/agent/lease"
	"github.com/demiurge-platform/demiurge/agent/nginx"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// nginxPort gives the actors the nginx engine in their own words.
type nginxPort struct{ e *nginx.Engine }

// SetSlots implements reconcile.Nginx.
func (p nginxPort) SetSlots(slots []reconcile.Slot) {
	out := make([]nginx.Slot, len(slots))
	for i, s := range slots {
		out[i] = nginx.Slot(s)
	}
	p.e.SetConfig(nginx.Config{Slots: out})
}

// WaitSlot implements reconcile.Nginx.
func (p nginxPort) WaitSlot(ctx context.Context, g id.Gateway) error { return p.e.WaitSlot(ctx, g) }

// Route implements reconcile.Nginx. The actor verifies every route by the gateway's own answer through nginx,
// which says all that the engine's proof says.
func (p nginxPort) Route(ctx context.Context, org id.Organization, to reconcile.Route) error {
	return p.e.Lead(ctx, org, nginx.Target(to))
}

// Unroute implements reconcile.Nginx.
func (p nginxPort) Unroute(ctx context.Context, org id.Organization, from reconcile.Route) error {
	return p.e.Unroute(ctx, org, nginx.Target(from))
}

// Retain implements reconcile.Nginx.
func (p nginxPort) Retain(keep map[id.Organization]reconcile.Route) {
	out := make(map[id.Organization]nginx.Target, len(keep))
	for org, r := range keep {
		out[org] = nginx.Target(r)
	}
	p.e.Retain(out)
}

// Get implements reconcile.Nginx.
func (p nginxPort) Get(ctx context.Context, org id.Organization, path string) (*http.Response, error) {
	return p.e.Get(ctx, org, path)
}

// source is the whole state for a full observation.
type source struct{ a *Agent }

// Reports implements syncer.Source.
func (s source) Reports() []api.GatewayReport { return s.a.engine.Reports() }

// Host implements syncer.Source.
func (s source) Host() api.HostReport { return s.a.hostReport() }

// leases puts the host's lease and what depends on it together.
type leases struct{ a *Agent }

// Shortest implements syncer.Leases.
func (l leases) Shortest() time.Duration { return l.a.engine.Leases() }

// Now implements syncer.Leases.
func (l leases) Now() time.Duration { return time.Duration(l.a.lease.Now()) }

// Renewed implements syncer.Leases.
func (l leases) Renewed(sent time.Duration, index uint64) {
	l.a.lease.Renewed(lease.Instant(sent), index, l.Shortest())
}

// follower hands the parts of a frame to those they are for.
type follower struct{ a *Agent }

// Apply implements syncer.Follower.
func (f follower) Apply(frame api.AssignmentFrame) error {
	if frame.Gossip != nil {
		f.a.member.Take(*frame.Gossip)
	}
	if frame.CA != "" {
		f.a.credential.Trust(frame.CA)
	}
	return f.a.engine.Apply(frame)
}
