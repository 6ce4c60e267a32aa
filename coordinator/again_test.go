package coordinator_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// TestACoordinatorThatMissedARotationJoinsAgain: it was stopped for the whole overlap, so nobody accepts its certificate.
// It joins with a token, keeps its data, and catches up.
func TestACoordinatorThatMissedARotationJoinsAgain(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	s.SameState()
	leader, away := s.Leader(), s.Followers()[0]
	away.Stop()
	if err := leader.Run().RotateCA(ctx, 2*time.Second); err != nil {
		t.Fatal(err)
	}
	org := string(id.NewOrganization())
	if _, err := s.Leader().Admin.PutOrganization(ctx, org, api.PutOrganization{Name: "meanwhile"}); err != nil {
		t.Fatal(err)
	}
	over := time.Now().Add(3 * time.Second)
	coordtest.Eventually(t, "the overlap is over", func() bool { return time.Now().After(over) })
	made, err := s.Leader().Admin.CreateJoinToken(ctx, api.CreateJoinToken{Role: "coordinator", Name: away.ID})
	if err != nil {
		t.Fatal(err)
	}
	again := func(change func(*coordinator.JoinOptions)) (string, error) {
		var out bytes.Buffer
		cfg := *away.Config
		o := coordinator.JoinOptions{Config: &cfg, Token: made.Secret, Address: []string{s.Leader().Config.API.Listen}, Again: true, Out: &out}
		change(&o)
		err := coordinator.Join(ctx, o)
		return out.String(), err
	}
	if said, err := again(func(o *coordinator.JoinOptions) { o.Again = false }); err != nil || !strings.Contains(said, "--again") {
		t.Fatalf("%q, %v", said, err)
	}
	if said, err := again(func(*coordinator.JoinOptions) {}); err != nil || !strings.Contains(said, "again") {
		t.Fatalf("%q, %v", said, err)
	}
	away.Start()
	s.SameState()
	if said, err := again(func(*coordinator.JoinOptions) {}); err == nil || !strings.Contains(err.Error(), "another running process holds it; stop that process first") {
		t.Errorf("while it runs: %q, %v", said, err)
	}

	// One with the key of another cluster is left as it is.
	if made, err = s.Leader().Admin.CreateJoinToken(ctx, api.CreateJoinToken{Role: "coordinator", Name: "c9"}); err != nil {
		t.Fatal(err)
	}
	_, err = again(func(o *coordinator.JoinOptions) {
		o.Config.DataDir, o.Config.NodeID = t.TempDir(), "c9"
		o.Config.Cluster.KeyFile = filepath.Join(o.Config.DataDir, "other.key")
		if err := os.WriteFile(o.Config.Cluster.KeyFile, []byte(pki.NewKey().Reveal()), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("with another cluster's key: %v", err)
	}
}
