package agent

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/demiurge-platform/demiurge/agent/health"
	"github.com/demiurge-platform/demiurge/agent/nginx"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/sleep"
	"github.com/demiurge-platform/demiurge/shared/version"
)

// The rhythm of the host's report. What only counts (routes, draining workers) is told less often.
const (
	hostLook   = 100 * time.Millisecond
	hostCount  = 2 * time.Second
	healthLook = time.Second
)

// hostReport is what there is to say of the host now. A host that cannot follow its coordinator says that
// its nginx is down, so that nothing new is placed on it.
func (a *Agent) hostReport() api.HostReport {
	r := api.HostReport{Address: a.c.Address, Capacity: a.c.Capacity, Version: version.String(), Nginx: a.nginx.Status(), Gossip: a.member.Status()}
	if problem := a.engine.Problem(); problem != "" {
		r.Nginx.State, r.Nginx.LastError = api.NginxDown, problem
	}
	return r
}

// digestStates are the gateway's phases in the words of the digest.
var digestStates = map[string]string{
	api.PhaseStarting: api.GatewayStarting, api.PhaseReady: api.GatewayReady, api.PhaseServing: api.GatewayAllocated,
	api.PhaseUnhealthy: api.GatewayUnhealthy, api.PhaseFailed: api.GatewayFailed,
}

// serving is what the gossip is told of the host's work.
func (a *Agent) serving() health.Serving {
	status := a.nginx.Status()
	out := health.Serving{
		Generation: status.LiveGeneration, Gateways: map[string]uint32{},
		NginxOK: status.State == api.NginxServing && status.LiveGeneration == status.DesiredGeneration,
	}
	for _, g := range a.engine.Reports() {
		if state, ok := digestStates[g.Phase]; ok {
			out.Gateways[state]++
		}
	}
	var routes gossip.RouteDigest
	for org, to := range a.nginx.Routes() {
		routes.Add(org, to.Gateway, to.Epoch)
	}
	out.RouteDigest = uint64(routes)
	return out
}

// watchHost reports the host when it changed, from the moment on at which there is something to say.
func (a *Agent) watchHost(ctx context.Context, settled <-chan struct{}) {
	var said said
	watch(ctx, a.routed, func() {
		r := a.hostReport()
		if closed(settled) && said.take(r, a.o.Now()) {
			a.queue.SetHost(r)
		}
		a.looked.Store(a.o.Now().UnixNano())
	})
}

// watch looks in its rhythm until ctx ends, and at once when it is woken.
func watch(ctx context.Context, woken <-chan struct{}, look func()) {
	tick := time.NewTicker(hostLook)
	defer tick.Stop()
	for {
		look()
		select {
		case <-ctx.Done():
			return
		case <-woken:
		case <-tick.C:
		}
	}
}

// routedSink passes on what the gateways' actors saw, and wakes who counts routes when one began or ceased to serve:
// whoever has just started an organization and asks for the state of the host finds it counted.
type routedSink struct {
	reconcile.Sink
	routed chan<- struct{} // of one place
}

// Observe implements reconcile.Sink.
func (s routedSink) Observe(o api.Observation) {
	s.Sink.Observe(o)
	if len(o.Gateways) == 0 {
		return
	}
	select {
	case s.routed <- struct{}{}:
	default: // it is on its way
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// said is what was reported of the host.
type said struct {
	last    api.HostReport
	counted time.Time // when the last report was sent that only counted
}

// take decides whether a report is sent now, and remembers that it was. Only reports that merely count hold one
// another back: the first count after news of another kind is as fresh as the news.
func (s *said) take(r api.HostReport, now time.Time) bool {
	if !due(s.last, r, now.Sub(s.counted)) {
		return false
	}
	if !due(s.last, r, 0) {
		s.counted = now
	}
	s.last = r
	return true
}

// due decides whether a changed report is sent, so long after the last one that only counted.
func due(last, now api.HostReport, since time.Duration) bool {
	if reflect.DeepEqual(last, now) {
		return false
	}
	last.Nginx.Routes, last.Nginx.DrainingWorkers = now.Nginx.Routes, now.Nginx.DrainingWorkers
	return !reflect.DeepEqual(last, now) || since >= hostCount
}

// nginxEvent passes an event of the nginx engine on.
func (a *Agent) nginxEvent(e nginx.Event) {
	a.metrics.nginxEvent(e)
	reason := e.Reason
	switch {
	case e.Type == nginx.GenerationLive:
		reason = fmt.Sprintf("generation %d, proven after %s", e.Generation, e.Took.Round(time.Millisecond))
	case e.Type == nginx.GenerationFailed:
		reason = fmt.Sprintf("generation %d: %s", e.Generation, reason)
	}
	if e.Part != "" {
		reason = e.Part + ": " + reason
	}
	a.queue.Observe(api.Observation{Events: []api.AgentEvent{{
		Type: "host." + string(e.Type), At: e.At.UTC(), OrganizationID: string(e.Organization), Reason: reason,
	}}})
}

// manageNginx runs nginx as a child of the agent, where it is no unit of its own. An nginx that an earlier
// run of the agent left is not disturbed: this one begins when that one has ended.
func (a *Agent) manageNginx(ctx context.Context) {
	log := a.log.Named("nginx")
	o, err := a.c.nginxOptions(log)
	if err != nil {
		log.Error("nginx cannot be run", "error", err)
		return
	}
	for ctx.Err() == nil {
		if a.nginx.Status().State != api.NginxDown {
			sleep.For(ctx, time.Second)
			continue
		}
		sctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		p, err := nginx.StartProcess(sctx, o)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				log.Error("nginx cannot be started", "error", err)
				sleep.For(ctx, time.Second)
			}
			continue
		}
		<-ctx.Done() // until then it is started again whenever it ends
		p.Stop()
	}
}
