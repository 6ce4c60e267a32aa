package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// A pool's activation timeout is from activationLeast to activationLimit.
const (
	activationLeast = 100 * time.Millisecond
	activationLimit = 5 * time.Minute
)

// memoryLeast is the lowest limit of a gateway's memory, in bytes: below it somebody meant another unit.
const memoryLeast = 1 << 20

type listPoolsInput struct {
	Reading
	Paging
}

func (s *Server) listPools(ctx context.Context, in *listPoolsInput) (*answer[api.List[api.Pool]], error) {
	var c checks
	p := paging(&c, in.Paging, id.ParsePool)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.List[api.Pool], error) {
		return page(p, watching(ws, v.PoolsAfter), func(p *state.Pool) id.Pool { return p.Name }, every, s.converter(v, ws).pool), nil
	})
}

type poolInput struct {
	Reading
	Name string `path:"name"`
}

func (s *Server) getPool(ctx context.Context, in *poolInput) (*answer[api.Pool], error) {
	var c checks
	name := parse(&c, "path.name", in.Name, id.ParsePool)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.Pool, error) {
		rec := v.Pool(ws, name)
		if rec == nil {
			return api.Pool{}, noPool(name)
		}
		return s.converter(v, ws).pool(rec), nil
	})
}

func noPool(name id.Pool) *fault.Error {
	return fault.New(fault.NotFound, "pool %s is not known; `demiurge pool list` shows those that are", name)
}

type putPoolInput struct {
	Name string `path:"name"`
	Body api.PutPool
}

func (s *Server) putPool(ctx context.Context, in *putPoolInput) (*changed[api.Pool], error) {
	var c checks
	name := parse(&c, "path.name", in.Name, id.ParsePool)
	if err := c.err(); err != nil {
		return nil, err
	}
	s.poolMu.Lock()
	defer s.poolMu.Unlock()
	rec := s.opts.Store.View().Pool(nil, name)
	cmd := poolSpec(&c, rec, &in.Body)
	cmd.Meta, cmd.Pool = s.meta(ctx), name
	if err := c.err(); err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, cmd); err != nil {
		return nil, err
	}
	v := s.opts.Store.View()
	now := v.Pool(nil, name)
	if now == nil {
		return nil, noPool(name)
	}
	out := &changed[api.Pool]{Status: http.StatusOK, Index: v.Index(), Body: s.converter(v, nil).pool(now)}
	if rec == nil {
		out.Status = http.StatusCreated
	}
	return out, nil
}

// poolSpec lays a request over a pool's present values, or over the defaults of a new one.
func poolSpec(c *checks, rec *state.Pool, in *api.PutPool) command.PutPool {
	cmd := command.PutPool{MinReady: 2, Step: 3, Max: 50, MaxInFlight: 10, Isolation: "serve", ActivationTimeout: 10 * time.Second}
	if rec != nil {
		cmd = command.PutPool{
			MinReady: rec.MinReady, Step: rec.Step, Max: rec.Max, MaxInFlight: rec.MaxInFlight, Release: rec.Release,
			Limits: rec.Limits, Isolation: rec.Isolation, ActivationTimeout: rec.ActivationTimeout,
		}
	}
	set(&cmd.MinReady, in.MinReady)
	set(&cmd.Step, in.Step)
	set(&cmd.Max, in.Max)
	set(&cmd.MaxInFlight, in.MaxInFlight)
	set(&cmd.Isolation, in.Isolation)
	if in.Limits != nil {
		if cmd.Limits = command.Limits(*in.Limits); cmd.Limits.MemoryBytes > 0 && cmd.Limits.MemoryBytes < memoryLeast {
			c.add("body.limits.memory_bytes", fmt.Errorf("cannot run a gateway in %d bytes of memory: want at least %d, or 0 for no limit", cmd.Limits.MemoryBytes, memoryLeast))
		}
	}
	if in.Release != nil {
		cmd.Release = parse(c, "body.release", *in.Release, versionName)
	}
	if in.ActivationTimeout != nil {
		cmd.ActivationTimeout = time.Duration(*in.ActivationTimeout)
		if v := cmd.ActivationTimeout; v < activationLeast || v > activationLimit {
			c.add("body.activation_timeout", fmt.Errorf("cannot use %s: want a duration from %s to %s", v, activationLeast, activationLimit))
		}
	}
	if cmd.MinReady > cmd.Max {
		c.add("body.min_ready", fmt.Errorf("cannot keep %d ready with a maximum of %d: raise max or lower min_ready", cmd.MinReady, cmd.Max))
	}
	return cmd
}

// set takes a value that is there.
func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

type poolNameInput struct {
	Name string `path:"name"`
}

func (s *Server) deletePool(ctx context.Context, in *poolNameInput) (*struct{}, error) {
	var c checks
	name := parse(&c, "path.name", in.Name, id.ParsePool)
	if err := c.err(); err != nil {
		return nil, err
	}
	_, err := s.propose(ctx, command.DeletePool{Meta: s.meta(ctx), Pool: name})
	return nil, err
}
