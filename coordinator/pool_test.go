package coordinator_test

import (
	"slices"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// A maximum that is lowered ends ready gateways, and none that serves.
func TestALoweredMaximumEndsWhatIsReady(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 5)
	var serving []string
	for _, org := range c.Organizations(2) {
		a, _, err := c.Admin.Start(c.Context(), api.StartAllocation{OrganizationID: org})
		if err != nil {
			t.Fatal(err)
		}
		serving = append(serving, a.GatewayID)
	}
	size := 3
	if _, err := c.Admin.PutPool(c.Context(), "default", api.PutPool{MinReady: &size, Max: &size}); err != nil {
		t.Fatal(err)
	}
	coordtest.Eventually(t, "there are three gateways, with those that serve", func() bool {
		all, err := c.Admin.ListGateways(c.Context(), client.GatewayFilter{})
		if err != nil {
			return false
		}
		var left []string
		for _, g := range all {
			if g.State == api.GatewayReady || g.State == api.GatewayAllocated {
				left = append(left, g.GatewayID)
			}
		}
		return len(left) == 3 && !slices.ContainsFunc(serving, func(g string) bool { return !slices.Contains(left, g) })
	})
}
