package dns_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/shared/config"
)

// file is a configuration file with nothing but DNS.
type file struct {
	DNS dns.Config `yaml:"dns"`
}

func (f *file) Validate() error { return f.DNS.Validate("dns", domain) }

func TestConfiguration(t *testing.T) {
	const (
		name     = "dns:\n  provider: embedded\n  nameservers: [ns1.example.org]\n"
		powerdns = "dns:\n  provider: powerdns\n  powerdns:\n    url: http://192.0.2.1:8081\n    key_file: /etc/demiurge/key\n"
	)
	for text, want := range map[string]string{ // "" when it is right
		"":                         "",
		"dns:\n  provider: none\n": "",
		"dns:\n  provider: none\n  listen: nowhere\n  ttl: 0s\n": "", // what is not used is not looked at
		"dns:\n  provider: route66\n":                            "dns.provider",
		name:                                                     "",
		name + "  ttl: 100ms\n":                                  "dns.ttl",
		name + "  ttl: 1000h\n":                                  "dns.ttl",
		name + "  negative_ttl: 0s\n":                            "dns.negative_ttl",
		name + "  listen: localhost:53\n":                        "dns.listen",
		name + "  listen: 192.0.2.1\n":                           "dns.listen",
		name + "  listen: 192.0.2.1:70000\n":                     "dns.listen",
		name + "  listen: ':53'\n":                               "",
		name + "  listen: '[::1]:53'\n":                          "",
		name + "  hostmaster: dns.admin@example.org\n":           "",
		name + "  hostmaster: dns.example.org\n":                 "dns.hostmaster",
		name + "  hostmaster: a b@example.org\n":                 "dns.hostmaster",
		name + "  apex: [192.0.2.1, '2001:db8::1']\n":            "",
		name + "  apex: [www.example.org]\n":                     "dns.apex",
		"dns:\n  provider: embedded\n":                           "dns.nameservers",
		"dns:\n  provider: embedded\n  nameservers: [ns1.gateways.example.org 192.0.2.1 2001:db8::1]\n": "",
		"dns:\n  provider: embedded\n  nameservers: [ns1.gateways.example.org]\n":                       "has no address",
		"dns:\n  provider: embedded\n  nameservers: [gateways.example.org 192.0.2.1]\n":                 "can be no name server",
		"dns:\n  provider: embedded\n  nameservers: [" + host(orgBoth) + " 192.0.2.1]\n":                "can be no name server",
		"dns:\n  provider: embedded\n  nameservers: [ns1.example.org 192.0.2.1]\n":                      "told by others",
		"dns:\n  provider: embedded\n  nameservers: [ns1.example.org ns2.example.org]\n":                "is not an IP address",
		"dns:\n  provider: embedded\n  nameservers: ['-']\n":                                            "is not the name of a server",
		"dns:\n  provider: embedded\n  nameservers: [' ']\n":                                            "empty",
		powerdns:                                                 "",
		powerdns + "    zone: example.org\n":                     "",
		powerdns + "    zone: Example.Org.\n":                    "",
		powerdns + "    zone: ample.org\n":                       "dns.powerdns.zone",
		powerdns + "    zone: example.net\n":                     "dns.powerdns.zone",
		powerdns + "    timeout: 1ms\n":                          "dns.powerdns.timeout",
		"dns:\n  provider: powerdns\n":                           "dns.powerdns.url",
		strings.Replace(powerdns, "http://", "", 1):              "dns.powerdns.url",
		strings.Replace(powerdns, "8081", "8081/api/v1", 1):      "dns.powerdns.url",
		strings.Replace(powerdns, "http://", "http://u:p@", 1):   "dns.powerdns.url",
		strings.Replace(powerdns, "/etc/demiurge/key", "key", 1): "dns.powerdns.key_file",
	} {
		f := &file{DNS: dns.DefaultConfig()}
		_, err := config.Decode("coordinator.yaml", []byte(text), f, nil)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n\tgives %v, want %q", text, err, want)
		}
	}
}

func TestConfigurationFromTheEnvironment(t *testing.T) {
	f := &file{DNS: dns.DefaultConfig()}
	_, err := config.Decode("", nil, f, []string{
		"DEMIURGE_DNS_PROVIDER=embedded", "DEMIURGE_DNS_TTL=10s",
		"DEMIURGE_DNS_NAMESERVERS=ns1." + domain + " 192.0.2.1, ns2.example.net",
	})
	if err != nil || f.DNS.TTL != 10*time.Second || len(f.DNS.Nameservers) != 2 {
		t.Errorf("%+v, %v", f.DNS, err)
	}
}

func TestParseAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1":                  "[192.0.2.1]",
		"2001:db8::1, 192.0.2.1":     "[192.0.2.1 2001:db8::1]",
		"192.0.2.1,::ffff:192.0.2.1": "[192.0.2.1]",
		"":                           "",
		"host1.example.org":          "",
		"192.0.2.1,":                 "",
		"fe80::1%eth0":               "",
		"192.0.2.1:443":              "",
	} {
		got, err := dns.ParseAddresses(text)
		if err != nil != (want == "") || err == nil && fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), "wildcard") {
			t.Errorf("%q: %v says not what to do", text, err)
		}
	}
}
