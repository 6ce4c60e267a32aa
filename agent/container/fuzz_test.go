package container

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/records"
)

// FuzzHostingToken: nothing that was not given out speaks for a container.
func FuzzHostingToken(f *testing.F) {
	fix := newFixture(f)
	r := fix.open(ourOrg)
	made := create(f, r)
	token := made.Hosting.Token.Reveal()
	for _, s := range []string{"", "..", token[:len(token)-1], token + "A", tokenHeader + ".e30.", strings.Replace(token, ".", "..", 1)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sent string) {
		if sent != token && !fault.Is(r.authenticate(made.Container.ID, sent), fault.Unauthenticated) {
			t.Fatalf("%q is taken for a hosting token", sent)
		}
		if _, again := r.visitor(sent, made.Container.ID, ""); again != nil {
			t.Fatalf("%q is taken for a session", sent)
		}
	})
}

// FuzzDoor: without a good credential nothing passes the door or the passage, whatever else a request says; and what
// a browser is told breaks no header and leads it nowhere but to the organization's own name.
func FuzzDoor(f *testing.F) {
	fix := newFixture(f)
	r := fix.open(ourOrg)
	made := create(f, r)
	announce(f, r, made, "10.1.0.5")
	d := newDoorTest(f, fix)
	of := label(made.Container.ID, "web")
	f.Add(of, "__Host-demiurge-container=x.y", "Bearer x", "/a?b", "text/html", "x")
	f.Add(of, "__Host-demiurge-enter=x.Lw; a=b", "Basic x", "//evil.test/", "*/*", "")
	f.Add("x--y--z", ";=;", "", "", "", "%zz")
	f.Fuzz(func(t *testing.T, label, cookie, authorization, uri, accept, ticket string) {
		for _, path := range []string{PathCheck, PathEnter + "?ticket=" + url.QueryEscape(ticket), ""} {
			header := http.Header{}
			for name, value := range map[string]string{
				AskOrganization: string(ourOrg), AskLabel: strings.ReplaceAll(label, "LABEL", of), AskMethod: "GET", AskURI: uri, AskScheme: "https",
				"Cookie": cookie, "Authorization": authorization, "Accept": accept,
			} {
				header[name] = []string{value}
			}
			if path == "" {
				passageRefuses(t, d, headOf(header))
				continue
			}
			q := httptest.NewRequest("GET", path, nil)
			q.Header = header
			w := httptest.NewRecorder()
			d.door.ServeHTTP(w, q)
			if h := w.Header(); w.Code < 400 || h.Get(TellUpstream) != "" || h.Get(TellUser) != "" || h.Get("Location") != "" {
				t.Fatalf("it passed: %d %v", w.Code, h)
			}
		}
	})
}

// passageRefuses sends a head, which may be none, and looks at the answer.
func passageRefuses(t *testing.T, d *doorTest, head string) {
	t.Helper()
	here, there := connected(t)
	defer func() { _ = here.Close() }()
	done := make(chan struct{})
	go func() { defer close(done); d.door.carry(ctx, there) }() // received below
	_, _ = io.WriteString(here, head)                           // it may be closed before
	_ = here.(*net.UnixConn).CloseWrite()
	res, err := http.ReadResponse(bufio.NewReader(here), nil)
	<-done
	select {
	case at := <-d.at:
		t.Fatalf("it passed to %s", at)
	default:
	}
	if err != nil {
		return // it was not a request
	}
	if to := res.Header.Get("Location"); res.StatusCode != http.StatusSeeOther && res.StatusCode < 400 || (to != "") != (res.StatusCode == http.StatusSeeOther) ||
		to != "" && !strings.HasPrefix(to, "https://"+id.Hostname(ourOrg, "example.test")+"/containers/") {
		t.Fatalf("it is answered %d %v", res.StatusCode, res.Header)
	}
	for name := range res.Header {
		if !slices.Contains([]string{"Cache-Control", "Connection", "Content-Length", "Content-Security-Policy", "Content-Type", "Location", "Set-Cookie", "Www-Authenticate", "X-Content-Type-Options"}, name) {
			t.Fatalf("there is the header %q", name)
		}
	}
}

// FuzzRequestHead: whatever is taken for a request is one to the container too, which is told who makes it by us alone.
func FuzzRequestHead(f *testing.F) {
	for _, s := range []string{
		"", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /a b HTTP/1.1\r\nHost: x\r\nX-Demiurge-User: eve\r\ncookie: a\r\nA:\r\n\r\nbody",
		"GET / HTTP/1.1\r\nx-demiurge-user:\teve\r\nX-Demiurge-User : eve\r\n\r\n", "GET / HTTP/1.1\r\nA: b\n\r\n\r\n", "GET / HTTP/1.1\r\n\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, head string) {
		r, err := readRequest(strings.NewReader(head))
		if err != nil {
			return
		}
		sent := r.as(told{user: "paul", cookie: "c=d\r\nX: y"})
		if !bytes.HasSuffix(sent, r.body) || !strings.HasSuffix(head, string(r.body)) {
			t.Fatalf("the body is %q", r.body)
		}
		lines := strings.Split(string(sent[:len(sent)-len(r.body)]), "\r\n")
		if n := len(lines); n < 5 || lines[n-1] != "" || lines[n-2] != "" || strings.Contains(strings.Join(lines, ""), "\n") {
			t.Fatalf("it is sent %q", sent)
		}
		seen := map[string][]string{}
		for _, line := range lines[1 : len(lines)-2] {
			name, value, is := strings.Cut(line, ":")
			if !is || name == "" || strings.ContainsAny(name, " \t") {
				t.Fatalf("it is sent the line %q", line)
			}
			name = http.CanonicalHeaderKey(name)
			seen[name] = append(seen[name], strings.TrimSpace(value))
		}
		for name, want := range map[string][]string{TellUser: {"paul"}, forwardedUser: {"paul"}, "Cookie": {"c=d  X: y"}, "Authorization": nil, AskLabel: nil, TellProject: nil} {
			if !slices.Equal(seen[name], want) {
				t.Fatalf("%s is %q", name, seen[name])
			}
		}
	})
}

// FuzzAnswer: whatever a container answers, in whatever pieces, only we say in it whom it was for.
func FuzzAnswer(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nX-Demiurge-User: eve\r\n\r\nbody", uint8(7))
	f.Add("HTTP/1.1 100 \n\nHTTP/1.1 200\nX_Demiurge-User:eve\n\r\n\n", uint8(1))
	f.Fuzz(func(t *testing.T, said string, size uint8) {
		here, there := connected(t)
		defer func() { _ = here.Close() }()
		read := make(chan []byte, 1)
		go func() { // ends when the other end is closed; many small pieces would not fit into the socket
			got, err := io.ReadAll(here)
			if err != nil {
				got = nil
			}
			read <- got
		}()
		a := answer{to: there, user: "paul"}
		for part := range slices.Chunk([]byte(said[:min(len(said), 10_000)]), int(size)+1) {
			_, err := a.Write(part)
			ok(t, err)
		}
		ok(t, there.Close())
		got := <-read
		if !a.past {
			return
		}
		for head := got; ; {
			end := headEnd(head)
			if end < 0 {
				t.Fatalf("%q has no end", got)
			}
			users := 0
			_, fields, _ := bytes.Cut(head[:end], []byte("\n")) // behind the status line, which is no field whatever it says
			for line := range bytes.Lines(fields) {
				if name, _, is := strings.Cut(string(line), ":"); is && strings.EqualFold(strings.TrimSpace(strings.ReplaceAll(name, "_", "-")), TellUser) {
					users++
				}
			}
			if users != 1 || !bytes.HasPrefix(head[bytes.IndexByte(head, '\n')+1:], []byte(TellUser+": paul\r\n")) {
				t.Fatalf("%q says it %d times", head, users)
			}
			if !informs(head) {
				return
			}
			head = head[end:]
		}
	})
}

// FuzzAnnounce: a container is nowhere but in a network for containers, with services that it declares.
func FuzzAnnounce(f *testing.F) {
	fix := newFixture(f)
	r := fix.open(ourOrg)
	made := create(f, r)
	f.Add("10.1.0.5", "web", uint16(80))
	f.Add("::ffff:10.1.0.1", "api", uint16(0))
	f.Add("fe80::1%eth0", "../x", uint16(22))
	f.Fuzz(func(t *testing.T, address, service string, port uint16) {
		at, _ := netip.ParseAddr(address)
		p, err := r.place(made.Container.ID, Announcement{Address: at, Source: netip.MustParseAddr("10.9.9.9"), Ports: map[ServiceName]uint16{ServiceName(service): port}})
		if err != nil {
			return
		}
		if !netip.MustParsePrefix("10.1.0.0/16").Contains(p.Address) || p.Address == netip.MustParseAddr("10.1.0.1") || p.Proven || port == 0 || service != "web" && service != "api" {
			t.Fatalf("%+v was taken", p)
		}
	})
}

// FuzzSpec: whatever is asked for as a container is refused, or its clients lead to the container's own names alone.
func FuzzSpec(f *testing.F) {
	f.Add("one", "notebook", "web", "/callback", "openid")
	f.Add("../x", "", "a--b", "//evil.test", "a b")
	f.Fuzz(func(t *testing.T, project, name, service, path, scope string) {
		s := Spec{Project: id.Project(project), Name: name, Services: []Service{{Name: ServiceName(service), Paths: []string{path}, Scope: []string{scope}}}}
		if s.check() != nil {
			return
		}
		const c = "abcdefghijklmnop"
		for _, to := range s.redirects("org-x.example.test", ":8443", c, 0) {
			u, err := url.Parse(to + "?code=x")
			if err != nil || u.Host != Hostname("org-x.example.test", c, s.Services[0].Name)+":8443" && u.Host != Hostname("org-x.example.test", c, "")+":8443" || u.Query().Get("code") != "x" {
				t.Fatalf("it leads to %q: %v", to, err)
			}
		}
		if of, named, err := ParseLabel(label(c, ServiceName(service))); err != nil || of != c || string(named) != service {
			t.Fatalf("its name is read as %s %s: %v", of, named, err)
		}
	})
}

// FuzzJournal: whatever whole records a journal holds, one a line, and whatever stands behind them, it is refused with its
// path and what to do and is left as it is; or it is a registry that is the same when it is opened again, with what was
// made meanwhile, and whose section the next host takes.
func FuzzJournal(f *testing.F) {
	fix := newFixture(f)
	r := fix.open(ourOrg)
	announce(f, r, create(f, r), "10.1.0.5")
	again(f, r, with(f, "ann", "k"))
	ok(f, r.Delete(ctx, again(f, r, with(f, "ann", "gone")).Container.ID))
	path := fix.all.path(ourOrg, 7)
	data, err := os.ReadFile(path)
	ok(f, err)
	ok(f, fix.all.Close(ourOrg, 7))
	var lines []string
	whole, err := records.Scan(data, journalHeader, largestLine, func(p []byte) bool { lines = append(lines, string(p)); return true })
	if err != nil || whole != len(data) || len(lines) < 5 {
		f.Fatalf("%d of %d bytes in %d lines: %v", whole, len(data), len(lines), err)
	}
	good := strings.Join(lines, "\n")
	f.Add(good, []byte{})
	f.Add(good+"\n"+good, []byte{0, 0, 0, 1, 0})
	f.Add(lines[0], []byte(`{"k":"x"}`))
	for old, damaged := range map[string]string{
		`"10.1.0.5"`: `"127.0.0.1"`, `"web"`: `"a--b"`, `"key":"`: `"key":"x`, `"body":"`: `"body":"x`, containerKey: containerKey + "x", `"k":"key/signing","v":"`: `"k":"key/signing","v":"AAAA`, `"project":"`: `"project":"../`,
		`"creator":"ann"`: `"creator":""`, `"cl-`: `"`,
	} {
		if !strings.Contains(good, old) {
			f.Fatalf("there is no %s in %s", old, good)
		}
		f.Add(strings.ReplaceAll(good, old, damaged), []byte{})
	}
	for _, line := range lines { // one at a time: each kind of entry has its own check
		f.Add(strings.ReplaceAll(line, `"body":"`, `"body":"x`), []byte{})
	}
	f.Add(`{"k":"gone/x","v":{"key":"x"}}`, []byte{})
	f.Add(`{"k":"other","v":1}`, []byte{})
	f.Fuzz(func(t *testing.T, lines string, behind []byte) {
		form := []byte(journalHeader)
		for line := range strings.SplitSeq(lines, "\n") {
			form = records.Append(form, []byte(line))
		}
		form = append(form, behind...)
		ok(t, os.WriteFile(path, form, 0o600))
		var first []byte
		for range 2 {
			r, err := fix.all.Open(ourOrg, 7, nil, fix.clients[ourOrg], fix.people[ourOrg])
			if err != nil {
				left, readErr := os.ReadFile(path)
				if first != nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move it away") || len(err.Error()) > 1000 || readErr != nil || !bytes.HasPrefix(form, left) {
					t.Fatalf("refused with %v, %v", err, readErr)
				}
				return
			}
			for _, mark := range r.gone {
				if !mark.wellFormed() {
					t.Fatalf("%+v is a key", mark)
				}
			}
			for _, e := range r.containers {
				if e.Request != nil && !e.Request.wellFormed() {
					t.Fatalf("%+v is a key", e.Request)
				}
			}
			if first == nil {
				_, _ = r.Create(ctx, "ann", simple()) // there may be too many
			}
			section, _ := r.Section()
			if first != nil && !bytes.Equal(first, section) {
				t.Fatalf("it is\n%q and then\n%q", first, section)
			}
			first = section
			ok(t, fix.all.Close(ourOrg, 7))
		}
		_, err := fix.all.Open(otherOrg, 7, first, fix.clients[otherOrg], fix.people[otherOrg])
		if err != nil {
			t.Fatalf("the next host refuses its section: %v", err)
		}
		ok(t, fix.all.Close(otherOrg, 7))
		ok(t, os.Remove(fix.all.path(otherOrg, 7)))
	})
}
