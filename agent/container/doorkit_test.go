package container

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// doorTest asks the door as nginx does.
type doorTest struct {
	t    testing.TB
	door *Door
	at   chan netip.AddrPort // where the passage went
	sent chan *http.Request  // what it brought
}

// newDoorTest has a passage of its own, which reaches a program wherever it goes.
func newDoorTest(t testing.TB, f *fixture) *doorTest {
	d := &doorTest{t: t, at: make(chan netip.AddrPort, 1), sent: make(chan *http.Request, 1)}
	d.door = f.door()
	d.door.passage = newPassage(f.all.opts.Logger)
	d.door.passage.dial = func(_ context.Context, at netip.AddrPort) (net.Conn, error) {
		d.at <- at
		here, there := connected(t)
		go func() { // ended by the answer
			r, err := http.ReadRequest(bufio.NewReader(there))
			if err == nil {
				_, err = io.WriteString(there, "HTTP/1.1 204 No Content\r\nX-Demiurge-User: mallory\r\n\r\n")
			}
			if err == nil {
				d.sent <- r
			}
			_ = there.Close()
		}()
		return here, nil
	}
	return d
}

// door is one more of the same organizations.
func (f *fixture) door() *Door {
	return NewDoor(f.all, func(_ context.Context, org id.Organization) (*Registry, error) {
		if r, open := f.all.Get(org); open {
			return r, nil
		}
		return nil, notFound("")
	})
}

// connected are the two ends of a connection.
func connected(t testing.TB) (a, b net.Conn) {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	ok(t, err)
	ends := [2]net.Conn{}
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "")
		ends[i], err = net.FileConn(f)
		ok(t, errors.Join(err, f.Close()))
		ok(t, ends[i].SetDeadline(time.Now().Add(30*time.Second)))
	}
	return ends[0], ends[1]
}

// outcome is what becomes of a request, and what the container is told.
type outcome struct {
	status                               int
	answer, upstream, login, loginCookie string
	carried                              bool
	header                               http.Header
}

func label(c ID, s ServiceName) string {
	return strings.TrimSuffix(strings.TrimPrefix(Hostname("x", c, s), "uc-"), ".x")
}

func asking(c ID, s ServiceName, headers ...string) http.Header {
	h := http.Header{}
	for _, list := range [][]string{{AskOrganization, string(ourOrg), AskLabel, label(c, s), AskMethod, http.MethodGet, AskURI, "/", AskScheme, "https"}, headers} {
		for i := 0; i+1 < len(list); i += 2 {
			h.Set(list[i], list[i+1])
		}
	}
	return h
}

func (d *doorTest) request(path string, c ID, s ServiceName, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Header = asking(c, s, headers...)
	w := httptest.NewRecorder()
	d.door.ServeHTTP(w, r)
	return w
}

// headOf is a request as nginx brings it.
func headOf(h http.Header) string {
	var b strings.Builder
	b.WriteString(h.Get(AskMethod) + " " + h.Get(AskURI) + " HTTP/1.1\r\nHost: x\r\n")
	for name, values := range h {
		if name != AskMethod && name != AskURI {
			for _, v := range values {
				b.WriteString(name + ": " + v + "\r\n")
			}
		}
	}
	return b.String() + "\r\n"
}

// ask asks, and brings the request, and compares what comes of the two.
func (d *doorTest) ask(c ID, s ServiceName, headers ...string) outcome {
	d.t.Helper()
	out := d.bring(headOf(asking(c, s, headers...)))
	w := d.request(PathCheck, c, s, headers...)
	switch h := w.Header(); w.Code {
	case http.StatusForbidden:
		out.carried = out.answer == "passed"
		if len(h) != 2 {
			d.t.Errorf("with a no comes %v", h)
		}
	case http.StatusNoContent:
		if out.answer != "passed" || out.upstream != h.Get(TellUpstream) {
			d.t.Errorf("nginx may bring it to %q, and the passage finds it %s to %q", h.Get(TellUpstream), out.answer, out.upstream)
		}
		for _, name := range []string{TellUser, TellUsername, TellProject, TellContainer, TellService, TellCookie, TellAuthorization} {
			if h.Get(name) != out.header.Get(name) {
				d.t.Errorf("%s is %q from nginx and %q from the passage", name, h.Get(name), out.header.Get(name))
			}
		}
	default:
		d.t.Errorf("nginx is told %d", w.Code)
	}
	return out
}

// bring brings a request to the passage.
func (d *doorTest) bring(head string) outcome {
	d.t.Helper()
	here, there := connected(d.t)
	defer func() { _ = here.Close() }()
	done := make(chan struct{})
	go func() { defer close(done); d.door.carry(ctx, there) }() // received below
	_, err := io.WriteString(here, head)
	ok(d.t, err)
	method, _, _ := strings.Cut(head, " ")
	res, err := http.ReadResponse(bufio.NewReader(here), &http.Request{Method: method})
	ok(d.t, err)
	body, err := io.ReadAll(res.Body)
	ok(d.t, err)
	_ = here.Close()
	<-done
	out := outcome{status: res.StatusCode, login: res.Header.Get("Location"), loginCookie: res.Header.Get("Set-Cookie"), header: res.Header}
	select {
	case at := <-d.at:
		sent := <-d.sent
		out.answer, out.upstream, out.header = "passed", at.String(), sent.Header
		out.header.Set(TellCookie, sent.Header.Get("Cookie"))
		out.header.Set(TellAuthorization, sent.Header.Get("Authorization"))
		if user := res.Header.Values(TellUser); len(user) != 1 || user[0] != sent.Header.Get(TellUser) {
			d.t.Errorf("the log gets %q for %q", user, sent.Header.Get(TellUser))
		}
		for name, values := range sent.Header {
			if len(values) > 1 || sent.Header.Get(forwardedUser) != sent.Header.Get(TellUser) || sent.Header.Get(forwardedUsername) != sent.Header.Get(TellUsername) {
				d.t.Errorf("%s comes as %q", name, values)
			}
		}
	default:
		out.answer = map[int]string{303: "anonymous", 401: "anonymous", 403: "refused", 404: "missing", 503: "away"}[res.StatusCode]
		if res.Header.Get("Cache-Control") != "no-store" || (len(body) == 0) != (method == http.MethodHead || res.StatusCode == 303) || (out.login != "") != (res.StatusCode == 303) {
			d.t.Errorf("%s is said as %d %v %q", out.answer, res.StatusCode, res.Header, body)
		}
	}
	return out
}

// enter brings a ticket to the name of a container, and returns the session that it gave.
func (d *doorTest) enter(c ID, s ServiceName, ticket, cookie string) (status int, location, session string) {
	w := d.request(PathEnter+"?ticket="+url.QueryEscape(ticket), c, s, "Cookie", cookie)
	for _, k := range w.Result().Cookies() {
		if k.Name == "__Host-demiurge-container" {
			if !k.Secure || !k.HttpOnly || k.Path != "/" || k.Domain != "" || k.SameSite != http.SameSiteLaxMode {
				d.t.Errorf("the cookie is %v", k)
			}
			session = k.Name + "=" + k.Value
		}
	}
	return w.Code, w.Header().Get("Location"), session
}

// login is the way of a browser to a container.
func (d *doorTest) login(r *Registry, user id.User, c ID) (session string) {
	d.t.Helper()
	a := d.ask(c, "", "Accept", "text/html")
	secret, err := r.Ticket(person(user), Entry{Container: c, State: stateOf(d.t, a.login), Session: "session of " + string(user)})
	ok(d.t, err)
	status, _, session := d.enter(c, "", secret.Reveal(), strings.Split(a.loginCookie, ";")[0])
	if status != http.StatusSeeOther {
		d.t.Fatalf("entering: %d", status)
	}
	return session
}

func stateOf(t testing.TB, login string) string {
	t.Helper()
	u, err := url.Parse(login)
	ok(t, err)
	return u.Query().Get("state")
}
