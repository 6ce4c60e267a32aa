package tenantapi

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	users "github.com/demiurge-platform/demiurge/shared/usertoken/usertokentest"
)

// grant gives somebody a role in a project.
func (k *kit) grant(org id.Organization, user id.User, role permission.RoleName, project id.Project) {
	k.t.Helper()
	t, ok := k.tenants.Find(org)
	if !ok {
		k.t.Fatal("it is not served")
	}
	ada := permission.Subject{User: "ada", Limit: everything}
	if err := t.Edit(func(p *permission.Policy) (*permission.Policy, error) {
		return p.Grant(ada, user, permission.Grant{Role: role, Project: project})
	}); err != nil {
		k.t.Fatal(err)
	}
}

// P5: what is checked is the project of the container, or of the body, and the handler knows no other.
func TestP5_AContainersProjectIsTheOneThatIsChecked(t *testing.T) {
	k := newKit(t)
	k.grant(ours, "bob", permission.ProjectAdmin, "other")
	bob := bearer(k.jwt("bob"))
	made := k.container(ours) // in drawing
	path := "/containers/" + string(made.Container.ID)
	for _, call := range []string{"GET " + path, "DELETE " + path, "POST " + path + "/token", "GET " + path + "/access", "GET " + path + "?project_id=other"} {
		method, at, _ := strings.Cut(call, " ")
		if got := k.do(ours, method, at, "", bob); got.status != http.StatusForbidden {
			t.Errorf("%s: %d %s", call, got.status, got.body)
		}
	}
	body := `{"project_id":"drawing","name":"x","services":[{"name":"web"}]}`
	if got := k.do(ours, http.MethodPost, "/containers?project_id=other", body, bob); got.status != http.StatusForbidden {
		t.Errorf("creating: %d %s", got.status, got.body)
	}
	if got := k.do(ours, http.MethodPost, "/containers", strings.Replace(body, "drawing", "other", 1), bob); got.status != http.StatusCreated || got.header.Get("Location") == "" {
		t.Errorf("creating in his own project: %d %s", got.status, got.body)
	}
	if got := k.do(theirs, http.MethodGet, path, "", bearer(k.jwt("mallory"))); got.status != http.StatusNotFound {
		t.Errorf("another organization sees it: %d", got.status)
	}
}

// P7: nobody gives a container's client more than he holds himself.
func TestP7_AContainersClientIsForNoMoreThanItsCreatorHolds(t *testing.T) {
	k := newKit(t)
	k.grant(ours, "bob", permission.ProjectAdmin, "drawing")
	for scope, want := range map[string]int{
		"identity": 201, "room:read": 201, "container:*": 201, "member:delete": 403, "*:*": 403, "organization:delete": 403,
	} {
		body := `{"project_id":"drawing","name":"x","services":[{"name":"web","redirect_paths":["/x"],"scope":["` + scope + `"]}]}`
		if got := k.do(ours, http.MethodPost, "/containers", body, bearer(k.jwt("bob"))); got.status != want {
			t.Errorf("%s: %d %s", scope, got.status, got.body)
		}
	}
}

func TestWhatIsNoContainerIsRefused(t *testing.T) {
	k := newKit(t)
	ada := k.session(ours, "ada")
	for what, body := range map[string]string{
		"nothing": ``, "an empty object": `{}`, "no service": `{"project_id":"drawing","name":"x"}`, "no project": `{"project_id":"","name":"x","services":[{"name":"web"}]}`,
		"more": `{"project_id":"drawing","name":"x","services":[{"name":"web"}],"image":"y"}`, "a redirect elsewhere": `{"project_id":"drawing","name":"x","services":[{"name":"web","redirect_paths":["//evil.test"]}]}`,
		"an odd name": `{"project_id":"drawing","name":"x","services":[{"name":"Web"}]}`, "an odd scope": `{"project_id":"drawing","name":"x","services":[{"name":"web","scope":["a b"]}]}`,
	} {
		if got := k.do(ours, http.MethodPost, "/containers", body, ada); got.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	if got := k.do(ours, http.MethodPost, "/containers", `{"project_id":"nowhere","name":"x","services":[{"name":"web"}]}`, ada); got.status != http.StatusForbidden {
		t.Errorf("a project that is not there: %d %s", got.status, got.body)
	}
	for _, of := range []string{"x", strings.Repeat("a", 16), "..", "%2e%2e"} {
		if got := k.do(ours, http.MethodGet, "/containers/"+of, "", ada); got.status != http.StatusNotFound {
			t.Errorf("container %s: %d", of, got.status)
		}
	}
}

// P12: the way to a container leads to that container's own name, with a ticket, and to nowhere else.
func TestP12_TheWayToAContainer(t *testing.T) {
	k := newKit(t)
	k.grant(ours, "bob", permission.ProjectMember, "drawing")
	made := k.container(ours)
	state := strings.Repeat("ab", 32)
	path := "/containers/" + string(made.Container.ID) + "/enter?state=" + state
	got := k.do(ours, http.MethodGet, path+"&service=web&to=https://evil.test&redirect_uri=https://evil.test", "", k.session(ours, "bob"))
	to, err := url.Parse(got.header.Get("Location"))
	if err != nil || got.status != http.StatusSeeOther || to.Host != "uc-"+string(made.Container.ID)+"--web."+id.Hostname(ours, domain) || to.Path != "/-/enter" || len(to.Query()) != 1 || to.Query().Get("ticket") == "" {
		t.Errorf("%d %s", got.status, to)
	}
	for what, tt := range map[string]struct {
		path string
		who  func(*http.Request)
		want int
	}{
		"not in the project": {path, k.session(ours, "eve2"), http.StatusServiceUnavailable}, // no member: to the login, of which the kit has none
		"without state":      {strings.TrimSuffix(path, state), k.session(ours, "bob"), http.StatusBadRequest},
		"another service":    {path + "&service=api", k.session(ours, "bob"), http.StatusNotFound},
		"no container":       {"/containers/aaaaaaaaaaaaaaaa/enter?state=" + state, k.session(ours, "bob"), http.StatusNotFound},
		"a program":          {path, bearer(k.jwt("bob")), http.StatusServiceUnavailable},
	} {
		if got := k.do(ours, http.MethodGet, tt.path, "", tt.who); got.status != tt.want {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	k.serve(ours, "ada=owner", "bob=member", "carl=member")
	if got := k.do(ours, http.MethodGet, path, "", k.session(ours, "carl")); got.status != http.StatusForbidden {
		t.Errorf("a member who is not in the project: %d", got.status)
	}
}

// P14, P15: what is shown once is shown once, and logged never.
func TestP14_SecretsOfAContainerAreShownOnce(t *testing.T) {
	k := newKit(t)
	ada := k.session(ours, "ada")
	got := k.do(ours, http.MethodPost, "/containers", `{"project_id":"drawing","name":"x","services":[{"name":"web"},{"name":"page","redirect_paths":["/"],"public":true}]}`, ada)
	var made api.CreatedContainer
	if err := json.Unmarshal([]byte(got.body), &made); err != nil || got.status != http.StatusCreated || len(made.Secrets) != 1 || made.HostingToken == "" {
		t.Fatalf("%d %s", got.status, got.body)
	}
	renewed := k.do(ours, http.MethodPost, "/containers/"+made.ContainerID+"/token", "", bearer(made.HostingToken))
	var token api.ContainerToken
	if err := json.Unmarshal([]byte(renewed.body), &token); err != nil || renewed.status != http.StatusOK {
		t.Fatalf("%d %s", renewed.status, renewed.body)
	}
	secrets := []string{made.HostingToken, token.HostingToken, strings.Split(token.HostingToken, ".")[2]}
	for _, s := range made.Secrets {
		secrets = append(secrets, s)
	}
	shown := k.do(ours, http.MethodGet, "/containers", "", ada).body + k.do(ours, http.MethodGet, "/containers/"+made.ContainerID, "", ada).body + k.log.String()
	for _, s := range secrets {
		if strings.Contains(shown, s) {
			t.Error("a secret is shown again, or logged")
		}
	}
	if got := k.do(ours, http.MethodPost, "/containers/"+made.ContainerID+"/token", `{"alone":true}`, ada); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if got := k.do(ours, http.MethodPost, "/containers/"+made.ContainerID+"/token", "", bearer(token.HostingToken)); got.status != http.StatusUnauthorized {
		t.Errorf("a token that was taken back: %d", got.status)
	}
}

// P11: any caller can delete any client; redirect URIs of other organizations can be registered.
func TestP11_ClientsAreTheOrganizationsAndItsAdminsMatter(t *testing.T) {
	k := newKit(t)
	ada := bearer(k.jwt("ada"))
	create := func(redirect string) reply {
		return k.do(ours, http.MethodPost, "/oauth/clients", `{"name":"x","redirects":["`+redirect+`"],"scope":["room:read"]}`, ada)
	}
	for _, elsewhere := range []string{
		"https://" + id.Hostname(theirs, domain) + "/back", "https://evil.test/back", "https://" + id.Hostname(ours, domain) + ".evil.test/back", "https://" + domain + "/back",
	} {
		if got := create(elsewhere); got.status != http.StatusBadRequest {
			t.Errorf("a redirect to %s is registered: %d %s", elsewhere, got.status, got.body)
		}
	}
	made := create(redirect)
	var c api.OAuthClient
	if err := json.Unmarshal([]byte(made.body), &c); err != nil || made.status != http.StatusCreated {
		t.Fatalf("%d %s", made.status, made.body)
	}
	path := "/oauth/clients/" + c.ClientID
	narrow, _ := k.tokens(ours, "ada", "client:read")
	for what, try := range map[string]struct {
		org  id.Organization
		as   func(*http.Request)
		want int
	}{
		"nobody": {ours, func(*http.Request) {}, 401}, "a plain member": {ours, bearer(k.jwt("bob")), 403}, "the owner of another organization": {theirs, bearer(k.jwt("mallory")), 404},
		"him at ours": {ours, bearer(k.jwt("mallory")), 403}, "the client itself": {ours, func(r *http.Request) { r.SetBasicAuth(c.ClientID, c.Secret) }, 401},
		"a token for reading": {ours, bearer(narrow), 403},
	} {
		if got := k.do(try.org, http.MethodDelete, path, "", try.as); got.status != try.want {
			t.Errorf("deleted by %s: %d %s", what, got.status, got.body)
		}
	}
	if got := k.do(ours, http.MethodGet, path, "", ada); got.status != http.StatusOK {
		t.Errorf("it is gone: %d", got.status)
	}
}

// P9: a refresh token accepted as a login; and nothing else is one that was not made to be.
func TestP9_WhatIsNoLogin(t *testing.T) {
	k := newKit(t)
	access, refresh := k.tokens(ours, "ada", "*:*")
	_, elsewhere := k.tokens(theirs, "mallory", "*:*")
	own, _ := k.tokens(ours, "", "*:*")
	made := k.container(ours)
	claims := users.For("ada", time.Now())
	for what, token := range map[string]string{
		"a refresh token": refresh, "another organization's": elsewhere, "a client's own token": own, "a container's hosting token": made.Hosting.Token.Reveal(),
		"a client's secret":              made.Secrets[made.Container.Services[0].Client].Reveal(),
		"the platform's refresh token":   users.Sign(t, k.key, claims.With(users.Claims{"token_use": "refresh"})),
		"an expired one of the platform": users.Sign(t, k.key, users.For("ada", time.Now().Add(-24*time.Hour))),
	} {
		for _, path := range []string{"/permissions", "/oauth/clients", "/containers/" + string(made.Container.ID) + "/access"} {
			if got := k.do(ours, http.MethodGet, path, "", bearer(token)); got.status != http.StatusUnauthorized {
				t.Errorf("%s is a login at %s: %d %s", what, path, got.status, got.body)
			}
		}
	}
	if got := k.do(ours, http.MethodGet, "/permissions", "", bearer(access)); got.status != http.StatusOK {
		t.Errorf("an access token: %d %s", got.status, got.body)
	}
}

// P11: a container's clients are gone with it, also when somebody has deleted one of them before.
func TestP11_AContainersClientsGoWithIt(t *testing.T) {
	k := newKit(t)
	ada := k.session(ours, "ada")
	made := k.container(ours)
	if got := k.do(ours, http.MethodDelete, "/oauth/clients/"+made.Container.Services[0].Client, "", ada); got.status != http.StatusNoContent {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if got := k.do(ours, http.MethodDelete, "/containers/"+string(made.Container.ID), "", ada); got.status != http.StatusNoContent {
		t.Errorf("%d %s", got.status, got.body)
	}
	k.container(ours)
	if got := k.do(ours, http.MethodGet, "/oauth/clients", "", ada); strings.Count(got.body, `"client_id"`) != 1 {
		t.Errorf("%s", got.body)
	}
}
