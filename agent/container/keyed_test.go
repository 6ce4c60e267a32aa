package container

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/keyed"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// with is simple with a key of somebody.
func with(t testing.TB, caller, key string) Spec {
	t.Helper()
	s := simple()
	var err error
	s.Request, err = keyed.New(http.Header{keyed.Header: {key}}, caller, "POST /containers", s.Name)
	ok(t, err)
	return s
}

// answerOf is everything that an answer says.
func answerOf(t testing.TB, m Made) string {
	t.Helper()
	text, err := json.Marshal(m.Container)
	ok(t, err)
	out := string(text) + m.Hosting.Expires.String() + m.Hosting.Token.Reveal()
	for _, s := range m.Container.Services {
		out += m.Secrets[s.Client].Reveal()
	}
	return out
}

func again(t testing.TB, r *Registry, s Spec) Made {
	t.Helper()
	made, err := r.Create(ctx, "ann", s)
	ok(t, err)
	return made
}

func count(r *Registry) int { return len(r.List(func(id.Project) bool { return true })) }

func TestTheSameKeyIsTheSameContainer(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	first := again(t, r, with(t, "ann", "k"))
	f.forward(time.Minute)
	announce(t, r, first, "10.1.0.5")
	for range maxTokens { // they take the place of the first
		_, err := r.Issue(first.Container.ID, false)
		ok(t, err)
	}
	if answerOf(t, again(t, r, with(t, "ann", "k"))) != answerOf(t, first) {
		t.Error("the answer is another one")
	}
	f.start() // the agent was killed
	r = f.open(ourOrg)
	if answerOf(t, again(t, r, with(t, "ann", "k"))) != answerOf(t, first) || count(r) != 1 {
		t.Errorf("after a restart the answer is another one, or there are %d containers", count(r))
	}
	other := with(t, "ann", "k")
	other.Request, _ = keyed.New(http.Header{keyed.Header: {"k"}}, "ann", "POST /containers", "another body")
	if _, err := r.Create(ctx, "ann", other); !fault.Is(err, fault.Conflict) {
		t.Errorf("another body: %v", err)
	}
	for _, new := range []Spec{with(t, "paul", "k"), with(t, "ann", "l"), simple(), simple()} {
		if m := again(t, r, new); m.Container.ID == first.Container.ID {
			t.Error("somebody else's call, or one of another key or none, was taken for the first")
		}
	}
	if n := count(r); n != 5 {
		t.Errorf("%d containers", n)
	}
	f.check(ourOrg)
}

func TestAKeyIsFreeAfterADay(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	first := again(t, r, with(t, "ann", "k"))
	f.forward(keyed.Remembered - time.Millisecond)
	if m := again(t, r, with(t, "ann", "k")); m.Container.ID != first.Container.ID {
		t.Error("it is free before the day is over")
	}
	f.forward(time.Millisecond)
	second := again(t, r, with(t, "ann", "k"))
	if second.Container.ID == first.Container.ID || count(r) != 2 {
		t.Error("it is not free when the day is over")
	}
	for _, a := range first.Secrets {
		for _, b := range second.Secrets {
			if strings.TrimPrefix(a.Reveal(), "secret-of-cl-")[1:] == strings.TrimPrefix(b.Reveal(), "secret-of-cl-")[1:] {
				t.Error("the new one has a secret of the old one")
			}
		}
	}
	if _, err := r.Issue(first.Container.ID, false); err != nil || r.containers[first.Container.ID].Request != nil {
		t.Errorf("the old one keeps the key (%v)", err)
	}
	f.start()
	if m := again(t, f.open(ourOrg), with(t, "ann", "k")); answerOf(t, m) != answerOf(t, second) {
		t.Error("after a restart the answer is another one")
	}
}

func TestWhatTheKeyMadeIsGone(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	one := again(t, r, with(t, "ann", "k"))
	ok(t, r.Delete(ctx, one.Container.ID))
	two := again(t, r, with(t, "ann", "l"))
	f.clients[ourOrg].set(errRefused)
	if err := r.Delete(ctx, two.Container.ID); !errors.Is(err, errRefused) { // it is on its way
		t.Fatal(err)
	}
	for range 2 {
		for _, key := range []string{"k", "l"} {
			if _, err := r.Create(ctx, "ann", with(t, "ann", key)); !fault.Is(err, fault.Superseded) {
				t.Errorf("%s: %v", key, err)
			}
		}
		f.start()
		r = f.open(ourOrg)
	}
	f.clients[ourOrg].set(nil)
	f.forward(keyed.Remembered)
	again(t, r, with(t, "ann", "k"))
	ok(t, r.Delete(ctx, r.List(func(id.Project) bool { return true })[0].ID))
	if len(r.gone) != 1 {
		t.Errorf("%d keys are kept, of which one is remembered", len(r.gone))
	}
	f.forward(keyed.Remembered)
	f.start()
	if r = f.open(ourOrg); len(r.gone) != 0 {
		t.Errorf("%d keys are kept for ever", len(r.gone))
	}
	three := again(t, r, with(t, "ann", "m"))
	ok(t, f.clients[ourOrg].Delete(ctx, three.Container.Services[0].Client))
	if _, err := r.Create(ctx, "ann", with(t, "ann", "m")); !fault.Is(err, fault.Superseded) {
		t.Errorf("a client of it is gone: %v", err)
	}
	r.master = newKey()
	if _, err := r.Create(ctx, "ann", with(t, "ann", "m")); !fault.Is(err, fault.Conflict) {
		t.Errorf("what makes its secrets is gone: %v", err)
	}
}

func TestKeysOfTheGoneAreBounded(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	one := again(t, r, with(t, "ann", "k"))
	ok(t, r.Delete(ctx, one.Container.ID))
	for i := range maxGone {
		m := requestMark{Key: string(NewID()), At: f.now().Add(time.Duration(i+1) * time.Millisecond)}
		r.gone[m.Key] = &m
	}
	r.tidy(f.now())
	if len(r.gone) != maxGone {
		t.Errorf("%d keys are kept", len(r.gone))
	}
	if again(t, r, with(t, "ann", "k")).Container.ID == one.Container.ID {
		t.Error("the oldest is kept")
	}
}

func TestManyAtOnceWithOneKey(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	f.run()
	var all sync.WaitGroup
	answers := make([]string, 16)
	for i := range answers {
		all.Go(func() {
			made, err := r.Create(ctx, "ann", with(t, "ann", "k"))
			if err != nil {
				t.Error(err)
				return
			}
			answers[i] = answerOf(t, made)
		})
	}
	all.Wait()
	for _, a := range answers {
		if a != answers[0] {
			t.Fatal("two got different answers")
		}
	}
	if s := f.all.Stats(); count(r) != 1 || s.Created != 1 {
		t.Errorf("%d containers, %d created", count(r), s.Created)
	}
	f.check(ourOrg)
}

// What failed binds nobody: the same key tries again, also when the undo was left half-way.
func TestTheKeyOfAFailureIsTriedAgain(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	f.clients[ourOrg].fail["service api"] = errRefused
	if _, err := r.Create(ctx, "ann", with(t, "ann", "k")); !errors.Is(err, errRefused) {
		t.Fatal(err)
	}
	f.clients[ourOrg].set(errRefused)
	if _, err := r.Create(ctx, "ann", with(t, "ann", "k")); !errors.Is(err, errRefused) {
		t.Fatal(err)
	}
	if _, err := r.Create(ctx, "ann", with(t, "ann", "k")); !errors.Is(err, errRefused) { // the undo still cannot
		t.Fatal(err)
	}
	delete(f.clients[ourOrg].fail, "service api")
	f.clients[ourOrg].set(nil)
	made := again(t, r, with(t, "ann", "k"))
	if answerOf(t, made) != answerOf(t, again(t, r, with(t, "ann", "k"))) || count(r) != 1 {
		t.Errorf("%d containers", count(r))
	}
	f.check(ourOrg)
	// A caller who waits for another's turn can go away.
	gone, cancel := context.WithCancel(ctx)
	cancel()
	e := r.containers[made.Container.ID]
	e.turn <- struct{}{}
	if _, err := r.Create(gone, "ann", with(t, "ann", "k")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-e.turn
}

// TestACrashAtEveryStepOfAKey: whatever the crash left, the same call ends with one container, and with the answer
// that was given, if one was.
func TestACrashAtEveryStepOfAKey(t *testing.T) {
	record := newFixture(t)
	faulty := fsxtest.New(record.opts.FS)
	record.opts.FS = faulty
	faulty.Record()
	if _, _, whole := keyedStory(t, record); !whole {
		t.Fatal("the story does not end")
	}
	for _, p := range faulty.Points() {
		t.Run(p.Label, func(t *testing.T) {
			f := newFixture(t)
			real := f.opts.FS
			crashing := fsxtest.New(real)
			f.opts.FS = crashing
			crashing.CrashAt(p)
			answer, deleted, whole := keyedStory(t, f)
			if whole {
				t.Fatalf("%v: the story ended", p)
			}
			f.opts.FS = real
			f.start()
			r := f.open(ourOrg) // nobody finishes what is half-way but the call itself
			made, err := r.Create(ctx, "ann", with(t, "ann", "k"))
			switch {
			case err == nil && deleted:
				t.Errorf("%v: what was deleted is back", p)
			case err == nil && answer != "" && answerOf(t, made) != answer:
				t.Errorf("%v: the answer is another one", p)
			case err != nil && (answer == "" || !fault.Is(err, fault.Superseded)):
				t.Errorf("%v: %v", p, err)
			}
			if err == nil && (count(r) != 1 || answerOf(t, again(t, r, with(t, "ann", "k"))) != answerOf(t, made)) {
				t.Errorf("%v: %d containers", p, count(r))
			}
			f.run()
			eventually(t, "nothing is half-way", func() bool { return len(r.unfinished()) == 0 })
			f.check(ourOrg)
		})
	}
}

// keyedStory makes a container with a key and deletes it, and stops at the first error.
func keyedStory(t testing.TB, f *fixture) (answer string, deleted, whole bool) {
	all, err := New(f.opts)
	if err != nil {
		return "", false, false
	}
	defer func() { _ = all.CloseAll() }()
	r, err := all.Open(ourOrg, 7, nil, f.clients[ourOrg], f.people[ourOrg])
	if err != nil {
		return "", false, false
	}
	made, err := r.Create(ctx, "ann", with(t, "ann", "k"))
	if err != nil {
		return "", false, false
	}
	answer = answerOf(t, made)
	deleted = r.Delete(ctx, made.Container.ID) == nil
	return answer, deleted, deleted
}

// P14: neither a key nor what is made of it is kept, and what could make it again does not leave the host.
func TestP14NoKeyIsKept(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	const key = "the-key-of-the-caller"
	made := again(t, r, with(t, "ann", key))
	tokenID := r.tokenID(made.Container.ID, with(t, "ann", key).Request)
	two := again(t, r, with(t, "ann", key+"2"))
	ok(t, r.Delete(ctx, two.Container.ID))
	journal, err := os.ReadFile(f.all.path(ourOrg, 7))
	ok(t, err)
	section, _ := r.Section()
	for name, text := range map[string]string{"journal": string(journal), "section": string(section)} {
		secrets := []string{key, tokenID, made.Hosting.Token.Reveal()}
		for _, s := range made.Secrets {
			secrets = append(secrets, s.Reveal(), s.Reveal()[len(s.Reveal())-64:])
		}
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("the %s holds a secret", name)
			}
		}
	}
	raw, err := json.Marshal(r.master)
	ok(t, err)
	if !strings.Contains(string(journal), string(raw)) || strings.Contains(string(section), string(raw)) {
		t.Error("the master key is not in the journal, or what is this host's is in the section")
	}
	next := newFixture(t)
	next.clients, next.people = f.clients, f.people
	_, err = next.all.Open(ourOrg, 9, section, f.clients[ourOrg], f.people[ourOrg])
	ok(t, err)
}

// On the next host a repeat makes no second container, though its secrets cannot be given there.
func TestAKeyGoesAlongWithTheSection(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	again(t, r, with(t, "ann", "k"))
	ok(t, r.Delete(ctx, again(t, r, with(t, "ann", "gone")).Container.ID))
	section, _ := r.Section()
	next := newFixture(t)
	next.clients, next.people = f.clients, f.people
	there, err := next.all.Open(ourOrg, 9, section, f.clients[ourOrg], f.people[ourOrg])
	ok(t, err)
	for _, restarted := range []bool{false, true} {
		if same, _ := there.Section(); string(same) != string(section) {
			t.Errorf("restarted %t: its own section is another one", restarted)
		}
		if _, err := there.Create(ctx, "ann", with(t, "ann", "k")); !fault.Is(err, fault.Conflict) || count(there) != 1 {
			t.Errorf("restarted %t: a repeat: %v, %d containers", restarted, err, count(there))
		}
		if _, err := there.Create(ctx, "ann", with(t, "ann", "gone")); !fault.Is(err, fault.Superseded) {
			t.Errorf("restarted %t: of one that is gone: %v", restarted, err)
		}
		next.start()
		there, err = next.all.Open(ourOrg, 9, nil, f.clients[ourOrg], f.people[ourOrg])
		ok(t, err)
	}
	first := again(t, there, with(t, "ann", "new"))
	if answerOf(t, again(t, there, with(t, "ann", "new"))) != answerOf(t, first) || count(there) != 2 {
		t.Error("a key of this host has another answer")
	}
}

// A journal that was written before there were keys is read, and gets no master key before it needs one.
func TestAJournalWithoutKeysStaysAsItWas(t *testing.T) {
	f := newFixture(t)
	create(t, f.open(ourOrg))
	f.start()
	r := f.open(ourOrg)
	create(t, r)
	journal, err := os.ReadFile(f.all.path(ourOrg, 7))
	ok(t, err)
	for _, word := range []string{masterKey, goneKey, `"request"`, `"first"`} {
		if strings.Contains(string(journal), word) {
			t.Errorf("%s is in the journal", word)
		}
	}
}

// While the disk refuses, a key makes nothing, and afterwards it makes one.
func TestAKeyAndADiskThatRefuses(t *testing.T) {
	f := newFixture(t)
	faulty := fsxtest.New(f.opts.FS)
	f.opts.FS = faulty
	f.start()
	r := f.open(ourOrg)
	for range 2 { // the second time there is a master key
		faulty.Fail("container.journal.append", syscall.ENOSPC)
		faulty.Fail("container.journal.rewrite.write", syscall.ENOSPC)
		before := count(r)
		s := with(t, "ann", string(NewID()))
		if _, err := r.Create(ctx, "ann", s); !errors.Is(err, ErrStorage) || count(r) != before {
			t.Fatalf("%v, %d containers", err, count(r))
		}
		faulty.Fail("container.journal.append", nil)
		faulty.Fail("container.journal.rewrite.write", nil)
		first := answerOf(t, again(t, r, s))
		if answerOf(t, again(t, r, s)) != first || count(r) != before+1 {
			t.Fatalf("%d containers", count(r))
		}
	}
}
