package dns_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	zone   = "example.org"
	domain = "gateways." + zone
	apiKey = "a-key-for-tests"
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
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	path := filepath.Join("/usr/sbin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("there is no %s: run `make deps-test`", name)
	}
	return path
}

func host(name string) string { return id.Hostname(id.Organization(name), domain) }

func record(name string, epoch id.Epoch, addresses ...string) dns.Record {
	r := dns.Record{Name: name, TTL: 5 * time.Second, Epoch: epoch}
	for _, a := range addresses {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
	}
	return r
}

// pdns is a PowerDNS server of one test, on a zone in a directory of its own.
type pdns struct {
	t        testing.TB
	dir      string
	dnsPort  int
	httpPort int
	cmd      *exec.Cmd
}

// startPowerDNS starts a PowerDNS with an empty zone.
func startPowerDNS(t testing.TB) *pdns {
	t.Helper()
	p := &pdns{t: t, dir: t.TempDir()}
	schema := "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql"
	if _, err := os.Stat(schema); err != nil {
		t.Fatalf("there is no SQLite backend of PowerDNS (%v): run `apt-get install --no-install-recommends pdns-backend-sqlite3` as root", err)
	}
	if out, err := exec.Command(program(t, "sqlite3"), filepath.Join(p.dir, "pdns.db"), ".read "+schema).CombinedOutput(); err != nil {
		t.Fatalf("cannot make the database: %v: %s", err, out)
	}
	for try := 1; ; try++ { // the ports were free a moment ago, and may be taken by now
		p.dnsPort, p.httpPort = freePort(t), freePort(t)
		err := p.start()
		if err == nil {
			break
		}
		if try == 5 {
			t.Fatal(err)
		}
	}
	t.Cleanup(p.stop)
	p.request(http.MethodPost, "", map[string]any{"name": zone + ".", "kind": "Native", "nameservers": []string{"ns1." + zone + "."}})
	return p
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// start runs the server on the ports and the database that it has.
func (p *pdns) start() error {
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	options := []string{
		"config-dir=" + p.dir, "daemon=no", "guardian=no", "setuid=", "setgid=", "socket-dir=" + p.dir,
		"launch=gsqlite3", "gsqlite3-database=" + filepath.Join(p.dir, "pdns.db"),
		"local-address=127.0.0.1", fmt.Sprintf("local-port=%d", p.dnsPort), "receiver-threads=1",
		"webserver=yes", "webserver-address=127.0.0.1", fmt.Sprintf("webserver-port=%d", p.httpPort),
		"webserver-allow-from=127.0.0.0/8", "api=yes", "api-key=" + apiKey,
		"cache-ttl=0", "query-cache-ttl=0", "negquery-cache-ttl=0", "zone-cache-refresh-interval=0",
	}
	for i := range options {
		options[i] = "--" + options[i]
	}
	p.cmd = exec.Command(program(p.t, "pdns_server"), options...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }() // ends with the process, which stop waits for
	up := func() bool {
		_, status, err := p.try(http.MethodGet, "", nil)
		return err == nil && status == http.StatusOK
	}
	for end := time.Now().Add(generous); ; {
		select {
		case err := <-ended:
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("pdns_server ended: %w: %s", err, text)
		case <-time.After(20 * time.Millisecond):
		}
		if up() {
			return nil
		}
		if time.Now().After(end) {
			p.stop()
			return errors.New("pdns_server does not answer")
		}
	}
}

// stop kills the server, and returns when it is gone.
func (p *pdns) stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	eventually(p.t, "the end of pdns_server", func() bool { return p.cmd.Process.Signal(syscall.Signal(0)) != nil })
}

func (p *pdns) signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pdns) url() string { return fmt.Sprintf("http://127.0.0.1:%d", p.httpPort) }

// try asks the API as an operator would.
func (p *pdns) try(method, path string, body any) (answer []byte, status int, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, p.url()+"/api/v1/servers/localhost/zones"+path, bytes.NewReader(text))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("X-API-Key", apiKey)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err = io.ReadAll(resp.Body)
	return answer, resp.StatusCode, err
}

func (p *pdns) request(method, path string, body any) {
	p.t.Helper()
	if answer, status, err := p.try(method, path, body); err != nil || status/100 != 2 {
		p.t.Fatalf("%s %s: %v, status %d: %s", method, path, err, status, answer)
	}
}

// put changes a set of records behind the provider's back; without content it is removed.
func (p *pdns) put(name, kind string, content ...string) {
	p.t.Helper()
	set := map[string]any{"name": name + ".", "type": kind, "changetype": "DELETE"}
	if len(content) > 0 {
		var records []map[string]any
		for _, c := range content {
			records = append(records, map[string]any{"content": c, "disabled": false})
		}
		set["changetype"], set["ttl"], set["records"] = "REPLACE", 5, records
	}
	p.request(http.MethodPatch, "/"+zone+".", map[string]any{"rrsets": []any{set}})
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
