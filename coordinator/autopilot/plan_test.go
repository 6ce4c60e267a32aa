package autopilot

import (
	"reflect"
	"testing"
	"time"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

func TestForm(t *testing.T) {
	empty := func(id string, expect int) Candidate {
		return Candidate{ID: id, Address: id + ":7401", Alive: true, Expect: expect, Empty: true}
	}
	member := empty("c4", 3)
	member.Empty = false
	dead := empty("c3", 3)
	dead.Alive = false
	gone := member
	gone.Alive, gone.Left = false, true
	voters := func(ids ...string) (out []Peer) {
		for _, id := range ids {
			out = append(out, Peer{ID: id, Address: id + ":7401", Voter: true})
		}
		return out
	}
	for name, tt := range map[string]struct {
		self Candidate
		seen []Candidate
		want []Peer
	}{
		"alone":                    {empty("c1", 1), nil, voters("c1")},
		"alone, and heard of":      {empty("c1", 1), []Candidate{empty("c1", 1)}, voters("c1")},
		"too few":                  {empty("c1", 3), []Candidate{empty("c2", 3)}, nil},
		"all, in the same order":   {empty("c2", 3), []Candidate{empty("c3", 3), empty("c2", 3), empty("c1", 3)}, voters("c1", "c2", "c3")},
		"one does not answer":      {empty("c1", 3), []Candidate{empty("c2", 3), dead}, nil},
		"one more than expected":   {empty("c1", 3), []Candidate{empty("c2", 3), empty("c3", 3), empty("c4", 3)}, nil},
		"another expects more":     {empty("c1", 3), []Candidate{empty("c2", 3), empty("c3", 5)}, nil},
		"there is a cluster":       {empty("c1", 3), []Candidate{empty("c2", 3), empty("c3", 3), member}, nil},
		"the former cluster left":  {empty("c1", 2), []Candidate{empty("c2", 2), gone}, voters("c1", "c2")},
		"waits to be brought in":   {empty("c1", 0), []Candidate{empty("c2", 0)}, nil},
		"has a log":                {member, []Candidate{empty("c2", 3), empty("c3", 3)}, nil},
		"one waits, one has begun": {empty("c1", 1), []Candidate{member}, nil},
	} {
		if got := Form(tt.self, tt.seen); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

func TestWhyNoClusterBeginsIsSaid(t *testing.T) {
	empty := func(id string, expect int) Candidate {
		return Candidate{ID: id, Address: id + ":7401", Alive: true, Expect: expect, Empty: true}
	}
	member, dead := empty("c4", 3), empty("c3", 3)
	member.Empty, dead.Alive = false, false
	for name, tt := range map[string]struct {
		seen []Candidate
		want string
	}{
		"alone": {nil, "2 of 3 coordinators are missing; there are: c1; start the others, with the same cluster key, and name them in cluster.join"},
		"one more, and one that was there": {
			[]Candidate{empty("c2", 3), empty("c1", 3), dead},
			"1 of 3 coordinators are missing; there are: c1, c2; start the others, with the same cluster key, and name them in cluster.join",
		},
		"another number": {
			[]Candidate{empty("c2", 3), empty("c3", 5)},
			"1 of 3 coordinators are missing; there are: c1, c2; c3 expects 5: set the same cluster.bootstrap_expect on each",
		},
		"too many": {
			[]Candidate{empty("c2", 3), empty("c3", 3), empty("c4", 3)},
			"4 coordinators are there (c1, c2, c3, c4), and cluster.bootstrap_expect is 3: stop those that are too many",
		},
		"a cluster": {
			[]Candidate{empty("c2", 3), empty("c3", 3), member},
			"a cluster exists (c4), and its leader brings this coordinator in; if that does not happen, look at `demiurge status` there",
		},
	} {
		if Form(empty("c1", 3), tt.seen) != nil {
			t.Errorf("%s: it begins", name)
		}
		if got := waits(empty("c1", 3), tt.seen); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestPlan(t *testing.T) {
	rules := Rules{Settle: 2 * time.Second, DeadAfter: 5 * time.Minute, MinVoters: 3}
	peers := func(ids ...string) (out []Peer) {
		for _, id := range ids {
			out = append(out, Peer{ID: id, Address: id + ":7401", Voter: true})
		}
		return out
	}
	alive := func(id string) Candidate {
		return Candidate{ID: id, Address: id + ":7401", Alive: true, Since: ago(time.Hour), Fit: true}
	}
	dead := func(id string, since time.Duration) Candidate {
		return Candidate{ID: id, Address: id + ":7401", Since: ago(since)}
	}
	left := func(id string) Candidate {
		c := dead(id, time.Second)
		c.Left = true
		return c
	}
	learner := Peer{ID: "c4", Address: "c4:7401"}
	behind := alive("c4")
	behind.Fit = false
	silent := alive("c4")
	silent.Alive = false
	silent.Since = ago(time.Minute)
	fresh := alive("c4")
	fresh.Since = ago(time.Second)
	moved := alive("c2")
	moved.Address = "c9:7401"
	thief := alive("c4")
	thief.Address = "c2:7401"
	for name, tt := range map[string]struct {
		peers []Peer
		seen  []Candidate
		do    Do
		id    string
	}{
		"one failed before it was a member":    {peers("c1", "c2", "c3"), []Candidate{alive("c2"), alive("c3"), dead("c4", time.Second)}, "", ""},
		"one left before it was a member":      {peers("c1", "c2", "c3"), []Candidate{alive("c2"), alive("c3"), left("c4")}, "", ""},
		"one says no address":                  {peers("c1", "c2", "c3"), []Candidate{alive("c2"), alive("c3"), {ID: "c4", Alive: true}}, "", ""},
		"one without vote has failed":          {append(peers("c1", "c2", "c3"), learner), []Candidate{alive("c2"), alive("c3"), silent}, "", ""},
		"all well":                             {peers("c1", "c2", "c3"), []Candidate{alive("c1"), alive("c2"), alive("c3")}, "", ""},
		"one has joined":                       {peers("c1"), []Candidate{alive("c1"), alive("c2")}, Add, "c2"},
		"one has caught up":                    {append(peers("c1"), learner), []Candidate{alive("c4")}, Promote, "c4"},
		"one is behind":                        {append(peers("c1"), learner), []Candidate{behind}, "", ""},
		"one has just come":                    {append(peers("c1"), learner), []Candidate{fresh}, "", ""},
		"one has moved":                        {peers("c1", "c2", "c3"), []Candidate{moved, alive("c3")}, Promote, "c2"},
		"one claims another's address":         {peers("c1", "c2", "c3"), []Candidate{alive("c2"), alive("c3"), thief}, "", ""},
		"one is down for a moment":             {peers("c1", "c2", "c3", "c4"), []Candidate{alive("c2"), alive("c3"), dead("c4", time.Minute)}, "", ""},
		"a dead one whose place is filled":     {peers("c1", "c2", "c3", "c4"), []Candidate{alive("c2"), alive("c3"), dead("c4", time.Hour)}, Remove, "c4"},
		"a dead one whose place is not filled": {peers("c1", "c2", "c3"), []Candidate{alive("c2"), dead("c3", time.Hour)}, "", ""},
		"one that left":                        {peers("c1", "c2", "c3"), []Candidate{alive("c2"), left("c3")}, Remove, "c3"},
		"one that left would end the majority": {peers("c1", "c2", "c3", "c4"), []Candidate{dead("c2", time.Second), dead("c3", time.Second), left("c4")}, "", ""},
		"too many are dead":                    {peers("c1", "c2", "c3", "c4", "c5"), []Candidate{alive("c2"), dead("c3", time.Hour), dead("c4", time.Hour), dead("c5", time.Hour)}, "", ""},
		"a dead one without vote":              {append(peers("c1", "c2", "c3"), learner), []Candidate{alive("c2"), alive("c3"), dead("c4", time.Hour)}, Remove, "c4"},
		"not heard of since the start":         {peers("c1", "c2", "c3", "c4"), []Candidate{alive("c2"), alive("c3")}, "", ""},
		"the gossip calls the leader dead":     {peers("c1", "c2", "c3", "c4"), []Candidate{dead("c1", time.Hour), alive("c2"), alive("c3"), alive("c4")}, "", ""},
	} {
		all := Plan("c1", tt.peers, tt.seen, ago(time.Minute), now, rules)
		if len(all) == 0 {
			all = []Action{{}}
		}
		got := all[0]
		switch {
		case len(all) > 1, got.Do != tt.do || got.Peer.ID != tt.id:
			t.Errorf("%s: %+v, want %s %s", name, all, tt.do, tt.id)
		case tt.do == "":
		case got.Do != Remove && got.Peer.Address == "", got.Do == Promote && !got.Peer.Voter:
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A coordinator that died before all others were started anew, such as for a new version, is in nobody's gossip.
func TestPlanOfOneThatNobodyHasHeardOf(t *testing.T) {
	rules := Rules{Settle: 2 * time.Second, DeadAfter: 5 * time.Minute, MinVoters: 3}
	var peers []Peer
	var seen []Candidate
	for _, id := range []string{"c1", "c2", "c3", "c4"} {
		peers = append(peers, Peer{ID: id, Address: id + ":7401", Voter: true})
		seen = append(seen, Candidate{ID: id, Address: id + ":7401", Alive: true, Since: ago(time.Hour), Fit: true})
	}
	for name, tt := range map[string]struct {
		peers   []Peer
		seen    []Candidate
		looking time.Duration
		want    string
	}{
		"it may be starting":                {peers, seen[:3], 5*time.Minute - 1, ""},
		"its place is filled":               {peers, seen[:3], 5 * time.Minute, "c4"},
		"its place is not filled":           {peers[:3], seen[:2], time.Hour, ""},
		"those that are left are too few":   {peers, seen[:1], time.Hour, ""},
		"it never voted, and it is no loss": {append(peers[:3:3], Peer{ID: "c4", Address: "c4:7401"}), seen[:3], time.Hour, "c4"},
	} {
		got := ""
		for _, a := range Plan("c1", tt.peers, tt.seen, ago(tt.looking), now, rules) {
			got += a.Peer.ID
			if a.Do != Remove {
				t.Errorf("%s: %+v", name, a)
			}
		}
		if got != tt.want {
			t.Errorf("%s: %q is taken out, want %q", name, got, tt.want)
		}
	}
}
