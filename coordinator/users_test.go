package coordinator_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
	"github.com/demiurge-platform/demiurge/shared/usertoken/usertokentest"
)

// TestUsersAreHeardThroughFollowers: whichever coordinator a user asks, the leader looks at the token and at
// who is a member, so a removal that was answered counts everywhere.
func TestUsersAreHeardThroughFollowers(t *testing.T) {
	t.Parallel()
	key := usertokentest.NewKey(t, "k1")
	issuer := usertokentest.File(t, key)
	s := coordtest.StartSeveral(t, 3, func(c *coordinator.Config) { c.Auth.Issuers = []usertoken.Issuer{issuer} })
	leader, follower := s.Leader(), s.Followers()[0]
	ctx, cancel := context.WithTimeout(context.Background(), coordtest.Patience)
	defer cancel()
	org := string(id.NewOrganization())
	if _, err := leader.Admin.PutOrganization(ctx, org, api.PutOrganization{Name: "Example", Members: []api.Member{{UserID: "alice", Role: "owner"}, {UserID: "bob", Role: "admin"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := leader.Admin.PutPool(ctx, "default", api.PutPool{}); err != nil {
		t.Fatal(err)
	}
	as := func(user string) *client.Client {
		c, err := client.New(client.Options{Addresses: []string{follower.URL}, Token: usertokentest.Sign(t, key, usertokentest.For(user, time.Now())), RetryFor: coordtest.Patience})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// There is no host, so a member gets as far as the empty pool.
	if _, _, err := as("bob").Start(ctx, api.StartAllocation{OrganizationID: org}); !fault.Is(err, fault.PoolExhausted) && !fault.Is(err, fault.NoEligibleHost) {
		t.Errorf("a member: %v", err)
	}
	if _, _, err := as("mallory").Start(ctx, api.StartAllocation{OrganizationID: org}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := as("bob").Pool(ctx, "default"); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a member asks for a pool: %v", err)
	}
	if _, err := leader.Admin.DeleteMember(ctx, org, "bob"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := as("bob").Start(ctx, api.StartAllocation{OrganizationID: org}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("who was removed: %v", err)
	}
	coordtest.Eventually(t, "the refusal is an event with actor and source", func() bool {
		events, _ := leader.Admin.ListEvents(ctx, client.EventQuery{Topics: []string{"token"}})
		for _, e := range events {
			if e.Actor == "user/platform/bob" && e.Source == "127.0.0.1" && e.Code == string(fault.Forbidden) && strings.Contains(e.Reason, "POST /v1/allocations") {
				return true
			}
		}
		return false
	})
}

func TestAKeyFileThatIsMissingIsNamed(t *testing.T) {
	t.Parallel()
	cfg := coordinator.DefaultConfig()
	cfg.NodeID, cfg.DataDir, cfg.Domain = "c1", t.TempDir(), "example.org"
	cfg.API.Listen = "127.0.0.1:0"
	issuer := usertokentest.File(t, usertokentest.NewKey(t, "k1"))
	issuer.JWKSFile += ".missing"
	cfg.Auth.Issuers = []usertoken.Issuer{issuer}
	c, err := coordinator.New(coordinator.Options{Config: cfg, Logger: hclog.NewNullLogger()})
	if err == nil {
		_ = c.Stop(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), issuer.JWKSFile) || !strings.Contains(err.Error(), "auth.issuers") {
		t.Errorf("%v", err)
	}
}
