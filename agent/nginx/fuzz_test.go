package nginx

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	ada = id.Organization("00000000-0000-4000-8000-00000000000a")
	bob = id.Organization("00000000-0000-4000-8000-00000000000b")
)

// FuzzBlame: whatever nginx says, what is left out for it is a part that is there, so that looking for what is refused
// comes to an end.
func FuzzBlame(f *testing.F) {
	r := testRenderer()
	cfg := Config{
		Slots: []Slot{{Gateway: "gw-aaaaaaaaaa", MaxBody: 1}, {Gateway: "gw-bbbbbbbbbb", MaxBody: 2}},
		Sites: []Site{{Organization: ada, Domains: []string{"a.test"}, Certificate: true}},
	}
	files := r.renderTo("scratch", 0, cfg)
	for _, s := range []string{
		`nginx: [emerg] invalid parameter in /data/nginx/scratch/sites/` + string(ada) + `.conf:3`,
		`nginx: [emerg] invalid parameter in /data/nginx/scratch/sites/` + string(bob) + `.conf:3`,
		`nginx: [emerg] x in /data/nginx/scratch/slots.conf:2`, `x in /data/nginx/scratch/slots.conf:99999999999999999999`, `x in /slots.conf:0`,
		`cannot load certificate "` + r.l.certificate(ada) + `": no`, `x in /sites/------------------------------------.conf:1`, "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, message string) {
		if part := r.blame(message, files, cfg); part != "" && !slices.Contains(partNames(cfg), part) {
			t.Fatalf("%q is said of %q, which is not there", message, part)
		}
	})
}

// FuzzReadBack: what is read back from the files of a generation is gateways and listeners that can be written again.
func FuzzReadBack(f *testing.F) {
	r := testRenderer()
	files := r.renderTo("scratch", 0, Config{Slots: []Slot{{Gateway: "gw-aaaaaaaaaa", MaxBody: 1 << 20}, {Gateway: "gw-bbbbbbbbbb", MaxBody: 2}}})
	f.Add(files["slots.conf"], files["http.conf"])
	f.Add([]byte("upstream gw-aaaaaaaaaa---- { \n    gw-aaaaaaaaaa 9999999999999;\n"), []byte("    listen [fe80::1%x]:80 default_server;\n    client_max_body_size 0000000000001;\n"))
	f.Fuzz(func(t *testing.T, slots, http []byte) {
		files := tree{"slots.conf": slots, "http.conf": http}
		for _, s := range parseSlots(files) {
			if _, err := id.ParseGateway(string(s.Gateway)); err != nil || s.MaxBody < 0 {
				t.Fatalf("%+v is read", s)
			}
		}
		for _, l := range listeners(files) {
			if !l.addr.IsValid() {
				t.Fatalf("%v is read", l.addr)
			}
		}
	})
}

// FuzzLimits: whatever stands where the system tells of a process's limits, it is read as what is written there or refused.
func FuzzLimits(f *testing.F) {
	f.Add([]byte("Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \n"))
	f.Add([]byte("Max open files            unlimited            unlimited            files\n"))
	f.Add([]byte("Max open files\n"))
	f.Fuzz(func(t *testing.T, limits []byte) {
		if n, err := parseDescriptorLimit(17, limits); err == nil && n != 0 && !strings.Contains(string(limits), "Max open files") {
			t.Fatalf("%q is read as %d", limits, n)
		} else if err != nil && !strings.Contains(err.Error(), "of process 17") {
			t.Fatalf("refused with %v", err)
		}
	})
}

// FuzzQuarantine: whatever lies where refused parts are noted, what is taken stands in the file that it belongs to, what is
// not taken is removed, and nothing beside it is.
func FuzzQuarantine(f *testing.F) {
	dir := f.TempDir()
	l := layout{data: dir, run: dir}
	beside := filepath.Join(dir, "beside")
	if err := os.WriteFile(beside, nil, 0o600); err != nil {
		f.Fatal(err)
	}
	if err := os.Mkdir(l.quarantine(), 0o700); err != nil {
		f.Fatal(err)
	}
	files, err := fsx.NewOS(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = files.Close() })
	part := sitePart(ada)
	f.Add(filepath.Base(quarantineFile(l, part)), []byte(`{"part":"`+part+`","digest":"x","message":"no","since":"2026-01-01T00:00:00Z"}`))
	f.Add("x.json", []byte(`{"part":"../beside"}`))
	f.Add(".._beside.json", []byte(`{"part":"../beside","since":"x"}`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		path := filepath.Join(l.quarantine(), name)
		if filepath.Base(path) != name || filepath.Dir(path) != l.quarantine() || os.WriteFile(path, data, 0o600) != nil {
			return
		}
		got, err := loadQuarantine(files, l)
		if err != nil {
			t.Fatal(err)
		}
		for part := range got {
			if quarantineFile(l, part) != path {
				t.Fatalf("%q in %q is read", part, path)
			}
		}
		if _, err := os.Stat(beside); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); (err == nil) != (len(got) == 1) {
			t.Fatalf("%d parts are read of %q, %v", len(got), data, err)
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzGeneration: whatever answers on a generation socket is taken for the generation that it names in the one form
// that nginx writes, or for none.
func FuzzGeneration(f *testing.F) {
	const head = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
	for _, s := range []string{
		head + "000042\n", head + "1234567\n", head + "42\n", head + "000000\n", head + " 000042\n", head + "000042\n\n", head, "HTTP/1.1 2000 OK\r\n\r\n000042\n",
		"HTTP/1.1 503 x\r\n\r\n000042\n", "000042\n", head + "18446744073709551616\n", head + "+00042\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := parseAnswer(b)
		if ok && (n == 0 || !strings.HasPrefix(string(b), "HTTP/1.1 200 ") || !strings.HasSuffix(strings.TrimSuffix(string(b), "\n"), "\r\n\r\n"+number(n))) {
			t.Fatalf("%q is taken for generation %d", b, n)
		}
	})
}

// endless has something said and goes on for ever. It counts what is read of it.
type endless struct {
	net.Conn
	said string
	read int
}

func (e *endless) Write(p []byte) (int, error) { return len(p), nil }
func (e *endless) Close() error                { return nil }

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.said[min(e.read, len(e.said)):])
	for i := n; i < len(p); i++ {
		p[i] = 'x'
	}
	e.read += len(p)
	return len(p), nil
}

// FuzzStraight: whatever comes over a connection to nginx, of an answer's head no more is read than its bound, it is the
// last one, and a connection is kept only if nothing of the answer is left on it.
func FuzzStraight(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nX: ", "",
		strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", maxHead/10), "HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, said string) {
		conn := &endless{said: said}
		s := &straight{dial: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
		req, err := http.NewRequest(http.MethodGet, "http://192.0.2.1/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.RoundTrip(req)
		if conn.read > maxHead {
			t.Fatalf("%d bytes were read of a head", conn.read)
		}
		if err != nil {
			return
		}
		if resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("it is answered %d", resp.StatusCode)
		}
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
		_ = resp.Body.Close()
		if kept := len(s.idle) == 1; kept && (err != nil || resp.Close || s.idle[0].in.Buffered() > 0) {
			t.Fatalf("the connection of %q is kept: %v", said, err)
		}
	})
}

// FuzzWords: whatever nginx prints when it tests a configuration, what is kept of it for reports and records is text, of
// that which it printed last, and bounded.
func FuzzWords(f *testing.F) {
	for _, s := range []string{
		"nginx: [emerg] invalid parameter in /x/slots.conf:2\n", "2026/01/01 00:00:00 [warn] 1#1: *2 conflicting server name\n", "\xff", strings.Repeat("[emerg]\n", mostWords), "[emerg] " + strings.Repeat("é", mostWords), "",
	} {
		f.Add([]byte(s), uint16(7))
	}
	f.Add([]byte("nginx: [emerg] no\n"), uint16(60_000))
	f.Fuzz(func(t *testing.T, printed []byte, warnings uint16) {
		var out ending
		for range warnings {
			_, _ = out.Write([]byte("nginx: [warn] conflicting server name\n"))
		}
		if n, err := out.Write(printed); n != len(printed) || err != nil {
			t.Fatalf("%d of %d bytes are taken: %v", n, len(printed), err)
		}
		heard := out.String()
		if last := string(printed[max(0, len(printed)-mostHeard):]); len(heard) > mostHeard || len(out.b) > 2*mostHeard || !strings.HasSuffix(heard, last) {
			t.Fatalf("%d bytes are kept of %d", len(out.b), len(printed))
		}
		said := words(heard, "[emerg]")
		if len(said) > mostWords || !utf8.ValidString(said) {
			t.Fatalf("%d bytes are said: %q", len(said), said)
		}
		reason, _ := verdict(strings.Split(string(printed), "\n"))
		if len(reason) > mostWords+100 || !utf8.ValidString(reason) {
			t.Fatalf("%d bytes are the reason: %q", len(reason), reason)
		}
	})
}

// FuzzVersion: a directory is of this version or of the one before if that and nothing else stands there; else the
// refusal names the directory and what to do.
func FuzzVersion(f *testing.F) {
	for _, s := range []string{"3\n", "2\n", "2", " 3\n", "4\n", "", "\x00", strings.Repeat("3", 1000)} {
		f.Add([]byte(s))
	}
	l := layout{data: "/data/nginx"}
	f.Fuzz(func(t *testing.T, b []byte) {
		before, err := l.parseVersion(b)
		want := map[bool]string{false: formatVersion, true: formatBefore}[before] + "\n"
		if err == nil && string(b) != want {
			t.Fatalf("%q is the version, before %t", b, before)
		}
		if err != nil && (len(err.Error()) > 500 || !strings.Contains(err.Error(), l.data) || !strings.Contains(err.Error(), "empty the directory")) {
			t.Fatalf("refused with %v", err)
		}
	})
}

// FuzzRoutes: whatever lies where the routes are, what is taken is a route of ours that nginx reads as the same, what is
// not taken is removed, and nothing beside it is.
func FuzzRoutes(f *testing.F) {
	dir := f.TempDir()
	l := layout{data: dir, run: dir}
	beside := filepath.Join(dir, "beside")
	if err := errors.Join(os.WriteFile(beside, nil, 0o600), os.Mkdir(l.routes(), 0o700)); err != nil {
		f.Fatal(err)
	}
	files, err := fsx.NewOS(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = files.Close() })
	to := link(Target{"gw-aaaaaaaaaa", 7})
	f.Add(string(ada), to)
	f.Add(strings.ToUpper(string(ada)), to)
	f.Add(string(ada), "../beside")
	f.Add(string(ada), to+"/..")
	f.Add(string(ada), "gw-aaaaaaaaaa-.7")
	f.Add(to, "../beside")
	f.Add("beside", "..")
	f.Fuzz(func(t *testing.T, name, target string) {
		path := filepath.Join(l.routes(), name)
		if filepath.Base(path) != name || filepath.Dir(path) != l.routes() || os.Symlink(target, path) != nil {
			return
		}
		r := newRoutes(files, l)
		if err := r.load(); err != nil {
			t.Fatal(err)
		}
		for org, to := range r.all() {
			if back, err := id.ParseOrganization(string(org)); err != nil || back != org || l.route(org) != path || link(to) != target {
				t.Fatalf("%q to %q is read as %s to %+v", name, target, org, to)
			}
			if _, err := os.Stat(path); err != nil {
				t.Fatalf("it leads nowhere: %v", err)
			}
		}
		if _, err := os.Stat(beside); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); (err == nil) != (r.len() == 1) {
			t.Fatalf("%d routes are read of %q to %q, %v", r.len(), name, target, err)
		}
		left, err := os.ReadDir(l.routes())
		if err != nil || len(left) != 2*r.len() {
			t.Fatalf("%v are left, %v", left, err)
		}
		for _, e := range left {
			if err := os.Remove(filepath.Join(l.routes(), e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	})
}
