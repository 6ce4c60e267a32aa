package consensus_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
)

// TestRecoverFromLostQuorum: of three, two are lost for good. The third goes on alone with everything that
// was acknowledged, and new ones join.
func TestRecoverFromLostQuorum(t *testing.T) {
	t.Parallel()
	for name, snapshot := range map[string]bool{"from the log": false, "from a snapshot and the log": true} {
		t.Run(name, func(t *testing.T) {
			members := cluster(t, 3, func(_ int, o *consensus.Options) { o.TrailingLogs = 1 })
			settle(t, members, "begin")
			want := proposeMany(t, leader(t, members).Node, "acknowledged", 20)
			last := members[2]
			if snapshot {
				settle(t, members, "middle")
				if err := last.Snapshot(within(t)); err != nil {
					t.Fatal(err)
				}
			}
			settle(t, members, "end")
			want = append([]string{"begin"}, want...)
			if snapshot {
				want = append(want, "middle")
			}
			want = append(want, "end")

			opts := last.opts
			opts.Listener, opts.Advertise = nil, last.Address()
			backup := filepath.Join(t.TempDir(), "before")
			if _, err := consensus.Recover(opts, backup); err == nil || !strings.Contains(err.Error(), "another running process") {
				t.Fatalf("recovered while the node runs: %v", err)
			}
			for _, m := range members {
				shut(t, m.Node)
			}
			opts.FSM = &ledger{}
			did, err := consensus.Recover(opts, backup)
			if err != nil {
				t.Fatal(err)
			}
			if did.Index == 0 || did.Term == 0 || len(did.Members) != 3 {
				t.Errorf("it did %+v", did)
			}
			if _, err := os.Stat(filepath.Join(backup, "wal")); err != nil {
				t.Errorf("there is no copy: %v", err)
			}
			if _, err := consensus.Recover(opts, backup); err == nil {
				t.Error("a copy was written over another one")
			}
			// A second time, as after an interruption, does no harm.
			opts.FSM = &ledger{}
			if again, err := consensus.Recover(opts, backup+"-2"); err != nil || again.Index <= did.Index || len(again.Members) != 1 {
				t.Errorf("the second time: %+v, %v", again, err)
			}

			state := &ledger{}
			opts.FSM, opts.Listen, opts.Advertise, opts.Peers = state, last.Address(), "", nil
			opts.Transport = nil
			alone := open(t, opts)
			leads(t, alone)
			same(t, state.all(), want)
			want = append(want, proposeMany(t, alone, "after", 3)...)
			if next := propose(t, alone, "next"); next < did.Index+1<<32 {
				t.Errorf("index %d after the recovery may be one that only the lost ones had: theirs began at %d", next, did.Index)
			}
			want = append(want, "next")

			for _, id := range []string{"c4", "c5"} {
				fresh := &ledger{}
				o := options(t.TempDir(), fresh)
				o.NodeID, o.Bootstrap, o.Profile = id, false, consensus.ProfileDefault
				n := open(t, o)
				if err := alone.AddVoter(within(t), id, n.Address()); err != nil {
					t.Fatal(err)
				}
				propose(t, alone, "with "+id)
				want = append(want, "with "+id)
				eventually(t, id+" has everything", func() bool { return len(fresh.all()) == len(want) })
				same(t, fresh.all(), want)
			}
		})
	}
}

func TestRecoverRefusesWhatIsNoNode(t *testing.T) {
	t.Parallel()
	opts := options(t.TempDir(), &ledger{})
	opts.Advertise = "127.0.0.1:1"
	backup := filepath.Join(t.TempDir(), "before")
	if _, err := consensus.Recover(opts, backup); err == nil || !strings.Contains(err.Error(), "not a data directory") {
		t.Errorf("an empty directory: %v", err)
	}
	if left, err := os.ReadDir(opts.Dir); err != nil || len(left) != 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	n := open(t, options(opts.Dir, &ledger{}))
	leads(t, n)
	shut(t, n)
	opts.NodeID = "c2"
	if _, err := consensus.Recover(opts, backup); err == nil || !strings.Contains(err.Error(), `belongs to node "c1"`) {
		t.Errorf("another node's directory: %v", err)
	}
	if _, err := os.Stat(backup); err == nil {
		t.Error("a refused recovery left a copy")
	}
}
