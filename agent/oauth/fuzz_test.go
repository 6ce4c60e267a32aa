package oauth

import (
	"bytes"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/records"
)

// FuzzRecord: what is read as a record is written the same again.
func FuzzRecord(f *testing.F) {
	for _, r := range []record{
		{op: putClient, client: Client{ID: "cl-a", Name: "n", Public: true, Redirects: []string{"r"}, Scope: []string{"a", "b"}}},
		{op: dropClient, client: Client{ID: "cl-a"}},
		{op: dropUser, user: "ada"},
		{op: putGrant, grant: 3, client: Client{ID: "cl-a"}, user: "ada", scope: "a", ends: 1 << 40, rotated: 5, generation: 6},
		{op: dropGrant, grant: 300},
		{op: putToken, kind: Code, grant: 1, expires: 77, used: true, code: codeTies{"r", "c"}},
		{op: putToken, kind: Refresh, grant: 1, expires: 77, generation: 2, scope: "a"},
		{op: useCode},
		{op: rotate, grant: 1, rotated: 9, generation: 3},
		{op: putRequest, digest: digest{1}, secret: digest{2}, client: Client{ID: "cl-a"}, expires: 300},
		{op: putMaster, digest: digest{3}},
	} {
		f.Add(r.append(nil))
	}
	f.Add([]byte{})
	f.Add([]byte{byte(dropGrant), 0x80, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, rest, err := decodeRecord(data)
		if err != nil {
			return
		}
		if read := data[:len(data)-len(rest)]; !bytes.Equal(r.append(nil), read) {
			t.Fatalf("%x is written as %x", read, r.append(nil))
		}
	})
}

// FuzzPart: what is taken for a part of a journal has the name that this part is given, and one can come after it.
func FuzzPart(f *testing.F) {
	for _, s := range []string{
		partName(baseKind, 1), partName(logKind, 7), "log-7", "log-0000000000000000", "log-18446744073709551615", "log-18446744073709551614", "log-00000000000000000007", "base-+000000000000001", "base--00000000000000001",
		"notes", "base-", "-0000000000000001", "log-0000000000000001-0000000000000001", "../log-0000000000000001", "log-000000000000000x", ".fsx-tmp-1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		kind, n, ok := parsePart(name)
		if ok && (kind != baseKind && kind != logKind || n == 0 || n+1 == 0 || partName(kind, n) != name || strings.Contains(name, "/")) {
			t.Fatalf("%q is taken for %s %d", name, kind, n)
		}
	})
}

// FuzzJournal: whatever whole records a journal holds, and whatever stands behind them, it is refused with its directory
// and what to do, or it is a store that is right in itself and is the same when it is opened again, with what was made meanwhile.
func FuzzJournal(f *testing.F) {
	fix := newFixture(f)
	s := fix.open(ourOrg)
	c := publicClient(f, s)
	service, _ := addClient(f, s, Client{Service: true})
	out := login(f, s, c, "ada")
	must(f, s.journal.compact(ctx, s.walkAll))
	if _, err := refresh(s, c, out.Refresh); err != nil {
		f.Fatal(err)
	}
	if _, err := s.Service(ctx, service, nil); err != nil {
		f.Fatal(err)
	}
	code(f, s, c, "bob")
	mustRegister(f, s, "ada", "k")
	must(f, fix.all.Close(ourOrg))
	whole := func(path, header string) (payload []byte) {
		data, err := os.ReadFile(path)
		must(f, err)
		n, err := records.Scan(data, header, largestFrame, func(p []byte) bool { payload = append(payload, p...); return true })
		if err != nil || n != len(data) || n == len(header) {
			f.Fatalf("%d of %d bytes of %s: %v", n, len(data), path, err)
		}
		return payload
	}
	base, log := whole(s.journal.path(baseKind, 2), baseHeader), whole(s.journal.path(logKind, 2), logHeader)
	f.Add(base, log, []byte{})
	f.Add(base, log, []byte{0, 0, 0, 1, 0})
	f.Add(log, base, []byte{})
	f.Add(base, append(bytes.Clone(log), log...), []byte{})
	f.Add([]byte{}, []byte{}, []byte{})
	has := record{op: putClient, client: Client{ID: c, Name: "n", Public: true}}
	for _, r := range []record{
		{op: putGrant, client: Client{ID: c}, ends: 1 << 41},
		{op: putGrant, grant: math.MaxUint64, client: Client{ID: c}, user: "ada", ends: 1 << 41},
		{op: putToken, kind: Access, grant: 5, expires: 1 << 41},
		{op: dropGrant, grant: 1},
		{op: rotate, grant: 1, generation: 1},
		{op: dropClient, client: Client{ID: c}},
		{op: 77},
	} {
		f.Add(has.append(nil), r.append(r.append(nil)), []byte{})
	}
	dir := fix.all.path(ourOrg, 7)
	f.Fuzz(func(t *testing.T, base, log, behind []byte) {
		must(t, os.RemoveAll(dir))
		must(t, os.Mkdir(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, partName(baseKind, 3)), records.Append([]byte(baseHeader), base), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, partName(logKind, 3)), append(records.Append([]byte(logHeader), log), behind...), 0o600))
		var first []byte
		for range 2 {
			s, err := fix.all.Open(ourOrg, 7, nil)
			if err != nil {
				if first != nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "move its directory away") || len(err.Error()) > 1000 {
					t.Fatalf("refused with %v", err)
				}
				return
			}
			s.check(t)
			if first == nil {
				publicClient(t, s)
			}
			of := map[*client]int{} // grants that have a token
			for n := range s.tokens.shards {
				for _, token := range s.tokens.shards[n].tokens {
					if g := token.grant; g.tokens == token && !g.gone {
						of[g.client]++
					}
				}
			}
			for _, c := range s.clients {
				if c.grants != of[c] {
					t.Fatalf("client %s has %d grants, of which %d have a token", c.ID, c.grants, of[c])
				}
			}
			section, _ := s.Section()
			if first != nil && !bytes.Equal(first, section) {
				t.Fatal("it is another store when it is opened again")
			}
			first = section
			must(t, fix.all.Close(ourOrg))
		}
	})
}

// emptyStore is one without a disk.
func emptyStore(now func() time.Time) *Store {
	return newStore(storeOptions{
		organization: ourOrg, hostname: id.Hostname(ourOrg, "example.test"), lifetimes: DefaultLifetimes(), limits: DefaultLimits(), now: now,
		logger: hclog.NewNullLogger(), wake: func() {}, compact: func() {},
	})
}

// FuzzSection: whatever somebody hands over as a section, it is refused or it is a store that is right in
// itself and whose section is stable.
func FuzzSection(f *testing.F) {
	fix := newFixture(f)
	s := fix.open(ourOrg)
	empty, _ := s.Section()
	f.Add(empty)
	c := publicClient(f, s)
	service, _ := addClient(f, s, Client{Service: true})
	out := login(f, s, c, "ada")
	if _, err := refresh(s, c, out.Refresh); err != nil {
		f.Fatal(err)
	}
	if _, err := s.Service(ctx, service, nil); err != nil {
		f.Fatal(err)
	}
	code(f, s, c, "bob")
	mustRegister(f, s, "ada", "k")
	full, _ := s.Section()
	f.Add(full)
	f.Add(full[:len(full)-4])
	now := fix.clock.now
	f.Fuzz(func(t *testing.T, data []byte) {
		s := emptyStore(now)
		if err := s.read(data); err != nil {
			return
		}
		s.check(t)
		if s.Stats().Live[Code] > 0 {
			t.Fatal("a section brought a code")
		}
		first, _ := s.Section()
		again := emptyStore(now)
		if err := again.read(first); err != nil {
			t.Fatalf("its own section is refused: %v", err)
		}
		if second, _ := again.Section(); !bytes.Equal(first, second) {
			t.Fatal("the section is not stable")
		}
	})
}

// A section whose numbers are at the end of what there is does not make the next grants collide.
func TestASectionWithTheLastNumberIsRefused(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c := publicClient(t, s)
	login(t, s, c, "ada")
	for _, g := range s.users["ada"].all() {
		g.number = math.MaxUint64
	}
	section, _ := s.Section()
	if _, err := f.all.Open(otherOrg, 7, section); err == nil {
		t.Error("it was taken")
	}
}

func (h *holder) all() (out []*grant) {
	for g := h.first; g != nil; g = g.links[byUser].next {
		out = append(out, g)
	}
	return out
}

// FuzzRedirect: what is accepted as a redirect leads to the organization or to the person's own machine, as a
// browser understands it; what matches it does too.
func FuzzRedirect(f *testing.F) {
	const hostname = "org-11111111-1111-4111-8111-111111111111.example.test"
	for _, s := range []string{redirect, "http://127.0.0.1/x", "http://127.0.0.1:80/x", "http://[::1]:1", "https://" + hostname, "https://evil.test/", "http://127.0.0.1:1@evil.test/x", "https://evil" + hostname + "/"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, registered, sent string) {
		if !ownRedirect(hostname, registered) || !matches(registered, sent) {
			return
		}
		for _, s := range []string{registered, sent} {
			u, err := url.Parse(s + "?code=x")
			if err != nil {
				t.Fatalf("%q cannot be parsed with a code: %v", s, err)
			}
			host := u.Hostname()
			own := u.Scheme == "https" && (host == hostname || strings.HasSuffix(host, "."+hostname))
			loop := u.Scheme == "http" && (host == "127.0.0.1" || host == "::1")
			if !own && !loop || u.User != nil || u.Fragment != "" || u.Query().Get("code") != "x" || strings.ContainsAny(s, " \t\r\n\\<>\"") {
				t.Fatalf("%q leads to %s", s, u)
			}
		}
	})
}

// A port begins with a colon: further digits are of another address of the machine than the registered one.
func TestALoopbackRedirectIsThatAddress(t *testing.T) {
	for sent, want := range map[string]bool{
		"http://127.0.0.1": true, "http://127.0.0.1:0": true, "http://127.0.0.1:8080": true, "http://127.0.0.10:0": false, "http://127.0.0.123:80": false,
		"http://127.0.0.10": false, "http://127.0.0.1:": false, "http://127.0.0.1:x": false, "http://127.0.0.1:65536": false,
	} {
		if got := matches("http://127.0.0.1", sent); got != want {
			t.Errorf("%s matches: %t", sent, got)
		}
	}
}

// fuzzed is a server whose every answer is looked at. Inputs name its public client CLIENT.
func fuzzed(f *testing.F) (*Server, *Store, ClientID) {
	fix := newFixture(f)
	s := fix.open(ourOrg)
	c := publicClient(f, s)
	addClient(f, s, Client{Service: true, Redirects: []string{redirect}})
	server, err := NewServer(ServerOptions{
		Issuer: "https://" + s.opts.hostname, Store: s, Login: everybody{}, Members: everybody{}, Consent: everybody{}, Now: fix.clock.now, Logger: hclog.NewNullLogger(),
	})
	if err != nil {
		f.Fatal(err)
	}
	return server, s, c
}

type everybody struct{}

func (everybody) Who(http.ResponseWriter, *http.Request) (id.User, bool) { return "ada", true }

func (everybody) Member(id.User) (string, bool) { return "Ada", true }

func (everybody) Ask(http.ResponseWriter, *http.Request, Question) Verdict { return Agreed }

func ask(s *Server, r *http.Request) (w *httptest.ResponseRecorder) {
	w = httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// FuzzAuthorize: no query sends anybody anywhere but to a registered address, breaks a header or the server.
func FuzzAuthorize(f *testing.F) {
	server, s, c := fuzzed(f)
	f.Add(authorization("CLIENT").Encode())
	for name := range authorization("CLIENT") {
		q := authorization("CLIENT")
		q.Set(name, "x")
		f.Add(q.Encode())
		q.Add(name, "y")
		f.Add(q.Encode())
	}
	f.Add("client_id=%zz&;")
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest(http.MethodGet, "/oauth/authorize", nil)
		r.URL.RawQuery = strings.ReplaceAll(query, "CLIENT", string(c))
		w := ask(server, r)
		to := w.Header().Get("Location")
		switch {
		case w.Code == http.StatusBadRequest && to == "" && w.Header().Get("Content-Type") == "text/plain; charset=utf-8":
		case w.Code == http.StatusSeeOther:
			address, rest, _ := strings.Cut(to, "?")
			known, _ := s.Client(c)
			values, err := url.ParseQuery(rest)
			if !known.redirects(address) || err != nil || values.Get("iss") == "" || values.Has("code") == values.Has("error") || strings.ContainsAny(to, "\r\n ") {
				t.Fatalf("sent to %q", to)
			}
			if sent, err := url.ParseQuery(r.URL.RawQuery); err == nil && len(sent["state"]) == 1 && values.Has("code") && values.Get("state") != sent.Get("state") {
				t.Fatalf("state %q came back as %q", sent.Get("state"), values.Get("state"))
			}
		default:
			t.Fatalf("%d %q %s", w.Code, to, w.Body)
		}
		sweepAll(t, s)
		for _, c := range s.Clients() { // codes do not add up to the limit
			s.mu.Lock()
			for h := s.clients[c.ID]; h.first != nil; {
				s.kill(h.first)
			}
			s.mu.Unlock()
		}
	})
}

// FuzzToken: no body and no header makes the token, revocation or introspection endpoint fail, or give
// something for nothing.
func FuzzToken(f *testing.F) {
	server, s, c := fuzzed(f)
	f.Add("token", exchangeOf("CLIENT", marks[Code]+strings.Repeat("x", 43)).Encode(), "")
	f.Add("token", "grant_type=refresh_token&client_id=CLIENT&refresh_token=dmr_x", "")
	f.Add("token", "grant_type=client_credentials", "Basic eDp5")
	f.Add("revoke", "token=x&client_id=CLIENT", "")
	f.Add("introspect", "token=x&token=y", "Bearer x")
	f.Add("authenticate", "", "Bearer "+marks[Access]+strings.Repeat("x", 43))
	allowed := []int{200, 400, 401, 404, 413, 429}
	f.Fuzz(func(t *testing.T, endpoint, form, header string) {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(strings.ReplaceAll(form, "CLIENT", string(c))))
		r.URL.Path = "/oauth/" + endpoint
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header["Authorization"] = []string{header}
		if header == "" {
			r.Header.Del("Authorization")
		}
		w := ask(server, r)
		if !slices.Contains(allowed, w.Code) || strings.Contains(w.Body.String(), "access_token\":") {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if live := s.Stats().Live; live[Access]+live[Refresh] > 0 {
			t.Fatal("tokens were given for nothing")
		}
		server.tries = newTries(server.opts.Now)
	})
}

// FuzzClient: whatever is sent as a client is refused, or is one that leads people to the organization alone and is
// the same after it was kept.
func FuzzClient(f *testing.F) {
	f.Add("shop", redirect, "room:read", true, false)
	f.Add("", "http://127.0.0.1:1/x", "a b", false, true)
	f.Add("x\n", "https://evil.test/", "*:*", true, true)
	now := newFixture(f).clock.now
	f.Fuzz(func(t *testing.T, name, to, scope string, public, service bool) {
		s := emptyStore(now)
		c, err := NewClient(s.opts.hostname, Client{Name: name, Public: public, Service: service, Redirects: strings.Fields(to), Scope: strings.Split(scope, " ")})
		if err != nil {
			return
		}
		for _, r := range c.Redirects {
			if u, err := url.Parse(r); err != nil || u.Hostname() != s.opts.hostname && !strings.HasSuffix(u.Hostname(), "."+s.opts.hostname) && u.Hostname() != "127.0.0.1" && u.Hostname() != "::1" {
				t.Fatalf("people are sent to %q", r)
			}
		}
		kept := record{op: putClient, client: c}
		if !public {
			kept.secret = digest{1}
		}
		read, rest, err := decodeRecord(kept.append(nil))
		if err != nil || len(rest) > 0 {
			t.Fatalf("it cannot be read again: %v", err)
		}
		if err := s.readRecord(&read); err != nil {
			t.Fatalf("it is refused when it is read again: %v", err)
		}
		if again := s.Clients()[0]; again.Name != name || !slices.Equal(again.Redirects, c.Redirects) || !slices.Equal(again.Scope, c.Scope) {
			t.Fatalf("%+v was read as %+v", c, again)
		}
	})
}
