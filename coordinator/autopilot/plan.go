// Package autopilot keeps the set of coordinators as it should be: it finds the members of a new cluster,
// brings in a coordinator that has joined the gossip, and takes out one that is gone. Form and Plan decide,
// pure; Former and Pilot are the loops.
package autopilot

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Peer is a member of the Raft cluster, and a candidate for it.
type Peer struct {
	ID, Address string
	Voter       bool
}

// Candidate is a coordinator as the gossip knows it.
type Candidate struct {
	ID      string
	Address string    // of Raft; empty: it does not say
	Alive   bool      // it answers
	Left    bool      // it said that it goes
	Since   time.Time // of being alive, failed or gone
	Expect  int       // how many coordinators it begins a new cluster with; 0: it waits to be brought in; -1: it does not say
	Empty   bool      // it has no log: it never was in a cluster
	Fit     bool      // it has what the leader has
}

// Form gives the first members of a new cluster, in the same order on each of them, once all are there; nil
// before. A coordinator that has a log already ends the forming: there is a cluster, and its leader brings
// the others in.
func Form(self Candidate, seen []Candidate) []Peer {
	if self.Expect < 1 || !self.Empty {
		return nil
	}
	members := []Peer{{ID: self.ID, Address: self.Address, Voter: true}}
	for _, c := range seen {
		switch {
		case c.ID == self.ID:
			continue
		case !c.Empty && !c.Left:
			return nil
		case c.Alive && c.Expect == self.Expect:
			members = append(members, Peer{ID: c.ID, Address: c.Address, Voter: true})
		}
	}
	if len(members) != self.Expect {
		return nil // too few; or too many, and nobody can tell which of them are meant
	}
	slices.SortFunc(members, func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) })
	return members
}

// waits says why Form begins nothing with what is seen, and what to do.
func waits(self Candidate, seen []Candidate) string {
	there := []string{self.ID}
	var members, odd []string
	for _, c := range seen {
		switch {
		case c.ID == self.ID:
		case !c.Empty && !c.Left:
			members = append(members, c.ID)
		case c.Alive && c.Expect == self.Expect:
			there = append(there, c.ID)
		case c.Alive && c.Expect >= 0:
			odd = append(odd, fmt.Sprintf("%s expects %d", c.ID, c.Expect))
		}
	}
	slices.Sort(there)
	list := strings.Join(there, ", ")
	switch missing := self.Expect - len(there); {
	case len(members) > 0:
		return fmt.Sprintf("a cluster exists (%s), and its leader brings this coordinator in; if that does not happen, look at `demiurge status` there",
			strings.Join(members, ", "))
	case missing < 0:
		return fmt.Sprintf("%d coordinators are there (%s), and cluster.bootstrap_expect is %d: stop those that are too many", len(there), list, self.Expect)
	case len(odd) > 0:
		return fmt.Sprintf("%d of %d coordinators are missing; there are: %s; %s: set the same cluster.bootstrap_expect on each", missing, self.Expect, list,
			strings.Join(odd, ", "))
	default:
		return fmt.Sprintf("%d of %d coordinators are missing; there are: %s; start the others, with the same cluster key, and name them in cluster.join",
			missing, self.Expect, list)
	}
}

// Do is what an Action does.
type Do string

// The actions.
const (
	Add     Do = "add"     // as a member without vote, which gets the log
	Promote Do = "promote" // to a voter
	Remove  Do = "remove"
)

// Action is one change of the members. One is done at a time, and all that is planned is planned anew after it.
type Action struct {
	Do     Do
	Peer   Peer
	Reason string
}

// Rules are Plan's measures.
type Rules struct {
	Settle    time.Duration // how long a new member has to be alive before it votes
	DeadAfter time.Duration // how long a member has to be gone before it is taken out
	MinVoters int           // taking a dead member out leaves at least so many voters
}

// Plan gives the changes of the members that may be next, each by itself. What the gossip says is no more than a hint:
// the caller sees to it that who is to be a member is there, and who is to be none is not. It never takes out so many that those which are alive
// are no majority, never the leader, and a dead one only when its place is filled: with three coordinators
// of which one is dead, all three stay members until a fourth has joined, because two tolerate no failure
// either way and the dead one may come back. The gossip says nothing of one that died before the others started anew: it
// counts as gone since the leader began to look.
func Plan(leader string, peers []Peer, seen []Candidate, since, now time.Time, r Rules) (out []Action) {
	known := map[string]Candidate{}
	for _, c := range seen {
		known[c.ID] = c
	}
	alive := func(p Peer) bool { return p.ID == leader || known[p.ID].Alive }
	voters, living := 0, 0
	for _, p := range peers {
		if p.Voter {
			voters++
			if alive(p) {
				living++
			}
		}
	}
	for _, c := range seen {
		if a := bringIn(c, peers, now, r); a != nil {
			out = append(out, *a)
		}
	}
	for _, p := range peers {
		c, heard := known[p.ID]
		if alive(p) {
			continue
		}
		if !heard {
			c.Since = since // it may be starting too
		}
		gone := now.Sub(c.Since)
		if !c.Left && gone < r.DeadAfter {
			continue
		}
		if p.Voter && (2*living <= voters-1 || !c.Left && voters-1 < r.MinVoters) {
			continue
		}
		reason := fmt.Sprintf("it has not answered for %s", gone.Round(time.Second))
		if c.Left {
			reason = "it has left"
		}
		out = append(out, Action{Do: Remove, Peer: p, Reason: reason})
	}
	return out
}

func bringIn(c Candidate, peers []Peer, now time.Time, r Rules) *Action {
	if !c.Alive || c.Address == "" {
		return nil
	}
	p := Peer{ID: c.ID, Address: c.Address}
	i := slices.IndexFunc(peers, func(p Peer) bool { return p.ID == c.ID })
	switch {
	case i < 0:
		if slices.ContainsFunc(peers, func(p Peer) bool { return p.Address == c.Address }) {
			return nil // somebody has its address: an operator has to look
		}
		return &Action{Do: Add, Peer: p, Reason: "it has joined"}
	case peers[i].Address != c.Address:
		p.Voter = peers[i].Voter
		if p.Voter {
			return &Action{Do: Promote, Peer: p, Reason: "it has another address now"}
		}
		return &Action{Do: Add, Peer: p, Reason: "it has another address now"}
	case !peers[i].Voter && c.Fit && now.Sub(c.Since) >= r.Settle:
		p.Voter = true
		return &Action{Do: Promote, Peer: p, Reason: "it has caught up"}
	}
	return nil
}
