package oauth

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// people is who logs in, who is a member and what they agree to.
type people struct {
	mu       sync.Mutex
	members  map[id.User]string
	verdict  Verdict
	question Question
}

// Who believes a cookie, as a session would.
func (p *people) Who(w http.ResponseWriter, r *http.Request) (id.User, bool) {
	cookie, err := r.Cookie("session")
	if err != nil {
		w.WriteHeader(http.StatusForbidden)
		return "", false
	}
	return id.User(cookie.Value), true
}

func (p *people) Member(user id.User) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, ok := p.members[user]
	return name, ok
}

func (p *people) Ask(w http.ResponseWriter, _ *http.Request, q Question) Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.question = q
	if p.verdict == Asked {
		w.WriteHeader(http.StatusTeapot)
	}
	return p.verdict
}

// site is one organization's server behind TLS.
type site struct {
	*fixture
	store  *Store
	people *people
	log    *strings.Builder
	url    string
	web    *http.Client // follows nothing
}

func newSite(t testing.TB) *site { return newSiteOn(t, newFixture(t)) }

func newSiteOn(t testing.TB, f *fixture) *site {
	t.Helper()
	s := &site{
		fixture: f, store: f.open(ourOrg), log: &strings.Builder{},
		people: &people{members: map[id.User]string{"ada": "Ada", "bob": "Bob"}, verdict: Agreed},
	}
	var handler http.Handler
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	s.url, s.web = server.URL, server.Client()
	s.web.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	var err error
	handler, err = NewServer(ServerOptions{
		Issuer: server.URL, Store: s.store, Login: s.people, Members: s.people, Consent: s.people, Now: f.clock.now,
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: s.log}),
	})
	must(t, err)
	return s
}

// reply is what came back.
type reply struct {
	*http.Response
	body string
}

func (s *site) do(r *http.Request) reply {
	s.t.Helper()
	res, err := s.web.Do(r)
	must(s.t, err)
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	must(s.t, err)
	return reply{res, string(body)}
}

// visit is a person's browser on /oauth/authorize.
func (s *site) visit(user, query string) reply {
	s.t.Helper()
	r, err := http.NewRequest(http.MethodGet, s.url+"/oauth/authorize?"+query, nil)
	must(s.t, err)
	if user != "" {
		r.AddCookie(&http.Cookie{Name: "session", Value: user})
	}
	return s.do(r)
}

func (s *site) post(path string, form url.Values, edit ...func(*http.Request)) reply {
	s.t.Helper()
	r, err := http.NewRequest(http.MethodPost, s.url+path, strings.NewReader(form.Encode()))
	must(s.t, err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, e := range edit {
		e(r)
	}
	return s.do(r)
}

func (s *site) bearer(token string) reply {
	s.t.Helper()
	r, err := http.NewRequest(http.MethodGet, s.url+"/oauth/authenticate", nil)
	must(s.t, err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return s.do(r)
}

func (r reply) error() string {
	var e struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal([]byte(r.body), &e)
	return e.Error
}

// back is where a redirect leads and what it carries.
func (r reply) back() (string, url.Values) {
	u, err := url.Parse(r.Header.Get("Location"))
	if err != nil || u.Host == "" {
		return "", nil
	}
	q := u.Query()
	u.RawQuery = ""
	return u.String(), q
}

// authorization is a good authorization request.
func authorization(c ClientID) url.Values {
	return url.Values{
		"response_type": {"code"}, "client_id": {string(c)}, "redirect_uri": {redirect}, "state": {"a state/&="},
		"code_challenge": {challengeOf(verifier)}, "code_challenge_method": {"S256"}, "scope": {"room:read"},
	}
}

func exchangeOf(c ClientID, code string) url.Values {
	return url.Values{"grant_type": {"authorization_code"}, "client_id": {string(c)}, "code": {code}, "redirect_uri": {redirect}, "code_verifier": {verifier}}
}
