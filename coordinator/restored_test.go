package coordinator_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// TestRestoreOfAnOlderState: a snapshot is restored over what came after it.
func TestRestoreOfAnOlderState(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	var file bytes.Buffer
	goBack(t, c, func() {
		if err := c.Admin.SaveSnapshot(c.Context(), &file); err != nil {
			t.Fatal(err)
		}
	}, func() {
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(file.Bytes())), nil }
		if _, err := c.Admin.RestoreSnapshot(c.Context(), open); err != nil {
			t.Fatal(err)
		}
	})
}

// TestRecoveryFromAnOlderDirectory: the data directory is put back as it was, and recovered, as is one that lacks what
// only lost coordinators had.
func TestRecoveryFromAnOlderDirectory(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	old := filepath.Join(t.TempDir(), "old")
	goBack(t, c, func() {
		c.Stop()
		if err := os.CopyFS(old, os.DirFS(c.DataDir())); err != nil {
			t.Fatal(err)
		}
		c.Restart()
	}, func() {
		c.Stop()
		for _, step := range []func() error{
			func() error { return os.RemoveAll(filepath.Join(c.DataDir(), "raft")) },
			func() error {
				return os.CopyFS(filepath.Join(c.DataDir(), "raft"), os.DirFS(filepath.Join(old, "raft")))
			},
			func() error { return c.Recover() },
		} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		c.Restart()
	})
}

// TestADirectoryThatWasPutBackIsNoticed: without a recovery, the status says that the hosts know more, and what to do.
func TestADirectoryThatWasPutBackIsNoticed(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	c.Agent("h1", 4, coordtest.Script{})
	c.Pool("default", 2)
	raft, old := filepath.Join(c.DataDir(), "raft"), filepath.Join(t.TempDir(), "old")
	c.Stop()
	if err := os.CopyFS(old, os.DirFS(raft)); err != nil {
		t.Fatal(err)
	}
	c.Restart()
	orgs := c.Organizations(100) // so that indexes are far on
	if _, _, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: orgs[0], Wait: seconds(30)}); err != nil {
		t.Fatal(err)
	}
	c.Stop()
	if err := errors.Join(os.RemoveAll(raft), os.CopyFS(raft, os.DirFS(old))); err != nil {
		t.Fatal(err)
	}
	c.Restart()
	coordtest.Eventually(t, "the status says it", func() bool {
		st, err := c.Admin.Status(c.Context())
		return err == nil && slices.ContainsFunc(st.Problems, func(n api.StatusNote) bool {
			return n.Subject == "host h1" && strings.Contains(n.Message, "older than its hosts") && strings.Contains(n.Remedy, "demiurge-coordinator recover")
		})
	})
}

// goBack goes back to an older state: after it was saved organizations start, are released, and start once more elsewhere,
// so that hosts know grants and incarnations that the state does not. Everything that the state has is served again,
// nothing else is, and new organizations start at once or when a gateway has been wiped.
func goBack(t *testing.T, c *coordtest.Cluster, save, back func()) {
	t.Helper()
	const gateways = 8
	agents := []*coordtest.Agent{c.Agent("h1", 20, coordtest.Script{}), c.Agent("h2", 20, coordtest.Script{})}
	c.Pool("default", gateways)
	ctx := c.Context()
	orgs := c.Organizations(gateways)
	start := func(org string) api.Allocation {
		t.Helper()
		a, _, err := c.Admin.Start(ctx, api.StartAllocation{OrganizationID: org, Wait: seconds(30)})
		if err != nil {
			t.Fatalf("organization %s: %v", org, err)
		}
		return a
	}
	release := func(a api.Allocation) {
		t.Helper()
		if _, err := c.Admin.Release(ctx, a.AllocationID, 0); err != nil {
			t.Fatal(err)
		}
	}
	saved := map[string]api.Allocation{}
	for _, org := range orgs[:4] {
		saved[org] = start(org)
	}
	save()

	release(saved[orgs[0]])
	release(saved[orgs[1]])
	c.Ready("default", gateways-2)
	late := map[string]string{}
	for _, org := range append([]string{orgs[1]}, orgs[4:]...) { // on all gateways but one
		late[org] = start(org).GatewayID
	}
	more := gateways + 2
	if _, err := c.Admin.PutPool(ctx, "default", api.PutPool{Max: &more}); err != nil {
		t.Fatal(err)
	}
	c.Ready("default", gateways+2-7)
	back()

	for _, org := range orgs[4:] { // while the hosts learn of it
		if a := start(org); a.Epoch <= 1<<32 || a.State != api.AllocationActive {
			t.Errorf("organization %s: %+v", org, a)
		}
	}
	coordtest.Eventually(t, "what the state has is what the hosts serve", func() bool {
		serving, n := map[string]string{}, 0
		for _, a := range agents {
			for org, gateway := range a.Serving() {
				serving[org] = gateway
				n++
			}
		}
		all, err := c.Admin.ListAllocations(ctx, client.AllocationFilter{})
		for _, a := range all {
			if a.EndedAt != nil {
				continue
			}
			n--
			if a.State != api.AllocationActive || serving[a.OrganizationID] != a.GatewayID {
				return false
			}
		}
		return err == nil && n == 0
	})
	for i, org := range orgs[:4] {
		is, err := c.Admin.OrganizationAllocation(ctx, org)
		was := saved[org]
		if err != nil || is.AllocationID != was.AllocationID {
			t.Errorf("organization %s: %+v, %v", org, is, err)
		}
		if i < 2 && is.Epoch <= 1<<32 || i >= 2 && (is.Epoch != was.Epoch || is.GatewayID != was.GatewayID) {
			t.Errorf("organization %s was served at epoch %d by %s, and is at %d by %s", org, was.Epoch, was.GatewayID, is.Epoch, is.GatewayID)
		}
	}
	for _, a := range agents {
		for _, v := range a.Violations() {
			t.Error(v)
		}
	}
	events, err := c.Admin.ListEvents(ctx, client.EventQuery{Index: 1 << 32})
	if err != nil || len(events) == 0 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	for _, e := range events {
		if e.Type == "gateway.fenced" && !strings.Contains(e.Reason, "unknown") || e.Type == "allocation.rolling_back" {
			t.Errorf("%+v", e)
		}
	}
}
