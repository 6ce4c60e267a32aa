package container

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Defects of the platform that this one replaces, by their names in the list of them.

// P1: a signing call that signs any claims a gateway sends. Here the claims of a hosting token come from the
// container's record, and there is no call that takes any.
func TestP1AHostingTokenSaysWhatTheRecordSays(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	parts := strings.Split(made.Hosting.Token.Reveal(), ".")
	body, err := coding.DecodeString(parts[1])
	ok(t, err)
	var c claims
	ok(t, json.Unmarshal(body, &c))
	want := claims{
		Issuer: "https://org-" + string(ourOrg) + ".example.test", Audience: "demiurge-container", Subject: made.Container.ID, Project: "one",
		Organization: ourOrg, ID: c.ID, Issued: f.now().Unix(), Expires: f.now().Add(time.Hour).Unix(),
	}
	if c != want || len(c.ID) != 43 || !made.Hosting.Expires.Equal(time.Unix(c.Expires, 0)) {
		t.Errorf("%+v", c)
	}
	// Whoever has the key, from a section that leaked, can still not make one: its id is a secret too.
	c.ID = newTokenID()
	if err := r.authenticate(c.Subject, seal(r.signing, c).Reveal()); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a token that was never given out: %v", err)
	}
	for name, change := range map[string]func(*claims){
		"audience": func(c *claims) { c.Audience = "demiurge" }, "issuer": func(c *claims) { c.Issuer = "https://evil.test" },
		"organization": func(c *claims) { c.Organization = otherOrg }, "project": func(c *claims) { c.Project = "two" },
		"expiry": func(c *claims) { c.Expires = f.now().Unix() },
	} {
		ok(t, json.Unmarshal(body, &c))
		change(&c)
		if err := r.authenticate(c.Subject, seal(r.signing, c).Reveal()); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	whole := made.Hosting.Token.Reveal()
	none := coding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`))
	for name, token := range map[string]string{
		"no signature": parts[0] + "." + parts[1] + ".", "no algorithm": none + "." + parts[1] + ".", "another header": none + "." + parts[1] + "." + parts[2],
		"nothing": "", "dots": "..", "long": whole + strings.Repeat("a", maxToken), "another signature": parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"another key": seal(newKey(), claims{Audience: Audience}).Reveal(),
	} {
		if err := r.authenticate(made.Container.ID, token); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ok(t, r.authenticate(made.Container.ID, whole))
}

// P2: tokens valid 365 days that nothing revokes.
func TestP2HostingTokensAreShortAndTakenBack(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made, other := create(t, r), create(t, r)
	c, first := made.Container.ID, made.Hosting.Token.Reveal()
	if err := r.authenticate(other.Container.ID, first); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("it is good for another container: %v", err)
	}
	f.forward(59 * time.Minute)
	second, err := r.Renew(c, first)
	ok(t, err)
	f.forward(2 * time.Minute)
	if _, err := r.Renew(c, first); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("an expired one was renewed: %v", err)
	}
	third, err := r.Renew(c, second.Token.Reveal())
	ok(t, err)
	ok(t, r.authenticate(c, second.Token.Reveal())) // a renewal whose answer was lost harms nobody
	last, err := r.Issue(c, true)
	ok(t, err)
	for _, gone := range []Hosting{second, third} {
		if err := r.authenticate(c, gone.Token.Reveal()); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("one that was taken back: %v", err)
		}
	}
	f.start() // killed
	r = f.open(ourOrg)
	if err := r.authenticate(c, third.Token.Reveal()); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("one that was taken back, after a restart: %v", err)
	}
	token := last.Token.Reveal()
	ok(t, r.authenticate(c, token))
	for range maxTokens {
		_, err := r.Renew(c, token)
		ok(t, err)
	}
	if err := r.authenticate(c, token); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("there are more than %d: %v", maxTokens, err)
	}
	now, err := r.Issue(c, false)
	ok(t, err)
	ok(t, r.Delete(ctx, c))
	if err := r.authenticate(c, now.Token.Reveal()); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("the container is deleted: %v", err)
	}
	f.opts.TokenLife = 365 * 24 * time.Hour
	if _, err := New(f.opts); err == nil {
		t.Error("tokens may live a year")
	}
}

// P2: a token that is taken back while it is being renewed gives no other one.
func TestP2ATokenThatIsTakenBackMeanwhileIsNotRenewed(t *testing.T) {
	f := newFixture(t)
	calls, takeBack := 0, func() {}
	f.opts.Now = func() time.Time {
		if calls++; calls == 2 { // Renew looks at the clock to check the token, and again to make the next
			takeBack()
		}
		return f.now()
	}
	f.start()
	r := f.open(ourOrg)
	made := create(t, r)
	var alone Hosting
	takeBack = func() {
		var err error
		alone, err = r.Issue(made.Container.ID, true)
		ok(t, err)
	}
	calls = 0
	if got, err := r.Renew(made.Container.ID, made.Hosting.Token.Reveal()); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("it was renewed: %v, %v", got.Expires, err)
	}
	ok(t, r.authenticate(made.Container.ID, alone.Token.Reveal()))
}

// P8: removal of a member never reaches what runs.
func TestP8ARemovedMemberIsRefusedAtOnce(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	announce(t, r, made, "10.1.0.5")
	d := newDoorTest(t, f)
	session := d.login(r, "paul", made.Container.ID)
	if a := d.ask(made.Container.ID, "", "Cookie", session); a.answer != "passed" {
		t.Fatalf("before: %+v", a)
	}
	secret, err := r.Ticket(person("paul"), Entry{Container: made.Container.ID, State: digestOf("x")})
	ok(t, err)
	f.people[ourOrg].remove(t, "paul")
	if a := d.ask(made.Container.ID, "", "Cookie", session); a.answer != "refused" {
		t.Errorf("with his session: %+v", a)
	}
	if _, err := r.Ticket(person("paul"), Entry{Container: made.Container.ID, State: digestOf("x")}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("he gets another ticket: %v", err)
	}
	cookie, _ := r.redeem(secret.Reveal(), made.Container.ID, "", digestOf("x"))
	if a := d.ask(made.Container.ID, "", "Cookie", "__Host-demiurge-container="+cookie.Reveal()); a.answer != "refused" {
		t.Errorf("with a ticket from before: %+v", a)
	}
}

// P11: deleting a client leaves its tokens; redirect URIs of others can be registered. The second is
// TestAContainerHasClientsOnItsOwnNamesOnly; here: a deleted container leaves no client.
func TestP11ADeletedContainerLeavesNoClient(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made, stays := create(t, r), create(t, r)
	ok(t, r.Delete(ctx, made.Container.ID))
	if n := len(f.clients[ourOrg].ids()); n != len(stays.Container.Services) {
		t.Errorf("there are %d clients", n)
	}
	f.check(ourOrg)
}

// P12: state not checked, open redirect after login.
func TestP12EnteringIsBoundToTheBrowserThatAsked(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	announce(t, r, made, "10.1.0.5")
	d := newDoorTest(t, f)
	c := made.Container.ID
	a := d.ask(c, "web", AskURI, "/page?x=1", "Accept", "text/html")
	if a.answer != "anonymous" || !strings.HasPrefix(a.login, "https://org-"+string(ourOrg)+".example.test/containers/"+string(c)+"/enter?") {
		t.Fatalf("%+v", a)
	}
	if strings.Contains(a.login, "page") || !strings.Contains(a.loginCookie, "; Path=/; ") || strings.Contains(a.loginCookie, "Domain") ||
		!strings.Contains(a.loginCookie, "HttpOnly; Secure; SameSite=Lax") {
		t.Errorf("%+v", a)
	}
	mine := strings.Split(a.loginCookie, ";")[0]
	state := stateOf(t, a.login)
	ticket := func() string {
		secret, err := r.Ticket(person("paul"), Entry{Container: c, Service: "web", State: state, Session: "s"})
		ok(t, err)
		return secret.Reveal()
	}
	if status, _, _ := d.enter(c, "web", ticket(), ""); status != 403 {
		t.Errorf("another browser entered: %d", status)
	}
	if status, _, _ := d.enter(c, "web", ticket(), "__Host-demiurge-enter="+newNonce()+".Lw"); status != 403 {
		t.Errorf("a browser with another cookie entered: %d", status)
	}
	if status, _, _ := d.enter(c, "api", ticket(), mine); status != 403 {
		t.Errorf("it is good for another service: %d", status)
	}
	once := ticket()
	status, location, session := d.enter(c, "web", once, mine)
	if status != 303 || location != "/page?x=1" || session == "" {
		t.Fatalf("%d %q %q", status, location, session)
	}
	if status, _, _ := d.enter(c, "web", once, mine); status != 403 {
		t.Errorf("a ticket was used twice: %d", status)
	}
	old := ticket()
	f.forward(ticketLife)
	if status, _, _ := d.enter(c, "web", old, mine); status != 403 {
		t.Errorf("an expired ticket: %d", status)
	}
	for _, to := range []string{"//evil.test/", "/\\evil.test", "https://evil.test/", "", "/a b", "/a\r\nX: y", "/" + strings.Repeat("a", largestReturn)} {
		a := d.ask(c, "web", AskURI, strings.NewReplacer("\r", "", "\n", "").Replace(to), "Accept", "text/html")
		raw := coding.EncodeToString([]byte(to))
		nonce, _, _ := strings.Cut(strings.Split(a.loginCookie, ";")[0], ".")
		state = stateOf(t, a.login)
		if _, location, _ := d.enter(c, "web", ticket(), nonce+"."+raw); location != "/" && !strings.HasPrefix(location, "/aaa") {
			t.Errorf("%q leads to %q", to, location)
		}
	}
}

// P13: the guard fails open when registration fails; its cookie is valid on every other container's host.
func TestP13TheGuardFailsClosedAndACookieIsForOneName(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made, other := create(t, r), create(t, r)
	d := newDoorTest(t, f)
	c := made.Container.ID
	session := d.login(r, "paul", c)
	if a := d.ask(c, "", "Cookie", session); a.answer != "away" || a.upstream != "" {
		t.Errorf("it has not announced itself: %+v", a)
	}
	announce(t, r, made, "10.1.0.5")
	announce(t, r, other, "10.1.0.6")
	if a := d.ask(c, "", "Cookie", session); a.answer != "passed" || a.upstream != "10.1.0.5:8080" {
		t.Fatalf("%+v", a)
	}
	if a := d.ask(other.Container.ID, "", "Cookie", session); a.answer != "anonymous" || a.upstream != "" {
		t.Errorf("the cookie is good for another container: %+v", a)
	}
	if a := d.ask(c, "web", "Cookie", session); a.answer != "anonymous" {
		t.Errorf("the cookie is good for another name of the container: %+v", a)
	}
	theirs := f.open(otherOrg)
	twin := create(t, theirs)
	if _, again := theirs.visitor(strings.TrimPrefix(session, "__Host-demiurge-container="), twin.Container.ID, ""); again != nil {
		t.Error("the cookie is good in another organization")
	}
	f.clients[ourOrg].fail["service api"] = errRefused
	if _, err := r.Create(ctx, "ann", simple()); err == nil {
		t.Error("a container was made without its clients")
	}
	ok(t, f.all.Close(ourOrg, 7))
	if a := d.ask(c, "", "Cookie", session); a.answer == "passed" || a.upstream != "" {
		t.Errorf("the organization has left: %+v", a)
	}
	if decision := r.Access(c, Caller{Subject: owner}, Asked{}); decision.Answer != Missing {
		t.Errorf("through a registry from before: %s", decision.Answer)
	}
}

// P14: container tokens and secrets in the shared document that every browser sees. P15: tokens in logs and
// URLs. Nothing that is kept or shown holds one.
func TestP14NothingKeptHoldsATokenOrSecret(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	announce(t, r, made, "10.1.0.5")
	next, err := r.Renew(made.Container.ID, made.Hosting.Token.Reveal())
	ok(t, err)
	journal, err := os.ReadFile(f.all.path(ourOrg, 7))
	ok(t, err)
	section, _ := r.Section()
	v, err := r.Get(made.Container.ID)
	ok(t, err)
	shown, err := json.Marshal(v)
	ok(t, err)
	var secrets []string
	for _, h := range []Hosting{made.Hosting, next} {
		parts := strings.Split(h.Token.Reveal(), ".")
		body, err := coding.DecodeString(parts[1])
		ok(t, err)
		var c claims
		ok(t, json.Unmarshal(body, &c))
		secrets = append(secrets, h.Token.Reveal(), parts[2], c.ID)
	}
	for _, s := range made.Secrets {
		secrets = append(secrets, s.Reveal())
	}
	for name, text := range map[string]string{"journal": string(journal), "section": string(section), "answer": string(shown)} {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("the %s holds a secret", name)
			}
		}
	}
	if !strings.Contains(string(section), digestOf(secrets[2])) || strings.Contains(string(section), coding.EncodeToString(r.cookies)) {
		t.Error("the section lacks the digest of a token, or has the key of sessions")
	}
}

// P16: the caller's address behind two proxies is the inner proxy. An announcement without an address is from
// where nginx says that it came from; who is not behind it proves nothing by naming it.
func TestP16WhoIsAtAnAddressGoesBeforeWhoNamesIt(t *testing.T) {
	f := newFixture(t)
	r, theirs := f.open(ourOrg), f.open(otherOrg)
	victim, thief := create(t, r), create(t, theirs)
	claim := at("10.1.0.9")
	claim.Address = netip.MustParseAddr("10.1.0.5")
	_, err := theirs.Announce(thief.Container.ID, thief.Hosting.Token.Reveal(), claim)
	ok(t, err)
	announce(t, r, victim, "10.1.0.5") // it is there
	if s := state(t, theirs, thief.Container.ID); s != Down {
		t.Errorf("who only named the address is %s", s)
	}
	if _, err := theirs.Announce(thief.Container.ID, thief.Hosting.Token.Reveal(), claim); !fault.Is(err, fault.Conflict) {
		t.Errorf("two are at one address: %v", err)
	}
	if s := state(t, r, victim.Container.ID); s != Up {
		t.Errorf("who is there is %s", s)
	}
	elsewhere := claim
	elsewhere.Ports = map[ServiceName]uint16{"web": 8081}
	_, err = theirs.Announce(thief.Container.ID, thief.Hosting.Token.Reveal(), elsewhere)
	ok(t, err) // another port of the same machine
}

// P17: a container announces an address of the platform's own network and a free port, and gets it published.
func TestP17OnlyAddressesOfTheNetworksForContainers(t *testing.T) {
	f := newFixture(t)
	f.opts.Networks = append(f.opts.Networks, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("fd00::/8"))
	f.start()
	r := f.open(ourOrg)
	made := create(t, r)
	try := func(address string) error {
		a := at("10.1.0.5")
		a.Address = netip.MustParseAddr(address)
		_, err := r.Announce(made.Container.ID, made.Hosting.Token.Reveal(), a)
		return err
	}
	for _, bad := range []string{
		"127.0.0.1", "::1", "0.0.0.0", "::", "169.254.169.254", "224.0.0.1", "255.255.255.255", "fe80::1", "fd00::1%eth0", "2001:db8::1", "10.1.0.1", "::ffff:10.1.0.1", "::ffff:127.0.0.1",
	} {
		if err := try(bad); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, good := range []string{"10.1.0.5", "::ffff:10.1.0.6", "fd00::7", "8.8.8.8"} {
		ok(t, try(good))
	}
	f.opts.Networks = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("127.0.0.0/8")}
	f.start()
	r = f.open(ourOrg)
	for _, bad := range []string{"8.8.8.8", "10.2.0.1", "fd00::7"} {
		if err := try(bad); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	ok(t, try("127.0.0.1")) // its operator said so
	f.opts.Networks = nil
	f.start()
	r = f.open(ourOrg)
	if err := try("10.1.0.5"); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("no network is configured: %v", err)
	}
	f.opts.Networks = []netip.Prefix{netip.MustParsePrefix("10.1.0.1/32")}
	f.start()
	r = f.open(ourOrg)
	ok(t, try("10.1.0.1")) // exactly this one
	for name, ports := range map[string]map[ServiceName]uint16{
		"none": nil, "undeclared": {"ssh": 22}, "zero": {"web": 0}, "no name": {"": 80}, "twice": {"web": 80, "api": 80},
	} {
		a := at("10.1.0.1")
		a.Ports = ports
		if _, err := r.Announce(made.Container.ID, made.Hosting.Token.Reveal(), a); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("ports %s: %v", name, err)
		}
	}
}

// P17: an address that the operator has taken out of the networks is reached no more, also not for the time in which
// a container may announce itself after the restart.
func TestP17AnAddressThatIsNotAllowedAnyMoreIsNotReached(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	announce(t, r, made, "10.1.0.5")
	for what, change := range map[string]func(){
		"taken out of the networks": func() { f.opts.Networks = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")} },
		"the host's own": func() {
			f.opts.Own = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("10.1.0.5")}, nil }
		},
		"own ones that cannot be told": func() { f.opts.Own = func() ([]netip.Addr, error) { return nil, errRefused } },
	} {
		before := f.opts
		change()
		f.start()
		r = f.open(ourOrg)
		if s := state(t, r, made.Container.ID); s != Down {
			t.Errorf("%s: the container is %s", what, s)
		}
		if d := r.Access(made.Container.ID, Caller{Subject: owner}, Asked{}); d.Answer != Away {
			t.Errorf("%s: a request is %s to %s", what, d.Answer, d.Upstream)
		}
		if _, err := r.Announce(made.Container.ID, made.Hosting.Token.Reveal(), at("10.1.0.5")); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%s: %v", what, err)
		}
		f.opts = before
	}
	f.start()
	if s := state(t, f.open(ourOrg), made.Container.ID); s != Up {
		t.Errorf("without a change of the networks it is %s after a restart", s)
	}
}

// P5: the check reads the project from one place, the handler from another: the project of a container is that
// of its record, whatever a request says.
func TestP5TheProjectIsTheContainers(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	s := simple()
	s.Project = "two"
	made, err := r.Create(ctx, "ann", s)
	ok(t, err)
	announce(t, r, made, "10.1.0.5")
	// paul is in project one.
	if d := r.Access(made.Container.ID, Caller{Subject: person("paul")}, Asked{}); d.Answer != Refused {
		t.Errorf("a request %s", d.Answer)
	}
	if _, err := r.Ticket(person("paul"), Entry{Container: made.Container.ID, State: digestOf("x")}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a ticket: %v", err)
	}
	if v := r.List(func(p id.Project) bool {
		return f.people[ourOrg].Policy().Check(person("paul"), CanRead, permission.Resource{Organization: ourOrg, Project: p}).Allowed
	}); len(v) != 0 {
		t.Errorf("he sees %v", v)
	}
}
