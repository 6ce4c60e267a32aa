package oauth

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// told is what answers said before a crash.
type told struct {
	client   ClientID
	code     string         // was given out
	used     bool           // its exchange was answered
	access   logging.Secret // is good
	refresh  logging.Secret // is good
	spent    logging.Secret // was exchanged
	revoked  logging.Secret // is not good
	left     logging.Secret // of a member who was removed
	complete bool
}

// story does a bit of everything and stops at the first error, which is the crash.
func story(t testing.TB, f *fixture) (out told) {
	all, err := New(f.opts)
	if err != nil {
		return out
	}
	defer func() { _ = all.CloseAll() }()
	s, err := all.Open(ourOrg, 7, nil)
	if err != nil {
		return out
	}
	checked, err := NewClient(s.opts.hostname, Client{Name: "x", Public: true, Redirects: []string{redirect}, Scope: []string{"a"}})
	must(t, err)
	if _, err := s.AddClient(ctx, checked); err != nil {
		return out
	}
	out.client = checked.ID
	enter := func(user string) (Issued, string, error) {
		value, err := s.IssueCode(ctx, Consented{Client: checked.ID, User: "ada", Redirect: redirect, Challenge: challengeOf(verifier)})
		if user != "ada" && err == nil {
			value, err = s.IssueCode(ctx, Consented{Client: checked.ID, User: "bob", Redirect: redirect, Challenge: challengeOf(verifier)})
		}
		if err != nil {
			return Issued{}, "", err
		}
		if out.code == "" {
			out.code = value.Reveal()
		}
		got, err := redeem(s, checked.ID, value.Reveal())
		return got, value.Reveal(), err
	}
	first, _, err := enter("ada")
	if err != nil {
		return out
	}
	out.used, out.access, out.refresh = true, first.Access, first.Refresh
	next, err := refresh(s, checked.ID, first.Refresh)
	if err != nil {
		out.refresh = logging.Secret{} // the exchange may have happened
		return out
	}
	out.spent, out.refresh = first.Refresh, next.Refresh
	// A new base is written while more happens.
	done := make(chan struct{})
	go func() { defer close(done); _ = s.journal.compact(ctx, s.walkAll) }()
	<-done
	revoked, _, err := enter("ada")
	if err == nil {
		err = s.Revoke(ctx, checked.ID, revoked.Refresh.Reveal())
	}
	if err != nil {
		return out
	}
	out.revoked = revoked.Refresh
	left, _, err := enter("bob")
	if err == nil {
		err = s.RemoveMember(ctx, "bob")
	}
	if err != nil {
		return out
	}
	out.left = left.Refresh
	out.complete = all.CloseAll() == nil
	return out
}

// verify opens the store after the crash and compares it with what was said.
func verify(t *testing.T, f *fixture, out told) {
	t.Helper()
	f.fs = disk(t, f.dir)
	f.opts.FS = f.fs
	f.start()
	s := f.open(ourOrg)
	s.check(t)
	if out.client != "" {
		if _, ok := s.Client(out.client); !ok {
			t.Fatal("the client is gone")
		}
	}
	for name, token := range map[string]logging.Secret{"access": out.access, "refresh": out.refresh} {
		if !token.IsZero() && !good(s, token) {
			t.Fatalf("the %s token is gone", name)
		}
	}
	for name, token := range map[string]logging.Secret{"spent": out.spent, "revoked": out.revoked, "left": out.left} {
		if !token.IsZero() && good(s, token) {
			t.Fatalf("the %s token is good again", name)
		}
	}
	if out.used {
		_, err := redeem(s, out.client, out.code)
		if r := wantRefusal(t, err, "invalid_grant"); !r.Reused {
			t.Fatal("a used code is not remembered")
		}
	}
	publicClient(t, s) // it takes changes
	must(t, f.all.CloseAll())
}

func TestACrashAtEveryStep(t *testing.T) {
	record := newFixture(t)
	faulty := fsxtest.New(record.fs)
	record.opts.FS = faulty
	faulty.Record()
	if !story(t, record).complete {
		t.Fatal("the story does not end")
	}
	points := faulty.Points()
	seen := map[string]bool{}
	for _, p := range points {
		seen[p.Label] = true
		f := newFixture(t)
		faulty := fsxtest.New(f.fs)
		f.opts.FS = faulty
		faulty.CrashAt(p)
		out := story(t, f)
		if out.complete && !strings.HasPrefix(p.Label, "oauth.tidy") {
			t.Fatalf("%v: the story ended", p)
		}
		t.Run(p.Label, func(t *testing.T) { verify(t, f, out) })
	}
	for _, label := range []string{"oauth.log.append", "oauth.log.sync", "oauth.log.create.rename", "oauth.base.append", "oauth.base.sync", "oauth.base.rename", "oauth.tidy"} {
		if !seen[label] {
			t.Errorf("there was no %s", label)
		}
	}
}

// TestATornEndIsCut cuts the log after every byte of the last change: it is there whole or not at all, and
// the store goes on.
func TestATornEndIsCut(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c := publicClient(t, s)
	out := login(t, s, c, "ada")
	log := s.journal.path("log", 1)
	before, err := os.ReadFile(log)
	must(t, err)
	next, err := refresh(s, c, out.Refresh)
	must(t, err)
	must(t, f.all.CloseAll())
	after, err := os.ReadFile(log)
	must(t, err)
	for cut := len(before); cut <= len(after); cut++ {
		must(t, os.WriteFile(log, after[:cut], 0o600))
		f.start()
		s := f.open(ourOrg)
		happened := cut == len(after)
		if good(s, next.Refresh) != happened || good(s, next.Access) != happened || good(s, out.Refresh) == happened {
			t.Fatalf("cut after %d of %d bytes: half of the exchange is there", cut-len(before), len(after)-len(before))
		}
		if !happened {
			if _, err := refresh(s, c, out.Refresh); err != nil {
				t.Fatal(err)
			}
		}
		must(t, f.all.CloseAll())
		f.start()
		f.open(ourOrg).check(t)
		must(t, f.all.CloseAll())
	}
}

// TestDamageIsRefused: what is not the torn end of the last write is damage, and used codes may be in it.
func TestDamageIsRefused(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c := publicClient(t, s)
	login(t, s, c, "ada")
	must(t, s.journal.compact(ctx, s.walkAll))
	login(t, s, c, "ada")
	must(t, s.journal.beginLog(s.journal.number+1)) // as if the agent was killed in the next compaction
	login(t, s, c, "ada")
	must(t, f.all.CloseAll())
	base, log2, log3 := s.journal.path("base", 2), s.journal.path("log", 2), s.journal.path("log", 3)
	refused := func(why string) {
		t.Helper()
		f.start()
		if _, err := f.all.Open(ourOrg, 7, nil); err == nil || !strings.Contains(err.Error(), "move") && !strings.Contains(err.Error(), "restore") {
			t.Fatalf("%s: %v", why, err)
		}
	}
	for _, path := range []string{base, log2} {
		whole, err := os.ReadFile(path)
		must(t, err)
		broken := append([]byte(nil), whole...)
		broken[len(broken)-5] ^= 1
		must(t, os.WriteFile(path, broken, 0o600))
		refused("a flipped bit in " + filepath.Base(path))
		must(t, os.WriteFile(path, append([]byte("x"), whole...), 0o600))
		refused("another beginning of " + filepath.Base(path))
		must(t, os.Remove(path))
		refused("the loss of " + filepath.Base(path))
		must(t, os.WriteFile(path, whole, 0o600))
	}
	must(t, os.WriteFile(filepath.Join(filepath.Dir(base), "notes"), nil, 0o600))
	refused("a file of somebody")
	must(t, os.Remove(filepath.Join(filepath.Dir(base), "notes")))
	info, err := os.Stat(log3)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("others may read it: %v", info.Mode())
	}
	f.start()
	if live := f.open(ourOrg).Stats().Live; live[Refresh] != 3 {
		t.Fatalf("undamaged: %v", live)
	}
}

// A disk that refuses: nothing new is given out, what ends things takes effect, and nothing is reported done.
func TestADiskThatRefuses(t *testing.T) {
	for _, label := range []string{"oauth.log.append", "oauth.log.sync"} {
		f := newFixture(t)
		faulty := fsxtest.New(f.fs)
		f.opts.FS = faulty
		f.start()
		s := f.open(ourOrg)
		c := publicClient(t, s)
		ada, bob := login(t, s, c, "ada"), login(t, s, c, "bob")
		faulty.Fail(label, syscall.ENOSPC)
		if _, err := refresh(s, c, bob.Refresh); !errors.Is(err, ErrStorage) {
			t.Fatalf("%s: %v", label, err)
		}
		if _, err := s.Service(ctx, c, nil); !errors.Is(err, ErrStorage) {
			t.Fatalf("%s: %v", label, err)
		}
		if err := s.Revoke(ctx, c, ada.Access.Reveal()); !errors.Is(err, ErrStorage) {
			t.Fatalf("%s: a revocation that a crash takes back is reported: %v", label, err)
		}
		if err := s.RemoveMember(ctx, "bob"); !errors.Is(err, ErrStorage) {
			t.Fatalf("%s: %v", label, err)
		}
		if good(s, ada.Access) || good(s, bob.Access) || !good(s, ada.Refresh) {
			t.Fatal("what was ended is good, or something else is not")
		}
		faulty.Fail("oauth.base.begin", syscall.ENOSPC)
		if !s.journal.wantsBase() || s.journal.compact(ctx, s.walkAll) == nil {
			t.Fatal("a base was written on a full disk")
		}
		faulty.Fail(label, nil)
		if _, err := refresh(s, c, ada.Refresh); !errors.Is(err, ErrStorage) {
			t.Fatalf("%s: a log was trusted after a failed write: %v", label, err)
		}
		faulty.Fail("oauth.base.begin", nil)
		must(t, s.journal.compact(ctx, s.walkAll))
		next, err := refresh(s, c, ada.Refresh)
		must(t, err)
		f.start() // killed
		s = f.open(ourOrg)
		if good(s, ada.Access) || good(s, bob.Access) || good(s, bob.Refresh) || !good(s, next.Refresh) {
			t.Fatal("a restart changes what is good")
		}
		s.check(t)
	}
}

// Changes that come while an untrusted log is replaced wait, and are in the new one.
func TestChangesWaitForAnUntrustedLog(t *testing.T) {
	f := newFixture(t)
	faulty := fsxtest.New(f.fs)
	f.opts.FS = faulty
	f.start()
	s := f.open(ourOrg)
	c := publicClient(t, s)
	faulty.Fail("oauth.log.sync", syscall.EIO)
	if _, err := s.IssueCode(ctx, Consented{Client: c, User: "ada", Redirect: redirect, Challenge: challengeOf(verifier)}); err == nil {
		t.Fatal("it was written")
	}
	faulty.Fail("oauth.log.sync", nil)
	given := make(chan Issued)
	faulty.Before("oauth.base.sync", func() {
		go func() {
			value := code(t, s, c, "ada")
			out, err := redeem(s, c, value)
			if err != nil {
				t.Error(err)
			}
			given <- out
		}()
		waitUntil(t, "it has come to the journal", func() bool {
			s.journal.mu.Lock()
			defer s.journal.mu.Unlock()
			return len(s.journal.filling.form) > 0
		})
	})
	must(t, s.journal.compact(ctx, s.walkAll))
	out := <-given
	f.start()
	if s := f.open(ourOrg); !good(s, out.Refresh) {
		t.Fatal("it is lost")
	}
}

func TestManyShareOneSync(t *testing.T) {
	f := newFixture(t)
	faulty := fsxtest.New(f.fs)
	f.opts.FS = faulty
	f.start()
	s := f.open(ourOrg)
	c, _ := addClient(t, s, Client{Service: true})
	enough := make(chan struct{})
	first := true
	faulty.Before("oauth.log.sync", func() {
		if first { // the others gather while the first is written
			first = false
			<-enough
		}
	})
	faulty.Record()
	go func() {
		waitUntil(t, "all have decided", func() bool { return s.Stats().Live[Access] == 64 })
		close(enough)
	}()
	given, refused := parallel(64, func() (Issued, error) { return s.Service(ctx, c, nil) })
	syncs := 0
	for _, p := range faulty.Points() {
		if p.Label == "oauth.log.sync" {
			syncs++
		}
	}
	if len(given) != 64 || syncs > 3 {
		t.Fatalf("%d given, %v; %d syncs", len(given), refused, syncs)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Service(canceled, c, nil); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestTheJournalIsWrittenAnew(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c := publicClient(t, s)
	asked := make(chan struct{}, 1)
	s.opts.compact = func() { signal(asked) }
	s.journal.limit = 10_000
	out := login(t, s, c, "ada")
	for len(asked) == 0 {
		next, err := refresh(s, c, out.Refresh)
		must(t, err)
		out = next
	}
	done := make(chan error)
	go func() { done <- s.journal.compact(ctx, s.walkAll) }()
	for range 50 { // meanwhile it goes on
		next, err := refresh(s, c, out.Refresh)
		must(t, err)
		out = next
	}
	must(t, <-done)
	entries, err := os.ReadDir(s.opts.dir)
	must(t, err)
	if len(entries) != 2 || entries[0].Name() != "base-0000000000000002" {
		t.Fatalf("files: %v", entries)
	}
	was := s.Stats()
	f.start()
	s = f.open(ourOrg)
	if now := s.Stats(); now.Live != was.Live || !good(s, out.Refresh) {
		t.Fatalf("%v became %v", was, now)
	}
	s.check(t)
}

// A base holds what came after its log was begun, and reading that log once more changes nothing: also when a
// member left and came back in between.
func TestALogIsReadOnANewerBase(t *testing.T) {
	f := newFixture(t)
	faulty := fsxtest.New(f.fs)
	f.opts.FS = faulty
	f.start()
	s := f.open(ourOrg)
	c := publicClient(t, s)
	before := login(t, s, c, "ada")
	var left, again Issued
	var used string
	faulty.Before("oauth.base.begin", func() { // the new log is there, the store is not yet walked
		left = login(t, s, c, "ada")
		must(t, s.RemoveMember(ctx, "ada"))
		used = code(t, s, c, "ada")
		var err error
		again, err = redeem(s, c, used)
		must(t, err)
		again, err = refresh(s, c, again.Refresh)
		must(t, err)
	})
	must(t, s.journal.compact(ctx, s.walkAll))
	was := s.Stats().Live
	sweepAll(t, s)
	f.opts.FS = f.fs
	f.start()
	s = f.open(ourOrg)
	s.check(t)
	if good(s, before.Access) || good(s, left.Refresh) || !good(s, again.Access) || !good(s, again.Refresh) {
		t.Fatalf("the wrong tokens are good; %v before, %v now", was, s.Stats().Live)
	}
	_, err := redeem(s, c, used)
	if r := wantRefusal(t, err, "invalid_grant"); !r.Reused {
		t.Fatal("a used code is not remembered")
	}
}
