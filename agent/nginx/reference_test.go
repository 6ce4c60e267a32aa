package nginx

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// The defects of the platform that this one replaces, each by its number.

// N1: one bad file made every later reload of every organization fail.
func TestN1_OneBadPartDoesNotBlockTheOthers(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	bad, good := id.NewOrganization(), id.NewOrganization()
	next := h.gateway(nil)
	cfg := slots(gs[0], next)
	cfg.Sites = []Site{
		{Organization: bad, Domains: []string{"bad.own.test", "org-" + string(org) + "." + domain}},
		{Organization: good, Domains: []string{"good.own.test"}},
	}
	h.apply(cfg)
	h.settled()
	q := h.engine.Status().Quarantined
	if len(q) != 1 || q[0].Part != "site/"+string(bad) || !strings.Contains(q[0].Message, "platform's domain") {
		t.Errorf("quarantined: %+v", q)
	}
	h.route(good, next, 9)
	if status, _, _ := h.ask("good.own.test", "/"); status != 200 {
		t.Errorf("the good site answers %d", status)
	}
	// Later changes go on, and a corrected part comes back.
	cfg.Sites[0].Domains = []string{"bad.own.test"}
	h.apply(cfg)
	h.route(bad, gs[0], 11)
	eventually(t, "the corrected part serves", func() bool {
		status, _, _, err := h.tryAsk("bad.own.test", "/")
		return err == nil && status == 200
	})
	if q := h.engine.Status().Quarantined; len(q) != 0 {
		t.Errorf("still quarantined: %+v", q)
	}
	h.mustServe(org, gs[0], 7)
}

// N1, where only nginx can tell: a part that it refuses is found, left out alone, and named with nginx's words, and
// every later change goes on without it.
func TestN1_APartThatNginxRefusesDoesNotBlockTheOthers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	certify(t, h)
	h.startNginx()
	h.startEngine()
	g, bad, good := h.gateway(nil), id.NewOrganization(), id.NewOrganization()
	cfg := slots(g)
	cfg.Sites = []Site{
		{Organization: bad, Domains: []string{"bad.own.test"}, Certificate: true}, // there is none
		{Organization: good, Domains: []string{"good.own.test"}},
	}
	h.apply(cfg)
	h.settled()
	q := h.engine.Status().Quarantined
	if len(q) != 1 || q[0].Part != "site/"+string(bad) || !strings.Contains(q[0].Message, "cannot load certificate") {
		t.Errorf("not named with nginx's words: %+v", q)
	}
	h.route(good, g, 3)
	if status, _, _ := h.ask("good.own.test", "/"); status != 200 {
		t.Errorf("the good site answers %d", status)
	}
	before := h.engine.Status().LiveGeneration
	next := h.gateway(nil)
	cfg.Slots = slots(g, next).Slots
	h.apply(cfg)
	h.settled()
	h.route(bad, next, 4)
	h.mustServe(bad, next, 4) // on the platform's name
	if st := h.engine.Status(); st.LiveGeneration <= before || len(st.Quarantined) != 1 || st.LastError != "" {
		t.Errorf("after a later change: %+v", st)
	}
	h.clean()
}

// N2: a host pattern that matched nothing passed nginx -t and sent everybody to the front page.
func TestN2_APatternThatMatchesNothingDoesNotGoLive(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	h.stopEngine()
	// The same text that a wrong template would give: the pattern of another domain.
	e, err := Open(h.opts)
	if err != nil {
		t.Fatal(err)
	}
	e.r.opts.Domain = "wrong.test"
	h.run(e)
	before := e.Status().LiveGeneration
	e.SetConfig(slots(gs[0], h.gateway(nil)))
	eventually(t, "the generation fails", func() bool {
		return h.saw(GenerationFailed, func(ev Event) bool { return strings.Contains(ev.Reason, "answers wrongly") })
	})
	h.mustServe(org, gs[0], 7)
	st := e.Status()
	if st.LiveGeneration <= before || !strings.Contains(st.LastError, "404") {
		t.Errorf("the last live content is not back under a new number: %+v", st)
	}
	h.clean()
}

// N3: writer A's nginx -t saw writer B's half-written file.
func TestN3_WritersAtTheSameTimeGiveWholeGenerations(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 8)
	var group sync.WaitGroup
	for i := range gs {
		group.Go(func() {
			for j := range 10 {
				cfg := slots(gs[:1+(i+j)%len(gs)]...)
				cfg.Sites = []Site{{Organization: id.NewOrganization()}}
				h.engine.SetConfig(cfg)
				if err := h.servedBy(org, gs[0], 7); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if _, err := Open(h.opts); err == nil || !strings.Contains(err.Error(), "another agent has it") {
		t.Errorf("a second writer of the directory: %v", err)
	}
	h.apply(slots(gs...))
	h.settled()
	if h.saw(GenerationFailed, nil) {
		t.Error("a generation failed")
	}
	h.clean()
}

// N4: left-over partial configuration made nginx refuse the whole.
func TestN4_LeftoversAreRemovedAndNotRead(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	h.stopEngine()
	l := h.layout()
	for path, text := range map[string]string{
		l.generations() + "/000099.tmp/http.conf": "serv",
		l.generations() + "/000098/http.conf":     "}",
		l.generations() + "/junk":                 "{",
		l.data + "/.fsx-tmp-aabbccddeeff":         "include /nowhere",
		l.routes() + "/.fsx-tmp-aabbccddeeff":     "x",
		l.routes() + "/stranger":                  "x",
		l.quarantine() + "/nonsense":              "{",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.startEngine()
	h.apply(slots(gs[0], h.gateway(nil)))
	h.settled()
	h.mustServe(org, gs[0], 7)
	if n := h.engine.Status().LiveGeneration; n <= 98 {
		t.Errorf("generation %d: a number that a leftover bore was used again", n)
	}
	// A foreign file in the live generation would be included: the audit sees it and a new one replaces it.
	if err := os.WriteFile(filepath.Join(l.generation(h.engine.Status().LiveGeneration), "sites/extra.conf"), []byte("}"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := h.engine.Status().LiveGeneration
	h.engine.audit()
	eventually(t, "a whole generation replaces the damaged one", func() bool { return h.engine.Status().LiveGeneration > before })
	h.settled()
	h.mustServe(org, gs[0], 7)
	h.clean()
}

// N5: hash buckets too small for UUID names; a port inside the domain was used as host pattern.
func TestN5_LongNamesAndPorts(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	long := strings.Repeat(strings.Repeat("a", 30)+".", 5) + "test" // ids and names below must fit in 253
	h.opts.Domain = long
	h.startNginx()
	h.startEngine()
	g := h.gateway(nil)
	cfg := slots(g)
	var orgs []id.Organization
	for range 300 { // enough for every bucket to be used
		org := id.NewOrganization()
		orgs = append(orgs, org)
		cfg.Sites = append(cfg.Sites, Site{Organization: org, Domains: []string{string(org) + "." + strings.Repeat("b", 60) + ".own.test"}})
	}
	h.apply(cfg)
	h.settled()
	h.route(orgs[17], g, 5)
	for _, name := range []string{id.Hostname(orgs[17], long), id.Hostname(orgs[17], long) + ":7480", cfg.Sites[17].Domains[0] + ":443"} {
		if status, _, _ := h.ask(name, "/"); status != 200 {
			t.Errorf("%s: %d", name, status)
		}
	}
	for _, bad := range []string{"dev.test:7480", "dev.test/", "*.test", "dev .test", "", "dev.test;", "~^x"} {
		opts := h.opts
		opts.Domain = bad
		if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), "as domain") { // the directory is in use, too
			t.Errorf("domain %q: %v", bad, err)
		}
	}
}

// N6: a reload was reported done although the old workers still served.
func TestN6_LiveMeansThatTheOldWorkersAcceptNoMore(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	h.stopEngine()
	h.opts.Listen = append(h.opts.Listen, freePort(t)) // any change that a client can tell
	h.startEngine()
	for i := range 8 {
		limit := int64(1000 + i)
		h.engine.SetConfig(Config{Slots: []Slot{{gs[0].id, limit}}})
		eventually(t, "the generation is reported live", func() bool {
			st := h.engine.snapshot()
			return st.slots[gs[0].id].MaxBody == limit
		})
		// From the report on every new connection is answered by the new generation: the old limit
		// would refuse what the new one takes.
		for range 40 {
			status, err := h.post(org, int(limit))
			if err != nil || status != 200 {
				t.Fatalf("generation with limit %d: %d %v: an old worker answered", limit, status, err)
			}
		}
	}
}

// A9: a gateway was given on while its old route still led to it. The end of a route is one only when nginx has said
// so; until then the caller is told that it is not, and tries again.
func TestA9_TheEndOfARouteIsProven(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	h.stopEngine()
	f := h.withFaults()
	h.startEngine()
	for _, label := range []string{"nginx.route.remove", "nginx.route.prove"} {
		f.Fail(label, syscall.EIO)
		for range 2 { // the second time as the first
			if err := h.engine.Unroute(within(t), org, Target{gs[0].id, 7}); !fault.Is(err, fault.RouteApplyFailed) {
				t.Errorf("%s: %v", label, err)
			}
		}
		f.Fail(label, nil)
		if err := h.engine.Unroute(within(t), org, Target{gs[0].id, 7}); err != nil {
			t.Errorf("%s: %v", label, err)
		}
		if status, _, _ := h.ask(orgHost(org), "/"); status != 503 {
			t.Errorf("%s: after the end: %d", label, status)
		}
		h.route(org, gs[0], 7)
	}
	h.clean()
}

// A listener change in one step that nginx cannot do, and one that it can.
func TestListenerChanges(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	h.stopEngine()
	first := h.opts.Listen[0]
	h.opts.Listen = []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), first.Port())}
	h.startEngine()
	h.engine.SetConfig(slots(gs[0]))
	eventually(t, "the step is refused", func() bool { return strings.Contains(h.engine.Status().LastError, "in one step") })
	h.opts.Listen = []netip.AddrPort{first}
	h.mustServe(org, gs[0], 7)
	h.stopEngine()
	h.opts.Listen = []netip.AddrPort{freePort(t), first}
	h.startEngine()
	h.engine.SetConfig(slots(gs[0]))
	eventually(t, "the new listener serves", func() bool { return h.servedBy(org, gs[0], 7) == nil })
	h.settled()
}
