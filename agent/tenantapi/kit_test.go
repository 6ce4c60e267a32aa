package tenantapi

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/container"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
	users "github.com/demiurge-platform/demiurge/shared/usertoken/usertokentest"
)

const (
	domain = "apps.example.test"
	ours   = id.Organization("7b3c3f6a-8f2e-4c64-9d8a-1f2e3d4c5b6a")
	theirs = id.Organization("11111111-2222-4333-8444-555555555555")
	epoch  = id.Epoch(7)
)

// kit is a server with two organizations, as nginx sees it.
type kit struct {
	t       testing.TB
	server  *Server
	tenants *tenant.Registry
	key     users.Key
	log     *syncLog
	web     *http.Client
	version uint64
	dir     string

	containers *container.Organizations
}

// syncLog keeps what is logged.
type syncLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *syncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *syncLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newKit(t testing.TB, change ...func(*Options)) *kit {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm") // short: the socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, d := range []string{"oauth", "permissions", "containers"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	k := &kit{t: t, key: users.NewKey(t, "a"), log: &syncLog{}, version: 1, dir: dir}
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: k.log})
	files := must[*fsx.OS](t)(fsx.NewOS(dir))
	t.Cleanup(func() { _ = files.Close() })
	state := must[*oauth.Organizations](t)(oauth.New(oauth.Options{
		Dir: filepath.Join(dir, "oauth"), FS: files, Domain: domain, Lifetimes: oauth.DefaultLifetimes(), Limits: oauth.DefaultLimits(), Logger: log,
	}))
	k.containers = must[*container.Organizations](t)(container.New(container.Options{Dir: filepath.Join(dir, "containers"), FS: files, Domain: domain, Logger: log}))
	k.tenants = must[*tenant.Registry](t)(tenant.New(tenant.Options{
		Dir: filepath.Join(dir, "permissions"), FS: files, Domain: domain, OAuth: state, Keepers: []tenant.Keeper{k.containers}, Logger: log,
	}))
	verifier := must[*usertoken.Verifier](t)(usertoken.New(usertoken.Options{Issuers: []usertoken.Issuer{users.File(t, k.key)}, Logger: log}))
	socket := filepath.Join(dir, "tenant.sock")
	opts := Options{
		Socket: socket, Tenants: k.tenants, Public: Public{"https", 443}, Login: Login{Session: time.Hour, UserClaim: "sub"}, Users: verifier, Containers: k.containers, Logger: log,
	}
	for _, f := range change {
		f(&opts)
	}
	k.server = must[*Server](t)(New(opts))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = k.server.Run(ctx) })
	running.Go(func() { k.tenants.Run(ctx) })
	running.Go(func() { state.Run(ctx) })
	running.Go(func() { k.containers.Run(ctx) })
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	k.web = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		running.Wait()
		_ = state.CloseAll()
		_ = k.containers.CloseAll()
	})
	k.serve(ours, "ada=owner", "eve=admin", "bob=member")
	k.serve(theirs, "mallory=owner")
	return k
}

func activation(org id.Organization, members ...string) *api.Activate {
	a := &api.Activate{
		OrganizationID: string(org), Epoch: uint64(epoch), Name: "Example", Hostname: id.Hostname(org, domain),
		Projects: []api.Project{{ProjectID: "drawing"}, {ProjectID: "other"}},
	}
	for _, m := range members {
		user, role, _ := strings.Cut(m, "=")
		a.Members = append(a.Members, api.Member{UserID: user, Username: strings.ToUpper(user), Role: role})
	}
	return a
}

// serve takes up an organization, or changes who belongs to it.
func (k *kit) serve(org id.Organization, members ...string) {
	k.version++
	k.tenants.Serve(activation(org, members...), k.version)
}

// reply is what came back.
type reply struct {
	status int
	header http.Header
	body   string
}

// do makes a request as nginx passes it on.
func (k *kit) do(org id.Organization, method, path, body string, edit ...func(*http.Request)) reply {
	k.t.Helper()
	r, err := http.NewRequestWithContext(k.t.Context(), method, "http://"+id.Hostname(org, domain)+path, strings.NewReader(body))
	if err != nil {
		k.t.Fatal(err)
	}
	r.Header.Set("X-Demiurge-Organization", string(org))
	r.Header.Set(api.HeaderEpoch, epoch.String())
	r.Header.Set("X-Forwarded-Proto", "https")
	r.Header.Set("X-Real-IP", "192.0.2.7")
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, e := range edit {
		e(r)
	}
	res, err := k.web.Do(r)
	if err != nil {
		k.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		k.t.Fatal(err)
	}
	got := reply{res.StatusCode, res.Header, string(text)}
	k.conform(r.Method, r.URL.Path, got)
	return got
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

// jwt is a user's token of the platform.
func (k *kit) jwt(user string) string { return users.Sign(k.t, k.key, users.For(user, time.Now())) }

// session is a browser in which a user has logged in.
func (k *kit) session(org id.Organization, user id.User) func(*http.Request) {
	k.t.Helper()
	t := must[*tenant.Tenant](k.t)(k.tenants.Get(org, epoch))
	in := must[*site](k.t)(k.server.site(&Call{Tenant: t, R: (&http.Request{}).WithContext(k.t.Context())}))
	value, ok := in.sessions.begin(user)
	if !ok {
		k.t.Fatal("no session")
	}
	return func(r *http.Request) {
		r.AddCookie(&http.Cookie{Name: "__Host-demiurge-session", Value: value})
		r.Header.Set("Origin", "https://"+id.Hostname(org, domain))
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
}

const redirect = "https://org-7b3c3f6a-8f2e-4c64-9d8a-1f2e3d4c5b6a.apps.example.test/back"

// tokens are what a client got for a user, or for itself.
func (k *kit) tokens(org id.Organization, user id.User, scope ...string) (access, refresh string) {
	k.t.Helper()
	t := must[*tenant.Tenant](k.t)(k.tenants.Get(org, epoch))
	store := must[*oauth.Store](k.t)(t.OAuth(k.t.Context()))
	to := strings.Replace(redirect, string(ours), string(org), 1)
	c := must[oauth.Client](k.t)(oauth.NewClient(t.Hostname(), oauth.Client{Name: "c", Service: true, Redirects: []string{to}, Scope: scope}))
	if _, err := store.AddClient(k.t.Context(), c); err != nil {
		k.t.Fatal(err)
	}
	var out oauth.Issued
	var err error
	if user == "" {
		out, err = store.Service(k.t.Context(), c.ID, nil)
	} else {
		code, failed := store.IssueCode(k.t.Context(), oauth.Consented{Client: c.ID, User: user, Redirect: to, Scope: scope})
		if failed != nil {
			k.t.Fatal(failed)
		}
		out, err = store.Redeem(k.t.Context(), oauth.Redemption{Client: c.ID, Code: code.Reveal(), Redirect: to})
	}
	if err != nil {
		k.t.Fatal(err)
	}
	return out.Access.Reveal(), out.Refresh.Reveal()
}

// container makes one in the project drawing.
func (k *kit) container(org id.Organization) container.Made {
	k.t.Helper()
	r := must[*container.Registry](k.t)(k.server.Containers(k.t.Context(), org))
	return must[container.Made](k.t)(r.Create(k.t.Context(), "ada", container.Spec{
		Project: "drawing", Name: "x", Services: []container.Service{{Name: "web", Paths: []string{"/back"}}},
	}))
}
