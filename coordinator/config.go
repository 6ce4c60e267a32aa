package coordinator

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/coordinator/membership"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// Config is coordinator.yaml.
type Config struct {
	NodeID    string         `yaml:"node_id"`    // name of this coordinator, for its whole life
	DataDir   string         `yaml:"data_dir"`   // everything it keeps; nothing else is written
	Domain    string         `yaml:"domain"`     // organizations are served as org-<uuid>.<domain>
	PublicURL string         `yaml:"public_url"` // of an organization; {hostname} stands for its name
	API       APIConfig      `yaml:"api"`
	Auth      AuthConfig     `yaml:"auth"`
	Cluster   ClusterConfig  `yaml:"cluster"`
	Raft      RaftConfig     `yaml:"raft"`
	Gossip    GossipConfig   `yaml:"gossip"`
	Hosts     HostConfig     `yaml:"hosts"`
	DNS       dns.Config     `yaml:"dns"`
	Log       logging.Config `yaml:"log"`
}

// APIConfig is the HTTP API.
type APIConfig struct {
	Listen       string   `yaml:"listen"`
	Advertise    string   `yaml:"advertise"`     // where agents reach it; empty: listen
	Hosts        []string `yaml:"hosts"`         // names and addresses in its certificate, for HTTPS clients; empty: those of listen and advertise
	Plain        bool     `yaml:"plain"`         // serve plain HTTP too, beside TLS; on loopback only
	RateLimit    float64  `yaml:"rate_limit"`    // requests a second per token
	RateBurst    int      `yaml:"rate_burst"`    // above that for a moment
	AuthFailures float64  `yaml:"auth_failures"` // failed authentications a second per address
}

// AuthConfig is who gets in besides the holders of tokens and certificates: users of the platform.
type AuthConfig struct {
	Issuers       []usertoken.Issuer `yaml:"issuers"`         // whose signed tokens are believed
	UserRateLimit float64            `yaml:"user_rate_limit"` // requests a second per user
}

// RaftConfig is the consensus between coordinators.
type RaftConfig struct {
	Listen     string `yaml:"listen"`
	Advertise  string `yaml:"advertise"`    // where the other coordinators reach it; empty: listen
	Profile    string `yaml:"profile"`      // default, fast or slow
	MinFreeMiB uint32 `yaml:"min_free_mib"` // below it no new work is taken; or 5 % of the disk, if that is less
}

// ClusterConfig is how this coordinator comes to its cluster.
type ClusterConfig struct {
	KeyFile         string        `yaml:"key_file"`         // the key that all coordinators share; empty: cluster.key in data_dir
	BootstrapExpect int           `yaml:"bootstrap_expect"` // so many begin a new cluster together; 0: this one waits to be brought in
	Join            []string      `yaml:"join"`             // gossip addresses of other members
	DeadAfter       time.Duration `yaml:"dead_after"`       // a coordinator gone for so long is taken out, once its place is filled
	MinVoters       int           `yaml:"min_voters"`       // so many stay, dead or alive
}

// GossipConfig is the pool of all coordinators and agents.
type GossipConfig struct {
	Listen    string   `yaml:"listen"`    // address and port, TCP and UDP
	Advertise string   `yaml:"advertise"` // where the others reach it; empty: listen
	Profile   string   `yaml:"profile"`   // default, slow or distant
	Allowed   []string `yaml:"allowed"`   // networks that packets may come from; empty: any
}

// HostConfig is how long a host may be silent.
type HostConfig struct {
	SilentAfter time.Duration `yaml:"silent_after"` // then nothing new is placed there
	LostAfter   time.Duration `yaml:"lost_after"`   // then its gateways count as lost
	Lease       time.Duration `yaml:"lease"`        // how long a cut-off host goes on serving pools with isolation stop
}

// DefaultConfig is the configuration before file and environment are read.
func DefaultConfig() *Config {
	return &Config{
		DataDir:   "/var/lib/demiurge/coordinator",
		PublicURL: "https://{hostname}",
		API:       APIConfig{Listen: "127.0.0.1:7400", RateLimit: 10000, RateBurst: 20000, AuthFailures: 10},
		Auth:      AuthConfig{UserRateLimit: 50},
		Raft:      RaftConfig{Listen: "127.0.0.1:7401", Profile: string(consensus.ProfileDefault), MinFreeMiB: 512},
		Cluster:   ClusterConfig{BootstrapExpect: 1, DeadAfter: 10 * time.Minute, MinVoters: 3},
		Gossip:    GossipConfig{Listen: "127.0.0.1:7402", Profile: string(gossip.ProfileDefault)},
		Hosts:     HostConfig{SilentAfter: 3 * time.Second, LostAfter: 30 * time.Second, Lease: membership.DefaultLease},
		DNS:       dns.DefaultConfig(),
		Log:       logging.DefaultConfig(),
	}
}

// Validate checks what the types cannot.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, message, remedy string) { errs = append(errs, config.Invalid(key, message, remedy)) }
	if _, err := id.ParseHost(c.NodeID); err != nil {
		bad("node_id", fmt.Sprintf("%q does not name a coordinator", c.NodeID), "set 1 to 32 characters of [a-z0-9-], such as coordinator-1")
	}
	if !filepath.IsAbs(c.DataDir) {
		bad("data_dir", fmt.Sprintf("%q is not an absolute path", c.DataDir), "set a directory that belongs to this coordinator alone")
	}
	if _, err := id.ParseDomain(c.Domain); err != nil {
		bad("domain", err.Error(), "set the domain below which organizations are served")
	}
	if !strings.Contains(c.PublicURL, "{hostname}") {
		bad("public_url", "it does not contain {hostname}", `set it as in "https://{hostname}"`)
	}
	for key, addr := range map[string]string{"api.listen": c.API.Listen, "raft.listen": c.Raft.Listen} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			bad(key, fmt.Sprintf("%q is not an address with a port", addr), "set it as in 127.0.0.1:7400")
		}
	}
	for key, addr := range map[string]string{"api.advertise": c.API.Advertise, "raft.advertise": c.Raft.Advertise} {
		if addr != "" && !reachable(addr) {
			bad(key, fmt.Sprintf("%.80q is not an address at which others could reach it", addr), "set it as in 192.0.2.1:7400, with the address of this machine")
		}
	}
	if host, _, err := net.SplitHostPort(c.API.Listen); c.API.Plain && err == nil {
		if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
			bad("api.plain", fmt.Sprintf("tokens would cross the network in the clear at %s", c.API.Listen), "leave it out, or set api.listen to a loopback address such as 127.0.0.1:7400")
		}
	}
	switch consensus.Profile(c.Raft.Profile) {
	case consensus.ProfileDefault, consensus.ProfileFast, consensus.ProfileSlow:
	default:
		bad("raft.profile", fmt.Sprintf("there is no profile %q", c.Raft.Profile), "set default, fast or slow")
	}
	if c.Raft.MinFreeMiB == 0 {
		bad("raft.min_free_mib", "new work would be taken until the disk is full, and a full disk stops this coordinator", "leave it out for the default of 512, or set 1 or more")
	}
	errs = append(errs, c.validateCluster()...)
	errs = append(errs, c.DNS.Validate("dns", c.Domain), usertoken.Validate("auth.issuers", c.Auth.Issuers))
	for key, rate := range map[string]float64{"api.rate_limit": c.API.RateLimit, "api.rate_burst": float64(c.API.RateBurst), "api.auth_failures": c.API.AuthFailures, "auth.user_rate_limit": c.Auth.UserRateLimit} {
		if !(rate >= 1 && rate <= mostRate) { // nor is it none (.nan)
			bad(key, fmt.Sprintf("%v is not between 1 and %.0e", rate, mostRate), "leave it out for the default; a number that is never reached is no limit")
		}
	}
	if c.Hosts.SilentAfter < time.Second || c.Hosts.LostAfter < c.Hosts.SilentAfter {
		bad("hosts", "silent_after is below 1s or above lost_after", "keep the defaults of 3s and 30s, or raise them")
	}
	if c.Hosts.Lease < membership.MinLease || c.Hosts.Lease > 10*time.Minute {
		bad("hosts.lease", fmt.Sprintf("%s is not between %s and 10m: hosts must bear a change of the leader", c.Hosts.Lease, membership.MinLease), fmt.Sprintf("keep the default of %s, or raise it", membership.DefaultLease))
	}
	errs = append(errs, c.Log.Validate("log"))
	return errors.Join(errs...)
}

// mostRate is above every rate that a coordinator can answer at. Below 1 a bucket would never hold a whole request.
const mostRate = 1e12

// thresholds are the measures by which hosts are found to be lost.
func (c *Config) thresholds() membership.Thresholds {
	t := membership.DefaultThresholds()
	t.SilentAfter, t.LostAfter = c.Hosts.SilentAfter, c.Hosts.LostAfter
	return t
}

// validateCluster checks how the coordinator comes to its cluster.
func (c *Config) validateCluster() []error {
	var errs []error
	bad := func(key, message, remedy string) { errs = append(errs, config.Invalid(key, message, remedy)) }
	switch n := c.Cluster.BootstrapExpect; {
	case n < 0 || n > 7 || n > 0 && n%2 == 0:
		bad("cluster.bootstrap_expect", fmt.Sprintf("%d is not a useful number of coordinators", n), "set 1, 3 or 5, or 0 where a cluster exists already")
	case n == 1 && len(c.Cluster.Join) > 0:
		bad("cluster.bootstrap_expect", "1 begins a cluster of its own, and cluster.join names another one", "set 0 to be brought into that one, or 3 to begin one together with those")
	case n > 1 && len(c.Cluster.Join) == 0:
		bad("cluster.join", "it is empty, so this coordinator would never find the others", "list the gossip addresses of other coordinators, such as 192.0.2.1:7402")
	}
	for _, seed := range c.Cluster.Join {
		if _, _, err := net.SplitHostPort(seed); err != nil {
			bad("cluster.join", fmt.Sprintf("%q is not an address with a port", seed), "set it as in 192.0.2.1:7402")
		}
	}
	if c.Cluster.DeadAfter < time.Minute {
		bad("cluster.dead_after", "a coordinator would be taken out while it restarts", "set 1m or more")
	}
	if c.Cluster.MinVoters < 1 {
		bad("cluster.min_voters", "a cluster needs at least one", "keep the default of 3")
	}
	for key, addr := range map[string]string{"gossip.listen": c.Gossip.Listen, "gossip.advertise": c.Gossip.Advertise} {
		if _, err := netip.ParseAddrPort(addr); err != nil && (addr != "" || key == "gossip.listen") {
			bad(key, fmt.Sprintf("%q is not an IP address with a port", addr), "set it as in 192.0.2.1:7402")
		}
	}
	for _, network := range c.Gossip.Allowed {
		if _, err := netip.ParsePrefix(network); err != nil {
			bad("gossip.allowed", fmt.Sprintf("%q is not a network", network), "set it as in 192.0.2.0/24")
		}
	}
	switch gossip.Profile(c.Gossip.Profile) {
	case gossip.ProfileDefault, gossip.ProfileSlow, gossip.ProfileDistant:
	default:
		bad("gossip.profile", fmt.Sprintf("there is no profile %q", c.Gossip.Profile), "set default, slow or distant")
	}
	return errs
}

// publicURL is where an organization is reached.
func (c *Config) publicURL(hostname string) string {
	return strings.ReplaceAll(c.PublicURL, "{hostname}", hostname)
}
