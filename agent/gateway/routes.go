package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strings"
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
	// public is for anybody, through nginx, at the current epoch only. It tells nothing about the organization.
	public
	// member is public for those members of the organization whom the row's action is allowed in the project of
	// its path. The agent knows who that is (guard).
	member
)

// The actions of rows and events.
const (
	readRoom  = "room:read"
	writeRoom = "room:write"
)

// route is one row of the table.
type route struct {
	Method  string
	Path    string // its last element may be {project_id}
	Access  access
	Action  string // of member
	handler http.HandlerFunc
}

// routes is all that a gateway answers. What is not here is denied.
func (g *Gateway) routes() []route {
	return []route{
		{http.MethodGet, "/healthz", private, "", g.health},
		{http.MethodPost, "/control/activate", private, "", g.handleActivate},
		{http.MethodPost, "/control/deactivate", private, "", g.handleDeactivate},
		{http.MethodGet, "/", public, "", g.page.serve},
		{http.MethodGet, "/collab/ping", public, "", g.health},
		{http.MethodGet, "/echo", public, "", g.echo},
		{http.MethodGet, "/project/" + projectParameter, member, readRoom, g.project},
	}
}

const projectParameter = "{project_id}"

// checkTable refuses a row that does not say who may use it.
func checkTable(rows []route) error {
	for _, r := range rows {
		if r.Access < private || r.Access > member || (r.Access == member) != (r.Action != "") {
			return fmt.Errorf("cannot serve %s %s: the row does not say who may use it", r.Method, r.Path)
		}
	}
	return nil
}

// find gives the row of a path, and the project that the path names.
func (g *Gateway) find(path string) (found *route, project string) {
	for i := range g.table {
		r := &g.table[i]
		if prefix, ok := strings.CutSuffix(r.Path, projectParameter); ok {
			if rest, ok := strings.CutPrefix(path, prefix); ok && rest != "" && !strings.Contains(rest, "/") {
				return r, rest
			}
		} else if r.Path == path {
			return r, ""
		}
	}
	return nil, ""
}

// serve is the way in for every request.
func (g *Gateway) serve(w http.ResponseWriter, r *http.Request) {
	defer g.open.Add(-1)
	if g.open.Add(1) >= busyAt && g.opts.Busy != nil {
		g.busy.Do(g.opts.Busy)
	}
	serving := g.tenant.serving()
	identify(w, g.opts.Gateway, serving)
	found, project := g.find(r.URL.Path)
	if found != nil && found.Access == private {
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
	case found == nil:
		g.refuse(w, r, fault.New(fault.NotFound, "there is nothing at this path"))
	case r.Method != found.Method && !(r.Method == http.MethodHead && found.Method == http.MethodGet):
		w.Header().Set("Allow", found.Method)
		g.problem(w, http.StatusMethodNotAllowed, fault.New(fault.InvalidRequest, "this path is for %s", found.Method))
	case found.Access == member:
		who, err := g.guard.ask(r.Context(), asking{credentialsOf(r), found.Action, project})
		if fault.Is(err, fault.Internal) { // closed while nobody knows who may come in
			g.log.Error("nobody says who may do this", "path", found.Path, "error", err)
			w.Header().Set("Retry-After", "1")
			g.problem(w, http.StatusServiceUnavailable, fault.New(fault.Internal, "it cannot be found out at the moment who may do this: try again"))
			return
		}
		if err != nil {
			g.refuse(w, r, err)
			return
		}
		found.handler(w, r.WithContext(context.WithValue(r.Context(), visitorKey{}, who)))
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
