package httpapi

import (
	"context"
	"iter"
	"net/http"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

type listGatewaysInput struct {
	Reading
	Paging
	Pool         string `query:"pool"`
	Host         string `query:"host_id"`
	Organization string `query:"organization_id"`
	State        string `query:"state" enum:"pending,starting,ready,reserved,allocated,draining,recycling,unhealthy,lost,reconciling,failed,quarantined,terminating,terminated"`
}

func (s *Server) listGateways(ctx context.Context, in *listGatewaysInput) (*answer[api.List[api.Gateway]], error) {
	var c checks
	pool := optional(&c, "query.pool", in.Pool, id.ParsePool)
	host := optional(&c, "query.host_id", in.Host, id.ParseHost)
	org := optional(&c, "query.organization_id", in.Organization, id.ParseOrganization)
	p := paging(&c, in.Paging, id.ParseGateway)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.List[api.Gateway], error) {
		keep := func(g *state.Gateway) bool {
			return like(pool, g.Pool) && like(org, g.Desired.Organization) && like(in.State, string(g.State))
		}
		list := watching(ws, v.GatewaysAfter)
		if host != "" {
			list = func(after id.Gateway) iter.Seq[*state.Gateway] { return v.GatewaysOfHostAfter(ws, host, after) }
		}
		return page(p, list, func(g *state.Gateway) id.Gateway { return g.ID }, keep, gateway), nil
	})
}

type gatewayInput struct {
	Reading
	ID string `path:"id" doc:"Gateway" example:"gw-abcdefghij"`
}

func (s *Server) getGateway(ctx context.Context, in *gatewayInput) (*answer[api.Gateway], error) {
	var c checks
	g := parse(&c, "path.id", in.ID, id.ParseGateway)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.Gateway, error) {
		rec := v.Gateway(ws, g)
		if rec == nil {
			return api.Gateway{}, noGateway(g)
		}
		return gateway(rec), nil
	})
}

func noGateway(g id.Gateway) *fault.Error {
	return fault.New(fault.NotFound, "gateway %s is not known; `demiurge gateway list` shows those that are", g)
}

type gatewayPathInput struct {
	ID string `path:"id" doc:"Gateway" example:"gw-abcdefghij"`
}

func (s *Server) recycleGateway(ctx context.Context, in *gatewayPathInput) (*changed[api.Gateway], error) {
	return s.changeGateway(ctx, in.ID, func(m command.Meta, g id.Gateway) command.Command {
		return command.RecycleGateway{Meta: m, Gateway: g, Reason: "requested"}
	})
}

func (s *Server) quarantineGateway(ctx context.Context, in *gatewayPathInput) (*changed[api.Gateway], error) {
	return s.changeGateway(ctx, in.ID, func(m command.Meta, g id.Gateway) command.Command {
		return command.QuarantineGateway{Meta: m, Gateway: g, Reason: "requested"}
	})
}

// changeGateway proposes a change and answers with what the gateway is then.
func (s *Server) changeGateway(ctx context.Context, raw string, cmd func(command.Meta, id.Gateway) command.Command) (*changed[api.Gateway], error) {
	var c checks
	g := parse(&c, "path.id", raw, id.ParseGateway)
	if err := c.err(); err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, cmd(s.meta(ctx), g)); err != nil {
		return nil, err
	}
	v := s.opts.Store.View()
	rec := v.Gateway(nil, g)
	if rec == nil {
		return nil, noGateway(g)
	}
	return &changed[api.Gateway]{Status: http.StatusOK, Index: v.Index(), Body: gateway(rec)}, nil
}
