package container

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestAContainerHasClientsOnItsOwnNamesOnly(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	c := made.Container.ID
	host := "org-" + string(ourOrg) + ".example.test"
	web := f.clients[ourOrg].live[made.Container.Services[0].Client]
	want := []string{"https://uc-" + string(c) + "--web." + host + "/callback", "https://uc-" + string(c) + "." + host + "/callback"}
	if !slices.Equal(web.Redirects, want) || web.Service || web.Public || !slices.Equal(web.Scope, []string{"openid"}) {
		t.Errorf("the client of web is %+v", web)
	}
	api := f.clients[ourOrg].live[made.Container.Services[1].Client]
	if len(api.Redirects) != 0 || !api.Service || !slices.Equal(api.Scope, []string{defaultScope}) {
		t.Errorf("the client of api is %+v", api)
	}
	if len(made.Secrets) != 2 || made.Secrets[web.ID].Reveal() != "secret-of-"+web.ID || made.Hosting.Token.IsZero() {
		t.Errorf("it was given %v", made)
	}
	f.check(ourOrg)
	for _, path := range []string{"", "x", "//evil.test", "/a//b", "/..", "/a/../b", "/a?b", "/a#b", "/a\\b", "/%2e", "https://evil.test/", "/" + strings.Repeat("a", maxPath)} {
		s := simple()
		s.Services[0].Paths = []string{path}
		if _, err := r.Create(ctx, "ann", s); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("the path %q was taken: %v", path, err)
		}
	}
	ok(t, r.Delete(ctx, c))
	if _, err := r.Get(c); !fault.Is(err, fault.NotFound) {
		t.Errorf("it is still there: %v", err)
	}
	f.check(ourOrg)
	if err := r.Delete(ctx, c); !fault.Is(err, fault.NotFound) {
		t.Errorf("it was deleted twice: %v", err)
	}
	if s := f.all.Stats(); s.Created != 1 || s.Deleted != 1 {
		t.Errorf("%+v", s)
	}
}

func TestWhatIsNoContainerIsRefused(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	for name, change := range map[string]func(*Spec){
		"no name":         func(s *Spec) { s.Name = "" },
		"a long name":     func(s *Spec) { s.Name = strings.Repeat("x", maxName+1) },
		"a control":       func(s *Spec) { s.Name = "a\nb" },
		"turned around":   func(s *Spec) { s.Name = "a\u202eb" },
		"no project":      func(s *Spec) { s.Project = "" },
		"no service":      func(s *Spec) { s.Services = nil },
		"many services":   func(s *Spec) { s.Services = slices.Repeat(s.Services, 5) },
		"twice":           func(s *Spec) { s.Services[1].Name = "web" },
		"two dashes":      func(s *Spec) { s.Services[0].Name = "a--b" },
		"a dash":          func(s *Spec) { s.Services[0].Name = "a-" },
		"a digit":         func(s *Spec) { s.Services[0].Name = "1a" },
		"a dot":           func(s *Spec) { s.Services[0].Name = "a.b" },
		"no use":          func(s *Spec) { s.Services[1].Public = true },
		"too many paths":  func(s *Spec) { s.Services[0].Paths = slices.Repeat([]string{"/a"}, maxPaths+1) },
		"too many scopes": func(s *Spec) { s.Services[0].Scope = slices.Repeat([]string{"a"}, maxScopes+1) },
	} {
		s := simple()
		change(&s)
		if _, err := r.Create(ctx, "ann", s); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.clients[ourOrg].prepare = errRefused
	if _, err := r.Create(ctx, "ann", simple()); !errors.Is(err, errRefused) {
		t.Errorf("a client that OAuth refuses: %v", err)
	}
	f.check(ourOrg)
	if n := len(f.clients[ourOrg].ids()); n != 0 {
		t.Errorf("%d clients are left", n)
	}
}

func TestAnOrganizationHasSoManyContainers(t *testing.T) {
	f := newFixture(t)
	f.opts.Limits.Containers = 2
	f.start()
	r := f.open(ourOrg)
	first := create(t, r)
	create(t, r)
	if _, err := r.Create(ctx, "ann", simple()); !fault.Is(err, fault.RateLimited) {
		t.Fatalf("a third one: %v", err)
	}
	create(t, f.open(otherOrg)) // each has its own
	ok(t, r.Delete(ctx, first.Container.ID))
	create(t, r)
	f.check(ourOrg)
}

// A step that fails, or whose answer is lost, takes those before it and itself back.
func TestAFailedStepIsUndone(t *testing.T) {
	for _, step := range []string{"service web", "service api"} {
		f := newFixture(t)
		r := f.open(ourOrg)
		f.clients[ourOrg].fail[step] = errRefused
		if _, err := r.Create(ctx, "ann", simple()); !errors.Is(err, errRefused) {
			t.Fatalf("%s: %v", step, err)
		}
		if n := len(f.clients[ourOrg].ids()); n != 0 {
			t.Errorf("%s: %d clients are left", step, n)
		}
		f.check(ourOrg)
	}
}

// What cannot be undone at once is good for nothing, and is tried until it is gone.
func TestAnUndoIsNeverGivenUp(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	f.run()
	made := create(t, r)
	announce(t, r, made, "10.1.0.5")
	f.clients[ourOrg].set(errRefused)
	if err := r.Delete(ctx, made.Container.ID); !errors.Is(err, errRefused) {
		t.Fatalf("Delete: %v", err)
	}
	if s := state(t, r, made.Container.ID); s != Deleting {
		t.Errorf("it is %s", s)
	}
	if _, err := r.Announce(made.Container.ID, made.Hosting.Token.Reveal(), at("10.1.0.5")); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("its token is good: %v", err)
	}
	if d := r.Access(made.Container.ID, Caller{Subject: owner}, Asked{}); d.Answer != Missing {
		t.Errorf("a request %s", d.Answer)
	}
	if _, err := r.Issue(made.Container.ID, false); !fault.Is(err, fault.Conflict) {
		t.Errorf("it was given a token: %v", err)
	}
	f.clients[ourOrg].set(nil)
	eventually(t, "it is gone", func() bool { _, err := r.Get(made.Container.ID); return fault.Is(err, fault.NotFound) })
	f.check(ourOrg)
}

// story does a bit of everything and stops at the first error, which is the crash.
func story(f *fixture) (kept, ended []Made, whole bool) {
	all, err := New(f.opts)
	if err != nil {
		return nil, nil, false
	}
	defer func() { _ = all.CloseAll() }()
	r, err := all.Open(ourOrg, 7, nil, f.clients[ourOrg], f.people[ourOrg])
	if err != nil {
		return nil, nil, false
	}
	one, err := r.Create(ctx, "ann", simple())
	if err != nil {
		return nil, nil, false
	}
	two, err := r.Create(ctx, "ann", simple())
	if err != nil {
		return []Made{one}, nil, false
	}
	if _, err := r.Announce(one.Container.ID, one.Hosting.Token.Reveal(), at("10.1.0.5")); err != nil {
		return []Made{one, two}, nil, false
	}
	if err := r.Delete(ctx, two.Container.ID); err != nil {
		return []Made{one}, nil, false // two may be there or not
	}
	if one.Hosting, err = r.Renew(one.Container.ID, one.Hosting.Token.Reveal()); err != nil {
		return nil, []Made{two}, false
	}
	return []Made{one}, []Made{two}, true
}

// TestACrashAtEveryStep: after a crash anywhere and a restart every container is whole or gone, with its OAuth
// clients, and what was answered holds.
func TestACrashAtEveryStep(t *testing.T) {
	record := newFixture(t)
	faulty := fsxtest.New(record.opts.FS)
	record.opts.FS = faulty
	faulty.Record()
	if _, _, whole := story(record); !whole {
		t.Fatal("the story does not end")
	}
	seen := map[string]bool{}
	for _, p := range faulty.Points() {
		seen[p.Label] = true
		t.Run(p.Label, func(t *testing.T) {
			f := newFixture(t)
			real := f.opts.FS
			crashing := fsxtest.New(real)
			f.opts.FS = crashing
			crashing.CrashAt(p)
			kept, ended, whole := story(f)
			if whole {
				t.Fatalf("%v: the story ended", p)
			}
			f.opts.FS = real
			f.start()
			f.run()
			r := f.open(ourOrg)
			eventually(t, "nothing is half-way", func() bool { return len(r.unfinished()) == 0 })
			f.check(ourOrg)
			for _, m := range kept {
				if _, err := r.Announce(m.Container.ID, m.Hosting.Token.Reveal(), at("10.1.0.5")); err != nil {
					t.Errorf("%v: %v", p, err)
				}
				ok(t, r.Delete(ctx, m.Container.ID))
			}
			for _, m := range ended {
				if _, err := r.Get(m.Container.ID); !fault.Is(err, fault.NotFound) {
					t.Errorf("%v: a deleted container is back: %v", p, err)
				}
			}
			create(t, r) // it takes changes
			f.check(ourOrg)
		})
	}
	for _, label := range []string{"container.journal.append", "container.journal.sync", "container.journal.rewrite.rename", "container.client.add", "container.client.delete"} {
		if !seen[label] {
			t.Errorf("there was no %s", label)
		}
	}
}

// A disk that refuses: nothing new is made, what ends things holds in memory, and all of it is on disk once the
// disk is back.
func TestADiskThatRefuses(t *testing.T) {
	for _, label := range []string{"container.journal.append", "container.journal.sync"} {
		f := newFixture(t)
		real := f.opts.FS
		faulty := fsxtest.New(real)
		f.opts.FS = faulty
		f.start()
		r := f.open(ourOrg)
		made, other := create(t, r), create(t, r)
		faulty.Fail("container.journal.rewrite.write", syscall.ENOSPC)
		faulty.Fail(label, syscall.ENOSPC)
		if _, err := r.Create(ctx, "ann", simple()); !errors.Is(err, ErrStorage) {
			t.Fatalf("%s: %v", label, err)
		}
		if _, err := r.Issue(other.Container.ID, false); !errors.Is(err, ErrStorage) {
			t.Fatalf("%s: %v", label, err)
		}
		if err := r.Delete(ctx, made.Container.ID); !errors.Is(err, ErrStorage) {
			t.Fatalf("%s: %v", label, err)
		}
		if s := state(t, r, made.Container.ID); s != Deleting {
			t.Fatalf("%s: the deleted container is %s", label, s)
		}
		faulty.Fail(label, nil)
		faulty.Fail("container.journal.rewrite.write", nil)
		f.run()
		f.all.retry()
		eventually(t, "it is gone", func() bool { return len(r.unfinished()) == 0 })
		f.check(ourOrg)
		f.opts.FS = real
		f.start()
		r = f.open(ourOrg)
		if all := r.List(func(id.Project) bool { return true }); len(all) != 1 || all[0].ID != other.Container.ID {
			t.Fatalf("%s: after a restart there is %v", label, all)
		}
	}
}

func TestTornAndDamagedJournals(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	one := create(t, r)
	path := f.all.path(ourOrg, 7)
	before, err := os.ReadFile(path)
	ok(t, err)
	announce(t, r, one, "10.1.0.5")
	after, err := os.ReadFile(path)
	ok(t, err)
	ok(t, f.all.CloseAll())
	for cut := len(before); cut <= len(after); cut += 7 {
		ok(t, os.WriteFile(path, after[:cut], 0o600))
		f.start()
		want := Down
		if cut == len(after) {
			want = Up
		}
		if got := state(t, f.open(ourOrg), one.Container.ID); got != want {
			t.Fatalf("cut after %d of %d bytes: it is %s", cut-len(before), len(after)-len(before), got)
		}
		ok(t, f.all.CloseAll())
	}
	for name, data := range map[string][]byte{"another file": []byte("hello, this is none of yours"), "nothing": {}} {
		ok(t, os.WriteFile(path, data, 0o600))
		f.start()
		if _, err := f.all.Open(ourOrg, 7, nil, f.clients[ourOrg], f.people[ourOrg]); err == nil {
			t.Errorf("%s was taken for a journal", name)
		}
	}
	ok(t, os.WriteFile(path, after, 0o600))
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v %v", info, err)
	}
}

func TestEpochs(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	create(t, r)
	section, _ := r.Section()
	if _, err := f.all.Open(ourOrg, 8, nil, f.clients[ourOrg], f.people[ourOrg]); !fault.Is(err, fault.StaleEpoch) {
		t.Fatalf("it was opened twice: %v", err)
	}
	ok(t, f.all.Close(ourOrg, 7))
	if _, err := f.all.Open(ourOrg, 6, nil, f.clients[ourOrg], f.people[ourOrg]); !fault.Is(err, fault.StaleEpoch) {
		t.Fatalf("an epoch that is over: %v", err)
	}
	if _, err := r.Create(ctx, "ann", simple()); err == nil {
		t.Fatal("a closed registry took a container")
	}
	next, err := f.all.Open(ourOrg, 8, section, f.clients[ourOrg], f.people[ourOrg])
	ok(t, err)
	if n := len(next.List(func(id.Project) bool { return true })); n != 1 {
		t.Fatalf("%d containers came with the section", n)
	}
	if left, err := filepath.Glob(filepath.Join(f.dir, "*")); err != nil || len(left) != 1 {
		t.Fatalf("there are %v %v", left, err)
	}
	ok(t, f.all.Drop(ourOrg, 8))
	if left, err := filepath.Glob(filepath.Join(f.dir, "*")); err != nil || len(left) != 0 {
		t.Fatalf("after the organization has left: %v %v", left, err)
	}
}

func TestContainersEndWithTheirProject(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	f.run()
	gone := create(t, r)
	s := simple()
	s.Project = "two"
	stays, err := r.Create(ctx, "ann", s)
	ok(t, err)
	p := f.people[ourOrg]
	known := p.policy
	p.mu.Lock()
	p.policy = &permission.Policy{} // nothing is understood of what the platform says
	p.mu.Unlock()
	ok(t, r.finish(ctx))
	if s := state(t, r, gone.Container.ID); s != Down {
		t.Fatalf("without anything known of its project it is %s", s)
	}
	next, err := known.WithMembership(permission.Membership{Members: known.Members(), Projects: []id.Project{"two"}})
	ok(t, err)
	p.mu.Lock()
	p.policy = next
	p.mu.Unlock()
	f.all.Reconsider()
	eventually(t, "it is gone", func() bool { _, err := r.Get(gone.Container.ID); return fault.Is(err, fault.NotFound) })
	if left := r.List(func(id.Project) bool { return true }); len(left) != 1 || left[0].ID != stays.Container.ID {
		t.Fatalf("there are %v", left)
	}
	f.check(ourOrg)
}

func TestRetain(t *testing.T) {
	f := newFixture(t)
	create(t, f.open(ourOrg))
	create(t, f.open(otherOrg))
	f.start()
	ok(t, f.all.Retain(map[id.Organization]id.Epoch{ourOrg: 7, otherOrg: 8}))
	if n := len(f.open(ourOrg).List(func(id.Project) bool { return true })); n != 1 {
		t.Errorf("%d containers are left of an organization that is kept", n)
	}
	if left, err := filepath.Glob(filepath.Join(f.dir, "*")); err != nil || len(left) != 1 {
		t.Errorf("there are %v %v", left, err)
	}
}

// TestDownAfterThirtySecondsWithoutAHeartbeat runs in virtual time.
func TestDownAfterThirtySecondsWithoutAHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.opts.Now = nil
		f.start()
		f.run()
		r := f.open(ourOrg)
		made, other := create(t, r), create(t, r)
		announce(t, r, made, "10.1.0.5")
		announce(t, r, other, "10.1.0.6")
		for range 4 {
			time.Sleep(10 * time.Second)
			announce(t, r, made, "10.1.0.5")
			want := Up
			if time.Since(other.Container.Created) >= 30*time.Second {
				want = Down
			}
			if got := state(t, r, other.Container.ID); got != want {
				t.Errorf("after %s the silent one is %s", time.Since(other.Container.Created), got)
			}
		}
		if s := f.all.Stats(); s.States[Up] != 1 || s.States[Down] != 1 || s.Downs != 1 {
			t.Errorf("%+v", s)
		}
		synctest.Wait()
		time.Sleep(30*time.Second - time.Millisecond)
		if s := state(t, r, made.Container.ID); s != Up {
			t.Errorf("it is %s before its time", s)
		}
		time.Sleep(time.Millisecond)
		if s := state(t, r, made.Container.ID); s != Down {
			t.Errorf("it is %s after its time", s)
		}
		if d := r.Access(made.Container.ID, Caller{Subject: owner}, Asked{}); d.Answer != Away {
			t.Errorf("a request %s", d.Answer)
		}
		synctest.Wait()
		if rec, err := r.current(made.Container.ID); err != nil || rec.Place != nil {
			t.Errorf("the journal has it at %v %v", rec.Place, err)
		}
		announce(t, r, made, "10.1.0.7")
		if s := state(t, r, made.Container.ID); s != Up {
			t.Errorf("it announced itself and is %s", s)
		}
		// Killed: who was up is up, and has to announce itself within the patience.
		f.start()
		f.run()
		r = f.open(ourOrg)
		if s := state(t, r, made.Container.ID); s != Up {
			t.Errorf("after a restart it is %s", s)
		}
		time.Sleep(30 * time.Second)
		if s := state(t, r, made.Container.ID); s != Down {
			t.Errorf("30 s after a restart it is %s", s)
		}
	})
}

// A heartbeat that says nothing new writes nothing.
func TestAHeartbeatIsCheap(t *testing.T) {
	f := newFixture(t)
	faulty := fsxtest.New(f.opts.FS)
	f.opts.FS = faulty
	f.start()
	r := f.open(ourOrg)
	made := create(t, r)
	announce(t, r, made, "10.1.0.5")
	faulty.Record()
	for range 10 {
		f.forward(10 * time.Second)
		announce(t, r, made, "10.1.0.5")
	}
	if p := faulty.Points(); len(p) != 0 {
		t.Errorf("it did %v", p)
	}
	if s := state(t, r, made.Container.ID); s != Up {
		t.Errorf("it is %s", s)
	}
}
