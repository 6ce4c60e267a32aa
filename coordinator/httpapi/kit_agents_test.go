package httpapi

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// scriptedAgents sends what it is told to.
type scriptedAgents struct {
	frames   []api.AssignmentFrame
	gone     atomic.Bool
	relayed  atomic.Bool // a stream came through a coordinator that fills silence
	own      atomic.Pointer[api.HostGossip]
	observed atomic.Pointer[api.Observation]
	ahead    atomic.Uint64 // an epoch above the state
	copied   atomic.Bool   // a second agent is refused
}

func (a *scriptedAgents) Stream(ctx context.Context, _ id.Host, _, _ string, send func(api.AssignmentFrame) error) error {
	for _, f := range a.frames {
		if err := send(f); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

func (a *scriptedAgents) RelayedStream(ctx context.Context, h id.Host, instance, address string, send func(api.AssignmentFrame) error) error {
	a.relayed.Store(true)
	return a.Stream(ctx, h, instance, address, send)
}

func (a *scriptedAgents) Observe(_ context.Context, _ id.Host, o api.Observation) (uint64, error) {
	a.observed.Store(&o)
	return 42, nil
}

func (a *scriptedAgents) Ephemeral(id.Host) (api.NginxStatus, time.Time, bool) {
	return api.NginxStatus{State: api.NginxServing, Routes: 7}, time.Unix(1_700_000_000, 0), !a.gone.Load()
}

func (a *scriptedAgents) Gossip(id.Host) api.HostGossip {
	if own := a.own.Load(); own != nil {
		return *own
	}
	return api.HostGossip{}
}

func (a *scriptedAgents) Ahead(id.Host) id.Epoch { return id.Epoch(a.ahead.Load()) }

func (a *scriptedAgents) Copied(id.Host) (first, second string) {
	if a.copied.Load() {
		return "192.0.2.1 (run one)", "192.0.2.2 (run two)"
	}
	return "", ""
}
