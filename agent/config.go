package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/member"
	"github.com/demiurge-platform/demiurge/agent/nginx"
	"github.com/demiurge-platform/demiurge/agent/syncer"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
	"github.com/demiurge-platform/demiurge/shared/version"
)

// Config is agent.yaml.
type Config struct {
	HostID       string           `yaml:"host_id"`      // name of this host, for its whole life
	Coordinators []string         `yaml:"coordinators"` // host:port; the agent follows one and goes on to the next
	DataDir      string           `yaml:"data_dir"`     // journal, certificate, gateways' state and logs
	RunDir       string           `yaml:"run_dir"`      // sockets
	Domain       string           `yaml:"domain"`       // organizations are served as org-<uuid>.<domain>
	Address      string           `yaml:"address"`      // public address of this host's nginx
	Capacity     int              `yaml:"capacity"`     // most gateways that this host may hold
	Driver       string           `yaml:"driver"`       // how gateways are run: process
	Nginx        NginxConfig      `yaml:"nginx"`
	Gateway      GatewayConfig    `yaml:"gateway"`
	Gossip       GossipConfig     `yaml:"gossip"`
	OAuth        OAuthConfig      `yaml:"oauth"`
	Login        LoginConfig      `yaml:"login"`
	Auth         AuthConfig       `yaml:"auth"`
	Containers   ContainersConfig `yaml:"containers"`
	Metrics      MetricsConfig    `yaml:"metrics"`
	Log          logging.Config   `yaml:"log"`
}

// NginxConfig is this host's nginx.
type NginxConfig struct {
	Binary          string   `yaml:"binary"`           // empty: found in PATH, /usr/sbin or /usr/local/sbin
	DataDir         string   `yaml:"data_dir"`         // its configuration and routes; empty: <data_dir>/nginx
	Listen          []string `yaml:"listen"`           // address:port for HTTP
	ListenTLS       []string `yaml:"listen_tls"`       // address:port for HTTPS
	CertificateFile string   `yaml:"certificate_file"` // key and chain in one file, for listen_tls
	TrustedProxies  []string `yaml:"trusted_proxies"`  // networks whose X-Forwarded-For is believed
	Workers         int      `yaml:"workers"`          // 0: one for each core, at least 2
	Manage          bool     `yaml:"manage"`           // the agent runs nginx itself; otherwise it is a unit of its own
}

// GatewayConfig is how gateways are run.
type GatewayConfig struct {
	Program     string        `yaml:"program"`      // the gateway program for pools that name no release
	ReleasesDir string        `yaml:"releases_dir"` // <releases_dir>/<release>/demiurge-gateway for those that do
	StopGrace   time.Duration `yaml:"stop_grace"`   // for saving, between SIGTERM and SIGKILL
}

// GossipConfig is this host's place in the gossip of all coordinators and agents.
type GossipConfig struct {
	Listen    string   `yaml:"listen"`    // address and port, TCP and UDP
	Advertise string   `yaml:"advertise"` // where the others reach it; empty: listen or, if that is all addresses, the one towards the coordinators
	Profile   string   `yaml:"profile"`   // default, slow or distant; as the coordinators'
	Allowed   []string `yaml:"allowed"`   // networks that packets may come from; empty: any, or loopback if it listens there
}

// MetricsConfig is where Prometheus asks.
type MetricsConfig struct {
	Listen string `yaml:"listen"` // address:port; empty: nowhere
}

// driverProcess runs gateways as processes of their own.
const driverProcess = "process"

// DefaultConfig is the configuration before file and environment are read.
func DefaultConfig() *Config {
	return &Config{
		DataDir: "/var/lib/demiurge/agent", RunDir: "/run/demiurge", Capacity: 1000, Driver: driverProcess,
		Gateway: GatewayConfig{Program: "/usr/bin/demiurge-gateway", StopGrace: 12 * time.Second},
		Gossip:  GossipConfig{Listen: "0.0.0.0:7402", Profile: string(gossip.ProfileDefault)},
		OAuth:   defaultOAuth(), Containers: defaultContainers(),
		Login: defaultLogin(),
		Log:   logging.DefaultConfig(),
	}
}

// Validate checks what the types cannot.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, message, remedy string) { errs = append(errs, config.Invalid(key, message, remedy)) }
	if _, err := id.ParseHost(c.HostID); err != nil {
		bad("host_id", fmt.Sprintf("%q does not name a host", c.HostID), "set 1 to 32 characters of [a-z0-9-], such as host-1")
	}
	if len(c.Coordinators) == 0 {
		bad("coordinators", "there is none", "set the addresses of the coordinators, such as coordinator-1:7400")
	}
	for _, u := range c.Coordinators {
		if _, err := syncer.ParseBase(u); err != nil {
			bad("coordinators", err.Error(), "set addresses such as coordinator-1:7400")
		}
	}
	if _, err := id.ParseDomain(c.Domain); err != nil {
		bad("domain", err.Error(), "set the domain of the cluster, below which organizations are served")
	}
	if c.Address == "" || strings.ContainsAny(c.Address, " \t\r\n") || len(c.Address) > 253 {
		bad("address", fmt.Sprintf("%q is not an address", c.Address), "set the public name or address of this host's nginx")
	}
	if c.Capacity < 1 || c.Capacity > 100000 {
		bad("capacity", fmt.Sprintf("%d is not between 1 and 100000", c.Capacity), "set how many gateways the host may hold")
	}
	if c.Driver != driverProcess {
		bad("driver", fmt.Sprintf("there is no driver %q", c.Driver), "set process")
	}
	if c.Gateway.StopGrace < 100*time.Millisecond || c.Gateway.StopGrace > 10*time.Minute {
		bad("gateway.stop_grace", fmt.Sprintf("%s is not between 100ms and 10m", c.Gateway.StopGrace), "keep the default of 12s, or raise it")
	}
	c.checkPaths(bad)
	c.checkNginx(bad)
	c.checkGossip(bad)
	if c.Metrics.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Metrics.Listen); err != nil {
			bad("metrics.listen", fmt.Sprintf("%q is not an address with a port", c.Metrics.Listen), "set it as in 127.0.0.1:9464")
		}
	}
	errs = append(errs, c.OAuth.validate(), c.Containers.validate(), c.Login.validate(), usertoken.Validate("auth.issuers", c.Auth.Issuers), c.Log.Validate("log"))
	return errors.Join(errs...)
}

// longestSocket is the path that is the longest of those that this agent makes.
const (
	longestSocket = "/gateways/gw-0123456789/control.sock"
	socketLimit   = 107 // of a unix socket's path on Linux, without its final zero byte
)

func (c *Config) checkPaths(bad func(key, message, remedy string)) {
	paths := []struct {
		key, value string
		optional   bool
	}{
		{"data_dir", c.DataDir, false},
		{"run_dir", c.RunDir, false},
		{"gateway.program", c.Gateway.Program, false},
		{"gateway.releases_dir", c.Gateway.ReleasesDir, true},
		{"nginx.data_dir", c.Nginx.DataDir, true},
		{"nginx.certificate_file", c.Nginx.CertificateFile, true},
	}
	for _, p := range paths {
		if p.value == "" && p.optional {
			continue
		}
		if !filepath.IsAbs(p.value) || filepath.Clean(p.value) != p.value {
			bad(p.key, fmt.Sprintf("%q is not a clean absolute path", p.value), "set one that begins with / and has no .. in it")
		}
	}
	if n := len(c.RunDir + longestSocket); n > socketLimit {
		bad("run_dir", fmt.Sprintf("the gateways' sockets below it would have paths of %d characters, and the system allows %d", n, socketLimit), "set a shorter directory")
	}
}

func (c *Config) checkNginx(bad func(key, message, remedy string)) {
	n := c.Nginx
	if len(n.Listen)+len(n.ListenTLS) == 0 {
		bad("nginx.listen", "there is no listener, nor one in nginx.listen_tls", "set at least one address:port, such as 0.0.0.0:80")
	}
	for key, list := range map[string][]string{"nginx.listen": n.Listen, "nginx.listen_tls": n.ListenTLS} {
		if _, err := addrPorts(list); err != nil {
			bad(key, err.Error(), "set address:port with an IP address, such as 0.0.0.0:80 or [::]:80")
		}
	}
	if len(n.ListenTLS) > 0 && n.CertificateFile == "" {
		bad("nginx.certificate_file", "it is empty, and nginx.listen_tls is not", "set the file with key and certificate chain")
	}
	if _, err := prefixes(n.TrustedProxies); err != nil {
		bad("nginx.trusted_proxies", err.Error(), "set networks such as 10.0.0.0/8")
	}
	if n.Workers < 0 || n.Workers > 512 {
		bad("nginx.workers", fmt.Sprintf("%d is not between 0 and 512", n.Workers), "set 0 for one for each core")
	}
}

func (c *Config) checkGossip(bad func(key, message, remedy string)) {
	g := c.Gossip
	listen, err := netip.ParseAddrPort(g.Listen)
	if err != nil || listen.Addr().IsUnspecified() && listen.Port() == 0 {
		bad("gossip.listen", fmt.Sprintf("%q is not an IP address with a port", g.Listen), "keep the default of 0.0.0.0:7402, or set this host's address as in 192.0.2.10:7402")
	}
	if a, err := netip.ParseAddrPort(g.Advertise); g.Advertise != "" && (err != nil || a.Addr().IsUnspecified() || a.Port() == 0) {
		bad("gossip.advertise", fmt.Sprintf("%q is not an IP address with a port that others can reach", g.Advertise), "set it as in 192.0.2.10:7402, or leave it out")
	}
	switch gossip.Profile(g.Profile) {
	case gossip.ProfileDefault, gossip.ProfileSlow, gossip.ProfileDistant:
	default:
		bad("gossip.profile", fmt.Sprintf("there is no profile %q", g.Profile), "set default, slow or distant, as on the coordinators")
	}
	if _, err := prefixes(g.Allowed); err != nil {
		bad("gossip.allowed", err.Error(), "set networks such as 192.0.2.0/24")
	}
}

// memberDir is where the gossip keeps its keys and the members it knew.
func memberDir(c *Config) string { return filepath.Join(c.DataDir, "gossip") }

// memberOptions is what the gossip is told, but for the file system; the configuration is known to be valid.
func (c *Config) memberOptions(cluster string, log hclog.Logger) (member.Options, error) {
	o := member.Options{
		Dir: memberDir(c), Host: id.Host(c.HostID), Cluster: cluster, Version: version.Get().Version,
		Profile: gossip.Profile(c.Gossip.Profile), Logger: log,
	}
	for _, address := range c.Coordinators {
		u, err := syncer.ParseBase(address)
		if err != nil {
			return o, err
		}
		o.Coordinators = append(o.Coordinators, u.Host)
	}
	var err error
	if o.Listen, err = netip.ParseAddrPort(c.Gossip.Listen); err != nil {
		return o, err
	}
	if c.Gossip.Advertise != "" {
		if o.Advertise, err = netip.ParseAddrPort(c.Gossip.Advertise); err != nil {
			return o, err
		}
	}
	o.Allowed, err = prefixes(c.Gossip.Allowed)
	return o, err
}

// nginxOptions is what the nginx engine is told; the lists are known to be valid.
func (c *Config) nginxOptions(log hclog.Logger) (nginx.Options, error) {
	listen, err := addrPorts(c.Nginx.Listen)
	if err != nil {
		return nginx.Options{}, err
	}
	listenTLS, err := addrPorts(c.Nginx.ListenTLS)
	if err != nil {
		return nginx.Options{}, err
	}
	proxies, err := prefixes(c.Nginx.TrustedProxies)
	if err != nil {
		return nginx.Options{}, err
	}
	dir := c.Nginx.DataDir
	if dir == "" {
		dir = filepath.Join(c.DataDir, "nginx")
	}
	return nginx.Options{
		DataDir: dir, RunDir: filepath.Join(c.RunDir, "nginx"), Binary: c.Nginx.Binary, Domain: c.Domain,
		Listen: listen, ListenTLS: listenTLS, CertificateFile: c.Nginx.CertificateFile,
		SocketDir: layoutOf(c).sockets, AgentSocket: tenantSocket(c), AccessSocket: accessSocket(c), PassSocket: passSocket(c), TrustedProxies: proxies, Workers: c.Nginx.Workers, Logger: log,
	}, nil
}

func addrPorts(list []string) ([]netip.AddrPort, error) {
	out := make([]netip.AddrPort, 0, len(list))
	for _, s := range list {
		a, err := netip.ParseAddrPort(s)
		if err != nil || a.Port() == 0 || a.Addr().Zone() != "" { // nginx knows no zones
			return nil, fmt.Errorf("cannot use %q as an address with a port", s)
		}
		out = append(out, a)
	}
	return out, nil
}

func prefixes(list []string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("cannot use %q as a network", s)
		}
		out = append(out, p)
	}
	return out, nil
}

// checkFiles looks for what must be there before anything is started.
func (c *Config) checkFiles() error {
	info, err := os.Stat(c.Gateway.Program)
	if err != nil {
		return fmt.Errorf("cannot run gateways: %w; install the gateway program or correct gateway.program", err)
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("cannot run gateways: %s is not a program; correct gateway.program", c.Gateway.Program)
	}
	return nil
}
