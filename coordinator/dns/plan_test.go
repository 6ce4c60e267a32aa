package dns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	testDomain = "gateways.example.org"
	orgA       = "org-00000000-0000-4000-8000-00000000000a." + testDomain
	orgB       = "org-00000000-0000-4000-8000-00000000000b." + testDomain
)

func rec(name, address string, epoch id.Epoch) Record {
	r := Record{Name: name, TTL: 5 * time.Second, Epoch: epoch}
	for part := range strings.FieldsSeq(address) {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(part))
	}
	return r
}

// both is a record as Ensure leaves it.
func both(name, address string, epoch id.Epoch) []Record {
	return []Record{rec(name, address, epoch), rec("*."+name, address, 0)}
}

func want(name, address string, epoch id.Epoch) Wanted {
	return Wanted{Record: rec(name, address, epoch)}
}

func TestPlan(t *testing.T) {
	pending := want(orgA, "192.0.2.1", 7)
	pending.Pending = true
	moving := want(orgA, "192.0.2.1", 7)
	moving.Latest = 8
	late := rec(orgA, "192.0.2.1", 7)
	late.TTL = time.Minute
	for name, c := range map[string]struct {
		wanted   []Wanted
		observed []Record
		want     string // verb, name and epoch of each action
	}{
		"nothing at all":                   {nil, nil, ""},
		"all as it should be":              {[]Wanted{want(orgA, "192.0.2.1", 7)}, both(orgA, "192.0.2.1", 7), ""},
		"order and doubles":                {[]Wanted{want(orgA, "192.0.2.2 192.0.2.1 192.0.2.2", 7)}, both(orgA, "192.0.2.1 192.0.2.2", 7), ""},
		"missing":                          {[]Wanted{want(orgA, "192.0.2.1", 7)}, nil, "make A 7"},
		"another address":                  {[]Wanted{want(orgA, "192.0.2.1", 7)}, both(orgA, "192.0.2.9", 7), "make A 7"},
		"one address too many":             {[]Wanted{want(orgA, "192.0.2.1", 7)}, both(orgA, "192.0.2.1 2001:db8::1", 7), "make A 7"},
		"another TTL":                      {[]Wanted{want(orgA, "192.0.2.1", 7)}, []Record{late, both(orgA, "192.0.2.1", 7)[1]}, "make A 7"},
		"an alias":                         {[]Wanted{want(orgA, "192.0.2.1", 7)}, []Record{rec(orgA, "", 0)}, "make A 7"},
		"names below missing":              {[]Wanted{want(orgA, "192.0.2.1", 7)}, both(orgA, "192.0.2.1", 7)[:1], "make A 7"},
		"names below elsewhere":            {[]Wanted{want(orgA, "192.0.2.1", 7)}, []Record{rec(orgA, "192.0.2.1", 7), rec("*."+orgA, "192.0.2.9", 0)}, "make A 7"},
		"of an older grant":                {[]Wanted{want(orgA, "192.0.2.1", 7)}, both(orgA, "192.0.2.1", 6), "make A 7"},
		"of a later grant":                 {[]Wanted{moving}, both(orgA, "192.0.2.9", 8), ""},
		"of no grant that there is":        {[]Wanted{want(orgA, "192.0.2.1", 7)}, both(orgA, "192.0.2.9", 8), "make A 7 instead of 8"},
		"later than all while it moves":    {[]Wanted{moving}, both(orgA, "192.0.2.9", 9), "make A 7 instead of 9"},
		"in the hands of its steps":        {[]Wanted{pending}, nil, ""},
		"steps, and held":                  {[]Wanted{pending}, both(orgA, "192.0.2.9", 6), ""},
		"orphan":                           {nil, both(orgA, "192.0.2.1", 7), "remove A 7"},
		"orphan of its wildcard":           {nil, both(orgA, "192.0.2.1", 7)[1:], "remove *.A 0"},
		"orphan below an orphan":           {nil, append(both(orgA, "192.0.2.1", 7), rec("x."+orgA, "192.0.2.1", 0)), "remove A 7, remove x.A 7"},
		"one hides the wildcard":           {[]Wanted{want(orgA, "192.0.2.1", 7)}, append(both(orgA, "192.0.2.1", 7), rec("x."+orgA, "192.0.2.9", 0)), "remove x.A 7"},
		"makes before removals":            {[]Wanted{want(orgB, "192.0.2.1", 9)}, both(orgA, "192.0.2.1", 7), "make B 9, remove A 7"},
		"the domain itself":                {nil, []Record{rec(testDomain, "192.0.2.1", 0)}, ""},
		"another name of the domain":       {nil, []Record{rec("www."+testDomain, "192.0.2.1", 0), rec("org-."+testDomain, "192.0.2.1", 0), rec("*."+testDomain, "192.0.2.1", 0)}, ""},
		"upper case is no UUID of ours":    {nil, []Record{rec(strings.Replace(orgA, "0a.", "0A.", 1), "192.0.2.1", 0)}, ""},
		"a name that only ends like ours":  {nil, []Record{rec("x"+orgA, "192.0.2.1", 0)}, ""},
		"another domain":                   {nil, []Record{rec(strings.Replace(orgA, "example.org", "example.net", 1), "192.0.2.1", 0)}, ""},
		"proof of ownership":               {nil, []Record{rec("_acme-challenge."+orgA, "", 0), rec("x._tcp."+orgA, "", 0)}, ""},
		"an escaped dot":                   {nil, []Record{rec(`x\.`+orgA, "192.0.2.1", 0)}, ""},
		"the state wants what is not ours": {[]Wanted{want("www."+testDomain, "192.0.2.1", 7), want("x."+orgA, "192.0.2.1", 7)}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			actions, more := Plan(testDomain, c.wanted, c.observed, 100)
			if got := describe(actions); got != c.want || more {
				t.Errorf("planned %q (more: %t), want %q", got, more, c.want)
			}
			for _, a := range actions {
				if a.Reason == "" {
					t.Errorf("%s of %s has no reason", a.Verb, a.Record.Name)
				}
			}
		})
	}
}

func describe(actions []Action) string {
	var out []string
	for _, a := range actions {
		name := strings.NewReplacer(orgA, "A", orgB, "B").Replace(a.Record.Name)
		text := string(a.Verb) + " " + name + " " + max(a.UpTo, a.Record.Epoch).String()
		if a.Record.Instead > 0 {
			text += " instead of " + a.Record.Instead.String()
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestPlanIsBounded(t *testing.T) {
	var observed []Record
	for range 10 {
		observed = append(observed, both(id.Hostname(id.NewOrganization(), testDomain), "192.0.2.1", 3)...)
	}
	for limit, wantMore := range map[int]bool{0: true, 3: true, 9: true, 10: false, 11: false} {
		actions, more := Plan(testDomain, nil, observed, limit)
		if len(actions) != min(limit, 10) || more != wantMore {
			t.Errorf("limit %d: %d actions, more %t", limit, len(actions), more)
		}
	}
}

// Whatever is wanted and held: carrying out one plan after another ends, with exactly what is wanted, and
// without a change of any name that is not an organization's.
func TestPlansConverge(t *testing.T) {
	names := []string{orgA, orgB, "*." + orgA, "*." + orgB, "x." + orgA, "y.x." + orgB, testDomain, "www." + testDomain, "*." + testDomain, "_p." + orgA}
	addresses := []string{"", "192.0.2.1", "192.0.2.2", "192.0.2.1 2001:db8::1"}
	rapid.Check(t, func(t *rapid.T) {
		zone := map[string]Record{}
		for _, name := range rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID).Draw(t, "held") {
			epoch := id.Epoch(0)
			if name == orgA || name == orgB {
				epoch = id.Epoch(rapid.IntRange(0, 30).Draw(t, "held epoch"))
			}
			zone[name] = rec(name, rapid.SampledFrom(addresses).Draw(t, "held address"), epoch)
		}
		foreign := foreignOf(zone)
		var wanted []Wanted
		for _, name := range rapid.SliceOfDistinct(rapid.SampledFrom(names[:2]), rapid.ID).Draw(t, "wanted") {
			wanted = append(wanted, want(name, rapid.SampledFrom(addresses[1:]).Draw(t, "address"), id.Epoch(rapid.IntRange(10, 19).Draw(t, "epoch"))))
		}
		limit := rapid.IntRange(1, 5).Draw(t, "limit")
		for round := 0; ; round++ {
			actions, more := Plan(testDomain, wanted, values(zone), limit)
			if len(actions) > limit {
				t.Fatalf("%d actions, limit %d", len(actions), limit)
			}
			if len(actions) == 0 && !more {
				break
			}
			if round > len(names)+2 {
				t.Fatalf("no end: %v", actions)
			}
			for _, a := range actions {
				carryOut(zone, a)
			}
		}
		if got := foreignOf(zone); !slices.EqualFunc(got, foreign, func(a, b Record) bool { return a.Name == b.Name && same(a, b) }) {
			t.Fatalf("names of others changed from %v to %v", foreign, got)
		}
		if got := len(zone) - len(foreign); got != 2*len(wanted) {
			t.Fatalf("%d names of organizations, want %d: %v", got, 2*len(wanted), zone)
		}
		for _, w := range wanted {
			if !same(zone[w.Name], w.Record) || !same(zone["*."+w.Name], w.Record) || zone[w.Name].Epoch != w.Epoch {
				t.Fatalf("%s is %v and %v, want %v", w.Name, zone[w.Name], zone["*."+w.Name], w.Record)
			}
		}
	})
}

// carryOut does to a map what the contract of Provider says.
func carryOut(zone map[string]Record, a Action) {
	owner, _ := split(a.Record.Name, testDomain)
	switch {
	case a.Verb == Make && (zone[owner].Epoch <= a.Record.Epoch || zone[owner].Epoch == a.Record.Instead):
		below := a.Record
		below.Instead = 0
		zone[owner] = below
		below.Name, below.Epoch = wildcard(owner), 0
		zone[below.Name] = below
	case a.Verb == Remove && zone[owner].Epoch <= a.UpTo:
		delete(zone, a.Record.Name)
		if a.Record.Name == owner {
			delete(zone, wildcard(owner))
		}
	}
}

func values(zone map[string]Record) []Record {
	var out []Record
	for _, r := range zone {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Record) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func foreignOf(zone map[string]Record) []Record {
	return slices.DeleteFunc(values(zone), func(r Record) bool {
		_, ours := split(r.Name, testDomain)
		return ours
	})
}
