package oauth

import (
	"bytes"
	"encoding/hex"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/keyed"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// registered is the answer to a client's registration.
type registered struct {
	id     ClientID
	secret string
}

func keyOf(t testing.TB, caller, key, body string) keyed.Request {
	t.Helper()
	q, err := keyed.New(http.Header{keyed.Header: {key}}, caller, "POST /oauth/clients", body)
	must(t, err)
	return q
}

func register(t testing.TB, s *Store, c Client, q keyed.Request) (registered, error) {
	t.Helper()
	c.Name, c.Scope = "robot", []string{"room:read"}
	checked, err := NewClient(s.opts.hostname, c)
	must(t, err)
	made, secret, err := s.AddClientFor(ctx, checked, q)
	return registered{made.ID, secret.Reveal()}, err
}

func mustRegister(t testing.TB, s *Store, caller, key string) registered {
	t.Helper()
	out, err := register(t, s, Client{Service: true}, keyOf(t, caller, key, "b"))
	must(t, err)
	return out
}

func TestTheSameKeyIsTheSameClient(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	first := mustRegister(t, s, "ada", "k")
	for _, compacted := range []bool{false, false, true} {
		if again := mustRegister(t, s, "ada", "k"); again != first || len(s.Clients()) != 1 {
			t.Fatalf("%v became %v, %d clients", first, again, len(s.Clients()))
		}
		if !s.Authenticate(first.id, first.secret) {
			t.Fatal("the secret is not the client's")
		}
		if compacted {
			must(t, s.journal.compact(ctx, s.walkAll))
		}
		f.start() // killed
		s = f.open(ourOrg)
	}
	if again := mustRegister(t, s, "ada", "k"); again != first {
		t.Fatal("it is not in the base")
	}
	if _, err := register(t, s, Client{Service: true}, keyOf(t, "ada", "k", "another body")); !fault.Is(err, fault.Conflict) {
		t.Fatalf("another body: %v", err)
	}
	if other := mustRegister(t, s, "bob", "k"); other.id == first.id || other.secret == first.secret {
		t.Fatal("another caller's key is the same")
	}
	public, err := register(t, s, Client{Public: true, Redirects: []string{redirect}}, keyOf(t, "ada", "p", "b"))
	must(t, err)
	again, err := register(t, s, Client{Public: true, Redirects: []string{redirect}}, keyOf(t, "ada", "p", "b"))
	must(t, err)
	if public != again || public.secret != "" {
		t.Fatalf("a public client: %v, %v", public, again)
	}
	for range 2 { // without a key each is another
		if one, err := register(t, s, Client{Service: true}, keyed.Request{}); err != nil || one.id == first.id || one.secret == "" {
			t.Fatal(one, err)
		}
	}
	if n := len(s.Clients()); n != 5 {
		t.Fatalf("%d clients", n)
	}
	s.check(t)
}

func TestAKeyIsFreeAfterADay(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	first := mustRegister(t, s, "ada", "k")
	f.clock.forward(keyed.Remembered - time.Millisecond)
	if again := mustRegister(t, s, "ada", "k"); again != first {
		t.Fatal("it is free before the day is over")
	}
	f.clock.forward(time.Millisecond)
	second := mustRegister(t, s, "ada", "k")
	if second.id == first.id || second.secret == first.secret || len(s.Clients()) != 2 {
		t.Fatal("it is not free when the day is over")
	}
	f.start()
	if again := mustRegister(t, f.open(ourOrg), "ada", "k"); again != second {
		t.Fatal("after a restart the answer is another one")
	}
}

func TestWhatTheKeyMadeIsGone(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	first := mustRegister(t, s, "ada", "k")
	must(t, s.DeleteClient(ctx, first.id))
	for range 2 {
		if _, err := register(t, s, Client{Service: true}, keyOf(t, "ada", "k", "b")); !fault.Is(err, fault.Superseded) {
			t.Fatal(err)
		}
		f.start()
		s = f.open(ourOrg)
	}
	mustRegister(t, s, "ada", "l")
	s.master[0]++
	if _, err := register(t, s, Client{Service: true}, keyOf(t, "ada", "l", "b")); !fault.Is(err, fault.Conflict) {
		t.Fatalf("what makes its secret is gone: %v", err)
	}
}

func TestKeysAreBounded(t *testing.T) {
	f := newFixture(t)
	f.opts.Limits.Clients = 3
	f.start()
	s := f.open(ourOrg)
	stays := mustRegister(t, s, "ada", "stays")
	for n := range 20 {
		f.clock.forward(time.Second)
		one := mustRegister(t, s, "ada", strconv.Itoa(n))
		if len(s.requests) > 6 {
			t.Fatalf("%d keys are kept", len(s.requests))
		}
		must(t, s.DeleteClient(ctx, one.id))
	}
	f.start()
	s = f.open(ourOrg)
	if again := mustRegister(t, s, "ada", "stays"); again != stays || len(s.requests) > 6 {
		t.Fatalf("the key of a client that is there was forgotten, or %d keys are kept", len(s.requests))
	}
	if one := mustRegister(t, s, "ada", "0"); one.id == "" { // the oldest of those that are gone is free
		t.Fatal(one)
	}
	mustRegister(t, s, "ada", "x")
	if _, err := register(t, s, Client{Service: true}, keyOf(t, "ada", "y", "b")); !fault.Is(err, fault.RateLimited) {
		t.Fatalf("one too many: %v", err)
	}
	f.clock.forward(keyed.Remembered)
	f.start()
	if s = f.open(ourOrg); len(s.requests) != 0 {
		t.Fatalf("%d keys are kept for ever", len(s.requests))
	}
}

func TestManyAtOnceWithOneKey(t *testing.T) {
	s := newFixture(t).open(ourOrg)
	q := keyOf(t, "ada", "k", "b")
	all, refused := parallel(16, func() (registered, error) { return register(t, s, Client{Service: true}, q) })
	if len(all) != 16 || len(s.Clients()) != 1 {
		t.Fatalf("%d answers, %v, %d clients", len(all), refused, len(s.Clients()))
	}
	for _, one := range all {
		if one != all[0] {
			t.Fatal("two got different answers")
		}
	}
}

// TestACrashAtEveryStepOfAKey: whatever the crash left, the same call ends with one client and the first answer.
func TestACrashAtEveryStepOfAKey(t *testing.T) {
	story := func(f *fixture) (answers []registered, whole bool) {
		all, err := New(f.opts)
		if err != nil {
			return nil, false
		}
		defer func() { _ = all.CloseAll() }()
		s, err := all.Open(ourOrg, 7, nil)
		if err != nil {
			return nil, false
		}
		for _, key := range []string{"0", "1"} {
			one, err := register(t, s, Client{Service: true}, keyOf(t, "ada", key, "b"))
			if err != nil {
				return answers, false
			}
			answers = append(answers, one)
			if s.journal.compact(ctx, s.walkAll) != nil {
				return answers, false
			}
		}
		return answers, true
	}
	record := newFixture(t)
	faulty := fsxtest.New(record.fs)
	record.opts.FS = faulty
	faulty.Record()
	if _, whole := story(record); !whole {
		t.Fatal("the story does not end")
	}
	for _, p := range faulty.Points() {
		t.Run(p.Label, func(t *testing.T) {
			f := newFixture(t)
			crashing := fsxtest.New(f.fs)
			f.opts.FS = crashing
			crashing.CrashAt(p)
			answers, _ := story(f)
			f.opts.FS = f.fs
			f.start()
			s := f.open(ourOrg)
			for i, was := range answers {
				if now := mustRegister(t, s, "ada", strconv.Itoa(i)); now != was {
					t.Fatalf("%v: the answer is another one", p)
				}
			}
			for range 2 {
				mustRegister(t, s, "ada", "0")
				mustRegister(t, s, "ada", "1")
			}
			if n := len(s.Clients()); n != 2 {
				t.Fatalf("%v: %d clients", p, n)
			}
		})
	}
}

// On the next host a repeat makes no second client, though its secret cannot be given there.
func TestAKeyGoesAlongWithTheSection(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	mustRegister(t, s, "ada", "k")
	public, err := register(t, s, Client{Public: true, Redirects: []string{redirect}}, keyOf(t, "ada", "p", "b"))
	must(t, err)
	must(t, s.DeleteClient(ctx, mustRegister(t, s, "ada", "gone").id))
	section, _ := s.Section()
	next := newFixture(t)
	there, err := next.all.Open(ourOrg, 9, section)
	must(t, err)
	for _, restarted := range []bool{false, true} {
		if again, _ := there.Section(); !bytes.Equal(again, section) {
			t.Fatalf("restarted %t: its own section is another one", restarted)
		}
		if _, err := register(t, there, Client{Service: true}, keyOf(t, "ada", "k", "b")); !fault.Is(err, fault.Conflict) {
			t.Errorf("restarted %t: a repeat: %v", restarted, err)
		}
		if _, err := register(t, there, Client{Service: true}, keyOf(t, "ada", "gone", "b")); !fault.Is(err, fault.Superseded) {
			t.Errorf("restarted %t: of a client that is gone: %v", restarted, err)
		}
		if again, err := register(t, there, Client{Public: true, Redirects: []string{redirect}}, keyOf(t, "ada", "p", "b")); err != nil || again != public {
			t.Errorf("restarted %t: of a public client: %v, %v", restarted, again, err)
		}
		must(t, next.all.CloseAll())
		next.start()
		there, err = next.all.Open(ourOrg, 9, nil)
		must(t, err)
	}
	if first := mustRegister(t, there, "ada", "new"); first != mustRegister(t, there, "ada", "new") || len(there.Clients()) != 3 {
		t.Errorf("a key of this host: %d clients", len(there.Clients()))
	}
	section = section[:len(section):len(section)]
	next.start()
	next.opts.Limits.Clients = 1
	next.start()
	if _, err := next.all.Open(otherOrg, 9, section); err == nil {
		t.Error("more than there may be was taken")
	}
}

// P15: neither a key nor what is made of it is kept, and what could make it again is in no section.
func TestP15NoKeyIsKept(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	const key = "the-key-of-the-caller"
	first := mustRegister(t, s, "ada", key)
	must(t, s.journal.compact(ctx, s.walkAll))
	mustRegister(t, s, "ada", key+"2")
	section, _ := s.Section()
	places := map[string][]byte{"section": section}
	must(t, filepath.WalkDir(f.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var data []byte
			data, err = os.ReadFile(path)
			places[filepath.Base(path)] = data
		}
		return err
	}))
	raw, err := hex.DecodeString(strings.TrimPrefix(first.secret, "dms_"))
	must(t, err)
	kept := 0
	for place, text := range places {
		if bytes.Contains(text, []byte(key)) || bytes.Contains(text, []byte(first.secret)) || bytes.Contains(text, raw) {
			t.Errorf("%s holds a key or a secret", place)
		}
		if bytes.Contains(text, s.master[:]) {
			kept++
		}
	}
	if kept == 0 || bytes.Contains(section, s.master[:]) {
		t.Error("the master key is not in the journal, or what is this host's is in the section")
	}
	must(t, emptyStore(f.clock.now).read(section))
}

func TestASecretOfASeed(t *testing.T) {
	s := newFixture(t).open(ourOrg)
	c, err := NewClient(s.opts.hostname, Client{Name: "x", Service: true, Scope: []string{"a"}})
	must(t, err)
	seed := logging.NewSecret(strings.Repeat("0a", 32))
	secret, err := s.AddClientWith(ctx, c, seed)
	must(t, err)
	if again, ok := s.SecretOf(c.ID, seed); !ok || again.Reveal() != secret.Reveal() || !s.Authenticate(c.ID, secret.Reveal()) {
		t.Error("the seed does not give the secret")
	}
	for name, other := range map[string]logging.Secret{"another seed": logging.NewSecret("x"), "none": {}} {
		if _, ok := s.SecretOf(c.ID, other); ok {
			t.Errorf("%s gives the secret", name)
		}
	}
	c.ID = "cl-" + ClientID(strings.Repeat("a", 26))
	if secret, err := s.AddClientWith(ctx, c, logging.Secret{}); err != nil || len(secret.Reveal()) != len("dms_")+64 {
		t.Errorf("without a seed its secret has %d characters, %v", len(secret.Reveal()), err)
	}
}

// The stored form of the records of keys never changes.
func TestTheStoredFormOfKeys(t *testing.T) {
	r := record{op: putRequest, digest: digest{1}, secret: digest{2}, client: Client{ID: "cl-a"}, expires: 300}
	m := record{op: putMaster, digest: digest{3}}
	zero := strings.Repeat("00", 31)
	for _, tt := range []struct{ got, want string }{
		{hex.EncodeToString(r.append(nil)), "0a" + "01" + zero + "02" + zero + "04636c2d61" + "ac02"},
		{hex.EncodeToString(m.append(nil)), "0b" + "03" + zero},
	} {
		if tt.got != tt.want {
			t.Errorf("%s, want %s", tt.got, tt.want)
		}
	}
}
