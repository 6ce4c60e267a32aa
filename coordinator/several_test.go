package coordinator_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), coordtest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// makeReady puts a pool of this many gateways and waits until they are ready.
func makeReady(t *testing.T, s *coordtest.Several, size int) {
	t.Helper()
	ctx := within(t)
	if _, err := s.Leader().Admin.PutPool(ctx, "default", api.PutPool{MinReady: &size, Max: &size}); err != nil {
		t.Fatal(err)
	}
	coordtest.Eventually(t, "the gateways are ready", func() bool {
		p, err := s.Leader().Admin.Pool(ctx, "default")
		return err == nil && p.Counts.Ready == size
	})
}

// TestAPlaceInLineOutlivesTheFollowerThatWasAsked: to the leader it looks as if the caller had gone.
func TestAPlaceInLineOutlivesTheFollowerThatWasAsked(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	s.Agent("h1", 10, coordtest.Script{})
	makeReady(t, s, 1)
	leader, asked, next := s.Leader(), s.Followers()[0], s.Followers()[1]
	orgs := []string{string(id.NewOrganization()), string(id.NewOrganization())}
	for _, org := range orgs {
		if _, err := leader.Admin.PutOrganization(ctx, org, api.PutOrganization{Name: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	first, _, err := leader.Admin.Start(ctx, api.StartAllocation{OrganizationID: orgs[0]})
	if err != nil {
		t.Fatal(err)
	}
	left, done := make(chan struct{}), make(chan error, 1)
	go func() {
		start := func(n *coordtest.Node) error {
			_, _, err := n.Admin.Start(ctx, api.StartAllocation{OrganizationID: orgs[1], Wait: seconds(240)}, client.IdempotencyKey("one"))
			return err
		}
		if err := start(asked); err == nil {
			t.Error("the one that was stopped answered")
		}
		close(left)
		done <- start(next)
	}()
	coordtest.Eventually(t, "it stands in line", func() bool {
		p, err := leader.Admin.Pool(ctx, "default")
		return err == nil && p.Queued == 1
	})
	asked.Stop()
	<-left
	if _, err := leader.Admin.Release(ctx, first.AllocationID, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the caller in line: %v", err)
	}
}

// TestAnyCoordinatorTakesAnyCall: followers pass calls on, and what was done through one is seen through all.
func TestAnyCoordinatorTakesAnyCall(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	s.Agent("h1", 10, coordtest.Script{})
	makeReady(t, s, 3)
	for _, n := range s.Nodes {
		org := string(id.NewOrganization())
		if _, err := n.Admin.PutOrganization(ctx, org, api.PutOrganization{Name: n.ID}); err != nil {
			t.Fatalf("through %s: %v", n.ID, err)
		}
		first, created, err := n.Admin.Start(ctx, api.StartAllocation{OrganizationID: org, Wait: seconds(20)}, client.IdempotencyKey("start-"+n.ID))
		if err != nil || !created {
			t.Fatalf("through %s: %+v, %t, %v", n.ID, first, created, err)
		}
		for _, other := range s.Nodes {
			// The same call with the same key, to whom ever, has the same answer.
			again, _, err := other.Admin.Start(ctx, api.StartAllocation{OrganizationID: org, Wait: seconds(20)}, client.IdempotencyKey("start-"+n.ID))
			if err != nil || again.AllocationID != first.AllocationID || again.Epoch != first.Epoch {
				t.Errorf("through %s and again through %s: %+v, %v", n.ID, other.ID, again, err)
			}
			var index uint64
			if _, err := other.Admin.Organization(ctx, org, client.IndexTo(&index)); err != nil || index == 0 {
				t.Errorf("read through %s: index %d, %v", other.ID, index, err)
			}
			if _, err := other.Admin.Organization(ctx, org, client.Consistency("consistent")); err != nil {
				t.Errorf("consistent read through %s: %v", other.ID, err)
			}
			// What a coordinator has itself comes a moment later.
			coordtest.Eventually(t, "a stale read has it", func() bool {
				o, err := other.Admin.Organization(ctx, org, client.Consistency("stale"))
				return err == nil && o.Name == n.ID
			})
		}
	}
	s.SameState()
}

// TestFollowersBelieveNoCallersAddress: the address in an event is the caller's, whoever it asked, and what
// a caller says of it does not count.
func TestFollowersBelieveNoCallersAddress(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	follower := s.Followers()[0]
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, follower.URL+"/v1/organizations/"+string(id.NewOrganization()), strings.NewReader(`{"name":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Demiurge-Caller", "192.0.2.66")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("status %d", resp.StatusCode)
	}
	events, err := s.Leader().Admin.ListEvents(ctx, client.EventQuery{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Type == "organization.created" {
			if e.Source != "127.0.0.1" {
				t.Errorf("the event says that the call came from %q", e.Source)
			}
			return
		}
	}
	t.Error("there is no event of the call")
}

// TestLeaderIsLost: another coordinator leads, nothing that was acknowledged is lost, the agents find the
// new leader, and the former one comes back as a follower.
func TestLeaderIsLost(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	s.Agent("h1", 10, coordtest.Script{})
	makeReady(t, s, 4)
	start := func(n *coordtest.Node) api.Allocation {
		t.Helper()
		org := string(id.NewOrganization())
		if _, err := n.Admin.PutOrganization(ctx, org, api.PutOrganization{Name: "o"}); err != nil {
			t.Fatal(err)
		}
		a, _, err := n.Admin.Start(ctx, api.StartAllocation{OrganizationID: org, Wait: seconds(20)})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	old := s.Leader()
	before := start(old)
	old.Stop()
	next := s.Leader()
	if got, err := next.Admin.OrganizationAllocation(ctx, before.OrganizationID); err != nil || got.Epoch != before.Epoch || got.State != before.State {
		t.Fatalf("after the leader was lost: %+v, %v", got, err)
	}
	after := start(next)
	if after.Epoch <= before.Epoch {
		t.Errorf("the epoch fell from %d to %d", before.Epoch, after.Epoch)
	}
	old.Start()
	s.Leader()
	start(old)
	s.SameState()
}

// TestAStoppedLeaderLetsAnotherLead: when it has ended, another one is at it. That takes long (slow) for those who have to miss
// it first.
func TestAStoppedLeaderLetsAnotherLead(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3, func(c *coordinator.Config) { c.Raft.Profile = "slow" })
	ctx := within(t)
	old, others := s.Leader(), s.Followers()
	old.Stop()
	names := map[string]bool{}
	for _, n := range others {
		st, err := n.Admin.Status(ctx, client.Consistency("stale"))
		if err != nil {
			t.Fatal(err)
		}
		names[st.Leader] = true
	}
	if len(names) == 1 && names[old.ID] {
		t.Errorf("%s has ended, and the others take it for the leader", old.ID)
	}
}

// TestCoordinatorIsReplaced: one that joins is brought in, and one that is removed is out.
func TestCoordinatorIsReplaced(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 1)
	ctx := within(t)
	org := string(id.NewOrganization())
	if _, err := s.Leader().Admin.PutOrganization(ctx, org, api.PutOrganization{Name: "early"}); err != nil {
		t.Fatal(err)
	}
	s.Add()
	s.Add()
	coordtest.Eventually(t, "all three vote", func() bool {
		st, err := s.Leader().Admin.Status(ctx)
		if err != nil || len(st.Peers) != 3 {
			return false
		}
		for _, p := range st.Peers {
			if !p.Voter {
				return false
			}
		}
		return true
	})
	s.SameState()
	s.Nodes[0].Stop()
	if o, err := s.Leader().Admin.Organization(ctx, org); err != nil || o.Name != "early" {
		t.Errorf("after the first coordinator is gone: %+v, %v", o, err)
	}
}

// TestFollowersBelieveNoCallersIdentity: a caller without a certificate is not a host's agent because it
// says so in the header by which coordinators tell each other, whomever it asks.
func TestFollowersBelieveNoCallersIdentity(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	s.Agent("h1", 1, coordtest.Script{})
	st, err := s.Leader().Admin.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	forged := fmt.Sprintf("demiurge://%s/agent/h1 %d %d", st.ClusterID, now-60, now+3600)
	for _, n := range s.Nodes {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.URL+"/v1/agent/observations", strings.NewReader(`{"host_id":"h1","instance":"forged"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Demiurge-Identity", forged)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s answers a forged identity with %d, want 401", n.ID, resp.StatusCode)
		}
	}
}
