package coordinator

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/autopilot"
	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
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
		"API_LISTEN=:http", "RAFT_ADVERTISE=192.0.2.1", "RAFT_ADVERTISE=x y:7401", "API_ADVERTISE=[fe80::1%eth0]:7400", "API_ADVERTISE=192.0.2.1:0", "DNS_PROVIDER=embedded", "DNS_PROVIDER=powerdns", "CLUSTER_BOOTSTRAP_EXPECT=-9223372036854775808", "HOSTS_LEASE=2562047h", "DOMAIN=.", "NODE_ID=../x",
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
		for _, address := range []string{c.API.Advertise, c.Raft.Advertise} {
			if u, err := url.Parse("https://" + address + "/"); address != "" && (err != nil || u.Host != address || u.Hostname() == "" || u.Port() == "") {
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

// FuzzSecret: what is taken for the first admin token is one that could have been made, whole, and what is not is refused
// with what to do, and is not repeated.
func FuzzSecret(f *testing.F) {
	secret := id.Secret()
	for _, s := range []string{secret + "\n", secret, secret[:63], secret + secret, strings.ToUpper(secret) + "\n", secret + "\n\n", strings.Repeat("\x00", 64), strings.Repeat("root:x:0:0:", 8), ""} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), adminTokenFile)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readOrMakeSecret(path)
		if err != nil {
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove the file") || len(data) > 16 && strings.Contains(err.Error(), string(data[:16])) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if len(got) != 64 || strings.Trim(got, "0123456789abcdef") != "" || string(data) != got && string(data) != got+"\n" {
			t.Fatalf("%q is taken for the token %q", data, got)
		}
	})
}

// FuzzCandidate: whatever a coordinator says of itself in the gossip, nothing is made a member by an address that cannot be
// connected to, no cluster begins beside one that may exist, and nobody who answers is taken out.
func FuzzCandidate(f *testing.F) {
	for _, expect := range []string{"3", "0", "", "-1", "+3", "9223372036854775808", "3 ", "03"} {
		f.Add(expect, "192.0.2.2:7401", stateNew)
	}
	f.Add("3", "", stateNew)
	f.Add("3", "c2.example.org:7401", stateFit)
	f.Add("3", "[fe80::1%eth0]:7401", stateLag)
	f.Add("3", ":7401", stateNew)
	f.Add("3", "192.0.2.2:0", stateNew)
	f.Add("3", "192.0.2.2:7401/x?y#z\n", stateNew)
	f.Add("3", "a@b:7401", "?")
	f.Add("0", "^:1", "0")
	f.Fuzz(func(t *testing.T, expect, address, fitness string) {
		now := time.Unix(1_800_000_000, 0)
		tags := map[string]string{tagExpect: expect, tagRaft: address, tagState: fitness}
		c := candidate(gossip.Member{Name: "c2", Status: gossip.StatusAlive, Since: now.Add(-time.Hour), Tags: tags})
		usable := func(address string) bool {
			u, err := url.Parse("https://" + address + "/")
			return err == nil && u.Host == address && u.Hostname() != "" && u.Port() != "" && u.Port() != "0"
		}
		if (c.Expect < 0) != (c.Address == "") || c.Expect < -1 || c.Address != "" && !usable(c.Address) || c.ID != "c2" || !c.Alive || c.Left {
			t.Fatalf("%q is read as %+v", tags, c)
		}
		self := autopilot.Candidate{ID: "c1", Address: "192.0.2.1:7401", Alive: true, Empty: true, Expect: 3}
		other := autopilot.Candidate{ID: "c3", Address: "192.0.2.3:7401", Alive: true, Empty: true, Expect: 3}
		if began := autopilot.Form(self, []autopilot.Candidate{self, c, other}); began != nil && (len(began) != 3 || fitness != stateNew || began[1].Address != address || !usable(address)) {
			t.Fatalf("%q begins %+v", tags, began)
		}
		rules := autopilot.Rules{Settle: time.Second, DeadAfter: time.Minute, MinVoters: 1}
		peers := []autopilot.Peer{{ID: "c1", Address: self.Address, Voter: true}, {ID: "c2", Address: "192.0.2.2:7401", Voter: true}, {ID: "c3", Address: other.Address, Voter: true}}
		for n := 1; n <= len(peers); n++ {
			for _, a := range autopilot.Plan("c1", peers[:n], []autopilot.Candidate{self, c, other}, now.Add(-time.Hour), now, rules) {
				if a.Do == autopilot.Remove || !usable(a.Peer.Address) {
					t.Fatalf("%q makes it %+v", tags, a)
				}
			}
		}
	})
}
