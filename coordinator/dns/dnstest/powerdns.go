// Package dnstest runs a real PowerDNS server for tests.
package dnstest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const (
	// Zone is the zone that the server has.
	Zone = "example.org"
	// Key is the key of its API.
	Key = "a-key-for-tests"
	// Patience is how long a test waits for what must happen.
	Patience = 60 * time.Second
)

// Program finds a command, also where only root's PATH looks.
func Program(t testing.TB, name string) string {
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

// PowerDNS is a PowerDNS server of one test, on a zone in a directory of its own.
type PowerDNS struct {
	t        testing.TB
	dir      string
	DNSPort  int // where it answers names, on 127.0.0.1
	httpPort int
	cmd      *exec.Cmd
}

// Start starts a PowerDNS with an empty zone.
func Start(t testing.TB) *PowerDNS {
	t.Helper()
	p := &PowerDNS{t: t, dir: t.TempDir()}
	schema := "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql"
	if _, err := os.Stat(schema); err != nil {
		t.Fatalf("there is no SQLite backend of PowerDNS (%v): run `apt-get install --no-install-recommends pdns-backend-sqlite3` as root", err)
	}
	if out, err := exec.Command(Program(t, "sqlite3"), filepath.Join(p.dir, "pdns.db"), ".read "+schema).CombinedOutput(); err != nil {
		t.Fatalf("cannot make the database: %v: %s", err, out)
	}
	for try := 1; ; try++ { // the ports were free a moment ago, and may be taken by now
		p.DNSPort, p.httpPort = freePort(t), freePort(t)
		err := p.Start()
		if err == nil {
			break
		}
		if try == 5 {
			t.Fatal(err)
		}
	}
	t.Cleanup(p.Stop)
	p.Request(http.MethodPost, "", map[string]any{"name": Zone + ".", "kind": "Native", "nameservers": []string{"ns1." + Zone + "."}})
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

// Start runs the server on the ports and the database that it has.
func (p *PowerDNS) Start() error {
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	options := []string{
		"config-dir=" + p.dir, "daemon=no", "guardian=no", "setuid=", "setgid=", "socket-dir=" + p.dir,
		"launch=gsqlite3", "gsqlite3-database=" + filepath.Join(p.dir, "pdns.db"),
		"local-address=127.0.0.1", fmt.Sprintf("local-port=%d", p.DNSPort), "receiver-threads=1",
		"webserver=yes", "webserver-address=127.0.0.1", fmt.Sprintf("webserver-port=%d", p.httpPort),
		"webserver-allow-from=127.0.0.0/8", "api=yes", "api-key=" + Key,
		"cache-ttl=0", "query-cache-ttl=0", "negquery-cache-ttl=0", "zone-cache-refresh-interval=0",
	}
	for i := range options {
		options[i] = "--" + options[i]
	}
	p.cmd = exec.Command(Program(p.t, "pdns_server"), options...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }() // ends with the process, which stop waits for
	up := func() bool {
		_, status, err := p.Try(http.MethodGet, "", nil)
		return err == nil && status == http.StatusOK
	}
	for end := time.Now().Add(Patience); ; {
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
			p.Stop()
			return errors.New("pdns_server does not answer")
		}
	}
}

// Stop kills the server, and returns when it is gone.
func (p *PowerDNS) Stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	for end := time.Now().Add(Patience); p.cmd.Process.Signal(syscall.Signal(0)) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatal("pdns_server does not end")
		}
	}
}

// Signal sends the server a signal.
func (p *PowerDNS) Signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// URL is where its API is.
func (p *PowerDNS) URL() string { return fmt.Sprintf("http://127.0.0.1:%d", p.httpPort) }

// Try asks the API as an operator would.
func (p *PowerDNS) Try(method, path string, body any) (answer []byte, status int, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, p.URL()+"/api/v1/servers/localhost/zones"+path, bytes.NewReader(text))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("X-API-Key", Key)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err = io.ReadAll(resp.Body)
	return answer, resp.StatusCode, err
}

// Request is Try that must succeed.
func (p *PowerDNS) Request(method, path string, body any) {
	p.t.Helper()
	if answer, status, err := p.Try(method, path, body); err != nil || status/100 != 2 {
		p.t.Fatalf("%s %s: %v, status %d: %s", method, path, err, status, answer)
	}
}

// Put changes a set of records behind the provider's back; without content it is removed.
func (p *PowerDNS) Put(name, kind string, content ...string) {
	p.t.Helper()
	set := map[string]any{"name": name + ".", "type": kind, "changetype": "DELETE"}
	if len(content) > 0 {
		var records []map[string]any
		for _, c := range content {
			records = append(records, map[string]any{"content": c, "disabled": false})
		}
		set["changetype"], set["ttl"], set["records"] = "REPLACE", 5, records
	}
	p.Request(http.MethodPatch, "/"+Zone+".", map[string]any{"rrsets": []any{set}})
}
