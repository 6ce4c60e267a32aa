package agent_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// home is a site with one organization, ada's, where people can log in, and a client that asks for tokens.
type home struct {
	*site
	org  id.Organization
	conf oauth2.Config
}

func newHome(t testing.TB) *home {
	t.Helper()
	h := &home{org: id.NewOrganization()}
	h.site = newSite(t, 1, withLogin(t, func(s *site) []string { return []string{s.issuer(h.org) + "/oauth/callback"} }))
	h.serve(0, h.org)
	back := h.issuer(h.org) + done
	client, secret := h.client(h.org, oauth.Client{Name: "Sketch <b>", Redirects: []string{back}, Scope: []string{"room:read", "room:write"}})
	h.conf = oauth2.Config{
		ClientID: string(client.ID), ClientSecret: secret, RedirectURL: back, Scopes: []string{"room:read"},
		Endpoint: oauth2.Endpoint{AuthURL: h.issuer(h.org) + "/oauth/authorize", TokenURL: h.issuer(h.org) + "/oauth/token"},
	}
	return h
}

func (h *home) ctx() context.Context {
	return context.WithValue(h.t.Context(), oauth2.HTTPClient, h.web)
}

// members are who belongs to the organization from now on.
func (h *home) members(roles ...string) {
	var all []api.Member
	for _, r := range roles {
		user, role, _ := strings.Cut(r, "=")
		all = append(all, api.Member{UserID: user, Username: strings.ToUpper(user), Role: role})
	}
	h.c.Members(h.gateway[0], all, api.Project{ProjectID: "drawing"}, api.Project{ProjectID: "other"})
}

// code is what a browser brought back to the client.
func (h *home) code(b *browser, state string) string {
	h.t.Helper()
	q := b.at.Query()
	if b.at.Path != done || q.Get("state") != state || q.Get("iss") != h.issuer(h.org) || q.Get("code") == "" {
		h.t.Fatalf("brought back %s; page: %d %s", b.at, b.status, b.body)
	}
	return q.Get("code")
}

func TestLoginConsentAndTokensWithOthersPrograms(t *testing.T) {
	h := newHome(t)
	b, verifier := h.browser(), oauth2.GenerateVerifier()
	b.open(h.conf.AuthCodeURL("s1", oauth2.S256ChallengeOption(verifier)))
	b.login("ada")
	if b.status != http.StatusOK || !strings.Contains(b.body, "Sketch &lt;b&gt;") || strings.Contains(b.body, "Sketch <b>") {
		t.Fatalf("page of consent: %d %s", b.status, b.body)
	}
	if csp := b.header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("policy of the page: %s", csp)
	}
	b.submit(url.Values{"decision": {"allow"}})
	token, err := h.conf.Exchange(h.ctx(), h.code(b, "s1"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	who := h.who(token.AccessToken)
	if who.UserID != "ada" || who.ClientID != oauth.ClientID(h.conf.ClientID) || strings.Join(who.Scope, " ") != "room:read" {
		t.Fatalf("the token stands for %+v", who)
	}
	// The second time nobody is asked anything.
	b.open(h.conf.AuthCodeURL("s2", oauth2.S256ChallengeOption(verifier)))
	if _, err := h.conf.Exchange(h.ctx(), h.code(b, "s2"), oauth2.VerifierOption(verifier)); err != nil {
		t.Fatal(err)
	}
	// A new token for an old one.
	old := *token
	old.Expiry = old.Expiry.AddDate(-1, 0, 0)
	fresh, err := h.conf.TokenSource(h.ctx(), &old).Token()
	if err != nil || fresh.RefreshToken == token.RefreshToken || h.who(fresh.AccessToken).UserID != "ada" {
		t.Fatalf("refreshed: %v", err)
	}
	// More than before is asked for again, and may be declined.
	more := h.conf
	more.Scopes = []string{"room:read", "room:write"}
	b.open(more.AuthCodeURL("s3", oauth2.S256ChallengeOption(verifier)))
	b.submit(url.Values{"decision": {"deny"}})
	if q := b.at.Query(); b.at.Path != done || q.Get("error") != "access_denied" || q.Get("code") != "" || q.Get("state") != "s3" {
		t.Fatalf("declined: %s", b.at)
	}
	// Whoever logs out is asked for his name again.
	b.post(h.issuer(h.org)+"/oauth/logout", h.issuer(h.org))
	b.open(h.conf.AuthCodeURL("s4", oauth2.S256ChallengeOption(verifier)))
	if !strings.Contains(b.body, "Password:") {
		t.Fatalf("after the logout: %s %d %s", b.at, b.status, b.body)
	}
}

// who is what the organization says of a token; empty when it is good for nothing.
func (h *home) who(token string) oauth.Authentication {
	h.t.Helper()
	var out oauth.Authentication
	if status, body := h.ask(http.MethodGet, h.issuer(h.org)+"/oauth/authenticate", token, nil); status == http.StatusOK {
		if err := json.Unmarshal([]byte(body), &out); err != nil {
			h.t.Fatal(err)
		}
	}
	return out
}

// post sends a form without fields as a page of an origin does.
func (b *browser) post(address, origin string) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, address, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Origin", origin)
	b.do(r)
}

// granted logs somebody in, and gives what his client got.
func (h *home) granted(b *browser, user string) *oauth2.Token {
	h.t.Helper()
	verifier := oauth2.GenerateVerifier()
	b.open(h.conf.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier)))
	b.login(user)
	b.submit(url.Values{"decision": {"allow"}})
	token, err := h.conf.Exchange(h.ctx(), h.code(b, "s"), oauth2.VerifierOption(verifier))
	if err != nil {
		h.t.Fatal(err)
	}
	return token
}

func TestP8_ARemovedMemberLosesTokensAndSession(t *testing.T) {
	h := newHome(t)
	h.members("ada=owner", "bob=member")
	b, ada := h.browser(), h.browser()
	token, kept := h.granted(b, "bob"), h.granted(ada, "ada")
	if h.who(token.AccessToken).Username != "BOB" {
		t.Fatal("bob's token is not good")
	}
	h.members("ada=owner")
	agenttest.Wait(t, "the token is good for nothing", func() bool { return h.who(token.AccessToken).UserID == "" })
	old := *token
	old.Expiry = old.Expiry.AddDate(-1, 0, 0)
	if _, err := h.conf.TokenSource(h.ctx(), &old).Token(); err == nil {
		t.Error("the refresh token outlived the membership")
	}
	if h.who(kept.AccessToken).UserID != "ada" {
		t.Error("ada lost hers too")
	}
	// With his session he is nobody, and the platform's word that he is bob does not help.
	b.open(h.conf.AuthCodeURL("x"))
	b.login("bob")
	if b.status != http.StatusForbidden || !strings.Contains(b.body, "not a member") {
		t.Errorf("after the removal: %s %d %s", b.at, b.status, b.body)
	}
	// If he comes back he begins with nothing, also where the agent was replaced meanwhile.
	agenttest.Wait(t, "the removal is on disk", func() bool {
		s, err := h.agent.Tenants().Find(h.org)
		return err && !s.Dirty()
	})
	h.stop()
	h.start()
	h.c.WaitServing(t, h.gateway[0], h.c.Report(h.gateway[0]).Epoch)
	h.members("ada=owner", "bob=member")
	agenttest.Wait(t, "ada's token is good again", func() bool { return h.who(kept.AccessToken).UserID == "ada" })
	if who := h.who(token.AccessToken); who.UserID != "" {
		t.Errorf("bob's old token is good again: %+v", who)
	}
}
