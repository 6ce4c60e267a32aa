//go:build clients

package agent_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/shared/porttest"
)

// tunnel is an HTTP proxy that finds every name at this host, for programs that cannot be told otherwise.
func tunnel(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, port, _ := net.SplitHostPort(r.Host)
		there, err := new(net.Dialer).DialContext(r.Context(), "tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil || r.Method != http.MethodConnect {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		here, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(there, here); _ = there.Close() }() // ended by either side
		_, _ = io.Copy(here, there)
		_ = here.Close()
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// profile tells oauth2-proxy who a token is for. It wants an email address, which an organization does not know, so
// somebody has to make one of what the organization says.
func (h *home) profile() string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		who := h.who(token)
		if who.UserID == "" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"email": string(who.UserID) + "@" + domain, "preferred_username": who.Username, "user": string(who.UserID)})
	}))
	h.t.Cleanup(s.Close)
	return s.URL
}

// TestOAuthWithOAuth2Proxy puts the program that guards other programs in front of one: it sends people to log in at the
// organization, exchanges the code with PKCE, and asks the organization about the token once a second.
// `make clients` builds it.
func TestOAuthWithOAuth2Proxy(t *testing.T) {
	program := os.Getenv("OAUTH2_PROXY")
	if program == "" {
		t.Fatal("OAUTH2_PROXY does not say where oauth2-proxy is: run make clients")
	}
	h := newHome(t)
	h.members("ada=owner", "bob=member")
	port := porttest.Free(t)
	front := fmt.Sprintf("http://127.0.0.1:%d", port)
	client, secret := h.client(h.org, oauth.Client{Name: "oauth2-proxy", Redirects: []string{front + "/oauth2/callback"}, Scope: []string{"project:list"}})
	guarded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "guarded %s for %s, %s", r.URL.Path, r.Header.Get("X-Forwarded-User"), r.Header.Get("X-Forwarded-Preferred-Username"))
	}))
	t.Cleanup(guarded.Close)
	var said strings.Builder
	proxy := exec.CommandContext(t.Context(), program,
		"--provider=keycloak", "--client-id="+string(client.ID), "--client-secret="+secret, "--scope=project:list", "--code-challenge-method=S256",
		"--login-url="+h.issuer(h.org)+"/oauth/authorize", "--redeem-url="+h.issuer(h.org)+"/oauth/token", "--validate-url="+h.issuer(h.org)+"/oauth/authenticate",
		"--profile-url="+h.profile(), "--provider-ca-file="+h.config.Nginx.CertificateFile, "--http-address=127.0.0.1:"+fmt.Sprint(port),
		"--redirect-url="+front+"/oauth2/callback", "--upstream="+guarded.URL, "--cookie-secret=0123456789abcdef", "--cookie-secure=false", "--cookie-refresh=1s",
		"--email-domain="+domain, "--skip-provider-button", "--silence-ping-logging",
	)
	proxy.Env = append(os.Environ(), "HTTPS_PROXY="+tunnel(t))
	proxy.Stdout, proxy.Stderr = &said, &said
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = proxy.Process.Kill()
		_ = proxy.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	}()
	agenttest.Wait(t, "oauth2-proxy answers", func() bool {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, front+"/ping", nil)
		res, err := new(http.Client).Do(r)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	b := h.browser()
	b.open(front + "/page?x=1")
	b.login("bob")
	b.submit(url.Values{"decision": {"allow"}})
	if want := "guarded /page for bob, BOB"; b.status != http.StatusOK || b.body != want || b.at.String() != front+"/page?x=1" {
		t.Fatalf("%s %d %s", b.at, b.status, b.body)
	}
	// Whoever is removed is sent away, and cannot log in again.
	h.members("ada=owner")
	agenttest.Wait(t, "the page is guarded against him", func() bool {
		b.open(front + "/page")
		return !strings.Contains(b.body, "guarded")
	})
	if strings.Contains(b.body, "Password:") {
		b.login("bob")
	}
	if b.status != http.StatusForbidden || !strings.Contains(b.body, "not a member") {
		t.Errorf("after the removal: %s %d %s", b.at, b.status, b.body)
	}
}
