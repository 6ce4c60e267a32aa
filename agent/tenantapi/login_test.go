package tenantapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// patience is how long a test waits for a condition on a busy machine.
const patience = 30 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// authorization is a request for a code of a client of ours, whose redirect is given.
func (k *kit) authorization(to string) string {
	k.t.Helper()
	org := must[*tenant.Tenant](k.t)(k.tenants.Get(ours, epoch))
	store := must[*oauth.Store](k.t)(org.OAuth(k.t.Context()))
	c := must[oauth.Client](k.t)(oauth.NewClient(id.Hostname(ours, domain), oauth.Client{Name: "c", Redirects: []string{to}, Scope: []string{"room:read"}}))
	if _, err := store.AddClient(k.t.Context(), c); err != nil {
		k.t.Fatal(err)
	}
	return "/oauth/authorize?" + url.Values{"response_type": {"code"}, "client_id": {string(c.ID)}, "redirect_uri": {to}, "state": {"s"}}.Encode()
}

var asked = regexp.MustCompile(`name="ask" value="([^"]+)"`)

// answer is a form as a page sends it.
func answer(fields url.Values) (string, func(*http.Request)) {
	return fields.Encode(), func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }
}

func TestConsentCannotBeGivenByAnotherPage(t *testing.T) {
	k := newKit(t)
	ada, bob := k.session(ours, "ada"), k.session(ours, "bob")
	path := k.authorization(redirect)
	page := k.do(ours, http.MethodGet, path, "", ada)
	found := asked.FindStringSubmatch(page.body)
	if page.status != http.StatusOK || found == nil {
		t.Fatalf("page: %d %s", page.status, page.body)
	}
	body, form := answer(url.Values{"ask": {found[1]}, "decision": {"allow"}})
	from := func(origin, site string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Del("Origin")
			r.Header.Del("Sec-Fetch-Site")
			if origin != "" {
				r.Header.Set("Origin", origin)
			}
			if site != "" {
				r.Header.Set("Sec-Fetch-Site", site)
			}
		}
	}
	code := func() bool {
		got := k.do(ours, http.MethodGet, path, "", ada)
		return got.status == http.StatusSeeOther && strings.Contains(got.header.Get("Location"), "code=")
	}
	madeUp, _ := answer(url.Values{"ask": {found[1][:len(found[1])-2] + "AA"}, "decision": {"allow"}})
	for what, c := range map[string]struct {
		body string
		edit []func(*http.Request)
	}{
		"another site":         {body, []func(*http.Request){ada, from("https://evil.example", "cross-site")}},
		"a name below":         {body, []func(*http.Request){ada, from("https://uc-x."+id.Hostname(ours, domain), "same-site")}},
		"nobody":               {body, []func(*http.Request){ada, from("", "")}},
		"another person":       {body, []func(*http.Request){bob}},
		"without login":        {body, []func(*http.Request){from("https://"+id.Hostname(ours, domain), "same-origin")}},
		"a made-up question":   {madeUp, []func(*http.Request){ada}},
		"a question elsewhere": {strings.Replace(body, "ask=", "x=", 1), []func(*http.Request){ada}},
	} {
		got := k.do(ours, http.MethodPost, pathConsent, c.body, append([]func(*http.Request){form}, c.edit...)...)
		if got.status == http.StatusSeeOther || code() {
			t.Errorf("%s gave the consent: %d %s", what, got.status, got.body)
		}
	}
	got := k.do(ours, http.MethodPost, pathConsent, body, form, ada)
	if got.status != http.StatusSeeOther || got.header.Get("Location") != path {
		t.Fatalf("the consent: %d %s", got.status, got.body)
	}
	for range 2 {
		if !code() {
			t.Error("there is no code after the consent")
		}
	}
	if more := k.do(ours, http.MethodGet, path, "", bob); more.status != http.StatusOK {
		t.Errorf("another person was not asked: %d", more.status)
	}
}

// Who waits on a person's own machine can be anybody, so he is asked every time.
func TestAProgramOnTheMachineIsAskedAboutEveryTime(t *testing.T) {
	k := newKit(t)
	ada := k.session(ours, "ada")
	path := k.authorization("http://127.0.0.1/back")
	for range 2 {
		page := k.do(ours, http.MethodGet, path, "", ada)
		found := asked.FindStringSubmatch(page.body)
		if found == nil {
			t.Fatalf("not asked: %d %s", page.status, page.header.Get("Location"))
		}
		body, form := answer(url.Values{"ask": {found[1]}, "decision": {"allow"}})
		k.do(ours, http.MethodPost, pathConsent, body, form, ada)
		if got := k.do(ours, http.MethodGet, path, "", ada); !strings.Contains(got.header.Get("Location"), "code=") {
			t.Fatalf("no code: %d %s", got.status, got.body)
		}
	}
}

// P8: removal of a member never reaches what runs.
func TestP8_SessionsEndWithTheMembership(t *testing.T) {
	k := newKit(t)
	bob := k.session(ours, "bob")
	whole, _ := k.tokens(ours, "bob", "*:*")
	for what, as := range map[string]func(*http.Request){"session": bob, "token": bearer(whole), "the platform's token": bearer(k.jwt("bob"))} {
		if got := k.do(ours, http.MethodGet, "/permissions", "", as); got.status != http.StatusOK {
			t.Fatalf("%s at first: %d", what, got.status)
		}
	}
	k.serve(ours, "ada=owner")
	for what, as := range map[string]func(*http.Request){"session": bob, "token": bearer(whole), "the platform's token": bearer(k.jwt("bob"))} {
		if got := k.do(ours, http.MethodGet, "/permissions", "", as); got.status != http.StatusUnauthorized && got.status != http.StatusForbidden {
			t.Errorf("%s after the removal: %d", what, got.status)
		}
	}
	org, _ := k.tenants.Find(ours)
	eventually(t, "the removal is on disk", func() bool { return !org.Dirty() })
	k.serve(ours, "ada=owner", "bob=member")
	for what, as := range map[string]func(*http.Request){"session": bob, "token": bearer(whole)} {
		if got := k.do(ours, http.MethodGet, "/permissions", "", as); got.status != http.StatusUnauthorized {
			t.Errorf("%s of the time before: %d", what, got.status)
		}
	}
}

func TestP12_AnAnswerOfAnotherLoginIsRefused(t *testing.T) {
	var exchanged atomic.Int64
	mux := http.NewServeMux()
	issuer := httptest.NewServer(mux)
	defer issuer.Close()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"issuer":"`+issuer.URL+`","authorization_endpoint":"`+issuer.URL+`/a","token_endpoint":"`+issuer.URL+`/t","jwks_uri":"`+issuer.URL+`/k"}`)
	})
	mux.HandleFunc("POST /t", func(http.ResponseWriter, *http.Request) { exchanged.Add(1) })
	k := newKit(t)
	k.server.provider = newProvider(Login{Issuer: issuer.URL, ClientID: "x", UserClaim: "sub"})
	sealed := func(p pending, life time.Duration) func(*http.Request) {
		value := must[string](t)(k.server.sealer.seal("login", life, p))
		return func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "__Host-demiurge-login", Value: value}) }
	}
	good := pending{Organization: ours, State: "s1", Nonce: "n", Verifier: "v", Return: "/"}
	elsewhere := good
	elsewhere.Organization = theirs
	for what, c := range map[string]struct {
		query  string
		cookie func(*http.Request)
	}{
		"no login was begun":        {"state=s1&code=c", func(*http.Request) {}},
		"another state":             {"state=s2&code=c", sealed(good, time.Minute)},
		"no state":                  {"code=c", sealed(good, time.Minute)},
		"two states":                {"state=s1&state=s1&code=c", sealed(good, time.Minute)},
		"another organization's":    {"state=s1&code=c", sealed(elsewhere, time.Minute)},
		"too late":                  {"state=s1&code=c", sealed(good, -time.Second)},
		"another issuer's":          {"state=s1&code=c&iss=https%3A%2F%2Fevil.example", sealed(good, time.Minute)},
		"no code":                   {"state=s1", sealed(good, time.Minute)},
		"two codes":                 {"state=s1&code=c&code=d", sealed(good, time.Minute)},
		"an error":                  {"state=s1&error=access_denied", sealed(good, time.Minute)},
		"a cookie that was made up": {"state=s1&code=c", func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "__Host-demiurge-login", Value: "AAAA"}) }},
	} {
		got := k.do(ours, http.MethodGet, pathCallback+"?"+c.query, "", c.cookie)
		if got.status == http.StatusSeeOther || got.status < 400 || strings.Contains(got.header.Get("Set-Cookie"), "session") {
			t.Errorf("%s: %d %v", what, got.status, got.header)
		}
		if n := exchanged.Swap(0); n > 0 {
			t.Errorf("%s: the code was taken to the provider", what)
		}
	}
	if k.do(ours, http.MethodGet, pathCallback+"?state=s1&code=c", "", sealed(good, time.Minute)); exchanged.Load() == 0 {
		t.Error("the code of a good answer was not taken to the provider")
	}
}

func TestP15_NothingSecretIsLogged(t *testing.T) {
	k := newKit(t)
	access, refresh := k.tokens(ours, "ada", "*:*")
	jwt := k.jwt("nobody")
	for _, token := range []string{access, refresh, jwt, "dma_" + strings.Repeat("x", 43)} {
		k.do(ours, http.MethodGet, "/permissions", "", bearer(token))
		k.do(ours, http.MethodPost, "/oauth/clients", `{"name":"`+token+`"}`, bearer(token))
		k.do(ours, http.MethodPost, "/oauth/token", "grant_type=refresh_token&client_id=x&refresh_token="+token, func(r *http.Request) {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		})
		k.do(ours, http.MethodGet, pathCallback+"?state=x&code="+token, "")
	}
	text := k.log.String()
	for what, secret := range map[string]string{"access token": access, "refresh token": refresh, "platform's token": jwt} {
		if strings.Contains(text, secret) {
			t.Errorf("an %s is in the log", what)
		}
	}
}

func TestAProviderThatIsDownIsNotAskedByEverybody(t *testing.T) {
	var questions atomic.Int64
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		questions.Add(1)
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer issuer.Close()
	k := newKit(t)
	k.server.provider = newProvider(Login{Issuer: issuer.URL, ClientID: "x", UserClaim: "sub"})
	path := k.authorization(redirect)
	for range 20 {
		if got := k.do(ours, http.MethodGet, path, ""); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	if n := questions.Load(); n > 5 { // at most one every two seconds
		t.Errorf("the provider was asked %d times", n)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	now := time.Now()
	s := newSessions(time.Hour, func() time.Time { return now })
	first, _ := s.begin("ada")
	for range maxSessionsPerUser {
		if _, ok := s.begin("ada"); !ok {
			t.Fatal("no session")
		}
	}
	if _, ok := s.find(first); ok || s.count() != maxSessionsPerUser {
		t.Errorf("ada has %d sessions", s.count())
	}
	last, _ := s.begin("bob")
	now = now.Add(time.Hour)
	if _, ok := s.find(last); ok {
		t.Error("a session outlived its time")
	}
	s.begin("eve")
	if s.count() != 1 {
		t.Errorf("%d sessions are kept after their time", s.count()-1)
	}
}

// A provider that sends without end, by mistake or in bad faith, does not fill this host's memory.
func TestAProviderThatSendsWithoutEndIsCutOff(t *testing.T) {
	const much = 64 << 20
	var sent atomic.Int64
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for piece := make([]byte, 64<<10); sent.Load() < much; sent.Add(int64(len(piece))) {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}))
	defer issuer.Close()
	if _, err := newProvider(Login{Issuer: issuer.URL, ClientID: "x", UserClaim: "sub"}).get(); err == nil {
		t.Error("that is no provider")
	}
	if n := sent.Load(); n >= much { // what the sockets take on the way is some MiB
		t.Errorf("%d bytes were read", n)
	}
}
