package httpapi

import (
	"context"
	"net/http"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

type listHostsInput struct {
	Reading
	Paging
}

func (s *Server) listHosts(ctx context.Context, in *listHostsInput) (*answer[api.List[api.Host]], error) {
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.List[api.Host], error) {
		return page(in.Paging, v.Hosts(ws), func(h *state.Host) string { return string(h.ID) }, every, s.converter(v, ws).host), nil
	})
}

type hostInput struct {
	Reading
	ID string `path:"id" doc:"Host"`
}

func (s *Server) getHost(ctx context.Context, in *hostInput) (*answer[api.Host], error) {
	var c checks
	h := parse(&c, "path.id", in.ID, id.ParseHost)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.Host, error) {
		rec := v.Host(ws, h)
		if rec == nil {
			return api.Host{}, noHost(h)
		}
		return s.converter(v, ws).host(rec), nil
	})
}

func noHost(h id.Host) *fault.Error {
	return fault.New(fault.NotFound, "host %s is not known; `demiurge host list` shows those that are", h)
}

type hostPathInput struct {
	ID string `path:"id" doc:"Host"`
}

func (s *Server) cordonHost(ctx context.Context, in *hostPathInput) (*changed[api.Host], error) {
	return s.setSchedulable(ctx, in.ID, false)
}

func (s *Server) uncordonHost(ctx context.Context, in *hostPathInput) (*changed[api.Host], error) {
	return s.setSchedulable(ctx, in.ID, true)
}

func (s *Server) setSchedulable(ctx context.Context, raw string, schedulable bool) (*changed[api.Host], error) {
	var c checks
	h := parse(&c, "path.id", raw, id.ParseHost)
	if err := c.err(); err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, command.SetHostSchedulable{Meta: s.meta(ctx), Host: h, Schedulable: schedulable}); err != nil {
		return nil, err
	}
	v := s.opts.Store.View()
	rec := v.Host(nil, h)
	if rec == nil {
		return nil, noHost(h)
	}
	return &changed[api.Host]{Status: http.StatusOK, Index: v.Index(), Body: s.converter(v, nil).host(rec)}, nil
}

func (s *Server) deleteHost(ctx context.Context, in *hostPathInput) (*struct{}, error) {
	var c checks
	h := parse(&c, "path.id", in.ID, id.ParseHost)
	if err := c.err(); err != nil {
		return nil, err
	}
	_, err := s.propose(ctx, command.DeleteHost{Meta: s.meta(ctx), Host: h})
	return nil, err
}
