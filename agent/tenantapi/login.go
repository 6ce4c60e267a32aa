package tenantapi

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// Login is the platform's OpenID provider, where people in browsers say who they are.
type Login struct {
	Issuer     string // empty: nobody can log in with a browser
	ClientID   string
	Secret     logging.Secret // empty: this host is a public client there
	Scopes     []string       // beside openid
	UserClaim  string         // the claim that names the user
	UserPrefix string         // put before that name
	Session    time.Duration  // how long a login lasts
}

// loginLife is how long a person may take at the provider.
const loginLife = 10 * time.Minute

// maxReturn bounds the address that a person comes back to: it is kept in a cookie, of which browsers take 4 KiB.
const maxReturn = 2600

// answerWithin is how long the provider may take.
const answerWithin = 10 * time.Second

// provider finds out what the issuer says of itself when it is needed first, so that an issuer that is down
// stops nothing but logins.
type provider struct {
	login  Login
	client *http.Client

	mu     sync.Mutex
	found  *oidc.Provider
	failed error     // why there was no answer
	again  time.Time // before then it is not asked again: the people who wait must not wait one after the other
}

// pauseAfterFailure is how long everybody is told at once that the provider does not answer.
const pauseAfterFailure = 2 * time.Second

func newProvider(l Login) *provider {
	return &provider{login: l, client: &http.Client{
		Timeout:   answerWithin,
		Transport: bounded{http.DefaultTransport},
		// What the issuer says of itself is believed, and not what somebody redirects to.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// maxAnswer bounds what is read of one answer of the provider.
const maxAnswer = 1 << 20

// bounded ends answers that are too long: those who read them read to the end.
type bounded struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = http.MaxBytesReader(nil, res.Body, maxAnswer)
	}
	return res, err
}

// get asks the issuer once.
func (p *provider) get() (*oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found != nil {
		return p.found, nil
	}
	if time.Now().Before(p.again) {
		return nil, p.failed
	}
	// The context is kept for fetching keys later; the client bounds each question.
	found, err := oidc.NewProvider(oidc.ClientContext(context.Background(), p.client), p.login.Issuer)
	if err != nil {
		p.failed, p.again = err, time.Now().Add(pauseAfterFailure)
		return nil, err
	}
	p.found = found
	return found, nil
}

func (p *provider) config(found *oidc.Provider, callback string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.login.ClientID, ClientSecret: p.login.Secret.Reveal(), Endpoint: found.Endpoint(), RedirectURL: callback,
		Scopes: append([]string{oidc.ScopeOpenID}, p.login.Scopes...),
	}
}

// pending is a login on its way, which the browser keeps sealed.
type pending struct {
	Organization id.Organization `json:"o"`
	State        string          `json:"s"`
	Nonce        string          `json:"n"`
	Verifier     string          `json:"v"`
	Return       string          `json:"r"` // path and query on this host name
}

const (
	pathCallback = "/oauth/callback"
	pathConsent  = "/oauth/consent"
)

// sendToLogin answers with the way to the provider, from where the person comes back to an address of this name.
func (s *Server) sendToLogin(w http.ResponseWriter, t *tenant.Tenant, back string) {
	if s.provider == nil {
		s.page(w, http.StatusServiceUnavailable, "No login", "Nobody can log in here with a browser: this host knows no OpenID provider.")
		return
	}
	if len(back) > maxReturn {
		s.page(w, http.StatusRequestURITooLong, "Too long", "The address that you came with is too long to come back to.")
		return
	}
	found, err := s.provider.get()
	if err != nil {
		s.opts.Logger.Error("people cannot log in: the OpenID provider does not say what it is", "issuer", s.provider.login.Issuer, "error", err)
		w.Header().Set("Retry-After", "5")
		s.page(w, http.StatusServiceUnavailable, "No login now", "The place where people log in does not answer at the moment. Please try again shortly.")
		return
	}
	p := pending{Organization: t.Organization(), State: id.Secret(), Nonce: id.Secret(), Verifier: oauth2.GenerateVerifier(), Return: back}
	sealed, err := s.sealer.seal("login", loginLife, p)
	if err != nil {
		s.opts.Logger.Error("a login cannot be begun", "error", err)
		s.page(w, http.StatusInternalServerError, "No login now", "Something went wrong here. Please try again shortly.")
		return
	}
	s.setCookie(w, "login", sealed, loginLife)
	conf := s.provider.config(found, s.opts.Public.origin(t.Hostname())+pathCallback)
	w.Header().Set("Location", conf.AuthCodeURL(p.State, oidc.Nonce(p.Nonce), oauth2.S256ChallengeOption(p.Verifier)))
	w.WriteHeader(http.StatusSeeOther)
}

// login begins a login by itself. Where it leads back is a path on this name and nothing else.
func (s *Server) login(c *Call) error {
	to := c.R.URL.Query().Get("to")
	if to == "" {
		to = "/"
	}
	if !localPath(to) {
		return fault.New(fault.InvalidRequest, "cannot lead back to %.60q: give a path on this name", to)
	}
	s.sendToLogin(c.W, c.Tenant, to)
	return nil
}

// localPath accepts what every browser takes for a path on the same host.
func localPath(to string) bool {
	return strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "//") && !strings.Contains(to, `\`) &&
		!strings.ContainsFunc(to, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

// callback is where the provider sends people.
func (s *Server) callback(c *Call) error {
	w, r := c.W, c.R
	again := func(status int, why string, err error) error {
		s.opts.Logger.Info("a login failed", "organization", c.Tenant.Organization(), "reason", why, "error", err)
		s.page(w, status, "Not logged in", why)
		return nil
	}
	if s.provider == nil {
		return fault.New(fault.NotFound, "there is nothing at this path")
	}
	cookie, err := r.Cookie(s.cookieName("login"))
	var p pending
	if err == nil {
		err = s.sealer.open("login", cookie.Value, &p)
	}
	s.setCookie(w, "login", "", 0)
	q := r.URL.Query()
	switch {
	case err != nil || p.Organization != c.Tenant.Organization():
		return again(http.StatusBadRequest, "This login was not begun here, or it took too long. Please begin again.", err)
	case len(q["state"]) != 1 || subtle.ConstantTimeCompare([]byte(q["state"][0]), []byte(p.State)) != 1:
		return again(http.StatusBadRequest, "This answer is not of the login that was begun here. Please begin again.", nil)
	case q.Has("iss") && q.Get("iss") != s.provider.login.Issuer:
		return again(http.StatusBadRequest, "This answer is not of the place where people log in. Please begin again.", nil)
	case q.Has("error"):
		return again(http.StatusForbidden, "The place where people log in has not let you in.", fmt.Errorf("provider: %.60q", q.Get("error")))
	case len(q["code"]) != 1:
		return again(http.StatusBadRequest, "This answer is not complete. Please begin again.", nil)
	}
	user, err := s.whoIs(r.Context(), c.Tenant, q.Get("code"), p)
	if err != nil {
		return again(http.StatusBadGateway, "The place where people log in does not say who you are. Please try again.", err)
	}
	if _, member := c.Tenant.Member(user); !member {
		return again(http.StatusForbidden, "You are not a member of this organization.", fmt.Errorf("user %s", user))
	}
	in, err := s.site(c)
	if err != nil {
		return err
	}
	value, ok := in.sessions.begin(user)
	if !ok {
		return fault.New(fault.RateLimited, "too many people are logged in at this organization: try again later")
	}
	s.setCookie(w, "session", value, s.opts.Login.Session)
	w.Header().Set("Location", p.Return)
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// whoIs exchanges a code at the provider and reads who logged in.
func (s *Server) whoIs(ctx context.Context, t *tenant.Tenant, code string, p pending) (id.User, error) {
	found, err := s.provider.get()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, s.provider.client), answerWithin)
	defer cancel()
	conf := s.provider.config(found, s.opts.Public.origin(t.Hostname())+pathCallback)
	token, err := conf.Exchange(ctx, code, oauth2.VerifierOption(p.Verifier))
	if err != nil {
		var said *oauth2.RetrieveError
		if errors.As(err, &said) { // its text repeats what was sent
			return "", fmt.Errorf("the provider refuses the code: %.60q", said.ErrorCode)
		}
		return "", err
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return "", errors.New("the provider gave no id_token")
	}
	verified, err := found.Verifier(&oidc.Config{ClientID: s.provider.login.ClientID, Now: s.opts.Now}).Verify(ctx, raw)
	if err != nil {
		return "", err
	}
	if subtle.ConstantTimeCompare([]byte(verified.Nonce), []byte(p.Nonce)) != 1 {
		return "", errors.New("the id_token was made for another login")
	}
	claims := map[string]any{}
	if err := verified.Claims(&claims); err != nil {
		return "", err
	}
	name, ok := claims[s.provider.login.UserClaim].(string)
	if !ok || name == "" {
		return "", fmt.Errorf("the id_token has no text in the claim %s", s.provider.login.UserClaim)
	}
	return id.ParseUser(s.provider.login.UserPrefix + name)
}

// logout ends the session of the browser that asks for it.
func (s *Server) logout(c *Call) error {
	in, err := s.site(c)
	if err != nil {
		return err
	}
	if !sameOrigin(c.R) {
		return errCrossOrigin
	}
	if one, ok := s.sessionOf(c.Tenant, in, c.R); ok {
		in.sessions.end(one)
	}
	s.setCookie(c.W, "session", "", 0)
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

var errCrossOrigin = fault.New(fault.Forbidden, "a page of another name cannot do this")

// people is the login and the consent of one organization, as its authorization server asks for them.
type people struct {
	server *Server
	tenant *tenant.Tenant
	site   *site
}

// Who implements oauth.Login.
func (p people) Who(w http.ResponseWriter, r *http.Request) (id.User, bool) {
	if len(r.Header.Values("Authorization")) > 0 {
		subject, err := p.server.bearer(p.site, r)
		if err == nil && !subject.person {
			err = fault.New(fault.Forbidden, "a client cannot agree in the name of a person")
		}
		if err != nil {
			p.server.refuse(w, r, err)
			return "", false
		}
		return subject.User, true
	}
	if one, ok := p.server.sessionOf(p.tenant, p.site, r); ok {
		return one.user, true
	}
	p.server.sendToLogin(w, p.tenant, r.URL.RequestURI())
	return "", false
}

var (
	_ oauth.Login   = people{}
	_ oauth.Consent = people{}
)
