package gateway

import (
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const headerEpoch = api.HeaderEpoch

// access says who may use a route.
type access int

const (
	// private is for the agent, which talks to the socket itself. nginx puts the epoch on whatever it
	// passes on, so a request that carries one does not come from the agent.
	private access = iota + 1
	// application is for the organization's users, through nginx, at the current epoch only.
	application
)

// route is one row of the table.
type route struct {
	Method  string
	Path    string
	Access  access
	handler http.HandlerFunc
}

// routes is all that a gateway answers. Paths match exactly; what is not here is denied.
func (g *Gateway) routes() []route {
	return []route{
		{http.MethodGet, "/healthz", private, g.health},
		{http.MethodPost, "/control/activate", private, g.handleActivate},
		{http.MethodPost, "/control/deactivate", private, g.handleDeactivate},
		{http.MethodGet, "/", application, g.page.serve},
		{http.MethodGet, "/collab/ping", application, g.health},
		{http.MethodGet, "/echo", application, g.echo},
	}
}

// serve is the way in for every request.
func (g *Gateway) serve(w http.ResponseWriter, r *http.Request) {
	defer g.open.Add(-1)
	if g.open.Add(1) >= busyAt && g.opts.Busy != nil {
		g.busy.Do(g.opts.Busy)
	}
	serving := g.tenant.serving()
	identify(w, g.opts.Gateway, serving)
	found, ok := g.table[r.URL.Path]
	if ok && found.Access == private {
		// Any form of the header counts, also an empty one.
		if _, through := r.Header[headerEpoch]; through {
			g.refuse(w, r, fault.New(fault.Forbidden, "this path is for the agent on its host alone"))
			return
		}
	} else if serving == nil || r.Header.Get(headerEpoch) != serving.Epoch.String() || len(r.Header.Values(headerEpoch)) != 1 {
		g.refuse(w, r, stale(r, serving))
		return
	}
	switch {
	case !ok:
		g.refuse(w, r, fault.New(fault.NotFound, "there is nothing at this path"))
	case r.Method != found.Method && !(r.Method == http.MethodHead && found.Method == http.MethodGet):
		w.Header().Set("Allow", found.Method)
		g.problem(w, http.StatusMethodNotAllowed, fault.New(fault.InvalidRequest, "this path is for %s", found.Method))
	default:
		found.handler(w, r)
	}
}

// identify puts gateway and epoch on an answer. Epoch 0 is no organization.
func identify(w http.ResponseWriter, gateway id.Gateway, serving *grant) {
	var epoch id.Epoch
	if serving != nil {
		epoch = serving.Epoch
	}
	w.Header().Set(api.HeaderGateway, string(gateway))
	w.Header().Set(headerEpoch, epoch.String())
}

// health answers who this process is and whom it serves.
func (g *Gateway) health(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, "application/json", g.Health())
}

// Health is what the gateway says of itself. An organization that drains is still named: the process has it.
func (g *Gateway) Health() api.GatewayHealth {
	h := api.GatewayHealth{GatewayID: string(g.opts.Gateway), BootID: g.boot, Release: g.opts.Release, Connections: g.sockets.count()}
	if held := g.tenant.holding(); held != nil {
		h.OrganizationID, h.Epoch = string(held.Organization), uint64(held.Epoch)
	}
	return h
}

func (g *Gateway) handleActivate(w http.ResponseWriter, r *http.Request) {
	var body api.Activate
	if err := decode(w, r, g.opts.MaxBody, &body); err != nil {
		g.refuse(w, r, err)
		return
	}
	next, err := parseGrant(body)
	if err == nil {
		err = g.tenant.activate(next)
	}
	if err != nil {
		g.log.Warn("activation refused", "organization", body.OrganizationID, "epoch", body.Epoch, "error", err)
		g.refuse(w, r, err)
		return
	}
	g.log.Info("organization activated", "organization", next.Organization, "epoch", next.Epoch, "members", len(next.Members), "projects", len(next.Projects))
	identify(w, g.opts.Gateway, next)
	g.health(w, r)
}

func (g *Gateway) handleDeactivate(w http.ResponseWriter, r *http.Request) {
	var body api.Deactivate
	err := decode(w, r, g.opts.MaxBody, &body)
	if err == nil {
		// The drain may be longer than a request may take to arrive.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		err = g.deactivate(r.Context(), id.Epoch(body.Epoch), time.Duration(body.Drain))
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	identify(w, g.opts.Gateway, g.tenant.serving())
	g.health(w, r)
}
