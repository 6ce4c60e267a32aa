package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
)

// TestOAuth2Library lets golang.org/x/oauth2 log in, refresh and ask for itself.
func TestOAuth2Library(t *testing.T) {
	s := newSite(t)
	public := publicClient(t, s.store)
	confidential, secret := addClient(t, s.store, Client{Redirects: []string{redirect}, Service: true})
	withClient := context.WithValue(ctx, oauth2.HTTPClient, s.web)
	for name, c := range map[string]oauth2.Config{
		"public":                 {ClientID: string(public), RedirectURL: "http://127.0.0.1:4711/back"},
		"secret, style found":    {ClientID: string(confidential), ClientSecret: secret, RedirectURL: redirect},
		"secret in the header":   {ClientID: string(confidential), ClientSecret: secret, RedirectURL: redirect, Endpoint: oauth2.Endpoint{AuthStyle: oauth2.AuthStyleInHeader}},
		"secret in the body":     {ClientID: string(confidential), ClientSecret: secret, RedirectURL: redirect, Endpoint: oauth2.Endpoint{AuthStyle: oauth2.AuthStyleInParams}},
		"public, style is given": {ClientID: string(public), RedirectURL: redirect, Endpoint: oauth2.Endpoint{AuthStyle: oauth2.AuthStyleInParams}},
	} {
		c.Endpoint.AuthURL, c.Endpoint.TokenURL = s.url+"/oauth/authorize", s.url+"/oauth/token"
		c.Scopes = []string{"room:read", "room:write"}
		v := oauth2.GenerateVerifier()
		_, query, _ := strings.Cut(c.AuthCodeURL("state-"+name, oauth2.S256ChallengeOption(v)), "?")
		to, answer := s.visit("ada", query).back()
		if to != c.RedirectURL || answer.Get("state") != "state-"+name || answer.Get("iss") != s.url || answer.Get("code") == "" {
			t.Fatalf("%s: sent to %s with %v", name, to, answer)
		}
		token, err := c.Exchange(withClient, answer.Get("code"), oauth2.VerifierOption(v))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if token.TokenType != "Bearer" || token.ExpiresIn != 3600 || token.Extra("scope") != "room:read room:write" {
			t.Fatalf("%s: %+v", name, token)
		}
		old := *token
		old.Expiry = old.Expiry.Add(-2 * 3600e9)
		fresh, err := c.TokenSource(withClient, &old).Token()
		if err != nil || fresh.AccessToken == token.AccessToken || fresh.RefreshToken == token.RefreshToken {
			t.Fatalf("%s: refresh: %v", name, err)
		}
		if r := s.bearer(fresh.AccessToken); r.StatusCode != 200 || !strings.Contains(r.body, `"username":"Ada"`) {
			t.Fatalf("%s: %d %s", name, r.StatusCode, r.body)
		}
	}
	own := clientcredentials.Config{ClientID: string(confidential), ClientSecret: secret, TokenURL: s.url + "/oauth/token", Scopes: []string{"room:read"}}
	token, err := own.Token(withClient)
	if err != nil || token.RefreshToken != "" {
		t.Fatalf("%+v %v", token, err)
	}
	var who Authentication
	must(t, json.Unmarshal([]byte(s.bearer(token.AccessToken).body), &who))
	if who.UserID != "" || who.ClientID != confidential || !slices.Equal(who.Scope, []string{"room:read"}) || !who.ExpiresAt.Equal(s.clock.now().Add(3600e9)) {
		t.Fatalf("%+v", who)
	}
	own.ClientSecret = "wrong"
	var refused *oauth2.RetrieveError
	if _, err := own.Token(withClient); !errors.As(err, &refused) || refused.ErrorCode != "invalid_client" {
		t.Fatalf("a wrong secret: %v", err)
	}
}

// P12: nobody is sent anywhere until client and address are proven to belong together.
func TestP12NoOpenRedirect(t *testing.T) {
	s := newSite(t)
	c := publicClient(t, s.store)
	other, _ := addClient(t, s.store, Client{Public: true, Redirects: []string{"https://org-11111111-1111-4111-8111-111111111111.example.test/x"}})
	for _, to := range []string{
		"", "https://evil.test/back", redirect + "/", redirect + "?a=b", redirect + "#x", strings.ToUpper(redirect),
		strings.Replace(redirect, "https", "http", 1), redirect + "/../x", strings.Replace(redirect, "/back", ":444/back", 1),
		strings.Replace(redirect, "https://", "https://evil.test@", 1), strings.Replace(redirect, "/back", "/%62ack", 1),
		"http://127.0.0.1:80@evil.test/back", "http://127.0.0.1.evil.test/back", "http://127.0.0.1:port/back", "http://127.0.0.1:/back",
		"http://127.0.0.1:1/other", "http://localhost/back", "http://[::1]/back", "https://127.0.0.1/back", "//127.0.0.1/back",
		"http://127.0.0.1:99999/back", "http://127.0.0.1:80/back?x", "javascript:alert(1)", "http://127.0.0.1\\@evil.test/back",
	} {
		q := authorization(c)
		q.Set("redirect_uri", to)
		for _, kind := range []string{"code", "token", ""} {
			q.Set("response_type", kind)
			if r := s.visit("ada", q.Encode()); r.StatusCode != 400 || r.Header.Get("Location") != "" {
				t.Errorf("%q: %d to %q", to, r.StatusCode, r.Header.Get("Location"))
			}
		}
	}
	for name, query := range map[string]string{
		"another client's":  strings.Replace(authorization(c).Encode(), string(c), string(other), 1),
		"an unknown client": strings.Replace(authorization(c).Encode(), string(c), "cl-aaaaaaaaaaaaaaaaaaaaaaaaaa", 1),
		"two redirects":     authorization(c).Encode() + "&redirect_uri=" + url.QueryEscape(redirect),
		"two clients":       authorization(c).Encode() + "&client_id=" + string(c),
		"not well-formed":   authorization(c).Encode() + "&a=%zz",
		"too long":          authorization(c).Encode() + "&a=" + strings.Repeat("x", maxQuery),
		"a control":         authorization(c).Encode() + "&state2=%00",
	} {
		if r := s.visit("ada", query); r.StatusCode != 400 || r.Header.Get("Location") != "" || strings.Contains(r.body, "evil") {
			t.Errorf("%s: %d to %q", name, r.StatusCode, r.Header.Get("Location"))
		}
	}
	for _, to := range []string{redirect, "http://127.0.0.1/back", "http://127.0.0.1:1/back", "http://127.0.0.1:65535/back"} {
		q := authorization(c)
		q.Set("redirect_uri", to)
		if r := s.visit("ada", q.Encode()); r.StatusCode != 303 || !strings.HasPrefix(r.Header.Get("Location"), to+"?") {
			t.Errorf("%q: %d to %q", to, r.StatusCode, r.Header.Get("Location"))
		}
	}
}

// P11 and P12: an address that was the organization's own and is not any more is not sent to, though it stands
// with the client.
func TestP12AnAddressOfAnEarlierDomain(t *testing.T) {
	f := newFixture(t)
	c := publicClient(t, f.open(ourOrg))
	must(t, f.all.CloseAll())
	f.opts.Domain = "moved.test"
	f.start()
	s := newSiteOn(t, f)
	if r := s.visit("ada", authorization(c).Encode()); r.StatusCode != 400 || r.Header.Get("Location") != "" {
		t.Fatalf("%d to %q", r.StatusCode, r.Header.Get("Location"))
	}
	q := authorization(c)
	q.Set("redirect_uri", "http://127.0.0.1:4711/back")
	if r := s.visit("ada", q.Encode()); r.StatusCode != 303 {
		t.Fatalf("%d %s", r.StatusCode, r.body)
	}
}

// P12: state and iss come back with every answer, PKCE is never dropped silently, and consent is asked for.
func TestP12AuthorizationRequests(t *testing.T) {
	s := newSite(t)
	c := publicClient(t, s.store)
	set := func(name, value string) func(url.Values) { return func(q url.Values) { q.Set(name, value) } }
	for name, k := range map[string]struct {
		edit  func(url.Values)
		error string
	}{
		"a good one":             {func(url.Values) {}, ""},
		"the implicit grant":     {set("response_type", "token"), "unsupported_response_type"},
		"no response type":       {set("response_type", ""), "invalid_request"},
		"a fragment":             {set("response_mode", "fragment"), "invalid_request"},
		"a request object":       {set("request", "x"), "request_not_supported"},
		"a request by reference": {set("request_uri", "https://x"), "request_uri_not_supported"},
		"no challenge":           {func(q url.Values) { q.Del("code_challenge"); q.Del("code_challenge_method") }, "invalid_request"},
		"a method alone":         {set("code_challenge", ""), "invalid_request"},
		"a plain challenge":      {set("code_challenge_method", "plain"), "invalid_request"},
		"no method":              {set("code_challenge_method", ""), "invalid_request"},
		"a short challenge":      {set("code_challenge", "x"), "invalid_request"},
		"a strange challenge":    {set("code_challenge", strings.Repeat("~", 43)), "invalid_request"},
		"more scope":             {set("scope", "room:read *:*"), "invalid_scope"},
		"a strange scope":        {set("scope", "room:read  room:write"), "invalid_scope"},
		"a repeated parameter":   {func(q url.Values) { q.Add("scope", "x") }, "invalid_request"},
		"a long state":           {set("state", strings.Repeat("x", maxState+1)), "invalid_request"},
	} {
		q := authorization(c)
		k.edit(q)
		r := s.visit("ada", q.Encode())
		to, values := r.back()
		if r.StatusCode != 303 || to != redirect || values.Get("error") != k.error || (values.Get("code") == "") != (k.error != "") || values.Get("iss") != s.url {
			t.Errorf("%s: %d to %s with %v", name, r.StatusCode, to, values)
		}
		if want := q.Get("state"); len(want) <= maxState && values.Get("state") != want {
			t.Errorf("%s: state %q came back as %q", name, want, values.Get("state"))
		}
		if h := r.Header; h.Get("Cache-Control") != "no-store" || h.Get("Referrer-Policy") != "no-referrer" || h.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: headers %v", name, h)
		}
	}
	confidential, _ := addClient(t, s.store, Client{Redirects: []string{redirect}})
	q := authorization(confidential)
	q.Del("code_challenge")
	if _, values := s.visit("ada", q.Encode()).back(); values.Get("error") != "invalid_request" {
		t.Errorf("a challenge that got lost on its way is not missed: %v", values)
	}
	q.Del("code_challenge_method")
	if _, values := s.visit("ada", q.Encode()).back(); values.Get("code") == "" {
		t.Errorf("a client with a secret may do without: %v", values)
	}
	if r := s.visit("", authorization(c).Encode()); r.StatusCode != 403 {
		t.Errorf("nobody is logged in: %d", r.StatusCode)
	}
	for verdict, want := range map[Verdict]string{Declined: "access_denied", Agreed: ""} {
		s.people.verdict = verdict
		if _, values := s.visit("ada", authorization(c).Encode()).back(); values.Get("error") != want {
			t.Errorf("verdict %d: %v", verdict, values)
		}
	}
	s.people.verdict = Asked
	if r := s.visit("ada", authorization(c).Encode()); r.StatusCode != http.StatusTeapot || r.Header.Get("Location") != "" {
		t.Errorf("somebody who is asked is sent back: %d", r.StatusCode)
	}
	if q := s.people.question; q.User != "ada" || q.Client.ID != c || !slices.Equal(q.Scope, []string{"room:read"}) || q.Redirect != redirect {
		t.Errorf("asked %+v", q)
	}
	s.people.verdict = Agreed
	if _, values := s.visit("eve", authorization(c).Encode()).back(); values.Get("error") != "access_denied" || values.Has("code") {
		t.Errorf("a stranger: %v", values)
	}
}

func TestTokenRequestsThatAreRefused(t *testing.T) {
	s := newSite(t)
	c := publicClient(t, s.store)
	confidential, secret := addClient(t, s.store, Client{Redirects: []string{redirect}})
	basic := func(user, password string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(user, password) }
	}
	with := func(pairs ...string) url.Values {
		q := exchangeOf(c, code(t, s.store, c, "ada"))
		for i := 0; i < len(pairs); i += 2 {
			q.Set(pairs[i], pairs[i+1])
		}
		return q
	}
	own := url.Values{"grant_type": {"client_credentials"}}
	for name, k := range map[string]struct {
		form   url.Values
		edit   func(*http.Request)
		status int
		error  string
	}{
		"no grant type":            {form: with("grant_type", ""), error: "invalid_request"},
		"the password grant":       {form: with("grant_type", "password"), error: "unsupported_grant_type"},
		"no code":                  {form: with("code", ""), error: "invalid_request"},
		"a wrong code":             {form: with("code", "dmc_x"), error: "invalid_grant"},
		"no redirect":              {form: with("redirect_uri", ""), error: "invalid_request"},
		"no verifier":              {form: with("code_verifier", ""), error: "invalid_grant"},
		"a short verifier":         {form: with("code_verifier", "x"), error: "invalid_request"},
		"another verifier":         {form: with("code_verifier", strings.Repeat("x", 43)), error: "invalid_grant"},
		"no client":                {form: with("client_id", ""), status: 401, error: "invalid_client"},
		"another client":           {form: with("client_id", "cl-x"), status: 401, error: "invalid_client"},
		"a public client's secret": {form: with("client_secret", "x"), status: 401, error: "invalid_client"},
		"a public client's header": {form: with(), edit: basic(string(c), ""), status: 401, error: "invalid_client"},
		"no secret":                {form: with("client_id", string(confidential)), status: 401, error: "invalid_client"},
		"a wrong secret":           {form: own, edit: basic(string(confidential), "x"), status: 401, error: "invalid_client"},
		"two ways":                 {form: with("client_secret", secret), edit: basic(string(confidential), secret), error: "invalid_request"},
		"two clients":              {form: with(), edit: basic(string(confidential), secret), error: "invalid_request"},
		"two headers": {form: own, edit: func(r *http.Request) {
			r.SetBasicAuth(string(confidential), secret)
			r.Header.Add("Authorization", r.Header.Get("Authorization"))
		}, status: 401, error: "invalid_client"},
		"a bearer":               {form: own, edit: func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, status: 401, error: "invalid_client"},
		"not a service":          {form: own, edit: basic(string(confidential), secret), error: "unauthorized_client"},
		"a public service":       {form: with("grant_type", "client_credentials"), error: "unauthorized_client"},
		"a repeated parameter":   {form: url.Values{"grant_type": {"x", "x"}}, error: "invalid_request"},
		"secrets in the address": {form: with(), edit: func(r *http.Request) { r.URL.RawQuery = "client_secret=x" }, error: "invalid_request"},
		"JSON":                   {form: with(), edit: func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }, error: "invalid_request"},
		"a large body":           {form: with("x", strings.Repeat("x", maxBody)), status: 413, error: "invalid_request"},
		"no refresh token":       {form: with("grant_type", "refresh_token"), error: "invalid_request"},
		"a strange scope":        {form: with("scope", "\"x"), error: "invalid_scope"},
	} {
		if k.edit == nil {
			k.edit = func(*http.Request) {}
		}
		if k.status == 0 {
			k.status = 400
		}
		s.clock.forward(5e9) // the limit of failed tries is another test's
		if r := s.post("/oauth/token", k.form, k.edit); r.StatusCode != k.status || r.error() != k.error || r.Header.Get("Cache-Control") != "no-store" ||
			k.status == 401 && !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Basic ") {
			t.Errorf("%s: %d %s", name, r.StatusCode, r.body)
		}
	}
	if live := s.store.Stats().Live; live[Access]+live[Refresh] > 0 {
		t.Fatalf("tokens were given: %v", live)
	}
}

// P8 and P9 at the endpoints: only a good access token of a member is a login.
func TestP9OnlyAnAccessTokenOfAMemberIsALogin(t *testing.T) {
	s := newSite(t)
	c := publicClient(t, s.store)
	reader, secret := addClient(t, s.store, Client{Service: true})
	ada := login(t, s.store, c, "ada")
	ask := func(token string) reply {
		return s.post("/oauth/introspect", url.Values{"token": {token}}, func(r *http.Request) { r.SetBasicAuth(string(reader), secret) })
	}
	if r := s.bearer(ada.Access.Reveal()); r.StatusCode != 200 || r.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %s", r.StatusCode, r.body)
	}
	var told map[string]any
	must(t, json.Unmarshal([]byte(ask(ada.Access.Reveal()).body), &told))
	if told["active"] != true || told["username"] != "Ada" || told["sub"] != "ada" || told["client_id"] != string(c) || told["iss"] != s.url || told["scope"] != "room:read room:write" {
		t.Fatalf("%v", told)
	}
	for name, token := range map[string]string{"none": "", "a refresh token": ada.Refresh.Reveal(), "a code": code(t, s.store, c, "ada"), "nonsense": "x y"} {
		if r := s.bearer(token); r.StatusCode != 401 || !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Bearer ") {
			t.Errorf("%s: %d", name, r.StatusCode)
		}
		if r := ask(token); token != "" && strings.TrimSpace(r.body) != `{"active":false}` {
			t.Errorf("%s: %s", name, r.body)
		}
	}
	if r := s.post("/oauth/introspect", url.Values{"token": {ada.Access.Reveal()}, "client_id": {string(c)}}); r.StatusCode != 401 {
		t.Errorf("a public client asks about a token: %d %s", r.StatusCode, r.body)
	}
	s.people.mu.Lock()
	delete(s.people.members, "ada") // the platform says so before anything was removed here
	s.people.mu.Unlock()
	if r := s.bearer(ada.Access.Reveal()); r.StatusCode != 401 {
		t.Errorf("who is no member is let in: %s", r.body)
	}
	if r := ask(ada.Access.Reveal()); strings.TrimSpace(r.body) != `{"active":false}` {
		t.Errorf("who is no member is active: %s", r.body)
	}
	r := s.post("/oauth/token", url.Values{"grant_type": {"refresh_token"}, "client_id": {string(c)}, "refresh_token": {ada.Refresh.Reveal()}})
	if r.StatusCode != 400 || r.error() != "invalid_grant" || good(s.store, ada.Refresh) {
		t.Errorf("who is no member gets a token: %d %s", r.StatusCode, r.body)
	}
}

func TestRevocationEndpoint(t *testing.T) {
	f := newFixture(t)
	faulty := fsxtest.New(f.fs)
	f.opts.FS = faulty
	f.start()
	s := newSiteOn(t, f)
	c, other := publicClient(t, s.store), publicClient(t, s.store)
	ada := login(t, s.store, c, "ada")
	revoke := func(c ClientID, token string) reply {
		return s.post("/oauth/revoke", url.Values{"client_id": {string(c)}, "token": {token}, "token_type_hint": {"x"}})
	}
	for _, k := range []struct {
		client ClientID
		token  string
		status int
	}{{c, "", 400}, {"cl-x", ada.Access.Reveal(), 401}, {other, ada.Access.Reveal(), 400}, {c, "unknown", 200}, {c, ada.Access.Reveal(), 200}, {c, ada.Access.Reveal(), 200}} {
		if r := revoke(k.client, k.token); r.StatusCode != k.status {
			t.Errorf("%d %s, want %d", r.StatusCode, r.body, k.status)
		}
	}
	if good(s.store, ada.Access) || !good(s.store, ada.Refresh) {
		t.Error("the wrong token ended")
	}
	faulty.Fail("oauth.log.sync", syscall.EIO)
	for _, r := range []reply{revoke(c, ada.Refresh.Reveal()), s.post("/oauth/token", exchangeOf(c, "dmc_x"))} {
		if r.StatusCode != 503 || r.error() != "temporarily_unavailable" || r.Header.Get("Retry-After") == "" {
			t.Errorf("on a disk that refuses: %d %s", r.StatusCode, r.body)
		}
	}
}

func TestFailedTriesAreLimited(t *testing.T) {
	s := newSite(t)
	c, secret := addClient(t, s.store, Client{Service: true})
	try := func(secret string) int {
		r := s.post("/oauth/token", url.Values{"grant_type": {"client_credentials"}}, func(r *http.Request) { r.SetBasicAuth(string(c), secret) })
		if r.StatusCode == 429 && r.Header.Get("Retry-After") != "1" {
			t.Errorf("Retry-After %q", r.Header.Get("Retry-After"))
		}
		return r.StatusCode
	}
	for n := range tryBurst {
		if got := try("wrong"); got != 401 {
			t.Fatalf("try %d: %d", n, got)
		}
	}
	if try("wrong") != 429 || try(secret) != 429 {
		t.Fatal("there is no limit")
	}
	s.clock.forward(1e9)
	for range 50 {
		if got := try(secret); got != 200 {
			t.Fatalf("a good client is slowed: %d", got)
		}
	}
	limit := newTries(s.clock.now)
	for n := range maxBuckets + 100 {
		limit.failed(strings.Repeat("x", n%97) + string(rune(n)))
	}
	if len(limit.buckets) > maxBuckets+1 || limit.wait("somebody else") == 0 {
		t.Fatalf("%d callers are remembered", len(limit.buckets))
	}
	s.clock.forward(10e9)
	limit.failed("somebody else")
	if len(limit.buckets) != 1 || limit.wait("a third") != 0 {
		t.Fatalf("%d callers are remembered for ever", len(limit.buckets))
	}
}

func TestMetadataAndRoutes(t *testing.T) {
	s := newSite(t)
	r, err := http.NewRequest(http.MethodGet, s.url+"/.well-known/oauth-authorization-server", nil)
	must(t, err)
	var told map[string]any
	must(t, json.Unmarshal([]byte(s.do(r).body), &told))
	if told["issuer"] != s.url || told["authorization_response_iss_parameter_supported"] != true {
		t.Fatalf("%v", told)
	}
	for _, route := range Routes() {
		if route.Path == "/oauth/authenticate" || route.Caller == Anyone {
			continue
		}
		found := false
		for _, v := range told {
			found = found || v == s.url+route.Path
		}
		if !found {
			t.Errorf("%s is not in the metadata", route.Path)
		}
	}
	for _, k := range []struct {
		method, path string
		status       int
	}{{"PUT", "/oauth/token", 405}, {"GET", "/oauth/token", 405}, {"POST", "/oauth/authorize", 405}, {"GET", "/oauth/", 404}, {"GET", "/oauth/token/", 404}, {"HEAD", "/oauth/authorize", 405}} {
		r, err := http.NewRequest(k.method, s.url+k.path, nil)
		must(t, err)
		if got := s.do(r); got.StatusCode != k.status || k.status == 405 && got.Header.Get("Allow") == "" {
			t.Errorf("%s %s: %d", k.method, k.path, got.StatusCode)
		}
	}
	for _, issuer := range []string{"", "http://a.test", "https://a.test/", "https://a.test?x", "https://u@a.test"} {
		if _, err := NewServer(ServerOptions{Issuer: issuer}); err == nil {
			t.Errorf("issuer %q was taken", issuer)
		}
	}
}
