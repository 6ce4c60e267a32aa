package state_test

import (
	"bytes"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// FuzzLoad: whatever bytes are loaded, nothing panics, and what can be loaded is saved and loaded as the same.
func FuzzLoad(f *testing.F) {
	s := state.New()
	write(s, 1, func(x *state.Txn) {
		x.PutHost(state.Host{ID: "h1", Status: api.HostAlive})
		x.PutPool(state.Pool{Name: "a"})
		x.PutGateway(gateway(1, "h1", "a", api.PhaseReady), "")
		x.PutAllocation(state.Allocation{ID: al(1), Organization: "o1", Pool: "a", State: state.AllocationQueued}, "")
	})
	var saved bytes.Buffer
	if err := s.Checkpoint().Save(&saved); err != nil {
		f.Fatal(err)
	}
	f.Add(saved.Bytes())
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, data []byte) {
		loaded, err := state.Load(bytes.NewReader(data))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := loaded.Checkpoint().Save(&again); err != nil {
			t.Fatalf("what was loaded cannot be saved: %v", err)
		}
		back, err := state.Load(&again)
		if err != nil {
			t.Fatalf("what was saved cannot be loaded: %v", err)
		}
		if back.Checkpoint().Hash() != loaded.Checkpoint().Hash() {
			t.Fatal("another state was loaded than was saved")
		}
	})
}
