package coordinator_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// TestAStaleReadIsRefusedAsByTheLeader: what a follower answers from its own state it refuses like the leader, and it is
// an event with actor and source.
func TestAStaleReadIsRefusedAsByTheLeader(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	reader, err := s.Leader().Admin.CreateToken(ctx, api.CreateToken{Role: api.RoleReader, Name: "reader"})
	if err != nil {
		t.Fatal(err)
	}
	s.SameState()
	follower := s.Followers()[0]
	for name, c := range map[string]struct {
		path, token, actor string
		status             int
	}{
		"a token that nobody knows":             {"/v1/hosts", strings.Repeat("0", 64), "anonymous", http.StatusUnauthorized},
		"a role that is too low":                {"/v1/operator/raft/peers", reader.Secret, reader.TokenID, http.StatusForbidden},
		"what a follower knows of itself alone": {"/v1/operator/state", strings.Repeat("0", 64), "", http.StatusServiceUnavailable},
		"a role that may":                       {"/v1/hosts", reader.Secret, "", http.StatusOK},
	} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, follower.URL+c.path+"?consistency=stale", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s: status %d, want %d", name, resp.StatusCode, c.status)
		}
		if c.actor == "" {
			continue
		}
		coordtest.Eventually(t, name+" is an event", func() bool {
			events, err := s.Leader().Admin.ListEvents(ctx, client.EventQuery{Topics: []string{"token"}})
			return err == nil && slices.ContainsFunc(events, func(e api.Event) bool {
				return e.Type == "token.refused" && e.Actor == c.actor && e.Source == "127.0.0.1" && strings.Contains(e.Reason, c.path)
			})
		})
	}
}
