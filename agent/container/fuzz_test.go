package container

import (
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
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

// FuzzDoor: without a good credential nothing passes the door, whatever else a request says; and what nginx is told
// breaks no header and leads a browser nowhere but to the organization's own name.
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
		for _, path := range []string{PathCheck, PathEnter + "?ticket=" + url.QueryEscape(ticket)} {
			q := httptest.NewRequest("GET", path, nil)
			for name, value := range map[string]string{
				AskOrganization: string(ourOrg), AskLabel: strings.ReplaceAll(label, "LABEL", of), AskMethod: "GET", AskURI: uri, AskScheme: "https",
				"Cookie": cookie, "Authorization": authorization, "Accept": accept,
			} {
				q.Header[name] = []string{value}
			}
			w := httptest.NewRecorder()
			d.door.ServeHTTP(w, q)
			h := w.Header()
			if w.Code < 400 || h.Get(TellUpstream) != "" || h.Get(TellUser) != "" || h.Get("Location") != "" {
				t.Fatalf("it passed: %d %v", w.Code, h)
			}
			if to := h.Get(TellLogin); to != "" && !strings.HasPrefix(to, "https://"+id.Hostname(ourOrg, "example.test")+"/containers/") {
				t.Fatalf("a browser is sent to %q", to)
			}
			for name, values := range h {
				if strings.ContainsAny(strings.Join(values, ""), "\r\n\x00") {
					t.Fatalf("%s is %q", name, values)
				}
			}
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
