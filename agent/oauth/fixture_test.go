package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

const (
	ourOrg   id.Organization = "11111111-1111-4111-8111-111111111111"
	otherOrg id.Organization = "22222222-2222-4222-8222-222222222222"
	verifier                 = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
)

func challengeOf(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// clock is a time that a test moves.
type clock struct{ ms atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ms.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli())
	return c
}

func (c *clock) now() time.Time           { return time.UnixMilli(c.ms.Load()) }
func (c *clock) forward(by time.Duration) { c.ms.Add(by.Milliseconds()) }

// fixture is one host's organizations on a directory.
type fixture struct {
	t     testing.TB
	dir   string
	fs    fsx.FS
	clock *clock
	opts  Options
	all   *Organizations
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: directory(t), clock: newClock()}
	f.fs = disk(t, f.dir)
	f.opts = Options{
		Dir: f.dir, FS: f.fs, Domain: "example.test", Lifetimes: DefaultLifetimes(), Limits: DefaultLimits(),
		Now: f.clock.now, Logger: hclog.NewNullLogger(),
	}
	f.start()
	return f
}

// directory is one in memory where there is such a thing: tests sync thousands of times. Benchmarks use a disk.
func directory(t testing.TB) string {
	t.Helper()
	if _, bench := t.(*testing.B); bench {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "dm-oauth")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func disk(t testing.TB, dir string) *fsx.OS {
	t.Helper()
	real, err := fsx.NewOS(dir)
	must(t, err)
	t.Cleanup(func() { _ = real.Close() })
	return real
}

// start makes the organizations anew, as an agent that was killed does.
func (f *fixture) start() {
	f.t.Helper()
	var err error
	f.all, err = New(f.opts)
	must(f.t, err)
}

func (f *fixture) open(org id.Organization) *Store {
	f.t.Helper()
	s, err := f.all.Open(org, 7, nil)
	must(f.t, err)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func waitUntil(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited in vain until %s", what)
			return
		}
	}
}

var ctx = context.Background()

const redirect = "https://uc-shop.org-11111111-1111-4111-8111-111111111111.example.test/back"

func addClient(t testing.TB, s *Store, c Client) (ClientID, string) {
	t.Helper()
	if c.Name == "" {
		c.Name = "test"
	}
	if c.Scope == nil {
		c.Scope = []string{"room:read", "room:write"}
	}
	checked, err := NewClient(s.opts.hostname, c)
	must(t, err)
	secret, err := s.AddClient(ctx, checked)
	must(t, err)
	return checked.ID, secret.Reveal()
}

func publicClient(t testing.TB, s *Store) ClientID {
	t.Helper()
	c, secret := addClient(t, s, Client{Public: true, Redirects: []string{redirect, "http://127.0.0.1/back"}})
	if secret != "" {
		t.Fatal("a public client was given a secret")
	}
	return c
}

func code(t testing.TB, s *Store, c ClientID, user id.User) string {
	t.Helper()
	value, err := s.IssueCode(ctx, Consented{Client: c, User: user, Redirect: redirect, Challenge: challengeOf(verifier)})
	must(t, err)
	return value.Reveal()
}

func redeem(s *Store, c ClientID, code string) (Issued, error) {
	return s.Redeem(ctx, Redemption{Client: c, Code: code, Redirect: redirect, Verifier: verifier})
}

func refresh(s *Store, c ClientID, token logging.Secret) (Issued, error) {
	return s.Refresh(ctx, RefreshRequest{Client: c, Token: token.Reveal()})
}

// login is a code and its exchange.
func login(t testing.TB, s *Store, c ClientID, user id.User) Issued {
	t.Helper()
	out, err := redeem(s, c, code(t, s, c, user))
	must(t, err)
	s.check(t)
	return out
}

func wantRefusal(t testing.TB, err error, code string) *Refusal {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Code != code {
		t.Fatalf("%v, want %s", err, code)
	}
	return r
}

func good(s *Store, token logging.Secret) bool {
	_, ok := s.Introspect(token.Reveal())
	return ok
}

// sweepAll does what the sweeper would do now.
func sweepAll(t testing.TB, s *Store) {
	t.Helper()
	for s.sweep(sweepPiece) {
	}
	s.check(t)
}

// check walks the whole store and compares everything that is kept twice.
func (s *Store) check(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var live Counts
	size := 0
	perGrant := map[*grant]int32{}
	for n := range s.tokens.shards {
		for d, tok := range s.tokens.shards[n].tokens {
			size++
			live[tok.kind]++
			perGrant[tok.grant]++
			if tok.digest != d || int(d[0]) != n || s.due.node(int(tok.at)).token != tok || s.due.node(int(tok.at)).at != tok.expires {
				t.Fatal("a token is not where it says")
			}
		}
	}
	for i := 1; i < s.due.size; i++ {
		if s.due.node((i-1)/fanOut).at > s.due.node(i).at {
			t.Fatal("the heap is not one")
		}
	}
	if pieces := len(s.due.pieces); pieces > s.due.size/dueInPiece+2 {
		t.Fatalf("the heap of %d tokens keeps %d pieces", s.due.size, pieces)
	}
	if size != s.tokens.size || size != s.due.size || live != s.stats.Live {
		t.Fatalf("%d tokens, index says %d, heap %d, figures %v and not %v", size, s.tokens.size, s.due.size, s.stats.Live, live)
	}
	byHolder := map[*holder]int{}
	services := map[*client]int{}
	for g, n := range perGrant {
		chain := int32(0)
		for tok := g.tokens; tok != nil; tok = tok.next {
			chain++
		}
		if n != g.count || chain != n {
			t.Fatalf("grant %d has %d tokens, says %d and chains %d", g.number, n, g.count, chain)
		}
		if g.user == nil {
			services[g.client] += int(n)
		}
		if g.gone {
			continue
		}
		byHolder[&g.client.holder]++
		if g.user != nil {
			byHolder[g.user]++
		}
	}
	for h, n := range byHolder {
		chain := 0
		by := byUser
		if h.user == "" {
			by = byClient
		}
		for g := h.first; g != nil; g = g.links[by].next {
			chain++
		}
		if h.grants != n || chain != n {
			t.Fatalf("holder %q has %d grants, says %d and chains %d", h.user, n, h.grants, chain)
		}
	}
	for user, h := range s.users {
		if h.gone || byHolder[h] == 0 || h.user != user {
			t.Fatalf("user %s is kept without a grant", user)
		}
	}
	for _, c := range s.clients {
		if c.services != services[c] {
			t.Fatalf("client %s has %d tokens of its own and says %d", c.ID, services[c], c.services)
		}
	}
}
