package httpapi

import (
	"context"
	"errors"
	"net/http"
	"time"

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
	var c checks
	p := paging(&c, in.Paging, id.ParseHost)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.List[api.Host], error) {
		return page(p, watching(ws, v.HostsAfter), func(h *state.Host) id.Host { return h.ID }, every, s.converter(v, ws).host), nil
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

// deadlineLimit bounds how long a host may be drained before it counts as overdue.
const deadlineLimit = 30 * 24 * time.Hour

type drainHostInput struct {
	ID       string `path:"id" doc:"Host"`
	Drain    string `query:"drain" doc:"How long open connections of each gateway may go on, at most 24h; default 0s" example:"30s"`
	Deadline string `query:"deadline" doc:"After this time what is left is reported, or forced; at most 720h; default: never" example:"10m"`
	Force    bool   `query:"force" doc:"At the deadline, what is left is taken off the host all the same and waits for a gateway elsewhere"`
}

func (s *Server) drainHost(ctx context.Context, in *drainHostInput) (*changed[api.Host], error) {
	var c checks
	cmd := command.DrainHost{
		Meta: s.meta(ctx), Host: parse(&c, "path.id", in.ID, id.ParseHost), Force: in.Force,
		Drain: duration(&c, "query.drain", in.Drain, drainLimit),
	}
	if deadline := duration(&c, "query.deadline", in.Deadline, deadlineLimit); deadline > 0 {
		cmd.Deadline = cmd.At.Add(deadline)
	} else if in.Force {
		c.add("query.force", errors.New("what is to be forced needs a deadline"))
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, cmd); err != nil {
		return nil, err
	}
	v := s.opts.Store.View()
	rec := v.Host(nil, cmd.Host)
	if rec == nil {
		return nil, noHost(cmd.Host)
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
