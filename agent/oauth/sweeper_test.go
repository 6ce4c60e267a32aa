package oauth

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// inBubble runs organizations with their loops on a clock that jumps.
func inBubble(t *testing.T, body func(t *testing.T, f *fixture)) {
	f := newFixture(t)
	synctest.Test(t, func(t *testing.T) {
		f.t, f.opts.Now = t, time.Now
		f.start()
		loops, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); f.all.Run(loops) }()
		defer func() {
			stop()
			<-done
			must(t, f.all.CloseAll())
		}()
		body(t, f)
	})
}

func TestWhatExpiresIsGoneWithinASecond(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		var stores []*Store
		var clients []ClientID
		const here = "http://127.0.0.1/back"
		for range 5 {
			s := f.open(id.NewOrganization())
			c, _ := addClient(t, s, Client{Public: true, Redirects: []string{here}})
			stores, clients = append(stores, s), append(clients, c)
		}
		// Codes come all the time; each is gone in its time, whatever comes after it.
		for n := range 300 {
			s, c := stores[n%5], clients[n%5]
			if _, err := s.IssueCode(ctx, Consented{Client: c, User: "ada", Redirect: here, Challenge: challengeOf(verifier)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(333 * time.Millisecond)
			synctest.Wait()
			oldest, any := time.Now(), false
			for _, s := range stores {
				s.mu.Lock()
				at, ok := s.due.next()
				s.mu.Unlock()
				if ok && moment(at).Before(oldest) {
					oldest, any = moment(at), true
				}
			}
			if any && time.Since(oldest) > time.Second {
				t.Fatalf("something is %s over its time", time.Since(oldest))
			}
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if got := f.all.Stats(); got.Live != (Counts{}) || got.Expired[Code] != 300 || got.Clients != 5 {
			t.Fatalf("%+v", got)
		}
	})
}

func TestASweeperThatSleepsIsWoken(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		s := f.open(ourOrg)
		c := publicClient(t, s)
		long := login(t, s, c, "ada")
		time.Sleep(2 * time.Minute) // the code is gone, the next that is due is the access token in an hour
		synctest.Wait()
		if got := f.all.Stats().Live; got[Code] != 0 || got[Access] != 1 || got[Refresh] != 1 {
			t.Fatalf("%v", got)
		}
		must(t, s.Revoke(ctx, c, long.Refresh.Reveal()))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := f.all.Stats(); got.Live != (Counts{}) || got.Removed[Access] != 1 || got.Removed[Refresh] != 1 || got.Expired[Code] != 1 {
			t.Fatalf("%+v", got)
		}
		again := login(t, s, c, "ada")
		must(t, s.RemoveMember(ctx, "ada"))
		time.Sleep(time.Second)
		synctest.Wait()
		if good(s, again.Access) || f.all.Stats().Live != (Counts{}) {
			t.Fatalf("%+v", f.all.Stats())
		}
		must(t, f.all.Drop(ourOrg))
		if got := f.all.Stats(); got.Clients != 0 || got.Removed[Refresh] != 2 {
			t.Fatalf("figures fell when the organization was dropped: %+v", got)
		}
		if files, err := os.ReadDir(f.dir); err != nil || len(files) != 0 {
			t.Fatalf("left over %v %v", files, err)
		}
	})
}

// The loop of the journals mends one after the disk has refused, without being asked.
func TestAJournalIsMended(t *testing.T) {
	real := newFixture(t)
	faulty := fsxtest.New(real.fs)
	synctest.Test(t, func(t *testing.T) {
		real.t, real.opts.Now, real.opts.FS = t, time.Now, faulty
		real.start()
		loops, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); real.all.Run(loops) }()
		defer func() {
			stop()
			<-done
			must(t, real.all.CloseAll())
		}()
		s := real.open(ourOrg)
		c := publicClient(t, s)
		faulty.Fail("oauth.log.append", errors.New("no space"))
		faulty.Fail("oauth.base.sync", errors.New("no space"))
		for range 10 {
			if _, err := s.IssueCode(ctx, Consented{Client: c, User: "ada", Redirect: redirect, Challenge: challengeOf(verifier)}); !errors.Is(err, ErrStorage) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		faulty.Fail("oauth.log.append", nil)
		faulty.Fail("oauth.base.sync", nil)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		login(t, s, c, "ada")
	})
}

func TestOpeningAndDropping(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	if again := f.open(ourOrg); again != s {
		t.Fatal("it was opened twice")
	}
	if got, ok := f.all.Get(ourOrg); !ok || got != s {
		t.Fatal("it is not found")
	}
	c := publicClient(t, s)
	out := login(t, s, c, "ada")
	section, version := s.Section()
	if !good(s, out.Access) {
		t.Fatal("it is not good")
	}
	if version != s.Version() || version == 0 {
		t.Fatalf("version %d, then %d", version, s.Version())
	}
	if _, err := f.all.Open(ourOrg, 8, nil); !fault.Is(err, fault.StaleEpoch) {
		t.Fatalf("it is open at two epochs: %v", err)
	}
	must(t, f.all.Close(ourOrg))
	must(t, f.all.Close(ourOrg))
	if _, ok := f.all.Get(ourOrg); ok {
		t.Fatal("it is found")
	}
	if _, err := s.IssueCode(ctx, Consented{Client: c, User: "ada", Redirect: redirect, Challenge: challengeOf(verifier)}); !errors.Is(err, ErrStorage) {
		t.Fatalf("a store that is closed gives something out: %v", err)
	}
	if _, ok := s.Client(c); ok || good(s, out.Access) {
		t.Fatal("whoever still has a store that is closed lets people in")
	}
	if after, _ := s.Section(); string(after) != string(section) {
		t.Fatal("a store that is closed cannot be saved")
	}
	if _, err := f.all.Open(ourOrg, 6, section); !fault.Is(err, fault.StaleEpoch) {
		t.Fatalf("an epoch that is over: %v", err)
	}
	next, err := f.all.Open(ourOrg, 9, section)
	must(t, err)
	if !good(next, out.Refresh) || next.Organization() != ourOrg {
		t.Fatal("the section was not read")
	}
	must(t, f.all.Close(ourOrg))
	// What is on disk of the same epoch is newer than the section.
	next, err = f.all.Open(ourOrg, 9, []byte("damaged"))
	must(t, err)
	if !good(next, out.Refresh) {
		t.Fatal("the journal was not read")
	}
	must(t, f.all.Close(ourOrg))
	if _, err := f.all.Open(ourOrg, 10, []byte("damaged")); err == nil {
		t.Fatal("a damaged section was read")
	}
	if next, err = f.all.Open(ourOrg, 10, nil); err != nil || good(next, out.Refresh) || len(next.Clients()) != 0 {
		t.Fatalf("a later epoch began with what an earlier one left: %v", err)
	}
	if entries, err := os.ReadDir(f.dir); err != nil || len(entries) != 1 {
		t.Fatalf("left over %v %v", entries, err)
	}
	for name, edit := range map[string]func(*Options){
		"interval": func(o *Options) { o.Interval = time.Nanosecond },
		"code":     func(o *Options) { o.Lifetimes.Code = time.Hour },
		"access":   func(o *Options) { o.Lifetimes.Access = 0 },
		"refresh":  func(o *Options) { o.Lifetimes.Refresh = o.Lifetimes.Absolute + 1 },
		"grace":    func(o *Options) { o.Lifetimes.Grace = -1 },
		"limit":    func(o *Options) { o.Limits.Tokens = 0 },
		"domain":   func(o *Options) { o.Domain = "" },
	} {
		o := f.opts
		edit(&o)
		if _, err := New(o); err == nil {
			t.Errorf("a wrong %s is taken", name)
		}
	}
	must(t, os.Mkdir(f.dir+"/something", 0o700))
	if _, err := New(f.opts); err == nil {
		t.Error("a directory of somebody else is taken")
	}
}

// A crash at any step of dropping leaves all or nothing, and what is left goes at the next start.
func TestACrashWhileDropping(t *testing.T) {
	for _, label := range []string{"oauth.drop", "oauth.drop.sync", "oauth.drop.remove"} {
		f := newFixture(t)
		f.open(ourOrg)
		must(t, f.all.CloseAll())
		faulty := fsxtest.New(f.fs)
		f.opts.FS = faulty
		f.start()
		faulty.CrashAt(fsxtest.Point{Label: label, N: 1})
		if err := f.all.Drop(ourOrg); err == nil {
			t.Fatalf("%s: there was no crash", label)
		}
		f.opts.FS = f.fs
		f.start()
		must(t, f.all.Drop(ourOrg))
		if entries, err := os.ReadDir(f.dir); err != nil || len(entries) != 0 {
			t.Fatalf("%s: left over %v %v", label, entries, err)
		}
	}
}
