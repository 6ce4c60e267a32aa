package container

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func TestWhatAContainerIsTold(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	announce(t, r, made, "10.1.0.5")
	c := made.Container.ID
	d := newDoorTest(t, f)
	session := d.login(r, "paul", c)
	a := d.ask(c, "", "Cookie", "theme=dark; "+session+"; "+"__Host-demiurge-enter=x.y;lang=de", "Authorization", "Basic eDp5")
	for name, want := range map[string]string{
		TellUser: "paul", TellUsername: "the%20user%20paul", TellProject: "one", TellContainer: string(c), TellService: "web",
		TellCookie: "theme=dark; lang=de", TellAuthorization: "Basic eDp5",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if a.upstream != "10.1.0.5:8080" {
		t.Errorf("it is at %s", a.upstream)
	}
	f.people[ourOrg].ended["session of paul"] = true
	if a := d.ask(c, "", "Cookie", session); a.answer != "anonymous" {
		t.Errorf("he logged out: %+v", a)
	}
	delete(f.people[ourOrg].ended, "session of paul")
	f.forward(8 * time.Hour)
	announce(t, r, Made{Container: made.Container, Hosting: renewed(t, r, c)}, "10.1.0.5")
	if a := d.ask(c, "", "Cookie", session); a.answer != "anonymous" {
		t.Errorf("the session has expired: %+v", a)
	}
}

func renewed(t testing.TB, r *Registry, c ID) Hosting {
	t.Helper()
	h, err := r.Issue(c, true)
	ok(t, err)
	return h
}

// TestWhatMayLastIsCarried: what goes straight to a container is only what a page is made of, and what a program
// gets that did not ask for a stream.
func TestWhatMayLastIsCarried(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	announce(t, r, made, "10.1.0.5")
	c := made.Container.ID
	d := newDoorTest(t, f)
	session := d.login(r, "paul", c)
	own := "\nOrigin=" + f.all.opts.origin(Hostname(r.hostname, c, ""))
	for headers, carried := range map[string]bool{
		"": false, "Sec-Fetch-Dest=image": false, "Sec-Fetch-Dest=script": false, "Sec-Fetch-Dest=style": false, "Sec-Fetch-Dest=font": false, AskMethod + "=HEAD": false,
		AskUpgrade + "=websocket" + own: true, "Sec-Fetch-Dest=empty": true, "Sec-Fetch-Dest=document": true, "Sec-Fetch-Dest=iframe": true, "Sec-Fetch-Dest=video": true,
		"Sec-Fetch-Dest=worker": true, "Sec-Fetch-Dest=invented": true, "Accept=text/event-stream": true, "Accept=a/b, TEXT/event-stream;q=1": true,
		AskMethod + "=POST" + own: true, AskMethod + "=PUT" + own: true, "Sec-Fetch-Dest=image\nAccept=text/event-stream": true,
	} {
		ask := []string{"Cookie", session}
		for line := range strings.SplitSeq(headers, "\n") {
			if name, value, ok := strings.Cut(line, "="); ok {
				ask = append(ask, name, value)
			}
		}
		if a := d.ask(c, "", ask...); a.answer != "passed" || a.upstream != "10.1.0.5:8080" || a.carried != carried {
			t.Errorf("%q: %s to %s, carried: %t", headers, a.answer, a.upstream, a.carried)
		}
	}
}

// A token of the organization opens a container, and goes no further than it must.
func TestProgramsComeWithATokenOfTheOrganization(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	announce(t, r, made, "10.1.0.5")
	c := made.Container.ID
	d := newDoorTest(t, f)
	access := []permission.Pattern{accessOnly}
	own := made.Container.Services[0].Client
	f.people[ourOrg].bearers = map[string]Bearer{
		"wide":    {Subject: permission.Subject{User: "paul", Limit: access}, Client: "cl-other"},
		"narrow":  {Subject: permission.Subject{User: "paul"}, Client: "cl-other"},
		"own":     {Subject: permission.Subject{User: "paul"}, Client: own},
		"nobody":  {Subject: permission.Subject{Limit: access}, Client: "cl-other"},
		"unknown": {Subject: permission.Subject{User: "mary", Limit: access}, Client: own},
	}
	for token, want := range map[string]struct{ answer, passed string }{
		"wide": {"passed", ""}, "narrow": {"refused", ""}, "own": {"passed", "Bearer own"}, "nobody": {"anonymous", ""}, "unknown": {"refused", ""}, "invented": {"anonymous", ""},
	} {
		a := d.ask(c, "", "Authorization", "Bearer "+token, AskMethod, "POST", "Origin", "https://elsewhere.test")
		if a.answer != want.answer || a.header.Get(TellAuthorization) != want.passed {
			t.Errorf("%s: %+v", token, a)
		}
	}
	session := d.login(r, "paul", c)
	if a := d.ask(c, "", "Cookie", session, "Authorization", "Bearer wide"); a.answer != "passed" || a.header.Get(TellAuthorization) != "" {
		t.Errorf("a token that is good elsewhere reaches the container: %+v", a)
	}
	if a := d.ask(c, "", "Cookie", session, "Authorization", "Bearer the-container's-own-matter"); a.header.Get(TellAuthorization) == "" {
		t.Errorf("a token of the container's own does not reach it: %+v", a)
	}
}

// All names of an organization are one site to a browser, so one container's page could act on another.
func TestAPageOfAnotherContainerCannotAct(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made, other := create(t, r), create(t, r)
	announce(t, r, made, "10.1.0.5")
	d := newDoorTest(t, f)
	c := made.Container.ID
	session := d.login(r, "paul", c)
	host := "org-" + string(ourOrg) + ".example.test"
	own := "https://" + Hostname(host, c, "")
	evil := strings.Replace(own, string(c), string(other.Container.ID), 1)
	for name, tt := range map[string]struct {
		headers []string
		want    string
	}{
		"own form":         {[]string{AskMethod, "POST", "Origin", own}, "passed"},
		"another's form":   {[]string{AskMethod, "POST", "Origin", evil}, "refused"},
		"hidden form":      {[]string{AskMethod, "POST", "Origin", "null"}, "refused"},
		"old browser":      {[]string{AskMethod, "POST"}, "passed"},
		"no origin":        {[]string{AskMethod, "DELETE", "Sec-Fetch-Site", "same-site"}, "refused"},
		"own fetch":        {[]string{AskMethod, "DELETE", "Sec-Fetch-Site", "same-origin"}, "passed"},
		"another's socket": {[]string{AskUpgrade, "websocket", "Origin", evil}, "refused"},
		"own socket":       {[]string{AskUpgrade, "websocket", "Origin", own}, "passed"},
		"a link":           {[]string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, "passed"},
	} {
		if a := d.ask(c, "", append(tt.headers, "Cookie", session)...); a.answer != tt.want {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// Only who opens a page is sent to log in; a program is told.
func TestWhoIsSentToLogIn(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	c := create(t, r).Container.ID
	d := newDoorTest(t, f)
	for name, tt := range map[string]struct {
		headers []string
		sent    bool
	}{
		"a page":         {[]string{"Sec-Fetch-Mode", "navigate"}, true},
		"an old browser": {[]string{"Accept", "text/html,*/*"}, true},
		"a fetch":        {[]string{"Sec-Fetch-Mode", "cors", "Accept", "text/html"}, false},
		"a program":      {[]string{"Accept", "*/*"}, false},
		"a form":         {[]string{AskMethod, "POST", "Accept", "text/html"}, false},
		"a socket":       {[]string{AskUpgrade, "websocket", "Accept", "text/html"}, false},
	} {
		a := d.ask(c, "", tt.headers...)
		if a.answer != "anonymous" || (a.login != "") != tt.sent || (a.loginCookie != "") != tt.sent || (a.header.Get("WWW-Authenticate") != "") == tt.sent {
			t.Errorf("%s: %+v", name, a)
		}
	}
	// With a window that waits already.
	a := d.ask(c, "", "Accept", "text/html", "Cookie", "__Host-demiurge-enter="+strings.Repeat("a", 26)+".Lw")
	if !strings.HasPrefix(a.loginCookie, "__Host-demiurge-enter="+strings.Repeat("a", 26)+".") {
		t.Errorf("%+v", a)
	}
	// What comes in clear was seen on the way.
	f.people[ourOrg].bearers["t"] = Bearer{Subject: person("paul")}
	if a := d.ask(c, "", AskScheme, "http", "Authorization", "Bearer t"); a.answer != "refused" {
		t.Errorf("%+v", a)
	}
	// On a developer's machine.
	f.opts.Scheme, f.opts.Port = "http", 7480
	f.start()
	f.open(ourOrg)
	d = newDoorTest(t, f)
	a = d.ask(c, "", AskScheme, "http", "Accept", "text/html")
	if !strings.HasPrefix(a.login, "http://org-"+string(ourOrg)+".example.test:7480/containers/") || !strings.HasPrefix(a.loginCookie, "demiurge-enter=") || strings.Contains(a.loginCookie, "Secure") {
		t.Errorf("%+v", a)
	}
}

func TestNamesThatAreNoContainers(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	c := create(t, r).Container.ID
	d := newDoorTest(t, f)
	session := d.login(r, "paul", c)
	for _, bad := range []string{"", "x", string(c) + "--", string(c) + "--Web", string(c)[1:], string(c) + "--a--b", "../x"} {
		if a := d.ask(c, "", AskLabel, bad, "Cookie", session); a.answer != "missing" {
			t.Errorf("%q: %+v", bad, a)
		}
	}
	f.people[ourOrg].bearers["t"] = Bearer{Subject: person("paul")}
	for _, missing := range []string{string(NewID()), string(c) + "--nope"} {
		if a := d.ask(c, "", AskLabel, missing, "Authorization", "Bearer t"); a.answer != "missing" {
			t.Errorf("%q: %+v", missing, a)
		}
	}
	for _, org := range []string{"", "x", string(otherOrg)} {
		if a := d.ask(c, "", AskOrganization, org, "Cookie", session); a.answer != "missing" {
			t.Errorf("organization %q: %+v", org, a)
		}
	}
	for _, path := range []string{"/", "/-/", "/containers"} {
		if w := d.request(path, c, ""); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestTicketsAreBounded(t *testing.T) {
	f := newFixture(t)
	f.opts.Limits.Tickets = 3
	f.start()
	r := f.open(ourOrg)
	c := create(t, r).Container.ID
	get := func() error {
		_, err := r.Ticket(person("paul"), Entry{Container: c, State: digestOf("x")})
		return err
	}
	for range 3 {
		ok(t, get())
	}
	if err := get(); !fault.Is(err, fault.RateLimited) {
		t.Errorf("a fourth one: %v", err)
	}
	f.forward(ticketLife)
	ok(t, get())
	if n := len(r.tickets.live); n != 1 {
		t.Errorf("%d tickets are kept", n)
	}
	for name, e := range map[string]Entry{
		"no state": {Container: c}, "short state": {Container: c, State: "abc"}, "odd state": {Container: c, State: strings.Repeat("Z", stateSize)},
	} {
		if _, err := r.Ticket(person("paul"), e); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.Ticket(person("paul"), Entry{Container: NewID(), State: digestOf("x")}); !fault.Is(err, fault.NotFound) {
		t.Errorf("no container: %v", err)
	}
	if _, err := r.Ticket(person("paul"), Entry{Container: c, Service: "nope", State: digestOf("x")}); !fault.Is(err, fault.NotFound) {
		t.Errorf("no service: %v", err)
	}
}

func TestDecide(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	c := made.Container.ID
	rec, err := r.current(c)
	ok(t, err)
	at := &place{Address: netip.MustParseAddr("fd00::5"), Ports: map[ServiceName]uint16{"web": 80}}
	placed, taken := *rec, *rec
	placed.Place, taken.Place = at, at
	taken.Change.TakeBack()
	p := f.people[ourOrg].Policy()
	for name, tt := range map[string]struct {
		who  Caller
		t    *target
		ask  Asked
		want Answer
		to   string
	}{
		"first service":   {Caller{Subject: person("paul")}, &target{&placed, true}, Asked{}, Passed, "[fd00::5]:80"},
		"named service":   {Caller{Subject: person("paul")}, &target{&placed, true}, Asked{Service: "web"}, Passed, "[fd00::5]:80"},
		"not announced":   {Caller{Subject: person("paul")}, &target{&placed, true}, Asked{Service: "api"}, Away, ""},
		"not declared":    {Caller{Subject: person("paul")}, &target{&placed, true}, Asked{Service: "ssh"}, Missing, ""},
		"down":            {Caller{Subject: person("paul")}, &target{&placed, false}, Asked{}, Away, ""},
		"never up":        {Caller{Subject: person("paul")}, &target{rec, true}, Asked{}, Away, ""},
		"being deleted":   {Caller{Subject: person("paul")}, &target{&taken, true}, Asked{}, Missing, ""},
		"no container":    {Caller{Subject: person("paul")}, nil, Asked{}, Missing, ""},
		"nobody":          {Caller{}, &target{&placed, true}, Asked{}, Anonymous, ""},
		"nobody, nothing": {Caller{}, nil, Asked{}, Anonymous, ""},
		"not in project":  {Caller{Subject: person("mary")}, &target{&placed, true}, Asked{}, Refused, ""},
		"a stranger":      {Caller{Subject: person("eve")}, &target{&placed, true}, Asked{}, Refused, ""},
		"owner":           {Caller{Subject: owner}, &target{&placed, true}, Asked{}, Passed, "[fd00::5]:80"},
		"no limit":        {Caller{Subject: permission.Subject{User: "paul"}}, &target{&placed, true}, Asked{}, Refused, ""},
	} {
		d := decide(p, tt.who, tt.t, tt.ask)
		if d.Answer != tt.want || (d.Err() == nil) != (tt.want == Passed) || d.Answer != Passed && (d.Upstream.IsValid() || d.User != "" || d.Reason == "") ||
			d.Answer == Passed && d.Upstream.String() != tt.to {
			t.Errorf("%s: %+v", name, d)
		}
	}
	for _, a := range Answers() {
		if strings.HasPrefix(a.String(), "answer") {
			t.Errorf("answer %d has no name", a)
		}
	}
}
