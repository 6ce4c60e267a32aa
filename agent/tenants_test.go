package agent_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/porttest"
)

// site is a host whose nginx speaks HTTPS, with browsers and programs that trust it.
type site struct {
	*host
	tls     int // port
	web     *http.Client
	gateway []id.Gateway
}

// newSite is a host with one gateway for each organization that a test wants.
func newSite(t testing.TB, gateways int, edit ...func(*site)) *site {
	t.Helper()
	s := &site{host: prepareHost(t), tls: porttest.Free(t)}
	pool := certify(t, filepath.Join(filepath.Dir(s.config.DataDir), "site.pem"))
	s.config.Nginx.ListenTLS = []string{fmt.Sprintf("127.0.0.1:%d", s.tls)}
	s.config.Nginx.CertificateFile = filepath.Join(filepath.Dir(s.config.DataDir), "site.pem")
	s.config.OAuth.Port = s.tls
	for _, e := range edit {
		e(s)
	}
	if err := s.config.Validate(); err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if name, port, err := net.SplitHostPort(address); err == nil && net.ParseIP(name) == nil {
			address = "127.0.0.1:" + port // what a name server would answer
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	transport := &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	s.web = &http.Client{Transport: transport, Timeout: agenttest.Patience}
	s.startNginx()
	s.start()
	s.gateway = s.c.Run(gateways)
	for _, g := range s.gateway {
		s.c.WaitPhase(t, g, api.PhaseReady, 1)
	}
	return s
}

// certify writes key and certificate for every organization's name, and more.
func certify(t testing.TB, path string, more ...string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: domain}, DNSNames: append([]string{"*." + domain, "login.example.test"}, more...),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}

// issuer is an organization's own.
func (s *site) issuer(org id.Organization) string {
	return fmt.Sprintf("https://%s:%d", id.Hostname(org, domain), s.tls)
}

// serve grants an organization to a gateway and waits until it is served.
func (s *site) serve(g int, org id.Organization) {
	s.t.Helper()
	s.c.WaitServing(s.t, s.gateway[g], s.c.Grant(s.gateway[g], org))
}

// client registers an OAuth client without anybody's permission.
func (s *site) client(org id.Organization, c oauth.Client) (oauth.Client, string) {
	s.t.Helper()
	c, err := oauth.NewClient(id.Hostname(org, domain), c)
	if err != nil {
		s.t.Fatal(err)
	}
	t, ok := s.agent.Tenants().Find(org)
	if !ok {
		s.t.Fatal("the organization is not there")
	}
	store, err := t.OAuth(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	secret, err := store.AddClient(s.t.Context(), c)
	if err != nil {
		s.t.Fatal(err)
	}
	return c, secret.Reveal()
}

// ask makes a request and gives status and body.
func (s *site) ask(method, address, token string, body io.Reader) (int, string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, address, body)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	res, err := s.web.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// service is a client that acts for itself, as golang.org/x/oauth2 does.
func (s *site) service(org id.Organization, c oauth.Client, secret string) (*oauth2.Token, error) {
	conf := clientcredentials.Config{ClientID: string(c.ID), ClientSecret: secret, TokenURL: s.issuer(org) + "/oauth/token"}
	return conf.Token(context.WithValue(s.t.Context(), oauth2.HTTPClient, s.web))
}

func TestOAuthOfAnOrganizationThroughNginx(t *testing.T) {
	s := newSite(t, 2)
	ours, other := id.NewOrganization(), id.NewOrganization()
	s.serve(0, ours)
	s.serve(1, other)
	status, body := s.ask(http.MethodGet, s.issuer(ours)+"/.well-known/oauth-authorization-server", "", nil)
	var metadata struct {
		Issuer string `json:"issuer"`
		Token  string `json:"token_endpoint"`
	}
	if err := json.Unmarshal([]byte(body), &metadata); err != nil || status != http.StatusOK || metadata.Issuer != s.issuer(ours) || metadata.Token != s.issuer(ours)+"/oauth/token" {
		t.Fatalf("metadata: %d %s", status, body)
	}
	client, secret := s.client(ours, oauth.Client{Name: "robot", Service: true, Scope: []string{"room:read"}})
	token, err := s.service(ours, client, secret)
	if err != nil {
		t.Fatal(err)
	}
	check := func(org id.Organization) int {
		status, _ := s.ask(http.MethodGet, s.issuer(org)+"/oauth/authenticate", token.AccessToken, nil)
		return status
	}
	if status := check(ours); status != http.StatusOK {
		t.Errorf("the token is worth %d at home", status)
	}
	if status := check(other); status != http.StatusUnauthorized {
		t.Errorf("the token is worth %d at another organization", status)
	}
	if _, err := s.service(other, client, secret); err == nil {
		t.Error("the client is known to another organization")
	}
	// Nothing is answered on names that others may hold, and nothing without TLS.
	below := fmt.Sprintf("https://x.%s:%d/oauth/authenticate", id.Hostname(ours, domain), s.tls)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.issuer(ours)+"/oauth/authenticate", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = below[len("https://") : len(below)-len("/oauth/authenticate")]
	r.Header.Set("Authorization", "Bearer "+token.AccessToken)
	if res, err := s.web.Do(r); err != nil || res.StatusCode != http.StatusNotFound {
		t.Errorf("on a name below: %v %v", res, err)
	}
	if status, _ := s.host.get(ours, "/.well-known/oauth-authorization-server"); status != http.StatusForbidden {
		t.Errorf("without TLS: %d", status)
	}
	if status, body := s.ask(http.MethodGet, s.issuer(ours)+"/oauth/nothing", "", nil); status != http.StatusNotFound {
		t.Errorf("what is not in the table: %d %s", status, body)
	}
	// Another agent takes up what this one leaves.
	s.stop()
	s.start()
	s.c.WaitServing(t, s.gateway[0], s.c.Report(s.gateway[0]).Epoch)
	agenttest.Wait(t, "the token is good again", func() bool { return check(ours) == http.StatusOK })
	// An organization that is released leaves with all it had.
	recycled := s.c.Recycle(s.gateway[0])
	s.c.WaitPhase(t, s.gateway[0], api.PhaseReady, recycled)
	left, err := filepath.Glob(filepath.Join(s.config.DataDir, "oauth", "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("on disk: %v %v", left, err)
	}
	s.serve(0, ours)
	if status := check(ours); status != http.StatusUnauthorized {
		t.Errorf("the token outlived its organization: %d", status)
	}
	if _, err := s.service(ours, client, secret); err == nil {
		t.Error("the client outlived its organization")
	}
}
