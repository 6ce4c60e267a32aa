package dns_test

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/coordinator/dns/dnstest"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	zone   = dnstest.Zone
	domain = "gateways." + zone
	apiKey = dnstest.Key
)

// generous is how long a test waits for what must happen.
const generous = 60 * time.Second

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(generous); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// program finds a command, also where only root's PATH looks.
func program(t testing.TB, name string) string {
	t.Helper()
	return dnstest.Program(t, name)
}

func host(name string) string { return id.Hostname(id.Organization(name), domain) }

func record(name string, epoch id.Epoch, addresses ...string) dns.Record {
	r := dns.Record{Name: name, TTL: 5 * time.Second, Epoch: epoch}
	for _, a := range addresses {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
	}
	return r
}

// pdns is a PowerDNS server of one test.
type pdns struct {
	*dnstest.PowerDNS
	t       testing.TB
	dnsPort int
}

// startPowerDNS starts a PowerDNS with an empty zone.
func startPowerDNS(t testing.TB) *pdns {
	t.Helper()
	p := dnstest.Start(t)
	return &pdns{p, t, p.DNSPort}
}

func (p *pdns) start() error            { return p.Start() }
func (p *pdns) stop()                   { p.Stop() }
func (p *pdns) signal(s syscall.Signal) { p.Signal(s) }
func (p *pdns) url() string             { return p.URL() }

// put changes a set of records behind the provider's back; without content it is removed.
func (p *pdns) put(name, kind string, content ...string) {
	p.t.Helper()
	p.Put(name, kind, content...)
}

// config points a provider to the server.
func (p *pdns) config() dns.Config { return powerDNSConfig(p.t, p.url(), apiKey) }

func powerDNSConfig(t testing.TB, url, key string) dns.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := dns.DefaultConfig()
	cfg.Provider = dns.ProviderPowerDNS
	cfg.PowerDNS = dns.PowerDNSConfig{URL: url, KeyFile: file, Zone: zone, Timeout: 30 * time.Second}
	return cfg
}

func provider(t testing.TB, cfg dns.Config) dns.Provider {
	t.Helper()
	p, err := dns.New(dns.Options{Config: cfg, Domain: domain, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reply is what dig printed.
type reply struct {
	status  string
	flags   []string
	answers []string // "name ttl type data"
	soa     string   // in the authority section
	text    string
}

// dig asks a server; args are as on its command line.
func dig(t testing.TB, address string, args ...string) reply {
	t.Helper()
	addr, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"@" + addr, "-p", port, "+time=10", "+tries=3", "+nocookie", "+norecurse", "+noadflag"}, args...)
	out, err := exec.Command(program(t, "dig"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("dig %s: %v: %s", strings.Join(args, " "), err, out)
	}
	r := reply{text: string(out)}
	section := ""
	for line := range strings.Lines(r.text) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		switch {
		case strings.Contains(line, "->>HEADER<<-"):
			_, r.status, _ = strings.Cut(line, "status: ")
			r.status, _, _ = strings.Cut(r.status, ",")
		case strings.HasPrefix(line, ";; flags:"):
			flags, _, _ := strings.Cut(strings.TrimPrefix(line, ";; flags:"), ";")
			r.flags = strings.Fields(flags)
		case strings.HasSuffix(line, "SECTION:"):
			section = line
		case line == "" || line[0] == ';' || len(fields) < 5:
		case strings.Contains(section, "ANSWER"):
			r.answers = append(r.answers, strings.Join(append(fields[:2:2], fields[3:]...), " "))
		case strings.Contains(section, "AUTHORITY") && fields[3] == "SOA":
			r.soa = strings.Join(append(fields[:2:2], fields[4:]...), " ")
		}
	}
	return r
}
