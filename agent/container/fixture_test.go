package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

const (
	ourOrg   id.Organization = "11111111-1111-4111-8111-111111111111"
	otherOrg id.Organization = "22222222-2222-4222-8222-222222222222"
)

var ctx = context.Background()

// clients are scripted OAuth clients. They outlive the registry, as a store with a journal does.
type clients struct {
	mu      sync.Mutex
	n       int
	live    map[string]Client
	fail    map[string]error // by name of the client, when it is added
	refuse  error            // to delete
	prepare error
}

func newClients() *clients { return &clients{live: map[string]Client{}, fail: map[string]error{}} }

func (c *clients) Prepare(Client) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return fmt.Sprintf("cl-%d", c.n), c.prepare
}

func (c *clients) Add(_ context.Context, k Client) (logging.Secret, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for part, err := range c.fail {
		if strings.Contains(k.Name, part) {
			c.live[k.ID] = k // it took effect, and the answer was lost
			return logging.Secret{}, err
		}
	}
	c.live[k.ID] = k
	if k.Public {
		return logging.Secret{}, nil
	}
	return logging.NewSecret("secret-of-" + k.ID + k.Seed.Reveal()), nil
}

func (c *clients) Secret(clientID string, seed logging.Secret) (logging.Secret, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.live[clientID]
	return logging.NewSecret("secret-of-" + clientID + seed.Reveal()), ok && k.Seed.Reveal() == seed.Reveal()
}

func (c *clients) Delete(_ context.Context, clientID string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	delete(c.live, clientID)
	return nil
}

func (c *clients) ids() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.live))
}

func (c *clients) set(refuse error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = refuse
}

// people are those of one organization: ann owns it, paul is in project one, mary is a member, nobody else is.
type people struct {
	mu      sync.Mutex
	policy  *permission.Policy
	bearers map[string]Bearer
	ended   map[string]bool // sessions
}

func newPeople(t testing.TB, org id.Organization) *people {
	t.Helper()
	p, err := permission.New(org, permission.Membership{
		Members:  map[id.User]permission.RoleName{"ann": permission.Owner, "paul": permission.Member, "mary": permission.Member},
		Projects: []id.Project{"one", "two"},
	})
	ok(t, err)
	p, err = p.Grant(owner, "paul", permission.Grant{Role: permission.ProjectMember, Project: "one"})
	ok(t, err)
	return &people{policy: p, bearers: map[string]Bearer{}, ended: map[string]bool{}}
}

var owner = permission.Subject{User: "ann", Limit: []permission.Pattern{permission.Everything()}}

func person(u id.User) permission.Subject {
	return permission.Subject{User: u, Limit: []permission.Pattern{permission.Everything()}}
}

func (p *people) Policy() *permission.Policy {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.policy
}

func (p *people) Username(u id.User) string { return "the user " + string(u) }

func (p *people) Bearer(token string) (Bearer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.bearers[token]
	return b, ok
}

func (p *people) Session(_ id.User, session string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.ended[session]
}

// remove takes a member out of the organization.
func (p *people) remove(t testing.TB, user id.User) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	members := p.policy.Members()
	delete(members, user)
	next, err := p.policy.WithMembership(permission.Membership{Members: members, Projects: []id.Project{"one", "two"}})
	ok(t, err)
	p.policy = next
}

// fixture is one host's organizations on a directory.
type fixture struct {
	t       testing.TB
	dir     string
	ms      atomic.Int64 // the time
	opts    Options
	all     *Organizations
	clients map[id.Organization]*clients
	people  map[id.Organization]*people
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp(memory(), "dm-container")
	ok(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f := &fixture{t: t, dir: dir, clients: map[id.Organization]*clients{}, people: map[id.Organization]*people{}}
	f.ms.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli())
	f.opts = Options{
		Dir: dir, FS: disk(t, dir), Domain: "example.test", Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Own: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("10.1.0.1")}, nil },
		Now: f.now, Logger: hclog.NewNullLogger(),
	}
	for _, org := range []id.Organization{ourOrg, otherOrg} {
		f.clients[org], f.people[org] = newClients(), newPeople(t, org)
	}
	f.start()
	return f
}

// memory is a directory in memory where there is one: these tests are about order, not about disks.
func memory() string {
	if dir, err := os.MkdirTemp("/dev/shm", "dm"); err == nil {
		_ = os.Remove(dir)
		return "/dev/shm"
	}
	return ""
}

func disk(t testing.TB, dir string) *fsx.OS {
	t.Helper()
	real, err := fsx.NewOS(dir)
	ok(t, err)
	t.Cleanup(func() { _ = real.Close() })
	return real
}

func (f *fixture) now() time.Time           { return time.UnixMilli(f.ms.Load()) }
func (f *fixture) forward(by time.Duration) { f.ms.Add(by.Milliseconds()) }

// start makes the organizations anew, as an agent that was killed does.
func (f *fixture) start() {
	f.t.Helper()
	var err error
	f.all, err = New(f.opts)
	ok(f.t, err)
}

func (f *fixture) open(org id.Organization) *Registry {
	f.t.Helper()
	r, err := f.all.Open(org, 7, nil, f.clients[org], f.people[org])
	ok(f.t, err)
	return r
}

// run runs the loops until the test ends.
func (f *fixture) run() {
	c, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); f.all.Run(c) }()
	f.t.Cleanup(func() { cancel(); <-done })
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// simple is a container with two services: web, where people go, and api, for programs.
func simple() Spec {
	return Spec{Project: "one", Name: "notebook", Services: []Service{
		{Name: "web", Paths: []string{"/callback"}, Scope: []string{"openid"}}, {Name: "api"},
	}}
}

func create(t testing.TB, r *Registry) Made {
	t.Helper()
	made, err := r.Create(ctx, "ann", simple())
	ok(t, err)
	return made
}

// at announces the services of simple at an address, from there.
func at(address string) Announcement {
	a := netip.MustParseAddr(address)
	return Announcement{Source: a, Ports: map[ServiceName]uint16{"web": 8080, "api": 9090}}
}

func announce(t testing.TB, r *Registry, m Made, address string) {
	t.Helper()
	_, err := r.Announce(m.Container.ID, m.Hosting.Token.Reveal(), at(address))
	ok(t, err)
}

func state(t testing.TB, r *Registry, c ID) State {
	t.Helper()
	v, err := r.Get(c)
	ok(t, err)
	return v.State
}

// check is the invariant of a registry at rest: every container is whole, and the OAuth clients are those of
// the containers.
func (f *fixture) check(org id.Organization) {
	f.t.Helper()
	r, open := f.all.Get(org)
	if !open {
		f.t.Fatal("it is not open")
	}
	want := []string{}
	for _, v := range r.List(func(id.Project) bool { return true }) {
		if v.State != Up && v.State != Down {
			f.t.Errorf("container %s is %s", v.ID, v.State)
		}
		for _, s := range v.Services {
			want = append(want, s.Client)
		}
	}
	slices.Sort(want)
	if got := f.clients[org].ids(); !slices.Equal(got, want) {
		f.t.Errorf("the OAuth clients are %v, those of the containers %v", got, want)
	}
}

var errRefused = errors.New("refused by the test")
