package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fault"
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
			if tok.digest != d || int(d[0]) != n || s.due[tok.at].token != tok || s.due[tok.at].at != tok.expires {
				t.Fatal("a token is not where it says")
			}
		}
	}
	for i, d := range s.due {
		if i > 0 && s.due[(i-1)/fanOut].at > d.at {
			t.Fatal("the heap is not one")
		}
	}
	if size != s.tokens.size || size != len(s.due) || live != s.stats.Live {
		t.Fatalf("%d tokens, index says %d, heap %d, figures %v and not %v", size, s.tokens.size, len(s.due), s.stats.Live, live)
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

func TestALogin(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c := publicClient(t, s)
	out := login(t, s, c, "ada")
	info, ok := s.Check(out.Access.Reveal())
	if !ok || info.User != "ada" || info.Client != c || len(info.Scope) != 2 || !info.Expires.Equal(f.clock.now().Add(time.Hour)) {
		t.Fatalf("%+v %t", info, ok)
	}
	next, err := refresh(s, c, out.Refresh)
	must(t, err)
	if !good(s, next.Access) || !good(s, out.Access) || !good(s, next.Refresh) || good(s, out.Refresh) {
		t.Fatal("after a refresh the wrong tokens are good")
	}
	narrow, err := s.Refresh(ctx, RefreshRequest{Client: c, Token: next.Refresh.Reveal(), Scope: []string{"room:read"}})
	must(t, err)
	if info, _ := s.Check(narrow.Access.Reveal()); len(info.Scope) != 1 {
		t.Fatalf("scope %q", info.Scope)
	}
	_, err = s.Refresh(ctx, RefreshRequest{Client: c, Token: narrow.Refresh.Reveal(), Scope: []string{"everything"}})
	wantRefusal(t, err, "invalid_scope")
	if wide, err := refresh(s, c, narrow.Refresh); err != nil || len(wide.Info.Scope) != 2 {
		t.Fatalf("a narrower access token narrowed the login: %+v %v", wide.Info, err)
	}
	s.check(t)
}

// P9: a token is good for its own use only.
func TestP9ARefreshTokenIsNoLogin(t *testing.T) {
	s := newFixture(t).open(ourOrg)
	c := publicClient(t, s)
	unused := code(t, s, c, "ada")
	out := login(t, s, c, "ada")
	for _, value := range []string{out.Refresh.Reveal(), unused, "", "dma_", marks[Access] + out.Refresh.Reveal()[markSize:]} {
		if info, ok := s.Check(value); ok {
			t.Fatalf("%.8s… was taken as a login: %+v", value, info)
		}
	}
	for _, value := range []logging.Secret{out.Access, logging.NewSecret(unused)} {
		_, err := refresh(s, c, value)
		wantRefusal(t, err, "invalid_grant")
	}
	for _, value := range []logging.Secret{out.Access, out.Refresh} {
		_, err := redeem(s, c, value.Reveal())
		wantRefusal(t, err, "invalid_grant")
	}
	if !good(s, out.Access) || !good(s, out.Refresh) {
		t.Fatal("the tokens were hurt")
	}
}

func parallel(n int, do func() (Issued, error)) (given []Issued, refused []error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	begin := make(chan struct{})
	for range n {
		all.Go(func() {
			<-begin
			out, err := do()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refused = append(refused, err)
			} else {
				given = append(given, out)
			}
		})
	}
	close(begin)
	all.Wait()
	return given, refused
}

// P10: of any number of exchanges of one code at the same time one succeeds, and what it gave ends with the
// second.
func TestP10OneCodeGivesOneToken(t *testing.T) {
	s := newFixture(t).open(ourOrg)
	c := publicClient(t, s)
	for range 20 {
		value := code(t, s, c, "ada")
		given, refused := parallel(64, func() (Issued, error) { return redeem(s, c, value) })
		if len(given) != 1 || len(refused) != 63 {
			t.Fatalf("%d exchanges succeeded", len(given))
		}
		wantRefusal(t, refused[0], "invalid_grant")
		if good(s, given[0].Access) || good(s, given[0].Refresh) {
			t.Fatal("a code came twice and its tokens live")
		}
		sweepAll(t, s)
	}
	if live := s.Stats().Live; live != (Counts{}) {
		t.Fatalf("left over %v", live)
	}
}

// P10: of any number of exchanges of one refresh token at the same time one succeeds and the others are its
// grace: one family, in which one chain goes on.
func TestP10OneRefreshTokenNeverGivesTwoFamilies(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c := publicClient(t, s)
	for _, grace := range []time.Duration{10 * time.Second, 0} {
		s.opts.lifetimes.Grace = grace
		old := login(t, s, c, "ada").Refresh
		given, refused := parallel(64, func() (Issued, error) { return refresh(s, c, old) })
		s.mu.Lock()
		families := s.users["ada"]
		s.mu.Unlock()
		if grace == 0 {
			if len(given) != 1 || families != nil || good(s, given[0].Refresh) {
				t.Fatalf("without grace: %d succeeded, families %+v", len(given), families)
			}
			continue
		}
		if len(given) != 64 || len(refused) != 0 || families.grants != 1 {
			t.Fatalf("within the grace: %d succeeded, %v; %d families", len(given), refused, families.grants)
		}
		// The first that is exchanged ends the others; showing one of them later ends the family.
		next, err := refresh(s, c, given[17].Refresh)
		must(t, err)
		f.clock.forward(grace)
		if good(s, given[3].Refresh) {
			t.Fatal("two chains live")
		}
		_, err = refresh(s, c, given[3].Refresh)
		if r := wantRefusal(t, err, "invalid_grant"); !r.Reused || good(s, next.Refresh) || good(s, next.Access) {
			t.Fatal("a token came twice and its family lives")
		}
	}
}

// P10: everything ends, and what was exchanged is remembered until then.
func TestP10RefreshTokensEnd(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c := publicClient(t, s)
	unused := login(t, s, c, "bob")
	out := login(t, s, c, "ada")
	began := f.clock.now()
	first := out.Refresh
	f.clock.forward(29 * 24 * time.Hour)
	for f.clock.now().Before(began.Add(89 * 24 * time.Hour)) {
		next, err := refresh(s, c, out.Refresh)
		must(t, err)
		out = next
		f.clock.forward(20 * 24 * time.Hour)
		sweepAll(t, s)
	}
	if good(s, unused.Refresh) || !good(s, out.Refresh) || good(s, first) {
		t.Fatal("the wrong tokens are good")
	}
	last, err := refresh(s, c, out.Refresh)
	must(t, err)
	f.clock.forward(began.Add(90 * 24 * time.Hour).Sub(f.clock.now()))
	if _, err := refresh(s, c, last.Refresh); err == nil {
		t.Fatal("a family outlived its absolute end")
	}
	sweepAll(t, s)
	if live := s.Stats().Live; live != (Counts{}) || len(s.users) != 0 {
		t.Fatalf("left over %v", live)
	}
}

func TestAReplayAfterTheGraceEndsTheFamily(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c := publicClient(t, s)
	stolen := login(t, s, c, "ada").Refresh
	mine, err := refresh(s, c, stolen)
	must(t, err)
	f.clock.forward(10 * time.Second)
	f.start() // the agent is killed: the mark is on disk
	s = f.open(ourOrg)
	_, err = refresh(s, c, stolen)
	if r := wantRefusal(t, err, "invalid_grant"); !r.Reused {
		t.Fatal("a replay was not noticed")
	}
	if good(s, mine.Access) || good(s, mine.Refresh) {
		t.Fatal("the family lives")
	}
}

func TestACodeIsBound(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c, other := publicClient(t, s), publicClient(t, s)
	bad := map[string]Redemption{
		"another redirect": {Client: c, Redirect: redirect + "/", Verifier: verifier},
		"another verifier": {Client: c, Redirect: redirect, Verifier: verifier + "x"},
		"no verifier":      {Client: c, Redirect: redirect},
	}
	for name, r := range bad {
		r.Code = code(t, s, c, "ada")
		_, err := s.Redeem(ctx, r)
		wantRefusal(t, err, "invalid_grant")
		if _, err := redeem(s, c, r.Code); err == nil {
			t.Errorf("%s: there was a second attempt", name)
		}
	}
	value := code(t, s, c, "ada")
	_, err := redeem(s, other, value)
	wantRefusal(t, err, "invalid_grant")
	if _, err := redeem(s, c, value); err != nil {
		t.Errorf("another client has spent the code: %v", err)
	}
	late := code(t, s, c, "ada")
	f.clock.forward(time.Minute)
	_, err = redeem(s, c, late)
	wantRefusal(t, err, "invalid_grant")
	// P12: PKCE that was dropped on the way is noticed at the other end too.
	confidential, _ := addClient(t, s, Client{Redirects: []string{redirect}})
	stripped, err := s.IssueCode(ctx, Consented{Client: confidential, User: "ada", Redirect: redirect})
	must(t, err)
	_, err = redeem(s, confidential, stripped.Reveal())
	wantRefusal(t, err, "invalid_grant")
	_, err = s.IssueCode(ctx, Consented{Client: c, User: "ada", Redirect: redirect})
	wantRefusal(t, err, "invalid_request")
}

// P11: a client goes with everything that it was given, at once.
func TestP11DeletingAClientEndsItsTokens(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c, other := publicClient(t, s), publicClient(t, s)
	service, _ := addClient(t, s, Client{Service: true})
	mine, theirs := login(t, s, c, "ada"), login(t, s, other, "ada")
	pending := code(t, s, c, "ada")
	own, err := s.Service(ctx, service, nil)
	must(t, err)
	if err := f.open(otherOrg).DeleteClient(ctx, c); !fault.Is(err, fault.NotFound) {
		t.Fatalf("another organization deletes it: %v", err)
	}
	must(t, s.DeleteClient(ctx, c))
	must(t, s.DeleteClient(ctx, service))
	for _, token := range []logging.Secret{mine.Access, mine.Refresh, own.Access} {
		if good(s, token) {
			t.Fatal("a token outlives its client")
		}
	}
	_, err = refresh(s, c, mine.Refresh)
	wantRefusal(t, err, "invalid_grant")
	_, err = redeem(s, c, pending)
	wantRefusal(t, err, "invalid_grant")
	if !good(s, theirs.Access) || len(s.Clients()) != 1 {
		t.Fatal("another client is hurt")
	}
	sweepAll(t, s)
	if live := s.Stats().Live; live[Access] != 1 || live[Refresh] != 1 || live[Code] != 1 {
		t.Fatalf("left over %v", live)
	}
	if err := s.DeleteClient(ctx, c); !fault.Is(err, fault.NotFound) {
		t.Fatalf("deleted twice: %v", err)
	}
	f.start()
	s = f.open(ourOrg)
	if good(s, mine.Access) || !good(s, theirs.Access) || len(s.Clients()) != 1 {
		t.Fatal("a restart brings it back")
	}
}

func TestARemovedMemberHasNothing(t *testing.T) {
	f := newFixture(t)
	s := f.open(ourOrg)
	c := publicClient(t, s)
	ada, bob := login(t, s, c, "ada"), login(t, s, c, "bob")
	must(t, s.RemoveMember(ctx, "ada"))
	must(t, s.RemoveMember(ctx, "nobody"))
	if good(s, ada.Access) || good(s, ada.Refresh) || !good(s, bob.Access) {
		t.Fatal("the wrong tokens are good")
	}
	again := login(t, s, c, "ada") // he is a member again
	sweepAll(t, s)
	f.start()
	s = f.open(ourOrg)
	if good(s, ada.Access) || !good(s, again.Access) || !good(s, bob.Refresh) {
		t.Fatal("a restart changes who is good")
	}
	must(t, s.KeepMembers(ctx, func(u id.User) bool { return u == "ada" }))
	if !good(s, again.Access) || good(s, bob.Access) {
		t.Fatal("the wrong member was kept")
	}
	sweepAll(t, s)
}

func TestRevoking(t *testing.T) {
	s := newFixture(t).open(ourOrg)
	c, other := publicClient(t, s), publicClient(t, s)
	out := login(t, s, c, "ada")
	wantRefusal(t, s.Revoke(ctx, other, out.Access.Reveal()), "unauthorized_client")
	must(t, s.Revoke(ctx, c, "nonsense"))
	must(t, s.Revoke(ctx, c, out.Access.Reveal()))
	must(t, s.Revoke(ctx, c, out.Access.Reveal()))
	if good(s, out.Access) || !good(s, out.Refresh) {
		t.Fatal("revoking an access token ends it alone")
	}
	must(t, s.Revoke(ctx, c, out.Refresh.Reveal()))
	if good(s, out.Refresh) {
		t.Fatal("it lives")
	}
	sweepAll(t, s)
}

func TestLimits(t *testing.T) {
	f := newFixture(t)
	f.opts.Limits = Limits{Clients: 2, Codes: 3, Tokens: 9, PerUser: 2, PerService: 1, PerFamily: 6}
	f.start()
	s := f.open(ourOrg)
	c := publicClient(t, s)
	service, _ := addClient(t, s, Client{Service: true})
	third, err := NewClient(s.opts.hostname, Client{Name: "x", Service: true, Scope: []string{"a"}})
	must(t, err)
	if _, err := s.AddClient(ctx, third); !fault.Is(err, fault.RateLimited) {
		t.Fatalf("a third client: %v", err)
	}
	ada := login(t, s, c, "ada")
	login(t, s, c, "ada")
	_, err = s.IssueCode(ctx, Consented{Client: c, User: "ada", Redirect: redirect, Challenge: challengeOf(verifier)})
	wantRefusal(t, err, "temporarily_unavailable")
	if _, err := s.Service(ctx, service, nil); err != nil {
		t.Fatal(err)
	}
	_, err = s.Service(ctx, service, nil)
	wantRefusal(t, err, "temporarily_unavailable")
	next, err := refresh(s, c, ada.Refresh) // the code, four tokens of this login, seven of all
	must(t, err)
	kept := code(t, s, c, "bob")
	_, err = s.IssueCode(ctx, Consented{Client: c, User: "cy", Redirect: redirect, Challenge: challengeOf(verifier)})
	wantRefusal(t, err, "temporarily_unavailable")
	_, err = refresh(s, c, next.Refresh)
	wantRefusal(t, err, "temporarily_unavailable")
	must(t, s.Revoke(ctx, c, ada.Refresh.Reveal()))
	if _, err := redeem(s, c, kept); err != nil {
		t.Fatal("a refusal has spent the code")
	}
	sweepAll(t, s)
	for range 3 {
		if _, err := s.IssueCode(ctx, Consented{Client: c, User: "dan", Redirect: redirect, Challenge: challengeOf(verifier)}); err != nil {
			wantRefusal(t, err, "temporarily_unavailable")
			return
		}
	}
	t.Fatal("there is no end of codes")
}
