package oauth

import (
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

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

func parallel[T any](n int, do func() (T, error)) (given []T, refused []error) {
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
}

// P12: PKCE dropped silently. What got lost on its way to us is noticed when the client comes back.
func TestP12PKCEThatGotLostIsNoticed(t *testing.T) {
	s := newFixture(t).open(ourOrg)
	c := publicClient(t, s)
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

// P8: removal of a member never reaches what he was given.
func TestP8ARemovedMemberHasNothing(t *testing.T) {
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
	f.opts.Limits = Limits{Clients: 2, Codes: 3, Tokens: 9, PerUser: 2, PerPerson: 9, PerService: 1, PerFamily: 6}
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

// One person's program that asks for tokens without end takes none from the others of the organization.
func TestOnePersonDoesNotTakeAllTokens(t *testing.T) {
	f := newFixture(t)
	f.opts.Limits = Limits{Clients: 2, Codes: 100, Tokens: 100, PerUser: 100, PerPerson: 16, PerService: 1, PerFamily: 100}
	f.start()
	s := f.open(ourOrg)
	c := publicClient(t, s)
	last := login(t, s, c, "ada")
	for range 3 {
		login(t, s, c, "ada")
	}
	for range 2 {
		var err error
		last, err = refresh(s, c, last.Refresh)
		must(t, err)
	}
	_, err := refresh(s, c, last.Refresh)
	wantRefusal(t, err, "temporarily_unavailable")
	_, err = redeem(s, c, code(t, s, c, "ada"))
	wantRefusal(t, err, "temporarily_unavailable")
	bob := login(t, s, c, "bob")
	must(t, s.Revoke(ctx, c, last.Refresh.Reveal()))
	sweepAll(t, s)
	login(t, s, c, "ada")
	if _, err := refresh(s, c, bob.Refresh); err != nil {
		t.Error(err)
	}
	must(t, f.all.CloseAll())
	f.start()
	if _, good := f.open(ourOrg).Check(bob.Access.Reveal()); !good {
		t.Error("after a restart")
	}
	s.check(t)
}
