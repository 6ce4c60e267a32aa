package agent_test

import (
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
)

// What the platform's OpenID provider knows of the clusters that it serves.
const (
	platformClient = "demiurge"
	platformSecret = "a secret of the platform"
	password       = "correct horse"
)

// users are the platform's people.
type users struct{}

func (users) GetUserByID(name string) *storage.User {
	return &storage.User{ID: name, Username: name, Password: password}
}

func (u users) GetUserByUsername(name string) *storage.User { return u.GetUserByID(name) }

func (users) ExampleClientID() string { return storage.ServiceUserID }

// platform is an OpenID provider that others wrote, in front of a host.
func platform(t testing.TB, callbacks ...string) string {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	issuer := "http://" + server.Listener.Addr().String()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	clients := map[string]*storage.Client{platformClient: storage.WebClient(platformClient, platformSecret, callbacks...)}
	server.Config.Handler = exampleop.SetupServer(issuer, storage.NewStorageWithClients(users{}, clients), quiet, false)
	server.Start()
	t.Cleanup(server.Close)
	return issuer
}

// withLogin makes the platform the place where people of a site log in; it must know every organization's
// callback.
func withLogin(t testing.TB, callbacks func(*site) []string) func(*site) {
	return func(s *site) {
		secret := filepath.Join(filepath.Dir(s.config.DataDir), "secret")
		if err := os.WriteFile(secret, []byte(platformSecret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.config.Login.Issuer = platform(t, callbacks(s)...)
		s.config.Login.ClientID, s.config.Login.ClientSecretFile = platformClient, secret
	}
}

// browser is a person's: it keeps cookies, follows where it is sent, and sends the forms that it is shown.
type browser struct {
	t      testing.TB
	web    *http.Client
	at     *url.URL
	status int
	header http.Header
	body   string
}

// done ends where a client waits for its code: no page is asked for there.
const done = "/app/done"

func (s *site) browser() *browser {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	web := *s.web
	web.Jar = jar
	web.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if r.URL.Path == done {
			return http.ErrUseLastResponse
		}
		return nil
	}
	return &browser{t: s.t, web: &web}
}

func (b *browser) do(r *http.Request) {
	b.t.Helper()
	res, err := b.web.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	b.at, b.status, b.header, b.body = res.Request.URL, res.StatusCode, res.Header, string(body)
	if to, err := res.Location(); err == nil {
		b.at = to
	}
}

// open is an address that the person types or follows.
func (b *browser) open(address string) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, address, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Accept", "text/html,*/*;q=0.8")
	b.do(r)
}

var (
	formAction = regexp.MustCompile(`(?i)<form[^>]*action="([^"]*)"`)
	formHidden = regexp.MustCompile(`(?i)<input type="hidden" name="([^"]*)" value="([^"]*)"`)
)

// submit sends the form on the page with what the person fills in.
func (b *browser) submit(fields url.Values) {
	b.t.Helper()
	action := formAction.FindStringSubmatch(b.body)
	if action == nil {
		b.t.Fatalf("there is no form at %s: %d %s", b.at, b.status, b.body)
	}
	to, err := b.at.Parse(html.UnescapeString(action[1]))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, hidden := range formHidden.FindAllStringSubmatch(b.body, -1) {
		fields.Set(hidden[1], html.UnescapeString(hidden[2]))
	}
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, to.String(), strings.NewReader(fields.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", b.at.Scheme+"://"+b.at.Host)
	b.do(r)
}

// login fills in the provider's form.
func (b *browser) login(user string) {
	b.t.Helper()
	b.submit(url.Values{"username": {user}, "password": {password}})
}
