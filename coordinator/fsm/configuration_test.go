package fsm_test

import (
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestCreateGatewaysIsBounded(t *testing.T) {
	m := newMachine(t)
	c := command.CreateGateways{Meta: m.meta(), Pool: "default", Reason: "ready 0 < 2"}
	m.refused(fault.NotFound, c)
	m.ok(command.PutPool{Meta: m.meta(), Pool: "default", Max: 5, Release: "1.0", Limits: command.Limits{Tasks: 9}})
	m.host("h1", 3)
	m.host("h2", 3)
	for n := 1; n <= 4; n++ { // the host has room for three
		c.Gateways = append(c.Gateways, command.NewGateway{ID: gwID(n), Host: "h1"})
	}
	c.Gateways = append(c.Gateways, command.NewGateway{ID: gwID(5), Host: "h9"}) // no such host
	if r := m.ok(c); r.Count != 3 {
		t.Fatalf("created %d", r.Count)
	}
	if e := m.events()[3]; e.Type != "pool.grown" || e.Before != "0" || e.After != "3" || e.Reason != "ready 0 < 2" {
		t.Fatalf("%+v", e)
	}
	if g := m.gateway(gwID(1)); g.Desired.Release != "1.0" || g.Desired.Limits.Tasks != 9 || g.Desired.Incarnation != 1 || g.Desired.Target != api.TargetRun {
		t.Fatalf("%+v", g.Desired)
	}
	for n := range c.Gateways { // the pool has room for two more; ids that exist are passed over
		c.Gateways[n] = command.NewGateway{ID: gwID(n + 1), Host: "h2"}
	}
	if r := m.ok(c); r.Count != 2 {
		t.Fatalf("created %d", r.Count)
	}
	if r := m.ok(c); r.Count != 0 || m.types() != "" {
		t.Fatalf("created %d in a full pool: %s", r.Count, m.types())
	}
	// A gateway on its way out does not count for the pool, and still does for its host.
	m.ok(command.RetireGateways{Meta: m.meta(), Gateways: []id.Gateway{gwID(1), gwID(99)}, Reason: "test"})
	c.Gateways = []command.NewGateway{{ID: gwID(20), Host: "h1"}, {ID: gwID(21), Host: "h2"}}
	if r := m.ok(c); r.Count != 1 || m.store.View().Gateway(nil, gwID(21)) == nil {
		t.Fatalf("created %d", r.Count)
	}
	m.ok(command.SetHostStatus{Meta: m.meta(), Host: "h1", Status: api.HostLost, Reason: "test"})
	m.ok(command.PutPool{Meta: m.meta(), Pool: "default", Max: 50})
	c.Gateways = []command.NewGateway{{ID: gwID(30), Host: "h1"}}
	if r := m.ok(c); r.Count != 0 {
		t.Fatal("created a gateway on a lost host")
	}
}

func TestRetireRecycleQuarantine(t *testing.T) {
	m := small(t, 3)
	m.active(1, 1)
	if r := m.ok(command.RetireGateways{Meta: m.meta(), Gateways: []id.Gateway{gwID(1), gwID(2)}, Reason: "too many"}); r.Count != 1 {
		t.Fatalf("%d retired", r.Count)
	}
	m.wantGateway(gwID(1), state.GatewayAllocated)
	m.wantGateway(gwID(2), state.GatewayTerminating)
	m.refused(fault.NotFound, command.RecycleGateway{Meta: m.meta(), Gateway: gwID(9)})
	m.refused(fault.NotFound, command.QuarantineGateway{Meta: m.meta(), Gateway: gwID(9)})
	m.refused(fault.Conflict, command.RecycleGateway{Meta: m.meta(), Gateway: gwID(2)})
	m.refused(fault.Conflict, command.QuarantineGateway{Meta: m.meta(), Gateway: gwID(2)})
	m.refused(fault.OrganizationActive, command.RecycleGateway{Meta: m.meta(), Gateway: gwID(1)})

	// Idle: quarantined at once, and back by recycling.
	m.ok(command.QuarantineGateway{Meta: m.meta(), Gateway: gwID(3), Reason: "odd"})
	m.wantGateway(gwID(3), state.GatewayQuarantined)
	if r := m.ok(command.QuarantineGateway{Meta: m.meta(), Gateway: gwID(3)}); r.Count != 0 || m.types() != "" {
		t.Fatal("quarantined twice:", m.types())
	}
	if out := m.reserve(2, 2); out.Err == nil {
		t.Fatal("a quarantined gateway was given out")
	}
	m.ok(command.RecycleGateway{Meta: m.meta(), Gateway: gwID(3)})
	m.wantGateway(gwID(3), state.GatewayRecycling)
	m.ok(command.RecycleGateway{Meta: m.meta(), Gateway: gwID(3)})
	if n := m.gateway(gwID(3)).Desired.Incarnation; n != 2 {
		t.Fatalf("incarnation %d: recycling what is being recycled demands nothing more", n)
	}
	m.observe(m.report(gwID(3), api.PhaseReady))
	m.wantGateway(gwID(3), state.GatewayReady)

	// Serving: quarantined at its release.
	m.ok(command.QuarantineGateway{Meta: m.meta(), Gateway: gwID(1), Reason: "odd"})
	m.wantGateway(gwID(1), state.GatewayAllocated)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
	m.observe(m.report(gwID(1), api.PhaseReady))
	m.wantGateway(gwID(1), state.GatewayQuarantined)
	m.wantAllocation(alID(1), state.AllocationReleased)
}

func TestPool(t *testing.T) {
	m := newMachine(t)
	put := command.PutPool{Meta: m.meta(), Pool: "default", MinReady: 2, Step: 3, Max: 50, MaxInFlight: 10, Isolation: "serve"}
	if r := m.ok(put); r.Existing || m.types() != "pool.created" {
		t.Fatalf("%+v %s", r, m.types())
	}
	if r := m.ok(put); !r.Existing || m.types() != "" {
		t.Fatalf("the same again: %+v %s", r, m.types())
	}
	put.Max = 1
	m.ok(put)
	if e := m.events(); len(e) != 1 || e[0].Type != "pool.changed" || !strings.Contains(e[0].Before, "max 50") || !strings.Contains(e[0].After, "max 1,") {
		t.Fatalf("%+v", e)
	}
	for _, bad := range []command.PutPool{{}, {Pool: "p", Max: -1}, {Pool: "p", MinReady: -1}, {Pool: "p", Step: -1}, {Pool: "p", MaxInFlight: -1}, {Pool: "p", ActivationTimeout: -1}} {
		bad.Meta = m.meta()
		m.refused(fault.InvalidRequest, bad)
	}
	note := command.NotePool{Meta: m.meta(), Pool: "default", Breaker: "open", Until: m.now.Add(time.Minute), Failures: 3, Limited: "breaker", Reason: "they fail"}
	m.ok(note)
	if got := m.types(); got != "pool.breaker pool.limited" {
		t.Fatal("events:", got)
	}
	note.Reason = "another word for it"
	if m.ok(note); m.types() != "" {
		t.Fatal("the same note made", m.types())
	}
	m.ok(command.NotePool{Meta: m.meta(), Pool: "default", Breaker: "open", Until: note.Until, Failures: 3, Limited: ""})
	if p := m.store.View().Pool(nil, "default"); m.types() != "pool.limited" || p.Breaker.State != "open" || p.Limited != "" || p.Max != 1 {
		t.Fatalf("%s %+v", m.types(), p)
	}
	m.refused(fault.NotFound, command.NotePool{Meta: m.meta(), Pool: "other"})
}

func TestLoweringMaxEndsNothing(t *testing.T) {
	m := small(t, 3)
	m.ok(command.PutPool{Meta: m.meta(), Pool: "default", Max: 1, Release: "2.0"})
	if c := m.store.View().Counts(nil, "default"); c.Of(state.GatewayReady) != 3 {
		t.Fatalf("%d ready", c.Of(state.GatewayReady))
	}
	if got := m.gateway(gwID(1)).Desired.Release; got != "" {
		t.Fatalf("release %q: a running process is what it was started as", got)
	}
	m.ok(command.RecycleGateway{Meta: m.meta(), Gateway: gwID(1)})
	if got := m.gateway(gwID(1)).Desired.Release; got != "2.0" {
		t.Fatalf("release %q: the next process is of what the pool says now", got)
	}
}

func TestDeletePool(t *testing.T) {
	m := small(t, 2)
	del := command.DeletePool{Meta: m.meta(), Pool: "default"}
	m.refused(fault.NotFound, command.DeletePool{Meta: m.meta(), Pool: "other"})
	m.active(1, 1)
	m.refused(fault.OrganizationActive, del)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
	m.active(2, 2)
	c := m.reserveOf(3, 3)
	c.QueueUntil = m.now.Add(time.Hour)
	m.ok(c)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(2)})
	m.refused(fault.OrganizationActive, del) // somebody waits
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(3)})
	m.ok(del)
	m.ok(del)
	m.wantGateway(gwID(1), state.GatewayTerminating)
	m.refused(fault.Conflict, command.PutPool{Meta: m.meta(), Pool: "default"})
	m.refused(fault.NotFound, command.CreateGateways{Meta: m.meta(), Pool: "default"})
	if out := m.reserve(4, 4); out.Err == nil || out.Err.Code != fault.NotFound {
		t.Fatalf("%+v", out)
	}
	m.observe(m.report(gwID(1), api.PhaseGone))
	if m.store.View().Pool(nil, "default") == nil {
		t.Fatal("the pool went before its last gateway")
	}
	m.observe(m.report(gwID(2), api.PhaseGone))
	if got := m.types(); m.store.View().Pool(nil, "default") != nil || got != "allocation.released gateway.removed pool.deleted" {
		t.Fatal("events:", got)
	}
	m.pool("empty")
	m.ok(command.DeletePool{Meta: m.meta(), Pool: "empty"})
	if m.store.View().Pool(nil, "empty") != nil {
		t.Fatal("an empty pool is still there")
	}
}

func TestOrganization(t *testing.T) {
	m := small(t, 1)
	put := command.PutOrganization{
		Meta: m.meta(), Organization: orgID(1), Name: "One",
		Members:  []command.Member{{User: "bob", Role: "member"}, {User: "alice", Role: "owner"}},
		Projects: []command.Project{{ID: "p2"}, {ID: "p1"}},
	}
	if r := m.ok(put); !r.Existing || m.types() != "organization.changed" {
		t.Fatalf("%+v %s", r, m.types())
	}
	if o := m.store.View().Organization(nil, orgID(1)); o.Members[0].User != "alice" || o.Projects[0].ID != "p1" {
		t.Fatalf("not sorted: %+v", o)
	}
	if m.ok(put); m.types() != "" {
		t.Fatal("the same again made", m.types())
	}
	twice := put
	twice.Members = []command.Member{{User: "bob"}, {User: "alice"}, {User: "bob"}}
	m.refused(fault.InvalidRequest, twice)
	twice = put
	twice.Projects = []command.Project{{ID: "p1"}, {ID: "p1"}}
	m.refused(fault.InvalidRequest, twice)
	twice = put
	twice.Organization = ""
	m.refused(fault.InvalidRequest, twice)

	// P7: the last owner stays, whichever way somebody tries; as version 1 it was, and old logs give what they gave.
	ownerless := put
	ownerless.Members, ownerless.KeepOwner = []command.Member{{User: "bob", Role: "admin"}}, true
	m.refused(fault.Conflict, ownerless)
	ownerless.Members = nil
	m.refused(fault.Conflict, ownerless)
	ownerless.KeepOwner = false
	m.ok(ownerless)
	put.KeepOwner = true
	m.ok(put)

	edit := func(f func(*command.EditOrganization)) command.EditOrganization {
		c := command.EditOrganization{Meta: m.meta(), Organization: orgID(1)}
		f(&c)
		return c
	}
	unknown := edit(func(c *command.EditOrganization) { c.Organization = orgID(99) })
	m.refused(fault.NotFound, unknown)
	m.refused(fault.NotFound, edit(func(c *command.EditOrganization) { c.DeleteMember = "carol" }))
	m.refused(fault.NotFound, edit(func(c *command.EditOrganization) { c.DeleteProject = "p9" }))
	m.refused(fault.Conflict, edit(func(c *command.EditOrganization) { c.DeleteMember = "alice" }))
	m.refused(fault.Conflict, edit(func(c *command.EditOrganization) { c.PutMember = &command.Member{User: "alice", Role: "admin"} }))
	view := m.store.View()
	m.ok(edit(func(c *command.EditOrganization) { c.PutMember = &command.Member{User: "bob", Role: "owner"} }))
	m.ok(edit(func(c *command.EditOrganization) { c.DeleteMember = "alice" }))
	m.ok(edit(func(c *command.EditOrganization) { c.PutProject = &command.Project{ID: "p0", Name: "Zero"} }))
	m.ok(edit(func(c *command.EditOrganization) { c.DeleteProject = "p1" }))
	o := m.store.View().Organization(nil, orgID(1))
	if len(o.Members) != 1 || o.Members[0].Role != "owner" || len(o.Projects) != 2 || o.Projects[0].Name != "Zero" {
		t.Fatalf("%+v", o)
	}
	if old := view.Organization(nil, orgID(1)); len(old.Members) != 2 || old.Members[1].Role != "member" || old.Projects[0].ID != "p1" {
		t.Fatalf("an earlier record was modified: %+v", old)
	}
}

// TestMembersReachTheGateway: a change of what a gateway is told raises the index its agent watches.
func TestMembersReachTheGateway(t *testing.T) {
	m := small(t, 1)
	a := m.active(1, 1)
	m.ok(command.EditOrganization{Meta: m.meta(), Organization: orgID(1), PutMember: &command.Member{User: "bob", Role: "member"}})
	if got := m.gateway(a.Gateway).Desired.Index; got != m.index {
		t.Fatalf("the gateway's desired index is %d, want %d", got, m.index)
	}
	m.ok(command.EditOrganization{Meta: m.meta(), Organization: orgID(2), PutMember: &command.Member{User: "bob", Role: "member"}})
	if got := m.gateway(a.Gateway).Desired.Index; got != m.index-1 {
		t.Fatal("another organization's change reached the gateway")
	}
}

func TestTokens(t *testing.T) {
	m := newMachine(t)
	put := command.PutToken{Meta: m.meta(), Token: tkID(1), Role: "admin", Name: "root", Hash: "h1", Key: "k", Digest: "d", ExpiresAt: start.Add(time.Hour)}
	if r := m.ok(put); r.Existing || r.Object != string(tkID(1)) || m.types() != "token.created" {
		t.Fatalf("%+v", r)
	}
	again := put
	again.Token, again.Hash = tkID(2), "h2"
	if r := m.ok(again); !r.Existing || r.Object != string(tkID(1)) || m.types() != "" {
		t.Fatalf("%+v", r)
	}
	again.Digest = "other"
	m.refused(fault.Conflict, again)
	m.refused(fault.Conflict, command.PutToken{Meta: m.meta(), Token: tkID(1), Hash: "h3"})
	m.refused(fault.Conflict, command.PutToken{Meta: m.meta(), Token: tkID(3), Hash: "h1"})
	m.refused(fault.InvalidRequest, command.PutToken{Meta: m.meta(), Token: tkID(3)})
	v := m.store.View()
	if k := v.TokenByHash("h1"); k == nil || k != v.Token(nil, tkID(1)) || k.Role != "admin" {
		t.Fatalf("%+v", k)
	}
	m.refused(fault.NotFound, command.DeleteToken{Meta: m.meta(), Token: tkID(9)})
	m.ok(command.DeleteToken{Meta: m.meta(), Token: tkID(1)})
	if m.types() != "token.revoked" || m.store.View().TokenByHash("h1") != nil {
		t.Fatal("the token is still there")
	}
}

func TestInitCluster(t *testing.T) {
	m := newMachine(t)
	m.refused(fault.InvalidRequest, command.InitCluster{Meta: m.meta()})
	if r := m.ok(command.InitCluster{Meta: m.meta(), ClusterID: "c1"}); r.Existing || r.Object != "c1" {
		t.Fatalf("%+v", r)
	}
	if r := m.ok(command.InitCluster{Meta: m.meta(), ClusterID: "c1"}); !r.Existing {
		t.Fatalf("%+v", r)
	}
	m.refused(fault.Conflict, command.InitCluster{Meta: m.meta(), ClusterID: "c2"})
	if got := m.store.View().Cluster(); got != "c1" {
		t.Fatal(got)
	}
}

func TestCollect(t *testing.T) {
	m := small(t, 3)
	keyed := m.reserveOf(1, 1)
	keyed.Key, keyed.Digest = "k", "d"
	m.ok(keyed)
	m.ok(m.confirmOf(alID(1)))
	m.active(2, 2)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(1)})
	m.observe(m.report(gwID(1), api.PhaseReady))
	m.ok(command.PutToken{Meta: m.meta(), Token: tkID(1), Hash: "h1", ExpiresAt: m.now})
	m.ok(command.PutToken{Meta: m.meta(), Token: tkID(2), Hash: "h2"})
	if r := m.ok(command.Collect{Meta: m.meta(), Before: m.now}); r.Count != 0 {
		t.Fatalf("%d collected too early", r.Count)
	}
	if r := m.ok(command.Collect{Meta: m.meta(), Before: m.now.Add(1)}); r.Count != 3 || m.types() != "token.revoked" {
		t.Fatalf("%d collected, %s", r.Count, m.types())
	}
	v := m.store.View()
	if v.Allocation(nil, alID(1)) != nil || v.Request("k") != nil || v.Token(nil, tkID(1)) != nil {
		t.Fatal("history is still there")
	}
	if v.Allocation(nil, alID(2)) == nil || v.Token(nil, tkID(2)) == nil {
		t.Fatal("more than history was collected")
	}
}

func TestRecordEvents(t *testing.T) {
	m := newMachine(t)
	m.ok(command.RecordEvents{Meta: m.meta(), Events: []command.Event{
		{Type: "config.reloaded", Reason: "SIGHUP"},
		{Type: "allocation.refused", At: start.Add(-time.Second), Code: fault.RateLimited, Organization: orgID(1), Pool: "default"},
	}})
	e := m.events()
	if len(e) != 2 || e[0].Seq != 1 || e[1].Seq != 2 || e[0].Actor != "tk-operator00" || e[0].Source != "192.0.2.1" ||
		!e[0].At.Equal(start) || !e[1].At.Equal(start.Add(-time.Second)) || e[1].Code != fault.RateLimited {
		t.Fatalf("%+v", e)
	}
}
