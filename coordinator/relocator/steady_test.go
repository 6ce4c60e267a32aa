package relocator_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/relocator"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Hosts that report all the time are not looked at for each word of theirs.
func TestSteadyChangesGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.New()
		machine := fsm.New(store, nil)
		var looks atomic.Int64
		r := relocator.New(relocator.Options{
			Store: store, FencedBy: func(id.Host) time.Time { return time.Now() }, Lease: time.Second, Logger: hclog.NewNullLogger(),
			Now: func() time.Time { looks.Add(1); return time.Now() },
		})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { r.Run(ctx) })
		for i := range 1000 {
			data, err := command.Encode(command.ObserveHost{
				Meta: command.Meta{At: time.Now(), Actor: "test"}, Host: "h1", Instance: "i",
				Report: &command.HostReport{Address: "192.0.2.1", Capacity: i, NginxState: api.NginxServing},
			})
			if err != nil {
				t.Fatal(err)
			}
			machine.Apply(&raft.Log{Index: uint64(i + 1), Type: raft.LogCommand, Data: data})
			time.Sleep(time.Millisecond)
		}
		if n := looks.Load() / 2; n < 50 || n > 110 { // each asks for the time twice
			t.Errorf("%d looks in a second", n)
		}
		cancel()
		running.Wait()
	})
}
