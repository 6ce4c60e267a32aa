package check

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// looks are all snapshots of a run, in the order in which they were taken.
func (r *Run) looks() []Snapshot {
	return slices.Concat([]Snapshot{r.Before}, r.Samples, []Snapshot{r.After})
}

// oneLive: in every look an organization has at most one live allocation, and a gateway serves at most one.
func oneLive(r Run) []Violation {
	var out []Violation
	for _, look := range r.looks() {
		organizations, gateways := map[string]string{}, map[string]string{}
		for _, a := range look.Allocations {
			if a.EndedAt != nil {
				continue
			}
			if other := organizations[a.OrganizationID]; other != "" {
				out = append(out, Violation{OneLive, fmt.Sprintf("at %s organization %s has %s and %s", look.At, a.OrganizationID, other, a.AllocationID)})
			}
			organizations[a.OrganizationID] = a.AllocationID
			if a.GatewayID == "" {
				continue
			}
			if other := gateways[a.GatewayID]; other != "" {
				out = append(out, Violation{OneLive, fmt.Sprintf("at %s gateway %s serves %s and %s", look.At, a.GatewayID, other, a.AllocationID)})
			}
			gateways[a.GatewayID] = a.AllocationID
		}
	}
	return out
}

// granted is an allocation with its epoch as somebody saw it.
type granted struct {
	organization, gateway string
	epoch                 uint64
}

// epochsRise: an allocation keeps its gateway for an epoch, two of one organization or gateway differ in theirs,
// and what begins after something else has begun has the higher one.
func epochsRise(r Run) []Violation {
	var out []Violation
	seen := map[grant]granted{}
	saw := func(allocation string, g granted) {
		if g.epoch == 0 || g.gateway == "" {
			return
		}
		if was, ok := seen[grant{allocation, g.epoch}]; ok && was != g {
			out = append(out, Violation{EpochsRise, fmt.Sprintf("allocation %s was %+v and is %+v", allocation, was, g)})
		}
		seen[grant{allocation, g.epoch}] = g
	}
	for _, look := range r.looks() {
		for _, a := range look.Allocations {
			saw(a.AllocationID, granted{a.OrganizationID, a.GatewayID, a.Epoch})
		}
	}
	for _, op := range r.Operations {
		for _, it := range op.Items {
			if it.Allocation != "" {
				saw(it.Allocation, granted{it.Organization, it.Gateway, it.Epoch})
			}
		}
	}
	out = append(out, neverFall(r)...)
	type place struct {
		name  string
		epoch uint64
	}
	taken := map[place]string{}
	for of, g := range seen {
		allocation := of.allocation
		for _, p := range []place{{g.organization, g.epoch}, {g.gateway, g.epoch}} {
			if other := taken[p]; other != "" {
				out = append(out, Violation{EpochsRise, fmt.Sprintf("epoch %d of %s belongs to %s and %s", p.epoch, p.name, other, allocation)})
			}
			taken[p] = allocation
		}
	}
	return append(out, inOrder(r)...)
}

// neverFall: from one look to the next the epoch of an allocation does not fall.
func neverFall(r Run) []Violation {
	var out []Violation
	last := map[string]uint64{}
	for _, look := range r.looks() {
		for _, a := range look.Allocations {
			if a.Epoch < last[a.AllocationID] {
				out = append(out, Violation{EpochsRise, fmt.Sprintf("at %s allocation %s has epoch %d, and had %d", look.At, a.AllocationID, a.Epoch, last[a.AllocationID])})
			}
			last[a.AllocationID] = a.Epoch
		}
	}
	return out
}

// inOrder: what was made after an answer about an allocation has a higher epoch than that, in the whole pool.
func inOrder(r Run) []Violation {
	var answers []Operation
	for _, op := range r.Operations {
		if op.Outcome == OK && op.Kind != Release && len(op.Items) > 0 {
			answers = append(answers, op)
		}
	}
	slices.SortFunc(answers, func(a, b Operation) int { return cmp.Compare(a.Return, b.Return) })
	made := slices.Clone(r.After.Allocations)
	slices.SortFunc(made, func(a, b api.Allocation) int { return a.CreatedAt.Compare(b.CreatedAt) })
	var out []Violation
	var highest Item
	for _, a := range made {
		at := a.CreatedAt.Sub(r.Begun)
		for len(answers) > 0 && answers[0].Return < at {
			for _, it := range answers[0].Items {
				if it.Epoch > highest.Epoch {
					highest = it
				}
			}
			answers = answers[1:]
		}
		if a.Epoch != 0 && at > 0 && a.Epoch <= highest.Epoch {
			out = append(out, Violation{EpochsRise, fmt.Sprintf("allocation %s was made %s after the beginning with epoch %d, when %s was known to have epoch %d",
				a.AllocationID, at, a.Epoch, highest.Allocation, highest.Epoch)})
		}
	}
	return out
}

// exactlyOnce: one key has one answer, what was started is in the state, and what was not released serves.
func exactlyOnce(r Run) []Violation {
	var out []Violation
	after := map[string][]api.Allocation{}
	for _, a := range r.After.Allocations {
		after[a.AllocationID] = append(after[a.AllocationID], a)
	}
	released, owner := map[string]bool{}, map[string]string{}
	type answer struct{ key, organization string }
	answers := map[answer]string{}
	for _, op := range r.Operations {
		if op.Kind == Release && op.Outcome != Refused {
			released[op.Items[0].Allocation] = true
		}
	}
	for _, op := range r.Operations {
		for _, it := range op.Items {
			if it.Allocation == "" || op.Outcome != OK {
				continue
			}
			if was, ok := owner[it.Allocation]; ok && was != it.Organization {
				out = append(out, Violation{ExactlyOnce, fmt.Sprintf("allocation %s belongs to %s and %s", it.Allocation, was, it.Organization)})
			}
			owner[it.Allocation] = it.Organization
			if op.Key != "" {
				if was, ok := answers[answer{op.Key, it.Organization}]; ok && was != it.Allocation {
					out = append(out, Violation{ExactlyOnce, fmt.Sprintf("its key was answered with %s before: %s", was, describe(op))})
				}
				answers[answer{op.Key, it.Organization}] = it.Allocation
			}
			if op.Kind != Start && op.Kind != Batch && op.Kind != Release {
				continue
			}
			records := after[it.Allocation]
			switch {
			case len(records) != 1:
				out = append(out, Violation{ExactlyOnce, fmt.Sprintf("the state has %d records of what was acknowledged: %s", len(records), describe(op))})
			case op.Kind == Release && !ending(records[0].State):
				out = append(out, Violation{ExactlyOnce, fmt.Sprintf("it is %s: %s", records[0].State, describe(op))})
			case op.Kind != Release && records[0].EndedAt != nil && !released[it.Allocation] && records[0].Failure == nil:
				out = append(out, Violation{ExactlyOnce, fmt.Sprintf("nobody released it, and it is %s: %s", records[0].State, describe(op))})
			}
		}
	}
	return out
}

// nothingLeft: every allocation that began in the run is one that an operation was answered with, or one of an
// operation whose answer is not known or says that it was undone.
func nothingLeft(r Run) []Violation {
	known, may := map[string]bool{}, map[string]int{}
	for _, a := range r.Before.Allocations {
		known[a.AllocationID] = true
	}
	for _, op := range r.Operations {
		for _, it := range op.Items {
			if it.Allocation != "" && (op.Kind == Start || op.Kind == Batch) {
				known[it.Allocation] = true
			}
			if starts := op.Kind == Start || op.Kind == Batch; starts && (op.Outcome == Unknown || undone(it.Code) && it.Code != "" || op.Outcome == Refused && undone(op.Code)) {
				may[it.Organization]++
			}
		}
	}
	var out []Violation
	for _, a := range r.After.Allocations {
		if known[a.AllocationID] {
			continue
		}
		if may[a.OrganizationID]--; may[a.OrganizationID] < 0 {
			out = append(out, Violation{NothingLeft, fmt.Sprintf("nobody was answered with allocation %s of organization %s, epoch %d, %s, created %s after the beginning",
				a.AllocationID, a.OrganizationID, a.Epoch, a.State, a.CreatedAt.Sub(r.Begun))})
		}
	}
	return out
}

// cordoned: no allocation was given a gateway of a host, by a start or a move, at an index between that at which the
// host was known to be cordoned and that after which it was asked to be used again: an epoch is an index.
func cordoned(r Run) []Violation {
	type spot struct {
		host  string
		epoch uint64
	}
	granted := map[spot]string{}
	for _, look := range r.looks() {
		for _, a := range look.Allocations {
			granted[spot{a.HostID, a.Epoch}] = a.AllocationID
			for _, m := range a.Moves {
				granted[spot{m.ToHost, m.Epoch}] = a.AllocationID
			}
		}
	}
	var out []Violation
	since := map[string]uint64{}
	for _, op := range r.Operations { // those about hosts are one after the other
		switch op.Kind {
		case Cordon, Drain:
			if op.Outcome == OK {
				since[op.Host] = op.Index
			}
		case Uncordon:
			from, ok := since[op.Host]
			delete(since, op.Host)
			for at, allocation := range granted {
				if ok && at.host == op.Host && at.epoch > from && at.epoch <= op.Index {
					out = append(out, Violation{Cordoned, fmt.Sprintf("allocation %s got a gateway of host %s with epoch %d, when the host was cordoned from index %d to %d or longer",
						allocation, at.host, at.epoch, from, op.Index)})
				}
			}
		}
	}
	return out
}

// deadlines: what does not serve yet is young, and when quiet there is none of it.
func deadlines(r Run, l Limits) []Violation {
	var out []Violation
	for _, look := range r.looks() {
		for _, a := range look.Allocations {
			if a.EndedAt != nil || a.State == api.AllocationActive {
				continue
			}
			since := a.CreatedAt
			if a.Relocation != nil { // it had served before
				since = a.Relocation.Since
			}
			if age := look.Time.Sub(since); !ending(a.State) && age > l.Reservation {
				out = append(out, Violation{Deadlines, fmt.Sprintf("at %s allocation %s is %s after %s", look.At, a.AllocationID, a.State, age)})
			} else if look.Quiet {
				out = append(out, Violation{Deadlines, fmt.Sprintf("allocation %s is %s when all is quiet", a.AllocationID, a.State)})
			}
		}
	}
	return out
}

// counts: when quiet, a pool counts the gateways that there are, and each one that is allocated has its
// allocation, and no other has.
func counts(r Run) []Violation {
	var out []Violation
	wrong := func(format string, args ...any) { out = append(out, Violation{Counts, fmt.Sprintf(format, args...)}) }
	for _, look := range r.looks() {
		if !look.Quiet {
			continue
		}
		serving := map[string]string{}
		for _, a := range look.Allocations {
			if a.EndedAt == nil {
				serving[a.GatewayID] = a.AllocationID
			}
		}
		type cell struct{ pool, state string }
		have := map[cell]int{}
		for _, g := range look.Gateways {
			have[cell{g.Pool, g.State}]++
			if serving[g.GatewayID] != g.AllocationID {
				wrong("gateway %s is %s with allocation %q, and the allocations say %q", g.GatewayID, g.State, g.AllocationID, serving[g.GatewayID])
			}
			delete(serving, g.GatewayID)
		}
		for gateway, allocation := range serving {
			wrong("allocation %s is on gateway %q, which is not there", allocation, gateway)
		}
		for _, p := range look.Pools {
			for state, n := range map[string]int{
				api.GatewayReady: p.Counts.Ready, api.GatewayReserved: p.Counts.Reserved, api.GatewayAllocated: p.Counts.Allocated,
				api.GatewayRecycling: p.Counts.Recycling, api.GatewayStarting: p.Counts.Starting,
			} {
				if got := have[cell{p.Name, state}]; got != n {
					wrong("pool %s counts %d gateways as %s, and there are %d", p.Name, n, state, got)
				}
			}
		}
	}
	return out
}

// sameState: coordinators at one index hold one state.
func sameState(r Run) []Violation {
	var out []Violation
	at := map[uint64]NodeState{}
	for _, s := range r.States {
		if was, ok := at[s.Index]; ok && was.Hash != s.Hash {
			out = append(out, Violation{SameState, fmt.Sprintf("at index %d %s holds %s and %s holds %s", s.Index, was.Node, was.Hash, s.Node, s.Hash)})
		}
		at[s.Index] = s
	}
	return out
}

// routes: when quiet, the web server of an allocation's host leads to its gateway, and every other host
// refuses the organization.
func routes(r Run) []Violation {
	live := map[string]api.Allocation{}
	for _, a := range r.After.Allocations {
		if a.EndedAt == nil {
			live[a.OrganizationID] = a
		}
	}
	var out []Violation
	for _, got := range r.Answers {
		a, ok := live[got.Organization]
		switch {
		case ok && a.HostID == got.Host:
			if got.Status != http.StatusOK || got.Gateway != a.GatewayID || got.Epoch != a.Epoch || got.Served != a.OrganizationID {
				out = append(out, Violation{Routes, fmt.Sprintf("allocation %s is on gateway %s with epoch %d, and its host answers %+v", a.AllocationID, a.GatewayID, a.Epoch, got)})
			}
		case got.Status != http.StatusServiceUnavailable || got.Gateway != "":
			out = append(out, Violation{Routes, fmt.Sprintf("the organization is not on this host, which answers %+v", got)})
		}
	}
	return out
}

// names: when quiet, every coordinator names the address of an allocation's host, and nothing for an organization
// that has none.
func names(r Run) []Violation {
	address, want := map[string]string{}, map[string]string{}
	for _, h := range r.After.Hosts {
		address[h.HostID] = h.Address
	}
	for _, a := range r.After.Allocations {
		if a.EndedAt == nil {
			want[a.OrganizationID] = address[a.HostID]
		}
	}
	var out []Violation
	for _, got := range r.Names {
		if got.Error != "" || strings.Join(got.Addresses, " ") != want[got.Organization] {
			out = append(out, Violation{Names, fmt.Sprintf("want %q, got %+v", want[got.Organization], got)})
		}
	}
	return out
}

// noGrowth: when quiet a program uses no more than any of its kind at the beginning.
func noGrowth(r Run, l Limits) []Violation {
	var out []Violation
	before := map[string]Usage{}
	for _, u := range r.UsedBefore {
		most := before[u.Kind]
		before[u.Kind] = Usage{Goroutines: max(most.Goroutines, u.Goroutines), Files: max(most.Files, u.Files), Stored: max(most.Stored, u.Stored)}
	}
	for _, u := range r.UsedAfter {
		was, ok := before[u.Kind]
		if ok && (u.Goroutines > was.Goroutines+l.Goroutines || u.Files > was.Files+l.Files || u.Stored > was.Stored+l.Stored) {
			out = append(out, Violation{NoGrowth, fmt.Sprintf("%s has %d goroutines, %d open files and %d files in its data directory, where at the beginning no %s had more than %d, %d and %d",
				u.Program, u.Goroutines, u.Files, u.Stored, cmp.Or(u.Kind, "program"), was.Goroutines, was.Files, was.Stored)})
		}
	}
	return out
}
