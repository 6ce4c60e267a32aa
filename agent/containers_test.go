package agent_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/oauth2"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// yard is a home whose certificate is good for the names of containers, with ada, who owns it, and bob, who is in
// the project drawing.
type yard struct {
	*home
	ada  *oauth2.Token
	port int // of the program in every container
	hits atomic.Int64
}

func newYard(t *testing.T) *yard {
	t.Helper()
	y := &yard{home: &home{org: id.NewOrganization()}}
	login := withLogin(t, func(s *site) []string { return []string{s.issuer(y.org) + "/oauth/callback"} })
	var trust func()
	y.site = newSite(t, 1, login, func(s *site) {
		s.config.Containers.Networks = []string{"127.0.0.0/8"}
		pool := certify(t, s.config.Nginx.CertificateFile, "*."+id.Hostname(y.org, domain))
		trust = func() { s.web.Transport.(*http.Transport).TLSClientConfig.RootCAs = pool }
	})
	trust()
	y.serve(0, y.org)
	client, secret := y.client(y.org, oauth.Client{Name: "Desk", Redirects: []string{y.issuer(y.org) + done}, Scope: []string{"container:*", "project:list"}})
	y.conf = oauth2.Config{
		ClientID: string(client.ID), ClientSecret: secret, RedirectURL: y.issuer(y.org) + done, Scopes: []string{"container:*", "project:list"},
		Endpoint: oauth2.Endpoint{AuthURL: y.issuer(y.org) + "/oauth/authorize", TokenURL: y.issuer(y.org) + "/oauth/token"},
	}
	y.members("ada=owner", "bob=member", "eve=member")
	y.grant("bob")
	y.ada = y.granted(y.browser(), "ada")
	program := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		y.hits.Add(1)
		_, _ = fmt.Fprintf(w, "%s for %s (%s) in %s with cookies %q and %q", r.RequestURI, r.Header.Get("X-Demiurge-User"), r.Header.Get("X-Demiurge-Username"),
			r.Header.Get("X-Demiurge-Project"), r.Header.Get("Cookie"), r.Header.Get("Authorization"))
	}))
	t.Cleanup(program.Close)
	y.port = program.Listener.Addr().(*net.TCPAddr).Port
	return y
}

// grant puts somebody into the project drawing.
func (y *yard) grant(user id.User) {
	y.t.Helper()
	t, ok := y.agent.Tenants().Find(y.org)
	if !ok {
		y.t.Fatal("the organization is not there")
	}
	agenttest.Wait(y.t, "the platform's word has come", func() bool {
		p, err := t.Policy()
		return err == nil && p.HasProject("drawing") && p.Members()[user] != ""
	})
	ada := permission.Subject{User: "ada", Limit: []permission.Pattern{permission.Everything()}}
	if err := t.Edit(func(p *permission.Policy) (*permission.Policy, error) {
		return p.Grant(ada, user, permission.Grant{Role: permission.ProjectMember, Project: "drawing"})
	}); err != nil {
		y.t.Fatal(err)
	}
}

// call asks the organization's own name and reads the answer.
func (y *yard) call(method, path, token, body string, into any) int {
	y.t.Helper()
	status, text := y.ask(method, y.issuer(y.org)+path, token, strings.NewReader(body))
	if into != nil && status < 300 {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			y.t.Fatalf("%s %s: %d %s", method, path, status, text)
		}
	}
	return status
}

const notebook = `{"project_id":"drawing","name":"notebook","services":[{"name":"web","redirect_paths":["/callback"],"scope":["container:access"]},{"name":"api"}]}`

func (y *yard) create() api.CreatedContainer {
	y.t.Helper()
	var made api.CreatedContainer
	if status := y.call(http.MethodPost, "/containers", y.ada.AccessToken, notebook, &made); status != http.StatusCreated {
		y.t.Fatalf("creating: %d", status)
	}
	return made
}

func (y *yard) announce(c api.CreatedContainer) int {
	body := fmt.Sprintf(`{"address":"127.0.0.1","services":[{"name":"web","port":%d}]}`, y.port)
	return y.call(http.MethodPost, "/containers/"+c.ContainerID+"/announce", c.HostingToken, body, nil)
}

// address is a page of a container.
func (y *yard) address(hostname, path string) string {
	return fmt.Sprintf("https://%s:%d%s", hostname, y.tls, path)
}

func TestAContainerFromItsCreationToItsEnd(t *testing.T) {
	y := newYard(t)
	bobs := y.granted(y.browser(), "bob")
	if status := y.call(http.MethodPost, "/containers", bobs.AccessToken, notebook, nil); status != http.StatusForbidden {
		t.Errorf("bob creates one: %d", status)
	}
	if status := y.call(http.MethodPost, "/containers", "", notebook, nil); status != http.StatusUnauthorized {
		t.Errorf("nobody creates one: %d", status)
	}
	made := y.create()
	if made.State != "down" || made.Hostname != "uc-"+made.ContainerID+"."+id.Hostname(y.org, domain) || len(made.Secrets) != 2 || made.CreatedBy != "ada" {
		t.Fatalf("%+v", made)
	}
	path := "/containers/" + made.ContainerID
	// Its clients are the organization's, and lead to its own names.
	tenant, _ := y.agent.Tenants().Find(y.org)
	store, err := tenant.OAuth(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, ok := store.Client(oauth.ClientID(made.Services[0].ClientID))
	if !ok || len(client.Redirects) != 2 || client.Redirects[1] != y.address(made.Hostname, "/callback") || !store.Authenticate(client.ID, made.Secrets[string(client.ID)]) {
		t.Errorf("%+v", client)
	}
	page := y.address(made.Hostname, "/page?x=1")
	bob := y.browser()
	bob.open(page)
	bob.login("bob")
	if bob.status != http.StatusServiceUnavailable || !strings.Contains(bob.body, "Down") || y.hits.Load() != 0 {
		t.Fatalf("before it has announced itself: %s %d %s", bob.at, bob.status, bob.body)
	}
	if status := y.announce(made); status != http.StatusOK {
		t.Fatalf("announcing: %d", status)
	}
	bob.open(page)
	if want := `/page?x=1 for bob (BOB) in drawing with cookies "" and ""`; bob.status != http.StatusOK || bob.body != want || bob.at.String() != page {
		t.Fatalf("%s %d %s", bob.at, bob.status, bob.body)
	}
	y.hits.Store(0)
	// The other name of the same service has a session of its own, for which nobody is asked anything.
	bob.open(y.address(made.Services[0].Hostname, "/"))
	if bob.status != http.StatusOK || !strings.Contains(bob.body, "for bob") {
		t.Errorf("%d %s", bob.status, bob.body)
	}
	// Eve is a member, and not in the project; without a login nobody is anybody.
	eve := y.browser()
	eve.open(page)
	eve.login("eve")
	if eve.status != http.StatusForbidden {
		t.Errorf("eve: %d %s", eve.status, eve.body)
	}
	y.hits.Store(0)
	if status, _ := y.ask(http.MethodGet, page, "", nil); status != http.StatusUnauthorized || y.hits.Load() != 0 {
		t.Errorf("nobody: %d", status)
	}
	// A program shows a token of the organization, which stays with nginx.
	if status, body := y.ask(http.MethodGet, page, bobs.AccessToken, nil); status != http.StatusOK || !strings.HasSuffix(body, `for bob (BOB) in drawing with cookies "" and ""`) {
		t.Errorf("bob's program: %d %s", status, body)
	}
	// A guard asks.
	var access api.ContainerAccess
	if status := y.call(http.MethodGet, path+"/access?service=web", bobs.AccessToken, "", &access); status != http.StatusOK || access.UserID != "bob" || access.Upstream != fmt.Sprintf("127.0.0.1:%d", y.port) {
		t.Errorf("a guard is told %d %+v", status, access)
	}
	if status := y.call(http.MethodGet, path+"/access?service=api", bobs.AccessToken, "", nil); status != http.StatusServiceUnavailable {
		t.Errorf("a service that was not announced: %d", status)
	}
	y.lists(made, bobs.AccessToken)
	y.tokens(made, bobs.AccessToken)
	y.goneAndBack(made, bob, page)
	// Bob is removed.
	y.hits.Store(0)
	y.members("ada=owner", "eve=member")
	agenttest.Wait(t, "bob is refused", func() bool {
		bob.open(page)
		status, _ := y.ask(http.MethodGet, page, bobs.AccessToken, nil)
		return !strings.Contains(bob.body, "for bob") && status == http.StatusUnauthorized
	})
	// The end.
	if status := y.call(http.MethodDelete, path, y.ada.AccessToken, "", nil); status != http.StatusNoContent {
		t.Fatalf("deleting: %d", status)
	}
	if status := y.call(http.MethodGet, path, y.ada.AccessToken, "", nil); status != http.StatusNotFound {
		t.Errorf("deleted: %d", status)
	}
	if status := y.announce(made); status != http.StatusUnauthorized {
		t.Errorf("it announces itself: %d", status)
	}
	if status, _ := y.ask(http.MethodGet, page, y.ada.AccessToken, nil); status != http.StatusNotFound {
		t.Errorf("its name: %d", status)
	}
	tenant, _ = y.agent.Tenants().Find(y.org)
	if store, err = tenant.OAuth(t.Context()); err != nil || len(store.Clients()) != 1 {
		t.Errorf("%d clients are left: %v", len(store.Clients()), err)
	}
	// What belongs to a project ends with it, and all of it when the organization is released.
	y.create()
	y.c.Members(y.gateway[0], []api.Member{{UserID: "ada", Role: "owner"}})
	agenttest.Wait(t, "the container of a project that is gone is gone", func() bool { return len(store.Clients()) == 1 })
	recycled := y.c.Recycle(y.gateway[0])
	y.c.WaitPhase(t, y.gateway[0], api.PhaseReady, recycled)
	if left, err := filepath.Glob(filepath.Join(y.config.DataDir, "containers", "*")); err != nil || len(left) != 0 {
		t.Errorf("after the release: %v %v", left, err)
	}
	if status, _ := y.ask(http.MethodGet, page, y.ada.AccessToken, nil); status != http.StatusNotFound {
		t.Errorf("its name after the release: %d", status)
	}
}

// lists: everybody sees what he may read.
func (y *yard) lists(made api.CreatedContainer, bobs string) {
	y.t.Helper()
	var list struct {
		Items []api.Container `json:"items"`
	}
	if status := y.call(http.MethodGet, "/containers", bobs, "", &list); status != http.StatusOK || len(list.Items) != 1 || list.Items[0].State != "up" || !list.Items[0].Services[0].Serving || list.Items[0].Services[1].Serving {
		y.t.Errorf("bob sees %d %+v", status, list)
	}
	if y.call(http.MethodGet, "/containers?project_id=other", bobs, "", &list); len(list.Items) != 0 {
		y.t.Errorf("in another project he sees %+v", list)
	}
	eves := y.granted(y.browser(), "eve")
	if status := y.call(http.MethodGet, "/containers", eves.AccessToken, "", &list); status != http.StatusOK || len(list.Items) != 0 {
		y.t.Errorf("eve sees %d %+v", status, list)
	}
	if status := y.call(http.MethodGet, "/containers/"+made.ContainerID, eves.AccessToken, "", nil); status != http.StatusForbidden {
		y.t.Errorf("eve reads it: %d", status)
	}
}

// tokens: a container renews its own; a member needs the right; and a hosting token is no login.
func (y *yard) tokens(made api.CreatedContainer, bobs string) {
	y.t.Helper()
	path := "/containers/" + made.ContainerID
	if status := y.call(http.MethodPost, path+"/token", bobs, "", nil); status != http.StatusForbidden {
		y.t.Errorf("bob gets a token: %d", status)
	}
	var renewed api.ContainerToken
	if status := y.call(http.MethodPost, path+"/token", made.HostingToken, "", &renewed); status != http.StatusOK || renewed.HostingToken == made.HostingToken {
		y.t.Errorf("renewing: %d", status)
	}
	for _, call := range []string{"GET /containers", "GET " + path, "DELETE " + path, "GET " + path + "/access", "GET /oauth/authenticate"} {
		method, at, _ := strings.Cut(call, " ")
		if status := y.call(method, at, made.HostingToken, "", nil); status != http.StatusUnauthorized {
			y.t.Errorf("%s with a hosting token: %d", call, status)
		}
	}
	if status, _ := y.ask(http.MethodGet, y.address(made.Hostname, "/"), made.HostingToken, nil); status != http.StatusUnauthorized {
		y.t.Errorf("a page with a hosting token: %d", status)
	}
	if status := y.call(http.MethodPost, path+"/announce", bobs, `{"services":[{"name":"web","port":1}]}`, nil); status != http.StatusUnauthorized {
		y.t.Errorf("bob announces it: %d", status)
	}
	for _, body := range []string{`{"address":"8.8.8.8","services":[{"name":"web","port":1}]}`, `{"address":"localhost","services":[{"name":"web","port":1}]}`, `{"services":[]}`, `{}`, `x`, `{"services":[{"name":"web","port":70000}]}`} {
		if status := y.call(http.MethodPost, path+"/announce", made.HostingToken, body, nil); status != http.StatusBadRequest {
			y.t.Errorf("announcing %s: %d", body, status)
		}
	}
}

// goneAndBack: while the agent is away nothing passes; when it is back nothing was lost.
func (y *yard) goneAndBack(made api.CreatedContainer, bob *browser, page string) {
	y.t.Helper()
	y.stop()
	y.hits.Store(0)
	bob.open(page)
	if bob.status != http.StatusServiceUnavailable || bob.header.Get("Retry-After") == "" || y.hits.Load() != 0 {
		y.t.Errorf("while the agent is away: %d %s", bob.status, bob.body)
	}
	y.start()
	y.c.WaitServing(y.t, y.gateway[0], y.c.Report(y.gateway[0]).Epoch)
	var seen api.Container
	agenttest.Wait(y.t, "it is up as before", func() bool {
		return y.call(http.MethodGet, "/containers/"+made.ContainerID, y.ada.AccessToken, "", &seen) == http.StatusOK && seen.State == "up"
	})
	bob.open(page) // the provider knows him still
	if strings.Contains(bob.body, "Password:") {
		bob.login("bob")
	}
	if bob.status != http.StatusOK || !strings.Contains(bob.body, "for bob") {
		y.t.Errorf("after the agent came back: %s %d %s", bob.at, bob.status, bob.body)
	}
	if status := y.announce(made); status != http.StatusOK {
		y.t.Errorf("announcing with the token of before: %d", status)
	}
}
