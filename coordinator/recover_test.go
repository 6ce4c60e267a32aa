package coordinator_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// TestRecoverFromLostQuorum: two of three coordinators are lost for good. The third goes on with everything
// that was acknowledged, and two new ones join it.
func TestRecoverFromLostQuorum(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	var orgs []string
	for range 10 {
		org := string(id.NewOrganization())
		if _, err := s.Leader().Admin.PutOrganization(within(t), org, api.PutOrganization{Name: "kept"}); err != nil {
			t.Fatal(err)
		}
		orgs = append(orgs, org)
	}
	s.SameState()
	last := s.Followers()[0]
	path := filepath.Join(t.TempDir(), "coordinator.yaml")
	text := "node_id: " + last.ID + "\ndata_dir: " + last.Config.DataDir + "\ndomain: example.org\nraft:\n  listen: " + last.Config.Raft.Listen + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	opts := coordinator.RecoverOptions{Path: path, Yes: true, Out: &out}
	if err := coordinator.Recover(opts); err == nil || !strings.Contains(err.Error(), "another running process") {
		t.Fatalf("recovered while it runs: %v", err)
	}
	for _, n := range s.Nodes {
		n.Stop()
	}
	opts.Yes = false
	if err := coordinator.Recover(opts); !errors.Is(err, coordinator.ErrNotConfirmed) || !strings.Contains(out.String(), last.Config.DataDir) {
		t.Fatalf("without a word of the operator: %v, %s", err, out.String())
	}
	copies := func() int {
		found, err := filepath.Glob(filepath.Join(last.Config.DataDir, "raft.before-recovery-*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	if copies() != 0 {
		t.Error("something was done without a word of the operator")
	}
	opts.Yes = true
	if err := coordinator.Recover(opts); err != nil || copies() != 1 {
		t.Fatalf("%v, %d copies", err, copies())
	}
	last.Start()
	check := func() {
		t.Helper()
		leader := s.Leader()
		for _, org := range orgs {
			if o, err := leader.Admin.Organization(within(t), org); err != nil || o.Name != "kept" {
				t.Errorf("%+v, %v", o, err)
			}
		}
	}
	if leader := s.Leader(); leader != last {
		t.Fatalf("%s leads", leader.ID)
	}
	check()
	s.Add()
	s.Add()
	coordtest.Eventually(t, "three vote again", func() bool {
		peers, err := s.Leader().Admin.RaftPeers(within(t))
		voters := 0
		for _, p := range peers {
			if p.Voter {
				voters++
			}
		}
		return err == nil && voters == 3
	})
	last.Stop()
	check()
	s.SameState()
}
