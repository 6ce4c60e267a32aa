package container

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/records"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

func TestASectionIsTheRegistryOnTheNextHost(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	create(t, r)
	before := r.Version()
	announce(t, r, made, "10.1.0.5")
	section, version := r.Section()
	if version <= before {
		t.Errorf("the version is %d and was %d", version, before)
	}
	if again, _ := r.Section(); !bytes.Equal(section, again) {
		t.Error("equal registries give other bytes")
	}
	next := newFixture(t)
	next.clients, next.people = f.clients, f.people
	there, err := next.all.Open(ourOrg, 9, section, f.clients[ourOrg], f.people[ourOrg])
	ok(t, err)
	next.check(ourOrg)
	if s := state(t, there, made.Container.ID); s != Down {
		t.Errorf("on the next host it is %s before it has said where it is", s)
	}
	announce(t, there, made, "10.1.0.5") // its token is good there
	if theirs, _ := there.Section(); !bytes.Equal(section, theirs) {
		t.Errorf("the section of the next host is\n%q, this one's\n%q", theirs, section)
	}
	if bytes.Equal(there.cookies, r.cookies) {
		t.Error("the key of sessions went along")
	}
	next.start() // killed: what came with the section is on disk
	r2, err := next.all.Open(ourOrg, 9, nil, f.clients[ourOrg], f.people[ourOrg])
	ok(t, err)
	if n := len(r2.List(func(id.Project) bool { return true })); n != 2 {
		t.Errorf("%d containers are there", n)
	}
}

// What was half made when a section was written is ended where it is read.
func TestASectionWithHalfAContainer(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	rec, err := r.change(made.Container.ID, false, func(next *record) error {
		next.Change.Steps[1].Status = steps.Doing
		return nil
	})
	ok(t, err)
	if rec.state(true) != Creating {
		t.Fatalf("it is %s", rec.state(true))
	}
	section, _ := r.Section()
	next := newFixture(t)
	next.clients, next.people = f.clients, f.people
	next.run()
	there, err := next.all.Open(ourOrg, 9, section, f.clients[ourOrg], f.people[ourOrg])
	ok(t, err)
	eventually(t, "it is gone", func() bool { return len(there.unfinished()) == 0 })
	if n := len(f.clients[ourOrg].ids()); n != 0 {
		t.Errorf("%d clients are left", n)
	}
}

func TestWhatIsNoSectionIsRefused(t *testing.T) {
	f := newFixture(t)
	r := f.open(ourOrg)
	made := create(t, r)
	good, _ := r.Section()
	rec, err := r.current(made.Container.ID)
	ok(t, err)
	start := addEntry([]byte(sectionHeader), signingKey, r.signing)
	with := func(change func(*record)) []byte {
		next := rec.clone()
		next.Services = append([]kept(nil), rec.Services...)
		change(next)
		return addEntry(bytes.Clone(start), containerKey+string(rec.ID), next)
	}
	f.opts.Limits.Containers = 1
	f.start()
	cases := map[string][]byte{
		"nothing of the kind": []byte("hello"), "cut": good[:len(good)-1], "more": append(bytes.Clone(good), 'x'), "no key": []byte(sectionHeader),
		"a short key":             addEntry([]byte(sectionHeader), signingKey, []byte("short")),
		"a key of sessions":       addEntry(bytes.Clone(start), cookieKey, r.cookies),
		"an unknown entry":        addEntry(bytes.Clone(start), "other", 1),
		"the key twice":           addEntry(bytes.Clone(start), signingKey, r.signing),
		"no JSON":                 records.Append([]byte(sectionHeader), []byte("{")),
		"too many":                addEntry(addEntry(bytes.Clone(start), containerKey+"a", rec), containerKey+"b", rec),
		"another id":              with(func(r *record) { r.ID = NewID() }),
		"no creator":              with(func(r *record) { r.Creator = "" }),
		"no project":              with(func(r *record) { r.Project = "../x" }),
		"a path elsewhere":        with(func(r *record) { r.Services[0].Paths = []string{"//evil.test"} }),
		"no client":               with(func(r *record) { r.Services[0].Client = "" }),
		"another step":            with(func(r *record) { r.Change = steps.New("a", "b") }),
		"fewer steps":             with(func(r *record) { r.Change = steps.New("client:web") }),
		"a place":                 with(func(r *record) { r.Place = &place{Address: netip.MustParseAddr("127.0.0.1")} }),
		"a key that is none":      with(func(r *record) { r.Request = &requestMark{Key: "k", Body: "b"} }),
		"a gone key that is none": addEntry(bytes.Clone(start), goneKey+"k", requestMark{Key: "k", Body: "b"}),
		"many tokens":             with(func(r *record) { r.Tokens = make([]hostingMark, maxTokens+1) }),
	}
	for name, section := range cases {
		f.start()
		f.opts.Logger = f.opts.Logger.With("case", name)
		if _, err := f.all.Open(otherOrg, 3, section, f.clients[otherOrg], f.people[otherOrg]); err == nil {
			t.Errorf("%s was taken", name)
		} else if strings.Contains(err.Error(), "panic") {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.start()
	if _, err := f.all.Open(otherOrg, 3, good, f.clients[otherOrg], f.people[otherOrg]); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func FuzzSection(f *testing.F) {
	fix := newFixture(f)
	r := fix.open(ourOrg)
	create(f, r)
	again(f, r, with(f, "ann", "k"))
	ok(f, r.Delete(ctx, again(f, r, with(f, "ann", "gone")).Container.ID))
	good, _ := r.Section()
	f.Add(good)
	f.Add([]byte(sectionHeader))
	f.Fuzz(func(t *testing.T, section []byte) {
		there := &Registry{opts: &fix.all.opts, containers: map[ID]*entry{}, gone: map[string]*requestMark{}, journal: &journal{values: map[string]json.RawMessage{}}}
		if there.readSection(section) != nil {
			return
		}
		for key, value := range there.journal.values {
			if there.read(key, value) != nil {
				return
			}
		}
		for _, e := range there.containers {
			for i := range e.Services {
				for _, redirect := range e.record.redirects(i) {
					if !strings.HasPrefix(redirect, "https://uc-"+string(e.ID)) {
						t.Errorf("it leads to %q", redirect)
					}
				}
			}
		}
	})
}

func (r *record) redirects(n int) []string {
	s := r.spec()
	return s.redirects("org-x.example.test", ":8443", r.ID, n)
}
