package fsm_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// world draws commands that fit together often enough to get far, and are wrong often enough to be refused.
type world struct {
	*machine
	t        *rapid.T
	next     int             // number of the next allocation, gateway or token
	gateways []id.Gateway    // ever created
	allocs   []id.Allocation // ever asked for
	cut      int             // entry after which the snapshot was taken
	saved    string
	view     state.View // of the same moment
	printed  string
}

// nested makes a machine report its failures to rapid, which shrinks them.
type nested struct {
	testing.TB
	t *rapid.T
}

func (n nested) Helper()                      {}
func (n nested) Fatal(args ...any)            { n.t.Fatal(args...) }
func (n nested) Fatalf(f string, args ...any) { n.t.Fatalf(f, args...) }

var (
	hosts  = []id.Host{"h1", "h2", "h3"}
	pools  = []id.Pool{"default", "other"}
	phases = []string{api.PhaseStarting, api.PhaseReady, api.PhaseReady, api.PhaseServing, api.PhaseUnhealthy, api.PhaseFailed, api.PhaseGone}
)

func (w *world) pick(what string, n int) int    { return rapid.IntRange(0, n-1).Draw(w.t, what) }
func (w *world) chance(what string, p int) bool { return w.pick(what, 100) < p }
func (w *world) anyHost() id.Host               { return hosts[w.pick("host", len(hosts))] }
func (w *world) anyPool() id.Pool               { return pools[w.pick("pool", 4)/3] }
func (w *world) anyOrg() id.Organization        { return orgID(1 + w.pick("org", 6)) }

func (w *world) anyGateway() id.Gateway {
	if len(w.gateways) == 0 {
		return gwID(0)
	}
	return w.gateways[w.pick("gateway", len(w.gateways))]
}

// anyAllocation prefers the newest, which are alive more often.
func (w *world) anyAllocation() *state.Allocation {
	v := w.store.View()
	live := slices.Collect(v.LiveAllocations(nil))
	if len(live) > 0 && w.chance("live", 85) {
		return live[w.pick("allocation", len(live))]
	}
	if len(w.allocs) > 0 {
		if a := v.Allocation(nil, w.allocs[w.pick("allocation", len(w.allocs))]); a != nil {
			return a
		}
	}
	return &state.Allocation{ID: alID(1 << 30), Epoch: 1}
}

func (w *world) run(c command.Command) command.Result {
	w.now = w.now.Add(time.Second)
	return w.do(c)
}

func (w *world) reserveSome() {
	c := command.Reserve{Meta: w.meta(), Pool: w.anyPool()}
	if w.chance("wait", 50) {
		c.QueueUntil = w.now.Add(time.Hour)
	}
	if w.chance("key", 30) {
		c.Key, c.Digest = fmt.Sprint("k", w.pick("key", 3)), fmt.Sprint("d", w.pick("digest", 2))
	}
	for range 1 + w.pick("items", 3) {
		w.next++
		w.allocs = append(w.allocs, alID(w.next))
		c.Items = append(c.Items, command.ReserveItem{Organization: w.anyOrg(), Allocation: alID(w.next)})
	}
	r := w.run(c)
	for i, out := range r.Reserved {
		if (out.Err == nil) == (out.Allocation == "") {
			w.t.Fatalf("item %d: %+v", i, out)
		}
	}
}

func (w *world) confirmOne() {
	a := w.anyAllocation()
	grant, ok := a.Pending()
	if !ok {
		grant = a.Grant()
	}
	c := command.Confirm{Meta: w.meta(), Allocation: a.ID, Epoch: grant.Epoch}
	if g := w.store.View().Gateway(nil, grant.Gateway); g != nil {
		c.Observed = w.report(g.ID, api.PhaseServing)
	}
	if w.chance("stale", 10) {
		c.Epoch--
	}
	w.run(c)
}

func (w *world) failOne() {
	a := w.anyAllocation()
	grant, ok := a.Pending()
	if !ok {
		grant = a.Grant()
	}
	c := command.Fail{Meta: w.meta(), Allocation: a.ID, Epoch: grant.Epoch, Code: fault.VerifyFailed, Message: "no", BlameGateway: w.chance("blame", 50)}
	if w.chance("stale", 10) {
		c.Epoch--
	}
	w.run(c)
}

// observeSome is an agent that is mostly honest and sometimes late, early or wrong.
func (w *world) observeSome() {
	c := command.ObserveHost{Meta: w.meta(), Host: w.anyHost(), Instance: fmt.Sprint("i", w.pick("instance", 2))}
	if w.chance("with host", 40) {
		c.Report = hostReport(2 + w.pick("capacity", 8))
		c.Report.LiveGeneration = uint64(w.pick("generation", 3))
		c.Report.NginxState = []string{api.NginxServing, api.NginxServing, api.NginxServing, api.NginxDown}[w.pick("nginx", 4)]
	}
	c.Full = w.chance("full", 15)
	for _, g := range slices.Collect(w.store.View().GatewaysOfHost(nil, c.Host)) {
		if c.Full && w.chance("missing", 20) || !c.Full && w.chance("silent", 50) {
			continue
		}
		r := w.report(g.ID, phases[w.pick("phase", len(phases))])
		if w.chance("odd", 15) {
			r.Incarnation = uint64(max(0, int(r.Incarnation)+w.pick("incarnation", 3)-1))
			r.Epoch = id.Epoch(w.pick("epoch", int(w.index)+2))
			r.BootID = fmt.Sprint("b", w.pick("boot", 3))
		}
		if w.chance("undo", 30) {
			r.Undo = []command.Step{{Step: api.StepRecycle, State: api.StepDone, StartedAt: w.now}}
		}
		c.Gateways = append(c.Gateways, r)
	}
	if w.chance("stranger", 10) {
		c.Gateways = append(c.Gateways, command.GatewayReport{Gateway: w.anyGateway(), Phase: api.PhaseReady, Incarnation: 1})
	}
	w.run(c)
}

func (w *world) createSome() {
	c := command.CreateGateways{Meta: w.meta(), Pool: w.anyPool(), Reason: "model"}
	for range 1 + w.pick("gateways", 4) {
		w.next++
		w.gateways = append(w.gateways, gwID(w.next))
		c.Gateways = append(c.Gateways, command.NewGateway{ID: gwID(w.next), Host: w.anyHost()})
	}
	w.run(c)
}

func (w *world) editOne() {
	user := id.User(fmt.Sprint("u", w.pick("user", 3)))
	c := command.EditOrganization{Meta: w.meta(), Organization: w.anyOrg()}
	switch w.pick("edit", 4) {
	case 0:
		c.PutMember = &command.Member{User: user, Role: []string{"owner", "member"}[w.pick("role", 2)]}
	case 1:
		c.DeleteMember = user
	case 2:
		c.PutProject = &command.Project{ID: id.Project(user)}
	case 3:
		c.DeleteProject = id.Project(user)
	}
	w.run(c)
}

func (w *world) organization() {
	if w.chance("delete", 30) {
		w.run(command.DeleteOrganization{Meta: w.meta(), Organization: w.anyOrg()})
		return
	}
	w.run(command.PutOrganization{
		Meta: w.meta(), Organization: w.anyOrg(), Name: fmt.Sprint("n", w.pick("name", 2)),
		Members: []command.Member{{User: "u1", Role: "owner"}, {User: id.User(fmt.Sprint("u", w.pick("user", 3))), Role: "member"}},
	})
}

func (w *world) aPool() {
	switch name := w.anyPool(); w.pick("pool change", 10) {
	case 0, 1:
		w.run(command.DeletePool{Meta: w.meta(), Pool: name})
	case 2, 3:
		w.run(command.NotePool{Meta: w.meta(), Pool: name, Breaker: []string{"open", "closed"}[w.pick("breaker", 2)], Limited: "max"})
	default:
		w.run(command.PutPool{
			Meta: w.meta(), Pool: name, Max: w.pick("max", 15), Step: 1, MaxInFlight: 1, ActivationTimeout: time.Second,
			Isolation: []string{"serve", "stop"}[w.pick("isolation", 2)],
		})
	}
}

func (w *world) aHost() {
	switch w.pick("host change", 6) {
	case 0:
		w.run(command.DeleteHost{Meta: w.meta(), Host: w.anyHost()})
	case 1, 2:
		w.run(command.SetHostSchedulable{Meta: w.meta(), Host: w.anyHost(), Schedulable: w.chance("schedulable", 70)})
	default:
		status := []string{api.HostAlive, api.HostAlive, api.HostSilent, api.HostLost}[w.pick("status", 4)]
		w.run(command.SetHostStatus{Meta: w.meta(), Host: w.anyHost(), Status: status, Reason: "model"})
	}
}

// move brings allocations elsewhere, and lets held ones go.
func (w *world) move() {
	switch w.pick("move", 8) {
	case 2:
		w.run(command.DrainHost{Meta: w.meta(), Host: w.anyHost(), Drain: time.Second, Force: w.chance("force", 50)})
	case 3:
		w.run(command.NoteDrain{Meta: w.meta(), Host: w.anyHost(), State: []string{api.DrainDrained, api.DrainOverdue, "odd"}[w.pick("drain", 3)]})
	case 0:
		w.run(command.LoseHost{Meta: w.meta(), Host: w.anyHost(), Reason: "model", FencedBy: w.now.Add(time.Minute)})
	case 1:
		c := command.Place{Meta: w.meta()}
		for a := range w.store.View().LiveAllocations(nil) {
			c.Allocations = append(c.Allocations, a.ID)
		}
		w.run(c)
	default:
		c := command.Relocate{Meta: w.meta(), Cause: state.CauseMigrate, Drain: time.Second, Force: w.chance("force", 20), Reason: "model"}
		if w.chance("to", 30) {
			c.To = w.anyHost()
		}
		if w.chance("key", 20) {
			c.Key, c.Digest = fmt.Sprint("k", w.pick("key", 3)), fmt.Sprint("d", w.pick("digest", 2))
		}
		for range 1 + w.pick("items", 3) {
			c.Items = append(c.Items, command.RelocateItem{Allocation: w.anyAllocation().ID})
		}
		w.run(c)
	}
}

func (w *world) aGateway() {
	switch w.pick("gateway change", 4) {
	case 0:
		w.run(command.RetireGateways{Meta: w.meta(), Gateways: []id.Gateway{w.anyGateway(), w.anyGateway()}, Reason: "model"})
	case 1:
		w.run(command.RecycleGateway{Meta: w.meta(), Gateway: w.anyGateway()})
	case 2:
		w.run(command.QuarantineGateway{Meta: w.meta(), Gateway: w.anyGateway()})
	case 3:
		c := command.RenewGateways{Meta: w.meta(), Host: w.anyHost(), Reason: "model"}
		for g := range w.store.View().GatewaysOfHost(nil, c.Host) {
			if begun := g.Desired.Incarnation + uint64(w.pick("ahead", 3)); w.chance("begun", 30) {
				c.Gateways = append(c.Gateways, command.BegunByItsHost{Gateway: g.ID, Incarnation: begun})
			}
		}
		w.run(c)
	}
}

func (w *world) upkeep() {
	w.next++
	switch w.pick("upkeep", 9) {
	case 0:
		w.run(command.Collect{Meta: w.meta(), Before: w.now.Add(-time.Duration(w.pick("age", 20)) * time.Second)})
	case 1:
		w.run(command.RecordEvents{Meta: w.meta(), Events: []command.Event{{Type: "config.reloaded", Reason: "model"}}})
	case 2:
		w.run(command.PutToken{Meta: w.meta(), Token: tkID(w.pick("token", 3)), Role: "reader", Hash: fmt.Sprint("h", w.pick("hash", 3)), ExpiresAt: w.now})
	case 3:
		w.run(command.DeleteToken{Meta: w.meta(), Token: tkID(w.pick("token", 3))})
	case 4:
		w.run(command.InitCluster{Meta: w.meta(), ClusterID: fmt.Sprint("c", w.pick("cluster", 2))})
	case 5:
		var base uint64
		if have := w.store.View().Trust(nil); have != nil {
			base = have.ModifyIndex - uint64(w.pick("stale", 2))
		}
		w.run(command.PutTrust{Meta: w.meta(), Base: base, Bundle: []byte{byte(w.next)}, Authority: []byte("a"), Keyring: []byte("k")})
	case 6:
		w.run(command.PutJoinToken{Meta: w.meta(), Token: jtID(w.pick("join", 3)), Role: "agent", Hash: "h", ExpiresAt: w.now.Add(time.Duration(w.pick("age", 20)) * time.Second)})
	case 7:
		w.run(command.Enroll{Meta: w.meta(), Token: jtID(w.pick("join", 3)), Name: fmt.Sprint("h", w.pick("host", 3)), PublicKey: fmt.Sprint("k", w.pick("key", 2))})
	case 8:
		w.run(command.DeleteEnrolment{Meta: w.meta(), Role: "agent", Name: fmt.Sprint("h", w.pick("host", 3))})
	}
}

func (w *world) snapshotHere() {
	w.saved, w.cut, w.view = w.snapshot(), len(w.log), w.store.View()
	w.printed = records(w.view)
}

// TestModel applies random commands, checks every invariant after each, and then replays the log in other
// batches, and from a snapshot and the rest, into machines that must come to the same digest.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{machine: newMachine(nested{t, rt}), t: rt}
		for _, h := range hosts[:2] {
			w.host(h, 6)
		}
		w.pool("default")
		for n := 1; n <= 4; n++ {
			w.org(n)
		}
		w.ready("default", "h1", 1000, 1002)
		w.ready("default", "h2", 1003, 1004)
		w.gateways = []id.Gateway{gwID(1000), gwID(1001), gwID(1002), gwID(1003), gwID(1004)}
		w.snapshotHere()
		action := func(f func()) func(*rapid.T) { return func(*rapid.T) { f() } }
		rt.Repeat(map[string]func(*rapid.T){
			"reserve": action(w.reserveSome), "reserve2": action(w.reserveSome), "confirm": action(w.confirmOne),
			"confirm2": action(w.confirmOne), "fail": action(w.failOne), "observe": action(w.observeSome),
			"observe2": action(w.observeSome), "observe3": action(w.observeSome), "create": action(w.createSome),
			"release": action(func() { w.run(command.Release{Meta: w.meta(), Allocation: w.anyAllocation().ID}) }),
			"edit":    action(w.editOne), "organization": action(w.organization), "pool": action(w.aPool),
			"host": action(w.aHost), "gateway": action(w.aGateway), "upkeep": action(w.upkeep),
			"snapshot": action(w.snapshotHere), "move": action(w.move), "move2": action(w.move),
		})
		w.replay(rt)
	})
}

// replay compares with machines that got the same log in another way.
func (w *world) replay(t *rapid.T) {
	if records(w.view) != w.printed {
		t.Fatalf("later commands modified the records of an earlier view")
	}
	want := w.store.Checkpoint().Hash()
	whole := newMachine(w.TB)
	batches(t, whole.fsm, w.log)
	if got := whole.store.Checkpoint().Hash(); got != want {
		t.Fatalf("the same log in other batches gave another state")
	}
	tail := newMachine(w.TB)
	restore(w.TB, tail.fsm, w.saved)
	batches(t, tail.fsm, w.log[w.cut:])
	if got := tail.store.Checkpoint().Hash(); got != want {
		t.Fatalf("a snapshot after entry %d and the rest of the log gave another state", w.cut)
	}
	if err := tail.store.Check(); err != nil {
		t.Fatal(err)
	}
	tail.goBack(w.saved) // as an operator does
	for _, h := range hosts {
		tail.honest(h)
	}
	for a := range tail.store.View().Allocations(nil) {
		if h := tail.store.View().Host(nil, a.Host); a.State.Ending() && h != nil && !h.Lost() {
			t.Fatalf("after a restore, and with everything begun anew, %s is %s", a.ID, a.State)
		}
	}
}

// honest is an agent that has done all that is wanted of its host.
func (m *machine) honest(host id.Host) {
	m.Helper()
	if m.store.View().Host(nil, host) == nil {
		return
	}
	c := command.ObserveHost{Meta: m.meta(), Host: host, Instance: "i1", Full: true}
	for g := range m.store.View().GatewaysOfHost(nil, host) {
		if g.Desired.Target == api.TargetRun {
			c.Gateways = append(c.Gateways, m.report(g.ID, api.PhaseReady))
		}
	}
	m.ok(c)
}

func batches(t *rapid.T, f *fsm.FSM, log []*raft.Log) {
	for len(log) > 0 {
		n := min(len(log), rapid.IntRange(1, 20).Draw(t, "batch"))
		f.ApplyBatch(log[:n])
		log = log[n:]
	}
}
