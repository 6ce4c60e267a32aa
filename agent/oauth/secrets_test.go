package oauth

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// P15: no code, token, secret or verifier is in a log, in a file of this host or in a section, and none but
// the code is ever in an address. Errors do not repeat what was sent.
func TestP15NothingSecretIsWrittenAnywhere(t *testing.T) {
	s := newSite(t)
	public := publicClient(t, s.store)
	confidential, secret := addClient(t, s.store, Client{Redirects: []string{redirect}, Service: true})
	secrets := map[string]string{"client secret": secret, "verifier": verifier}
	answers := ""
	take := func(r reply) reply {
		answers += fmt.Sprint(r.Header) + r.body
		return r
	}
	withSecret := func(r *http.Request) { r.SetBasicAuth(string(confidential), secret) }

	_, values := take(s.visit("ada", authorization(public).Encode())).back()
	secrets["code"] = values.Get("code")
	answers = "" // the code is in this one
	first := s.post("/oauth/token", exchangeOf(public, values.Get("code")))
	secrets["access token"], secrets["refresh token"] = field(t, first, "access_token"), field(t, first, "refresh_token")
	next := s.post("/oauth/token", url.Values{"grant_type": {"refresh_token"}, "client_id": {string(public)}, "refresh_token": {secrets["refresh token"]}})
	secrets["second refresh token"] = field(t, next, "refresh_token")
	own := s.post("/oauth/token", url.Values{"grant_type": {"client_credentials"}}, withSecret)
	secrets["service's token"] = field(t, own, "access_token")

	// Everything that can go wrong with them.
	section, _ := s.store.Section()
	must(t, s.store.journal.compact(ctx, s.store.walkAll))
	take(s.post("/oauth/token", exchangeOf(public, values.Get("code"))))
	take(s.post("/oauth/token", exchangeOf(public, secrets["access token"])))
	take(s.post("/oauth/token", url.Values{"grant_type": {secrets["access token"]}, "client_id": {string(public)}, "scope": {secret}}))
	take(s.post("/oauth/token", url.Values{"grant_type": {"x"}, "client_id": {secret}, "client_secret": {secret}}))
	take(s.post("/oauth/token", url.Values{"client_id": {string(public)}, "client_secret": {secret}}))
	take(s.post("/oauth/token", url.Values{"a": {secret}, secret: {"x", "y"}}))
	take(s.post("/oauth/introspect", url.Values{"token": {secrets["refresh token"]}}, withSecret))
	take(s.post("/oauth/revoke", url.Values{"token": {secrets["service's token"]}, "client_id": {string(public)}}))
	take(s.bearer(secrets["refresh token"]))
	take(s.bearer(secrets["access token"]))
	take(s.visit("ada", "client_id="+secret+"&redirect_uri="+secret))
	q := authorization(public)
	q.Set("scope", secret)
	q.Set("response_type", secret)
	take(s.visit("ada", q.Encode()))
	_, err := NewClient(s.store.opts.hostname, Client{Name: secret, Redirects: []string{"https://u:" + secret + "@x"}, Scope: []string{"a"}})
	if !fault.Is(err, fault.InvalidRequest) {
		t.Fatal(err)
	}

	// A secret in the address is refused, so that nobody gets used to it.
	for _, path := range []string{"/oauth/token", "/oauth/revoke", "/oauth/introspect"} {
		if r := take(s.post(path+"?token="+secrets["second refresh token"], url.Values{"client_id": {string(public)}, "token": {"x"}})); r.StatusCode != 400 {
			t.Errorf("%s takes a secret from the address: %d", path, r.StatusCode)
		}
	}
	r, err := http.NewRequest(http.MethodGet, s.url+"/oauth/authenticate?access_token="+secrets["service's token"], nil)
	must(t, err)
	if got := take(s.do(r)); got.StatusCode != 401 {
		t.Errorf("a token is taken from the address: %d", got.StatusCode)
	}

	places := map[string]string{"log": s.log.String(), "answers": answers, "section": string(section)}
	must(t, filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			must(t, err)
			places[filepath.Base(path)] = string(data)
		}
		return err
	}))
	if len(places) < 5 || !strings.Contains(places["log"], "second time") {
		t.Fatalf("there is not much to look at: %d places, log %q", len(places), places["log"])
	}
	for place, text := range places {
		for name, value := range secrets {
			if value == "" {
				t.Fatalf("there is no %s", name)
			}
			if strings.Contains(text, value) || strings.Contains(text, value[markSize:]) || bytes.Contains([]byte(text), []byte(url.QueryEscape(value))) {
				t.Errorf("the %s stands in %s", name, place)
			}
		}
	}
}

// Issued tokens do not print themselves.
func TestP15TokensDoNotPrint(t *testing.T) {
	s := newFixture(t).open(ourOrg)
	c := publicClient(t, s)
	out := login(t, s, c, "ada")
	out.family = nil
	for _, text := range []string{fmt.Sprint(out), fmt.Sprintf("%+v", out), fmt.Sprintf("%#v", out)} {
		if strings.Contains(text, out.Access.Reveal()) || strings.Contains(text, out.Refresh.Reveal()) {
			t.Errorf("printed: %s", text)
		}
	}
}

func field(t testing.TB, r reply, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(r.body, `"`+name+`":"`)
	value, _, end := strings.Cut(rest, `"`)
	if r.StatusCode != 200 || !ok || !end {
		t.Fatalf("no %s in %d %s", name, r.StatusCode, r.body)
	}
	return value
}
