package coordinator

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/shared/config"
)

// FuzzConfig: what is taken as a configuration has rates that let somebody in and addresses that can be listened on, and
// what is not taken is refused with the place and the key.
func FuzzConfig(f *testing.F) {
	example, err := os.ReadFile("../packaging/config/coordinator.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(example), "")
	for _, variable := range []string{
		"API_RATE_LIMIT=.nan", "API_RATE_LIMIT=.inf", "API_RATE_LIMIT=0.5", "API_AUTH_FAILURES=-1", "AUTH_USER_RATE_LIMIT=0.1", "API_RATE_BURST=9223372036854775807", "RAFT_LISTEN=x:y:z",
		"API_LISTEN=:http", "DNS_PROVIDER=embedded", "DNS_PROVIDER=powerdns", "CLUSTER_BOOTSTRAP_EXPECT=-9223372036854775808", "HOSTS_LEASE=2562047h", "DOMAIN=.", "NODE_ID=../x",
	} {
		f.Add(string(example), "DEMIURGE_"+variable)
	}
	f.Fuzz(func(t *testing.T, text, variable string) {
		c := DefaultConfig()
		if _, err := config.Decode("coordinator.yaml", []byte(text), c, []string{variable}); err != nil {
			if !strings.Contains(err.Error(), "coordinator.yaml") && !strings.Contains(err.Error(), "environment variable") {
				t.Fatalf("refused without a place: %v", err)
			}
			return
		}
		for what, rate := range map[string]float64{"api": c.API.RateLimit, "burst": float64(c.API.RateBurst), "failures": 2 * c.API.AuthFailures, "users": 2 * c.Auth.UserRateLimit} {
			if !(rate >= 1 && rate < 1e13) {
				t.Fatalf("the rate %s of %v was taken", what, rate)
			}
		}
		for _, address := range []string{c.API.Listen, c.Raft.Listen, c.Gossip.Listen} {
			if _, _, err := net.SplitHostPort(address); err != nil {
				t.Fatalf("%q was taken: %v", address, err)
			}
		}
		if c.DNS.Provider == dns.ProviderPowerDNS && !strings.HasPrefix(c.DNS.PowerDNS.URL, "http") {
			t.Fatalf("%+v was taken", c.DNS.PowerDNS)
		}
		if strings.ContainsAny(c.NodeID, "/\x00 ") || c.NodeID == "" || c.NodeID == ".." {
			t.Fatalf("%q is the name of a coordinator", c.NodeID)
		}
	})
}
