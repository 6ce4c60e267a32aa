package coordinator

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// Config is coordinator.yaml.
type Config struct {
	NodeID    string         `yaml:"node_id"`    // name of this coordinator, for its whole life
	DataDir   string         `yaml:"data_dir"`   // everything it keeps; nothing else is written
	Domain    string         `yaml:"domain"`     // organizations are served as org-<uuid>.<domain>
	PublicURL string         `yaml:"public_url"` // of an organization; {hostname} stands for its name
	API       APIConfig      `yaml:"api"`
	Raft      RaftConfig     `yaml:"raft"`
	Hosts     HostConfig     `yaml:"hosts"`
	Log       logging.Config `yaml:"log"`
}

// APIConfig is the HTTP API.
type APIConfig struct {
	Listen       string  `yaml:"listen"`
	RateLimit    float64 `yaml:"rate_limit"`    // requests a second per token
	RateBurst    int     `yaml:"rate_burst"`    // above that for a moment
	AuthFailures float64 `yaml:"auth_failures"` // failed authentications a second per address
}

// RaftConfig is the consensus between coordinators.
type RaftConfig struct {
	Listen    string `yaml:"listen"`
	Profile   string `yaml:"profile"`   // default, fast or slow
	Bootstrap bool   `yaml:"bootstrap"` // make a new cluster when the data directory is empty
}

// HostConfig is how long a host may be silent.
type HostConfig struct {
	SilentAfter time.Duration `yaml:"silent_after"` // then nothing new is placed there
	LostAfter   time.Duration `yaml:"lost_after"`   // then its gateways count as lost
}

// DefaultConfig is the configuration before file and environment are read.
func DefaultConfig() *Config {
	return &Config{
		DataDir:   "/var/lib/demiurge/coordinator",
		PublicURL: "https://{hostname}",
		API:       APIConfig{Listen: "127.0.0.1:7400", RateLimit: 10000, RateBurst: 20000, AuthFailures: 10},
		Raft:      RaftConfig{Listen: "127.0.0.1:7401", Profile: string(consensus.ProfileDefault), Bootstrap: true},
		Hosts:     HostConfig{SilentAfter: 3 * time.Second, LostAfter: 30 * time.Second},
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
	switch consensus.Profile(c.Raft.Profile) {
	case consensus.ProfileDefault, consensus.ProfileFast, consensus.ProfileSlow:
	default:
		bad("raft.profile", fmt.Sprintf("there is no profile %q", c.Raft.Profile), "set default, fast or slow")
	}
	for key, rate := range map[string]float64{"api.rate_limit": c.API.RateLimit, "api.rate_burst": float64(c.API.RateBurst), "api.auth_failures": c.API.AuthFailures} {
		if rate <= 0 {
			bad(key, fmt.Sprintf("%v would let nobody in", rate), "leave it out for the default, or set a number above 0")
		}
	}
	if c.Hosts.SilentAfter < time.Second || c.Hosts.LostAfter < c.Hosts.SilentAfter {
		bad("hosts", "silent_after is below 1s or above lost_after", "keep the defaults of 3s and 30s, or raise them")
	}
	errs = append(errs, c.Log.Validate("log"))
	return errors.Join(errs...)
}

// publicURL is where an organization is reached.
func (c *Config) publicURL(hostname string) string {
	return strings.ReplaceAll(c.PublicURL, "{hostname}", hostname)
}
