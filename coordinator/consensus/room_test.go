package consensus_test

import (
	"errors"
	"sync/atomic"
	"testing"
)

func TestRoomIsMeasured(t *testing.T) {
	t.Parallel()
	var free atomic.Uint64
	free.Store(1 << 40)
	opts := options(t.TempDir(), &ledger{})
	opts.MinFree = 1 << 20
	opts.Free = func(string) (uint64, uint64, error) {
		if now := free.Load(); now > 0 {
			return now, 1 << 50, nil
		}
		return 0, 0, errors.New("the disk is gone")
	}
	n := open(t, opts)
	leads(t, n)
	if room := n.Room(); room.Low || room.Free != 1<<40 || room.Floor != 1<<20 {
		t.Fatalf("with room: %+v", room)
	}
	free.Store(1000)
	eventually(t, "the node has seen that its disk is nearly full", func() bool { return n.Room().Low })
	free.Store(0) // cannot be measured: as before
	if _, _, err := n.Propose(within(t), []byte("what ends something")); err != nil {
		t.Errorf("a node with little room does not write: %v", err)
	}
	free.Store(1 << 40)
	eventually(t, "the node has seen that there is room again", func() bool { return !n.Room().Low })
}
