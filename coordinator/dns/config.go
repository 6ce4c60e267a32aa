package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/demiurge-platform/demiurge/shared/config"
)

// The providers.
const (
	ProviderNone     = "none"
	ProviderEmbedded = "embedded"
	ProviderPowerDNS = "powerdns"
)

var providers = []string{ProviderNone, ProviderEmbedded, ProviderPowerDNS}

// Config is the part of the coordinator's configuration that is about DNS.
type Config struct {
	Provider    string         `yaml:"provider"`     // none, embedded or powerdns
	TTL         time.Duration  `yaml:"ttl"`          // of the organizations' records: how long a moved one may be looked for in the old place
	NegativeTTL time.Duration  `yaml:"negative_ttl"` // embedded: how long resolvers remember that a name is not there
	Listen      string         `yaml:"listen"`       // embedded: address of the name server, UDP and TCP
	Nameservers []string       `yaml:"nameservers"`  // embedded: names of all name servers; one below the domain is followed by its addresses
	Hostmaster  string         `yaml:"hostmaster"`   // embedded: mail address of who is responsible
	Apex        []string       `yaml:"apex"`         // embedded: addresses of the domain itself
	PowerDNS    PowerDNSConfig `yaml:"powerdns"`
}

// PowerDNSConfig is where and how records are written to PowerDNS.
type PowerDNSConfig struct {
	URL     string        `yaml:"url"`      // of its API's server, as in http://127.0.0.1:8081
	KeyFile string        `yaml:"key_file"` // holds the API key; read again for every call, so that it can be changed at any time
	Zone    string        `yaml:"zone"`     // the domain, or a part of its end
	Timeout time.Duration `yaml:"timeout"`  // of one HTTP request
}

// DefaultConfig leaves DNS to a wildcard record.
func DefaultConfig() Config {
	return Config{
		Provider: ProviderNone, TTL: 5 * time.Second, NegativeTTL: 5 * time.Second, Listen: "127.0.0.1:7453",
		PowerDNS: PowerDNSConfig{Timeout: 3 * time.Second},
	}
}

// longest is the longest TTL: a moved organization could not be found for so long.
const longest = 24 * time.Hour

// Validate checks the values; section is the path of this part in the file, and domain is the one below
// which organizations are served. What only another provider uses is not looked at.
func (c *Config) Validate(section, domain string) error {
	v := validator{section: section}
	if !slices.Contains(providers, c.Provider) {
		v.bad("provider", fmt.Sprintf("there is no provider %q", c.Provider), "set "+strings.Join(providers, ", "))
	}
	if c.Provider == ProviderEmbedded || c.Provider == ProviderPowerDNS {
		v.duration("ttl", c.TTL, time.Second, longest)
	}
	switch c.Provider {
	case ProviderEmbedded:
		c.validateEmbedded(&v, domain)
	case ProviderPowerDNS:
		c.validatePowerDNS(&v, domain)
	}
	return errors.Join(v.errs...)
}

type validator struct {
	section string
	errs    []error
}

func (v *validator) bad(key, message, remedy string) {
	v.errs = append(v.errs, config.Invalid(v.section+"."+key, message, remedy))
}

func (v *validator) duration(key string, d, least, most time.Duration) {
	if d < least || d > most {
		v.bad(key, fmt.Sprintf("%s is not between %s and %s", d, least, most), "leave it out for the default")
	}
}

func (c *Config) validateEmbedded(v *validator, domain string) {
	v.duration("negative_ttl", c.NegativeTTL, time.Second, longest)
	if host, port, err := net.SplitHostPort(c.Listen); err != nil || !number(port) || host != "" && !address(host) {
		v.bad("listen", fmt.Sprintf("%q is not an IP address with a port", c.Listen), "set it as in 0.0.0.0:53")
	}
	if len(c.Nameservers) == 0 {
		v.bad("nameservers", "there are none", fmt.Sprintf(`set the names that the zone above %s delegates to, as in ["ns1.%s 192.0.2.53"]`, domain, domain))
	}
	for _, text := range c.Nameservers {
		if _, err := parseNameserver(text, domain); err != nil {
			v.bad("nameservers", err.Error(), fmt.Sprintf(`write a name, and below %s its addresses, as in "ns1.%s 192.0.2.53 2001:db8::53"`, domain, domain))
		}
	}
	if _, err := mailbox(c.Hostmaster, domain); err != nil {
		v.bad("hostmaster", err.Error(), "set it as in hostmaster@"+domain+", or leave it out")
	}
	for _, text := range c.Apex {
		if !address(text) {
			v.bad("apex", fmt.Sprintf("%q is not an IP address", text), "set the addresses of the domain itself, or leave it out")
		}
	}
}

func (c *Config) validatePowerDNS(v *validator, domain string) {
	p := c.PowerDNS
	if u, err := url.Parse(p.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		v.bad("powerdns.url", fmt.Sprintf("%q is not the address of a server", p.URL), "set webserver-address and webserver-port of its configuration, as in http://127.0.0.1:8081")
	}
	if !filepath.IsAbs(p.KeyFile) {
		v.bad("powerdns.key_file", fmt.Sprintf("%q is not an absolute path", p.KeyFile), "set the file that holds the api-key of the configuration of PowerDNS")
	}
	if zone := p.zone(domain); zone != domain && !strings.HasSuffix(domain, "."+zone) {
		v.bad("powerdns.zone", fmt.Sprintf("%s is not in the zone %q", domain, p.Zone), "set the zone that holds the domain, or leave it out when it is the domain itself")
	}
	v.duration("powerdns.timeout", p.Timeout, 100*time.Millisecond, time.Minute)
}

// zone is the zone without final dot; the domain where none is set.
func (p PowerDNSConfig) zone(domain string) string {
	if p.Zone == "" {
		return domain
	}
	return strings.ToLower(strings.TrimSuffix(p.Zone, "."))
}

// nameserver is one line of Config.Nameservers.
type nameserver struct {
	name      string // without final dot
	addresses []netip.Addr
}

func parseNameserver(text, domain string) (nameserver, error) {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return nameserver{}, errors.New("there is an empty entry")
	}
	ns := nameserver{name: strings.ToLower(strings.TrimSuffix(fields[0], "."))}
	if !hostname(ns.name) {
		return nameserver{}, fmt.Errorf("%q is not the name of a server", fields[0])
	}
	for _, text := range fields[1:] {
		if !address(text) {
			return nameserver{}, fmt.Errorf("%q is not an IP address", text)
		}
		ns.addresses = append(ns.addresses, netip.MustParseAddr(text))
	}
	_, organization := split(ns.name, domain)
	below := strings.HasSuffix(ns.name, "."+domain)
	switch {
	case organization || ns.name == domain:
		return nameserver{}, fmt.Errorf("%s can be no name server", ns.name)
	case below && len(ns.addresses) == 0:
		return nameserver{}, fmt.Errorf("%s has no address, and nobody else could tell it", ns.name)
	case !below && len(ns.addresses) > 0:
		return nameserver{}, fmt.Errorf("%s is not below %s, so its addresses are told by others", ns.name, domain)
	}
	return ns, nil
}

// mailbox writes a mail address as a SOA record has it: dots before the @ are escaped. None is
// hostmaster@domain (RFC 2142).
func mailbox(mail, domain string) (string, error) {
	if mail == "" {
		return mdns.Fqdn("hostmaster." + domain), nil
	}
	local, host, found := strings.Cut(mail, "@")
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._+-", r)
	}
	if !found || local == "" || len(local) > 63 || strings.TrimFunc(local, plain) != "" || !hostname(strings.ToLower(host)) {
		return "", fmt.Errorf("%q is not a mail address", mail)
	}
	name := mdns.Fqdn(strings.ReplaceAll(local, ".", `\.`) + "." + strings.ToLower(host))
	if _, ok := mdns.IsDomainName(name); !ok { // no answer with it could be sent
		return "", fmt.Errorf("%q is too long for the DNS", mail)
	}
	return name, nil
}

// hostname checks for dot-separated labels of letters, digits and inner hyphens.
func hostname(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

func address(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == ""
}

func number(port string) bool {
	_, err := strconv.ParseUint(port, 10, 16)
	return err == nil
}
