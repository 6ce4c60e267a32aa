package consensus_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
)

// steady is a disk whose log writes take the same time each.
type steady struct {
	consensus.Store
	write  func()
	writes int
}

func (s *steady) StoreLogs(logs []*raft.Log) error {
	s.write()
	s.writes++
	return s.Store.StoreLogs(logs)
}

// TestABusyLogIsWrittenInGroups proposes ten commands a millisecond, in virtual time. The disk would take five of them
// with each write.
func TestABusyLogIsWrittenInGroups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		opts, state, disk := options(t.TempDir(), nil), &ledger{}, &steady{write: func() { time.Sleep(500 * time.Microsecond) }}
		_, opts.Transport = raft.NewInmemTransport("")
		opts.Listen, opts.FSM = "", state
		opts.WrapStore = func(s consensus.Store) consensus.Store {
			disk.Store = s
			return disk
		}
		n := open(t, opts)
		leads(t, n)
		before := disk.writes
		var wg sync.WaitGroup
		const commands = 2000
		for i := range commands {
			wg.Go(func() {
				came := time.Now()
				if _, _, err := n.Propose(context.Background(), []byte{1}); err != nil {
					t.Error(err)
				}
				if took := time.Since(came); took > 10*time.Millisecond {
					t.Errorf("command %d took %s", i, took)
				}
			})
			time.Sleep(100 * time.Microsecond)
		}
		wg.Wait()
		if got := len(state.all()); got != commands {
			t.Errorf("%d commands are applied, want %d", got, commands)
		}
		if took := disk.writes - before; took > 100 {
			t.Errorf("%d commands in 200 ms took %d writes, want one in about 4 ms", commands, took)
		}
		time.Sleep(time.Second)
		for range 10 { // one caller, one after the other
			came := time.Now()
			if _, _, err := n.Propose(context.Background(), []byte{2}); err != nil {
				t.Error(err)
			}
			if took := time.Since(came); took != 500*time.Microsecond {
				t.Errorf("a command alone took %s, want no longer than its write", took)
			}
		}
		shut(t, n)
	})
}
