package tenant_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

const (
	domain = "apps.example.test"
	org    = id.Organization("7b3c3f6a-8f2e-4c64-9d8a-1f2e3d4c5b6a")
)

// bench is a host's directory, on which registries come and go.
type bench struct {
	t        testing.TB
	dir      string
	files    *fsxtest.Faulty
	registry *tenant.Registry
	oauth    *oauth.Organizations
	version  uint64
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

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir()}
	for _, d := range []string{"oauth", "permissions"} {
		if err := os.Mkdir(filepath.Join(b.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	b.start()
	return b
}

// start is another agent on the directory.
func (b *bench) start() {
	b.t.Helper()
	real := must[*fsx.OS](b.t)(fsx.NewOS(b.dir))
	b.t.Cleanup(func() { _ = real.Close() })
	b.files = fsxtest.New(real)
	b.oauth = must[*oauth.Organizations](b.t)(oauth.New(oauth.Options{
		Dir: filepath.Join(b.dir, "oauth"), FS: b.files, Domain: domain, Lifetimes: oauth.DefaultLifetimes(), Limits: oauth.DefaultLimits(), Logger: hclog.NewNullLogger(),
	}))
	b.registry = must[*tenant.Registry](b.t)(tenant.New(tenant.Options{
		Dir: filepath.Join(b.dir, "permissions"), FS: b.files, Domain: domain, OAuth: b.oauth, Logger: hclog.NewNullLogger(),
	}))
	all := b.oauth
	b.t.Cleanup(func() { _ = all.CloseAll() })
}

func (b *bench) serve(epoch id.Epoch, members ...string) *tenant.Tenant {
	b.t.Helper()
	b.version++
	a := &api.Activate{OrganizationID: string(org), Epoch: uint64(epoch), Name: "Example", Projects: []api.Project{{ProjectID: "drawing"}}}
	for _, m := range members {
		user, role, _ := strings.Cut(m, "=")
		a.Members = append(a.Members, api.Member{UserID: user, Role: role})
	}
	b.registry.Serve(a, b.version)
	return must[*tenant.Tenant](b.t)(b.registry.Get(org, epoch))
}

// run has the registry work until the test ends.
func (b *bench) run() {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { b.registry.Run(ctx) })
	b.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// waitFor waits until something is so.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// tokenOfBob is an access token that bob has given to a client.
func (b *bench) tokenOfBob(of *tenant.Tenant) string {
	t := b.t
	t.Helper()
	store := must[*oauth.Store](t)(of.OAuth(t.Context()))
	const back = "http://127.0.0.1/back"
	client := must[oauth.Client](t)(oauth.NewClient(of.Hostname(), oauth.Client{Name: "c", Redirects: []string{back}, Scope: []string{"room:read"}}))
	must[logging.Secret](t)(store.AddClient(t.Context(), client))
	code := must[logging.Secret](t)(store.IssueCode(t.Context(), oauth.Consented{Client: client.ID, User: "bob", Redirect: back}))
	given := must[oauth.Issued](t)(store.Redeem(t.Context(), oauth.Redemption{Client: client.ID, Code: code.Reveal(), Redirect: back}))
	token := given.Access.Reveal()
	if _, good := store.Check(token); !good {
		t.Fatal("the token is not good at first")
	}
	return token
}

// onDisk is what lies in the directories.
func (b *bench) onDisk() []string {
	b.t.Helper()
	return must[[]string](b.t)(filepath.Glob(filepath.Join(b.dir, "*", "*")))
}

var (
	owner    = permission.Subject{User: "ada", Limit: []permission.Pattern{permission.Everything()}}
	guest    = permission.Grant{Role: permission.ProjectMember, Project: "drawing"}
	readRoom = permission.MustParse("room:read")
	drawing  = permission.Resource{Organization: org, Project: "drawing"}
)

func grantBob(p *permission.Policy) (*permission.Policy, error) { return p.Grant(owner, "bob", guest) }

func mayBob(t testing.TB, of *tenant.Tenant) bool {
	t.Helper()
	p, err := of.Policy()
	if err != nil {
		t.Fatal(err)
	}
	return p.Check(permission.Subject{User: "bob", Limit: owner.Limit}, readRoom, drawing).Allowed
}

func TestNothingIsTouchedBeforeSomebodyAsks(t *testing.T) {
	b := newBench(t)
	b.serve(1, "ada=owner")
	b.serve(1, "ada=owner", "bob=member")
	if err := b.registry.Leave(t.Context(), org, 1); err != nil {
		t.Fatal(err)
	}
	if found := b.onDisk(); len(found) > 0 {
		t.Errorf("on disk: %v", found)
	}
	if _, err := b.registry.Get(org, 1); !fault.Is(err, fault.StaleEpoch) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestGrantsOutliveTheAgentAndEndWithTheOrganization(t *testing.T) {
	b := newBench(t)
	one := b.serve(7, "ada=owner", "bob=member")
	if err := one.Edit(grantBob); err != nil {
		t.Fatal(err)
	}
	must[*oauth.Store](t)(one.OAuth(t.Context()))
	b.start()
	if err := b.registry.Retain(map[id.Organization]id.Epoch{org: 7}); err != nil {
		t.Fatal(err)
	}
	one = b.serve(7, "ada=owner", "bob=member")
	if !mayBob(t, one) {
		t.Error("the grant did not outlive the agent")
	}
	if err := b.registry.Leave(t.Context(), org, 7); err != nil {
		t.Fatal(err)
	}
	if found := b.onDisk(); len(found) > 0 {
		t.Errorf("on disk after it has left: %v", found)
	}
	if _, err := one.OAuth(t.Context()); err == nil {
		t.Error("OAuth state of an organization that has left was opened")
	}
	if err := one.Edit(grantBob); err == nil {
		t.Error("an organization that has left was changed")
	}
	if found := b.onDisk(); len(found) > 0 {
		t.Errorf("on disk after late calls: %v", found)
	}
	if mayBob(t, b.serve(9, "ada=owner", "bob=member")) {
		t.Error("the grant outlived the organization's stay")
	}
}

func TestWhatIsOfAnotherEpochIsForgotten(t *testing.T) {
	b := newBench(t)
	one := b.serve(7, "ada=owner", "bob=member")
	if err := one.Edit(grantBob); err != nil {
		t.Fatal(err)
	}
	must[*oauth.Store](t)(one.OAuth(t.Context()))
	next := b.serve(8, "ada=owner", "bob=member")
	if mayBob(t, next) {
		t.Error("a grant of another epoch counts: it does not know what happened elsewhere")
	}
	if _, ok := one.Member("ada"); ok {
		t.Error("the old epoch still answers")
	}
	must[*oauth.Store](t)(next.OAuth(t.Context()))
	// A word of the past changes nothing, and its end does not end the present.
	b.registry.Serve(&api.Activate{OrganizationID: string(org), Epoch: 7}, 99)
	if err := b.registry.Leave(t.Context(), org, 7); err != nil {
		t.Fatal(err)
	}
	if _, ok := next.Member("ada"); !ok {
		t.Error("the present was ended")
	}
	// An agent that finds both keeps the one that its journal knows.
	b.start()
	if err := b.registry.Retain(map[id.Organization]id.Epoch{org: 8}); err != nil {
		t.Fatal(err)
	}
	for _, path := range b.onDisk() {
		if !strings.HasSuffix(path, ".8") {
			t.Errorf("left over: %s", path)
		}
	}
}

func TestAnEditThatIsNotOnDiskIsNone(t *testing.T) {
	b := newBench(t)
	one := b.serve(7, "ada=owner", "bob=member")
	broken := errors.New("the disk is full")
	b.files.Fail("tenant.permissions.write", broken)
	if err := one.Edit(grantBob); !errors.Is(err, broken) {
		t.Fatalf("edit: %v", err)
	}
	if mayBob(t, one) {
		t.Error("what is not on disk counts")
	}
}

// P8: removal of a member never reaches what runs: not what he holds, and not his tokens, also when nobody had
// opened the organization's state at that moment.
func TestP8_ARemovalReachesWhatNobodyHasOpen(t *testing.T) {
	b := newBench(t)
	one := b.serve(7, "ada=owner", "bob=member")
	if err := one.Edit(grantBob); err != nil {
		t.Fatal(err)
	}
	token := b.tokenOfBob(one)
	if !mayBob(t, one) {
		t.Fatal("bob can do nothing at first")
	}
	b.serve(7, "ada=owner")
	if _, member := one.Member("bob"); member || mayBob(t, one) {
		t.Error("what was taken from bob is not taken at once")
	}
	if err := b.oauth.CloseAll(); err != nil {
		t.Fatal(err)
	}
	b.start() // killed before the disk was told
	if err := b.registry.Retain(map[id.Organization]id.Epoch{org: 7}); err != nil {
		t.Fatal(err)
	}
	one = b.serve(7, "ada=owner")
	if _, good := must[*oauth.Store](t)(one.OAuth(t.Context())).Check(token); good {
		t.Error("his token came back with the disk")
	}
	b.serve(7, "ada=owner", "bob=member")
	if _, good := must[*oauth.Store](t)(one.OAuth(t.Context())).Check(token); good || mayBob(t, one) {
		t.Error("he came back with what he had before")
	}
}

// P8: a member who is removed and comes back before the disk was told has nothing of what he had.
func TestP8_ComingBackAtOnceBringsNothingBack(t *testing.T) {
	for _, open := range []bool{true, false} {
		b := newBench(t)
		one := b.serve(7, "ada=owner", "bob=member")
		if err := one.Edit(grantBob); err != nil {
			t.Fatal(err)
		}
		token := b.tokenOfBob(one)
		if !open { // another agent, in which nobody has asked for anything yet
			if err := b.oauth.CloseAll(); err != nil {
				t.Fatal(err)
			}
			b.start()
			if err := b.registry.Retain(map[id.Organization]id.Epoch{org: 7}); err != nil {
				t.Fatal(err)
			}
			one = b.serve(7, "ada=owner", "bob=member")
		}
		b.serve(7, "ada=owner")
		b.serve(7, "ada=owner", "bob=member")
		b.run()
		waitFor(t, "the disk is told", func() bool { return !one.Dirty() })
		if _, good := must[*oauth.Store](t)(one.OAuth(t.Context())).Check(token); good {
			t.Errorf("open %t: his token is good again", open)
		}
		if open && mayBob(t, one) {
			t.Error("what he was granted is his again")
		}
		again := b.tokenOfBob(one)
		b.serve(7, "ada=owner", "bob=member", "eve=member")
		waitFor(t, "the disk is told", func() bool { return !one.Dirty() })
		if _, good := must[*oauth.Store](t)(one.OAuth(t.Context())).Check(again); !good {
			t.Errorf("open %t: what he got after he came back has ended with the change of somebody else", open)
		}
	}
}

// P8: a person who is removed while he changes something has not changed it.
func TestP8_APersonWhoIsRemovedMeanwhileGrantsNothing(t *testing.T) {
	b := newBench(t)
	one := b.serve(7, "ada=owner", "eve=owner", "bob=member")
	var once sync.Once
	err := one.Edit(func(p *permission.Policy) (*permission.Policy, error) {
		next, err := grantBob(p)
		once.Do(func() { b.serve(7, "eve=owner", "bob=member") }) // after it was decided
		return next, err
	})
	if !fault.Is(err, fault.Forbidden) || mayBob(t, one) {
		t.Errorf("a removed owner granted a role: %v", err)
	}
	b.start()
	if err := b.registry.Retain(map[id.Organization]id.Epoch{org: 7}); err != nil {
		t.Fatal(err)
	}
	if mayBob(t, b.serve(7, "eve=owner", "bob=member")) {
		t.Error("the disk has the grant")
	}
}

func TestAChangeIsTold(t *testing.T) {
	b := newBench(t)
	one := b.serve(7, "ada=owner")
	version, changed, err := one.Version()
	if err != nil {
		t.Fatal(err)
	}
	b.serve(7, "ada=owner", "bob=member")
	select {
	case <-changed:
	case <-time.After(30 * time.Second):
		t.Fatal("nobody was told")
	}
	if after, _, err := one.Version(); err != nil || after <= version {
		t.Errorf("version %d after %d: %v", after, version, err)
	}
	// A role that is not known lets nobody in, rather than somebody who was removed.
	b.serve(7, "ada=emperor")
	if _, ok := one.Member("ada"); ok {
		t.Error("a member with an unknown role is let in")
	}
}
