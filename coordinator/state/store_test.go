package state_test

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// write runs one transaction as the entry of an index.
func write(s *state.Store, index uint64, f func(*state.Txn)) {
	t := s.Begin()
	t.Entry(state.Origin{Index: index, At: start, Actor: "test"})
	f(t)
	t.Commit()
}

func gw(n int) id.Gateway    { return id.Gateway(fmt.Sprintf("gw-%010d", n)) }
func al(n int) id.Allocation { return id.Allocation(fmt.Sprintf("al-%016d", n)) }

func gateway(n int, host id.Host, pool id.Pool, phase string) state.Gateway {
	return state.Gateway{
		ID: gw(n), Host: host, Pool: pool,
		Desired:  state.GatewayDesired{Target: api.TargetRun, Incarnation: 1},
		Observed: state.GatewayObserved{Incarnation: 1, Phase: phase},
	}
}

// fixture has two hosts with gateways of two pools.
func fixture(t *testing.T) *state.Store {
	t.Helper()
	s := state.New()
	write(s, 1, func(x *state.Txn) {
		for _, h := range []id.Host{"h1", "h2"} {
			x.PutHost(state.Host{ID: h, Status: api.HostAlive, Report: command.HostReport{NginxState: api.NginxServing, Capacity: 10}})
		}
		x.PutPool(state.Pool{Name: "a"})
		x.PutPool(state.Pool{Name: "b"})
		x.PutGateway(gateway(4, "h1", "a", api.PhaseReady), "")
		x.PutGateway(gateway(3, "h1", "b", api.PhaseReady), "")
		x.PutGateway(gateway(2, "h2", "a", api.PhaseFailed), "")
		x.PutGateway(gateway(1, "h2", "a", api.PhaseReady), "")
	})
	check(t, s)
	return s
}

func check(t *testing.T, s *state.Store) {
	t.Helper()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

func ids(seq func(func(*state.Gateway) bool)) string {
	var out []string
	for g := range seq {
		out = append(out, strings.TrimLeft(string(g.ID), "gw-0"))
	}
	return strings.Join(out, " ")
}

func TestReadsOfGateways(t *testing.T) {
	v := fixture(t).View()
	for what, c := range map[string][2]string{
		"all":     {ids(v.Gateways(nil)), "1 2 3 4"},
		"host h1": {ids(v.GatewaysOfHost(nil, "h1")), "3 4"},
		"host h2": {ids(v.GatewaysOfHost(nil, "h2")), "1 2"},
		"host h3": {ids(v.GatewaysOfHost(nil, "h3")), ""},
		"ready":   {ids(v.GatewaysOfPoolIn("a", state.GatewayReady)), "1 4"},
		"failed":  {ids(v.GatewaysOfPoolIn("a", state.GatewayFailed)), "2"},
		"pool b":  {ids(v.GatewaysOfPoolIn("b", state.GatewayFailed)), ""},
		"pool c":  {ids(v.GatewaysOfPoolIn("c", state.GatewayReady)), ""},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %q, want %q", what, c[0], c[1])
		}
	}
	seq := v.GatewaysOfPoolIn("a", state.GatewayReady)
	if a, b := ids(seq), ids(seq); a != b {
		t.Errorf("ranged over twice: %q and %q", a, b)
	}
	for range v.Gateways(nil) {
		break // leaving early is allowed
	}
	if c := v.Counts(nil, "a"); c.Of(state.GatewayReady) != 2 || c.Of(state.GatewayFailed) != 1 || c.Total() != 3 || c.Of("other") != 0 {
		t.Errorf("pool a: %+v", c)
	}
	if c := v.CountsOfHost(nil, "a", "h1"); c.Total() != 1 {
		t.Errorf("pool a on h1: %+v", c)
	}
	if c := v.HostCounts(nil, "h1"); c.Total() != 2 || c.InUse() != 0 {
		t.Errorf("host h1: %+v", c)
	}
	if v.HostCounts(nil, "h9").Total() != 0 || v.CountsOfHost(nil, "a", "h9").Total() != 0 || v.CountsOfHost(nil, "z", "h1").Total() != 0 {
		t.Error("something is counted where nothing is")
	}
	if v.Gateway(nil, "") != nil || v.Gateway(nil, gw(9)) != nil || v.Gateway(nil, gw(1)).Pool != "a" {
		t.Error("a gateway by its id")
	}
}

// TestViewsStay: a view keeps what it has seen, whatever is written afterwards.
func TestViewsStay(t *testing.T) {
	s := fixture(t)
	v := s.View()
	before := ids(v.GatewaysOfHost(nil, "h1"))
	record := *v.Gateway(nil, gw(4))
	for n := range 50 {
		write(s, uint64(2+n), func(x *state.Txn) {
			x.PutGateway(gateway(100+n, "h1", "a", api.PhaseReady), "")
			if n == 10 {
				x.RemoveGateway(x.Gateway(gw(4)), "test")
			}
		})
		check(t, s)
	}
	if got := ids(v.GatewaysOfHost(nil, "h1")); got != before || v.Counts(nil, "a").Total() != 3 || v.Index() != 1 {
		t.Fatalf("an old view changed: %q, was %q", got, before)
	}
	if got := v.Gateway(nil, gw(4)); got.Desired != record.Desired || got.State != record.State || got.ModifyIndex != 1 {
		t.Fatalf("a record changed: %+v", got)
	}
	if got := s.View(); got.Index() != 51 || got.Counts(nil, "a").Total() != 52 || got.Gateway(nil, gw(4)) != nil {
		t.Fatalf("the new view: index %d", got.Index())
	}
}

// TestWatches: each read's watch fires when what it read changes, and not for another host.
func TestWatches(t *testing.T) {
	s := fixture(t)
	v := s.View()
	watched := func(read func(state.WatchSet)) state.WatchSet {
		ws := memdb.NewWatchSet()
		read(ws)
		if len(ws) == 0 {
			t.Fatal("a read added no watch")
		}
		return ws
	}
	fired := func(ws state.WatchSet) bool {
		for ch := range ws {
			select {
			case <-ch:
				return true
			default:
			}
		}
		return false
	}
	h1 := watched(func(ws state.WatchSet) { v.GatewaysOfHost(ws, "h1") })
	h2 := watched(func(ws state.WatchSet) { v.GatewaysOfHost(ws, "h2") })
	one := watched(func(ws state.WatchSet) { v.Gateway(ws, gw(4)) })
	counts := watched(func(ws state.WatchSet) { v.Counts(ws, "a") })
	allocation := watched(func(ws state.WatchSet) { v.Allocation(ws, al(1)) })
	live := watched(func(ws state.WatchSet) { v.LiveAllocation(ws, "o1") })
	line := watched(func(ws state.WatchSet) { v.Line(ws, "a") })
	write(s, 2, func(x *state.Txn) { x.PutGateway(gateway(4, "h1", "a", api.PhaseUnhealthy), "") })
	if !fired(h1) || !fired(one) || !fired(counts) || fired(h2) || fired(allocation) || fired(live) || fired(line) {
		t.Fatal("a gateway's change")
	}
	write(s, 3, func(x *state.Txn) {
		x.PutAllocation(state.Allocation{ID: al(1), Organization: "o1", Pool: "a", State: state.AllocationQueued, QueueIndex: 3}, "")
	})
	if !fired(allocation) || !fired(live) || !fired(line) || fired(h2) {
		t.Fatal("an allocation's coming")
	}
}

func TestLineOrder(t *testing.T) {
	s := fixture(t)
	places := []struct {
		n     int
		index uint64
		seq   int
		pool  id.Pool
	}{{5, 300, 1, "a"}, {4, 9, 2, "a"}, {3, 9, 1, "a"}, {2, 300, 256, "a"}, {1, 1, 1, "b"}, {6, 256, 1, "a"}}
	write(s, 2, func(x *state.Txn) {
		for _, p := range places {
			x.PutAllocation(state.Allocation{
				ID: al(p.n), Organization: id.Organization(fmt.Sprint("o", p.n)), Pool: p.pool,
				State: state.AllocationQueued, QueueIndex: p.index, QueueSeq: p.seq,
			}, "")
		}
	})
	var got []id.Allocation
	for a := range s.View().Line(nil, "a") {
		got = append(got, a.ID)
	}
	if want := []id.Allocation{al(3), al(4), al(6), al(5), al(2)}; !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	s := fixture(t)
	want := s.Checkpoint().Hash()
	x := s.Begin()
	x.Entry(state.Origin{Index: 2, At: start})
	x.PutGateway(gateway(9, "h1", "a", api.PhaseReady), "")
	x.RemoveGateway(x.Gateway(gw(4)), "")
	x.Abort()
	if s.Checkpoint().Hash() != want {
		t.Fatal("an aborted transaction left something")
	}
	write(s, 2, func(x *state.Txn) { x.PutGateway(gateway(8, "h1", "a", api.PhaseReady), "") })
	check(t, s)
}

// TestCheckFinds shows that the invariants can be broken and that Check sees it.
func TestCheckFinds(t *testing.T) {
	reserved := func(n int, org id.Organization, g id.Gateway, epoch id.Epoch) state.Allocation {
		return state.Allocation{ID: al(n), Organization: org, Pool: "a", Gateway: g, Host: "h1", Epoch: epoch, State: state.AllocationReserved}
	}
	granted := func(n int, allocation id.Allocation, org id.Organization, epoch id.Epoch) state.Gateway {
		g := gateway(n, "h1", "a", api.PhaseReady)
		g.Desired.Allocation, g.Desired.Organization, g.Desired.Epoch = allocation, org, epoch
		return g
	}
	for text, breakIt := range map[string]func(*state.Txn){
		"was made while": func(x *state.Txn) {
			x.PutAllocation(reserved(1, "o1", gw(4), 2), "")
			x.PutAllocation(reserved(2, "o1", gw(3), 2), "")
		},
		"given to": func(x *state.Txn) {
			x.PutAllocation(reserved(1, "o1", gw(4), 2), "")
			x.PutAllocation(reserved(2, "o2", gw(4), 2), "")
		},
		"is granted to \"\"":         func(x *state.Txn) { x.PutAllocation(reserved(1, "o1", gw(4), 2), "") },
		"which does not have it":     func(x *state.Txn) { x.PutGateway(granted(4, al(7), "o1", 2), "") },
		"without a grant":            func(x *state.Txn) { x.PutGateway(granted(4, "", "o1", 2), "") },
		"is after the log's index":   func(x *state.Txn) { x.PutAllocation(reserved(1, "o1", gw(4), 99), "") },
		"without a gateway":          func(x *state.Txn) { x.PutAllocation(reserved(1, "o1", "", 2), "") },
		"for organization o1, which": func(x *state.Txn) { x.PutAllocation(reserved(1, "o1", gw(4), 2), "") },
		"waits in line and host": func(x *state.Txn) {
			x.PutAllocation(state.Allocation{ID: al(1), Organization: "o1", Pool: "a", State: state.AllocationQueued}, "")
		},
		"are in no line": func(x *state.Txn) {
			x.PutAllocation(state.Allocation{ID: al(1), Organization: "o1", Pool: "z", State: state.AllocationQueued}, "")
		},
		"may not go from  to active": func(x *state.Txn) { x.PutAllocation(state.Allocation{ID: al(1), State: state.AllocationActive}, "") },
		"of pool z, which":           func(x *state.Txn) { x.PutGateway(gateway(9, "h1", "z", api.PhaseReady), "") },
		"which is lost": func(x *state.Txn) {
			x.PutAllocation(reserved(1, "o1", gw(4), 2), "")
			x.PutHost(state.Host{ID: "h1", Status: api.HostLost})
		},
		"is ready and should be lost": func(x *state.Txn) { x.PutHost(state.Host{ID: "h1", Status: api.HostLost}) },
		"are not sorted": func(x *state.Txn) {
			x.PutOrganization(state.Organization{ID: "o", Members: []command.Member{{User: "b"}, {User: "a"}}})
		},
		"only 1 was wanted": func(x *state.Txn) {
			g := gateway(4, "h1", "a", api.PhaseReady)
			g.Observed.Incarnation = 2
			x.PutGateway(g, "")
		},
		"may not go from ready to allocated": func(x *state.Txn) {
			a := reserved(1, "o1", gw(4), 2)
			a.State = state.AllocationActive
			x.PutAllocation(a, "")
			x.PutGateway(granted(4, al(1), "o1", 2), "")
		},
	} {
		s := fixture(t)
		write(s, 2, breakIt)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not found: %v", text, err)
		}
	}
}

func TestMovesAreCopies(t *testing.T) {
	moves := state.AllowedAllocationMoves()
	moves[state.AllocationQueued][0] = "x"
	delete(moves, state.AllocationActive)
	again := state.AllowedAllocationMoves()
	if again[state.AllocationQueued][0] == "x" || again[state.AllocationActive] == nil {
		t.Fatal("the table itself was given out")
	}
	// Ended allocations go nowhere, and a gateway goes only where it may come from.
	for from, to := range again {
		for _, s := range to {
			if !s.Live() && again[s] != nil {
				t.Errorf("%s → %s goes on to %s", from, s, again[s])
			}
		}
	}
	for from, to := range state.AllowedGatewayMoves() {
		for _, s := range to {
			if s != state.GatewayTerminated && state.AllowedGatewayMoves()[s] == nil {
				t.Errorf("%s → %s is a dead end", from, s)
			}
			if (from == state.GatewayReserved || from == state.GatewayAllocated) && s == state.GatewayReady {
				t.Errorf("%s → ready: a gateway that has served is given out again", from)
			}
		}
	}
}

func TestSaveAndLoad(t *testing.T) {
	s := fixture(t)
	write(s, 2, func(x *state.Txn) {
		x.SetCluster("c1")
		x.PutToken(state.Token{ID: "tk-1", Hash: "h", ExpiresAt: start})
		x.PutRequest(state.Request{Key: "k", Kind: state.KindToken, Objects: []string{"tk-1"}, At: start})
		x.PutOrganization(state.Organization{ID: "o1", Name: "One", Members: []command.Member{{User: "alice", Role: "owner"}}})
		x.PutAllocation(state.Allocation{ID: al(1), Organization: "o1", Pool: "b", State: state.AllocationQueued, Metadata: map[string]string{"z": "1", "a": "2"}}, "")
		x.Emit(state.Event{Type: "config.reloaded"})
	})
	var saved bytes.Buffer
	if err := s.Checkpoint().Save(&saved); err != nil {
		t.Fatal(err)
	}
	loaded, err := state.Load(bytes.NewReader(saved.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Checkpoint().Hash() != s.Checkpoint().Hash() {
		t.Fatal("what was loaded is not what was saved")
	}
	v := loaded.View()
	if v.Cluster() != "c1" || v.Index() != 2 || v.TokenByHash("h") == nil || v.Request("k") == nil || v.Organization(nil, "o1").Name != "One" {
		t.Fatal("something is missing")
	}
	if last := loaded.LastEvent(); last != s.LastEvent() || last == (state.EventID{}) {
		t.Fatalf("last event %v, was %v", last, s.LastEvent())
	}
	for n := 0; n < saved.Len(); n += 13 {
		if _, err := state.Load(bytes.NewReader(saved.Bytes()[:n])); err == nil {
			t.Fatalf("%d of %d bytes were loaded", n, saved.Len())
		}
	}
	damaged := append([]byte{99, 2, '{', '}'}, saved.Bytes()...)
	if _, err := state.Load(bytes.NewReader(damaged)); err == nil || !strings.Contains(err.Error(), "unknown kind 99") {
		t.Fatal(err)
	}
	huge := []byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f}
	if _, err := state.Load(bytes.NewReader(huge)); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatal(err)
	}
}

// TestListsGoOnAfterAnyID: also after one that is not there any more, or that is the beginning of others.
func TestListsGoOnAfterAnyID(t *testing.T) {
	s := fixture(t)
	names := []string{"h1", "h2", "h10", "h", "h100", "h3"}
	write(s, 2, func(x *state.Txn) {
		for n, name := range names {
			x.PutHost(state.Host{ID: id.Host(name), Status: api.HostAlive})
			x.PutPool(state.Pool{Name: id.Pool(name)})
			x.PutToken(state.Token{ID: id.Token(name), Hash: name})
			x.PutJoinToken(state.JoinToken{ID: id.JoinToken(name)})
			x.PutOrganization(state.Organization{ID: id.Organization(name)})
			x.PutGateway(gateway(10+n, "h2", id.Pool(name), api.PhaseReady), "")
			a := state.Allocation{ID: al(n), Organization: id.Organization(name), State: state.AllocationReserved}
			if n%2 == 0 {
				a.State = state.AllocationFailed
			}
			x.PutAllocation(a, "")
		}
	})
	v := s.View()
	for _, after := range []string{"", "a", "gw-0000000010", "gw-0000000013", "gw-000000001", "h", "h0", "h1", "h10", "h2", "h9", "al-0000000000000002", "al-0000000000000003", "z"} {
		goesOn(t, v.Hosts(nil), v.HostsAfter(nil, id.Host(after)), after, func(h *state.Host) string { return string(h.ID) })
		goesOn(t, v.Pools(nil), v.PoolsAfter(nil, id.Pool(after)), after, func(p *state.Pool) string { return string(p.Name) })
		goesOn(t, v.Tokens(nil), v.TokensAfter(nil, id.Token(after)), after, func(k *state.Token) string { return string(k.ID) })
		goesOn(t, v.JoinTokens(nil), v.JoinTokensAfter(nil, id.JoinToken(after)), after, func(k *state.JoinToken) string { return string(k.ID) })
		goesOn(t, v.Organizations(nil), v.OrganizationsAfter(nil, id.Organization(after)), after, func(o *state.Organization) string { return string(o.ID) })
		goesOn(t, v.Gateways(nil), v.GatewaysAfter(nil, id.Gateway(after)), after, func(g *state.Gateway) string { return string(g.ID) })
		goesOn(t, v.GatewaysOfHost(nil, "h2"), v.GatewaysOfHostAfter(nil, "h2", id.Gateway(after)), after, func(g *state.Gateway) string { return string(g.ID) })
		goesOn(t, v.Allocations(nil), v.AllocationsAfter(nil, id.Allocation(after)), after, func(a *state.Allocation) string { return string(a.ID) })
		goesOn(t, v.UnendedAllocations(nil), v.UnendedAllocationsAfter(nil, id.Allocation(after)), after, func(a *state.Allocation) string { return string(a.ID) })
	}
	for range v.Hosts(nil) {
		break // a reader may end early
	}
	for range v.Allocations(nil) {
		break
	}
}

// goesOn compares a list after an id with what of the whole list comes after it.
func goesOn[T any](t *testing.T, whole, rest iter.Seq[T], after string, idOf func(T) string) {
	t.Helper()
	var want, got []string
	for r := range whole {
		if key := idOf(r); key > after {
			want = append(want, key)
		}
	}
	for r := range rest {
		got = append(got, idOf(r))
	}
	if after == "" && len(got) < 3 || !slices.IsSorted(got) || !slices.Equal(got, want) {
		t.Errorf("after %q come %q, want %q", after, got, want)
	}
}

// TestHistoryIsReadFromItsPlace counts the objects that reading makes: unpacking an ended allocation makes some. So the last
// page of a long history costs what its first one does, and neither what there is besides.
func TestHistoryIsReadFromItsPlace(t *testing.T) {
	s := state.New()
	const many = 2000
	write(s, 1, func(x *state.Txn) {
		for n := range many {
			a := state.Allocation{ID: al(n), Organization: id.Organization(fmt.Sprint(n)), State: state.AllocationFailed, Metadata: map[string]string{"n": fmt.Sprint(n)}}
			if n%2 == 0 {
				a.State = state.AllocationReserved
			}
			x.PutAllocation(a, "")
		}
	})
	v := s.View()
	objects := func(after id.Allocation) float64 {
		return testing.AllocsPerRun(5, func() {
			n := 0
			for range v.AllocationsAfter(nil, after) {
				if n++; n == 10 {
					return
				}
			}
		})
	}
	first, last := objects(""), objects(al(many-11))
	if first > 250 || last > 250 {
		t.Errorf("the first ten of %d allocations make %v objects and the last ten %v, want 20 or so for each that has ended", many, first, last)
	}
}
