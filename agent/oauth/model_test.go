package oauth

import (
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// model is what a store should be, said as simply as possible: everything that was ever given out is in it,
// and whether it is good is computed anew each time.
type model struct {
	clients  map[ClientID]bool
	families []*family
	codes    map[string]*modelToken
	access   map[string]*modelToken
	refresh  map[string]*modelToken
}

type family struct {
	client        ClientID
	user          id.User
	dead          bool
	ends, rotated time.Time
	generation    int
}

type modelToken struct {
	*family
	expires    time.Time
	used, gone bool
	generation int
}

func (m *model) good(t *modelToken, now time.Time) bool {
	return t != nil && !t.gone && !t.dead && m.clients[t.client] && t.expires.After(now)
}

func (m *model) give(f *family, out Issued, now time.Time, l Lifetimes) {
	end := func(d time.Duration) time.Time {
		if e := now.Add(d); e.Before(f.ends) {
			return e
		}
		return f.ends
	}
	m.access[out.Access.Reveal()] = &modelToken{family: f, expires: end(l.Access)}
	if f.user != "" {
		m.refresh[out.Refresh.Reveal()] = &modelToken{family: f, expires: end(l.Refresh), generation: f.generation}
	}
}

// machine runs a store beside the model.
type machine struct {
	*model
	f       *fixture
	s       *Store
	epoch   id.Epoch
	public  []ClientID // ever made
	service []ClientID
}

func pick[T any](t *rapid.T, from map[string]*T) string {
	if len(from) == 0 {
		return "dmr_nothing"
	}
	return rapid.SampledFrom(slices.Sorted(maps.Keys(from))).Draw(t, "value")
}

func (m *machine) client(t *rapid.T) ClientID { return rapid.SampledFrom(m.public).Draw(t, "client") }

func (m *machine) AddClients(*rapid.T) {
	if len(m.public) > 4 {
		return
	}
	p := publicClient(m.f.t, m.s)
	sv, _ := addClient(m.f.t, m.s, Client{Service: true})
	m.public, m.service = append(m.public, p), append(m.service, sv)
	m.clients[p], m.clients[sv] = true, true
}

func (m *machine) DeleteClient(t *rapid.T) {
	c := m.client(t)
	if err := m.s.DeleteClient(ctx, c); (err == nil) != m.clients[c] {
		t.Fatalf("deleting %s: %v", c, err)
	}
	delete(m.clients, c)
}

func (m *machine) IssueCode(t *rapid.T) {
	c, user := m.client(t), id.User(rapid.SampledFrom([]string{"ada", "bob"}).Draw(t, "user"))
	value, err := m.s.IssueCode(ctx, Consented{Client: c, User: user, Redirect: redirect, Challenge: challengeOf(verifier)})
	if (err == nil) != m.clients[c] {
		t.Fatalf("a code: %v", err)
	}
	if err == nil {
		now, l := m.f.clock.now(), m.s.opts.lifetimes
		f := &family{client: c, user: user, ends: now.Add(l.Absolute)}
		m.families = append(m.families, f)
		m.codes[value.Reveal()] = &modelToken{family: f, expires: now.Add(l.Code)}
	}
}

func (m *machine) Redeem(t *rapid.T) {
	value, c := pick(t, m.codes), m.client(t)
	r := Redemption{Client: c, Code: value, Redirect: redirect, Verifier: verifier}
	if rapid.IntRange(0, 4).Draw(t, "wrong") == 0 {
		r.Verifier += "x"
	}
	out, err := m.s.Redeem(ctx, r)
	known, now := m.codes[value], m.f.clock.now()
	switch {
	case !m.good(known, now) || known.client != c:
		if err == nil {
			t.Fatal("a code that is not good was exchanged")
		}
	case known.used || r.Verifier != verifier:
		known.dead = true
		if err == nil {
			t.Fatal("a code was exchanged twice, or without its verifier")
		}
	case err != nil:
		t.Fatalf("a good code: %v", err)
	default:
		known.used, known.generation, known.rotated = true, 1, now
		known.family.generation = 1
		known.family.rotated = now
		m.give(known.family, out, now, m.s.opts.lifetimes)
	}
}

func (m *machine) Refresh(t *rapid.T) {
	value, c := pick(t, m.refresh), m.client(t)
	known, now := m.refresh[value], m.f.clock.now()
	if known != nil && rapid.IntRange(0, 9).Draw(t, "own") > 0 {
		c = known.client
	}
	out, err := m.s.Refresh(ctx, RefreshRequest{Client: c, Token: value})
	if !m.good(known, now) || known.client != c {
		if err == nil {
			t.Fatal("a refresh token that is not good was exchanged")
		}
		return
	}
	f := known.family
	inGrace := known.generation == f.generation-1 && now.Sub(f.rotated) < m.s.opts.lifetimes.Grace
	switch {
	case known.generation != f.generation && !inGrace:
		f.dead = true
		if err == nil {
			t.Fatal("a replay gave tokens")
		}
	case err != nil:
		t.Fatalf("a good refresh token: %v", err)
	default:
		if !inGrace {
			f.generation++
			f.rotated = now
		}
		m.give(f, out, now, m.s.opts.lifetimes)
	}
}

func (m *machine) Service(t *rapid.T) {
	c := rapid.SampledFrom(m.service).Draw(t, "service")
	out, err := m.s.Service(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	now, l := m.f.clock.now(), m.s.opts.lifetimes
	m.give(&family{client: c, ends: now.Add(l.Access)}, out, now, l)
}

func (m *machine) Revoke(t *rapid.T) {
	all := maps.Clone(m.access)
	maps.Copy(all, m.refresh)
	value, c := pick(t, all), m.client(t)
	known := all[value]
	err := m.s.Revoke(ctx, c, value)
	good := m.good(known, m.f.clock.now())
	if (err != nil) != (good && known.client != c) {
		t.Fatalf("revoking: %v", err)
	}
	if err == nil && good {
		if m.refresh[value] != nil {
			known.dead = true
		} else {
			known.gone = true
		}
	}
}

func (m *machine) RemoveMember(t *rapid.T) {
	user := id.User(rapid.SampledFrom([]string{"ada", "bob"}).Draw(t, "user"))
	must(m.f.t, m.s.RemoveMember(ctx, user))
	for _, f := range m.families {
		f.dead = f.dead || f.user == user
	}
}

func (m *machine) Wait(t *rapid.T) {
	m.f.clock.forward(rapid.SampledFrom([]time.Duration{time.Second, 5 * time.Second, 11 * time.Second, 2 * time.Minute, time.Hour, 20 * 24 * time.Hour}).Draw(t, "for"))
}

func (m *machine) Sweep(t *rapid.T) { m.s.sweep(rapid.IntRange(1, 20).Draw(t, "most")) }

func (m *machine) Compact(*rapid.T) { must(m.f.t, m.s.journal.compact(ctx, m.s.walkAll)) }

func (m *machine) Restart(t *rapid.T) {
	if rapid.Bool().Draw(t, "gently") {
		must(m.f.t, m.f.all.CloseAll())
	}
	m.f.start()
	m.open(nil)
}

// Move is the organization going to another host with its section.
func (m *machine) Move(*rapid.T) {
	section, _ := m.s.Section()
	must(m.f.t, m.f.all.CloseAll())
	m.epoch++
	m.open(section)
	again, _ := m.s.Section()
	if string(again) != string(section) {
		m.f.t.Fatal("a section that was read is written differently")
	}
	clear(m.codes)
}

func (m *machine) open(section []byte) {
	var err error
	m.s, err = m.f.all.Open(ourOrg, m.epoch, section)
	must(m.f.t, err)
}

func (m *machine) Check(t *rapid.T) {
	now := m.f.clock.now()
	for value, known := range m.access {
		info, ok := m.s.Check(value)
		if ok != m.good(known, now) || ok && (info.Client != known.client || info.User != known.user || !info.Expires.Equal(known.expires)) {
			t.Fatalf("an access token: %t %+v, model %+v %+v", ok, info, known, known.family)
		}
	}
	for value, known := range m.refresh {
		if _, ok := m.s.Introspect(value); ok != (m.good(known, now) && known.generation == known.family.generation) {
			t.Fatalf("a refresh token: %t, model %+v %+v", ok, known, known.family)
		}
	}
	m.s.check(m.f.t)
}

// TestStoreAgainstModel does anything in any order, with crashes, moves and waiting, and compares.
func TestStoreAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFixture(t)
		m := &machine{f: f, epoch: 1, model: &model{
			clients: map[ClientID]bool{}, codes: map[string]*modelToken{}, access: map[string]*modelToken{}, refresh: map[string]*modelToken{},
		}}
		m.open(nil)
		m.AddClients(rt)
		actions := rapid.StateMachineActions(m)
		actions[""] = m.Check
		rt.Repeat(actions)
		must(t, f.all.CloseAll())
	})
}
