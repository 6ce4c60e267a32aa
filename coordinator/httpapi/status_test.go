package httpapi

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// statusNow reads the status.
func (k *kit) statusNow() api.Status {
	k.t.Helper()
	st, err := k.client(api.RoleReader).Status(context.Background())
	if err != nil {
		k.t.Fatal(err)
	}
	return st
}

func TestStatusOfAHealthySystem(t *testing.T) {
	k := newKit(t)
	k.withGateways(4)
	if _, _, err := k.client(api.RolePlatform).Start(context.Background(), start(k.organization())); err != nil {
		t.Fatal(err)
	}
	st := k.statusNow()
	if !st.Healthy || len(st.Problems) != 0 {
		t.Errorf("problems %+v", st.Problems)
	}
	if st.ClusterID == "" || st.Leader != "c1" || len(st.Peers) != 1 || st.Term != 3 || st.Applied != 4 || st.Index == 0 || st.Version == "" ||
		st.Domain != "example.test" || len(st.Pools) != 1 || len(st.Hosts) != 1 || st.Allocations["active"] != 1 || st.Rates.Succeeded != 5 {
		t.Errorf("status %+v", st)
	}
	if st.Utilization != 0.25 {
		t.Errorf("utilization %v, want 0.25", st.Utilization)
	}
}

func TestStatusNamesWhatIsWrong(t *testing.T) {
	k := newKit(t)
	observe := func(k *kit, nginx string, parts ...command.Quarantined) {
		k.apply(command.ObserveHost{Meta: k.meta(), Host: k.host, Instance: "i1", Report: &command.HostReport{Capacity: 9, NginxState: nginx, Quarantined: parts, LastError: "emerg: bind"}})
	}
	for name, c := range map[string]struct {
		harm     func(k *kit)
		severity string
		subject  string
		says     string
	}{
		"no leader":                 {func(k *kit) { k.cluster.leader.Store(false) }, critical, "coordinators", "no leader"},
		"disk nearly full":          {func(k *kit) { k.cluster.full.Store(true) }, critical, "coordinator ", "nearly full (3 MiB free"},
		"coordinators not heard of": {func(k *kit) { k.cluster.three.Store(true) }, warning, "coordinator c3", "not heard of: 1 of 3 that vote are there, and 2 must be"},
		"coordinator failed": {func(k *kit) {
			k.cluster.three.Store(true)
			k.operator.member.Store(&api.GossipMember{Role: "coordinator", Name: "c2", Status: "failed"})
		}, warning, "coordinator c2", "failed: 1 of 3"},
		"disk of another one": {func(k *kit) {
			k.cluster.three.Store(true)
			k.operator.member.Store(&api.GossipMember{Role: "coordinator", Name: "c2", Status: "alive", StorageLow: "3 MiB free"})
		}, warning, "coordinator c2", "nearly full (3 MiB free)"},
		"coordinator alive, and deaf": {func(k *kit) {
			k.cluster.three.Store(true)
			k.cluster.deaf.Store(true)
			k.operator.member.Store(&api.GossipMember{Role: "coordinator", Name: "c3", Status: "alive"})
		}, warning, "coordinator c3", "it runs, and does not take the log (no CA that is trusted here): 1 of 3"},
		"exhausted":       {func(k *kit) { k.setPool(1, 50); k.takeAll() }, critical, "pool default", "exhausted"},
		"below minimum":   {func(k *kit) { k.setPool(5, 50) }, warning, "pool default", "below its minimum: 2 of 5 ready"},
		"breaker open":    {func(k *kit) { k.breaker("open") }, critical, "pool default", "stopped because they keep failing: the last said no such library"},
		"breaker probing": {func(k *kit) { k.breaker("half_open") }, warning, "pool default", "being tried: the last said no such library"},
		"at its maximum": {func(k *kit) {
			k.apply(command.NotePool{Meta: k.meta(), Pool: "default", Breaker: "closed", Limited: "max"})
		}, warning, "pool default", "limited by max"},
		"all taken": {func(k *kit) { k.setPool(0, 2); k.takeAll() }, warning, "pool default", "all 2 gateways are taken"},
		"no host to use": {func(k *kit) {
			k.apply(command.SetHostSchedulable{Meta: k.meta(), Host: k.host})
		}, critical, "hosts", "no host can take an organization, so starts are refused (cordoned: h1)"},
		"host silent": {func(k *kit) {
			k.apply(command.SetHostStatus{Meta: k.meta(), Host: k.host, Status: api.HostSilent, Reason: "it is not heard of"})
		}, critical, "host h1", "silent, so it gets nothing new, and what it serves goes on: it is not heard of"},
		"host lost": {func(k *kit) {
			k.apply(command.SetHostStatus{Meta: k.meta(), Host: k.host, Status: api.HostLost, Reason: "it does not answer"})
		}, critical, "host h1", "lost: it does not answer"},
		"host lost, and seen alive": {func(k *kit) {
			k.apply(command.SetHostStatus{Meta: k.meta(), Host: k.host, Status: api.HostLost})
			k.member(api.GossipMember{Status: "alive"})
		}, critical, "host h1", "lost: its agent runs, and does not get through to the coordinators"},
		"organization of a lost host": {func(k *kit) {
			k.live(id.Organization(k.organization()))
			k.apply(command.LoseHost{Meta: k.meta(), Host: k.host, Reason: "it does not answer"})
			k.offset.Store(int64(time.Minute))
		}, critical, "allocations", "1 lost their gateway and are served nowhere else yet; the first is organization "},
		"agent not connected": {func(k *kit) { k.agents.gone.Store(true) }, warning, "host h1", "not connected"},
		"nginx down":          {func(k *kit) { k.agents.gone.Store(true); observe(k, api.NginxDown) }, critical, "host h1", "nginx is down: emerg: bind"},
		"nginx wedged":        {func(k *kit) { k.agents.gone.Store(true); observe(k, api.NginxWedged) }, critical, "host h1", "does not take new configurations"},
		"nginx refuses":       {func(k *kit) { k.agents.gone.Store(true); observe(k, api.NginxServing) }, critical, "host h1", "nginx did not take its newest configuration, so new gateways do not become ready (generation 0 serves on): emerg: bind"},
		"gateway not taken back": {func(k *kit) {
			a := k.live(id.Organization(k.organization()))
			k.apply(command.Release{Meta: k.meta(), Allocation: a})
			g := k.store.View().Allocation(nil, a).Gateway
			k.apply(command.ObserveHost{Meta: k.meta(), Host: k.host, Instance: "i1", Gateways: []command.GatewayReport{{Gateway: g, Incarnation: 1, Phase: api.PhaseUnhealthy, Message: "cannot unroute: no space left"}}})
		}, critical, "allocation al-", "cannot be taken back from organization"},
		"part quarantined": {func(k *kit) {
			k.agents.gone.Store(true)
			observe(k, api.NginxServing, command.Quarantined{Part: "site x", Message: "unknown directive"})
		}, warning, "host h1", "nginx refused site x: unknown directive"},
		"gateway failed":    {func(k *kit) { k.report(api.PhaseFailed) }, warning, "pool default", "1 gateways failed"},
		"gateway unhealthy": {func(k *kit) { k.report(api.PhaseUnhealthy) }, warning, "pool default", "1 do not answer"},
		"not in the gossip": {func(k *kit) { k.says(api.HostGossip{Problem: "no member answers"}) }, warning, "host h1", "not in the gossip, so its death would be noticed late: no member answers"},
		"failed in the gossip": {func(k *kit) {
			k.says(api.HostGossip{Joined: true, Address: "192.0.2.1:7402"})
			k.member(api.GossipMember{Status: "failed", Address: "192.0.2.1:7402"})
		}, warning, "host h1", "the gossip holds it for failed"},
		"another one has its name": {func(k *kit) {
			k.says(api.HostGossip{Joined: true, Address: "192.0.2.1:7402"})
			k.member(api.GossipMember{Status: "alive", Address: "192.0.2.66:7402"})
		}, critical, "host h1", "another member of the gossip, at 192.0.2.66:7402, has its name"},
		"disk of the host": {func(k *kit) {
			k.member(api.GossipMember{Status: "alive", Digest: &api.MemberDigest{Problems: []string{"disk"}, DiskFreeMiB: 7}})
		}, warning, "host h1", "its disk is nearly full: 7 MiB free"},
		"routes of the host": {func(k *kit) {
			k.member(api.GossipMember{Status: "alive", Digest: &api.MemberDigest{RouteDigest: 7}})
			k.offset.Store(int64(time.Minute))
		}, critical, "host h1", "its routes are not those"},
		"two agents of one host": {func(k *kit) { k.agents.copied.Store(true) }, critical, "host h1", "192.0.2.1 (run one) stays, the one at 192.0.2.2 (run two) is refused"},
		"a host knows more":      {func(k *kit) { k.agents.ahead.Store(1234) }, critical, "host h1", "it knows epoch 1234, which is above all"},
		"allocation stuck": {func(k *kit) {
			in := start(k.organization())
			in.WaitFor = waitReserved
			if _, _, err := k.client(api.RolePlatform).Start(context.Background(), in); err != nil {
				k.t.Fatal(err)
			}
			k.offset.Store(int64(time.Minute))
		}, critical, "allocation al-", "past its deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			k.t = t
			k.reset()
			k.withGateways(2)
			if st := k.statusNow(); !st.Healthy {
				t.Fatalf("not healthy before: %+v", st.Problems)
			}
			c.harm(k)
			st := k.statusNow()
			found := slices.ContainsFunc(st.Problems, func(n api.StatusNote) bool {
				return n.Severity == c.severity && strings.HasPrefix(n.Subject, c.subject) && strings.Contains(n.Message, c.says) && n.Remedy != ""
			})
			if st.Healthy || !found {
				t.Errorf("problems %+v", st.Problems)
			}
			if !slices.IsSortedFunc(st.Problems, func(a, b api.StatusNote) int { return strings.Compare(a.Severity, b.Severity) }) {
				t.Errorf("not the worst first: %+v", st.Problems)
			}
		})
	}
}

func (k *kit) says(own api.HostGossip) { k.agents.own.Store(&own) }

func (k *kit) member(m api.GossipMember) {
	m.Role, m.Name, m.HostID = "agent", "h1", "h1"
	k.operator.member.Store(&m)
}

// A host that is neither in the gossip nor connected answers nobody, and one cause is enough to be told.
func TestStatusDoesNotBlameTheGossipForAnAgentThatIsGone(t *testing.T) {
	k := newKit(t)
	k.says(api.HostGossip{Joined: true, Address: "192.0.2.1:7402"})
	k.member(api.GossipMember{Status: "failed", Address: "192.0.2.1:7402"})
	k.agents.gone.Store(true)
	for _, n := range k.statusNow().Problems {
		if strings.Contains(n.Message, "it answers its coordinator") {
			t.Errorf("said of an agent that is not connected: %+v", n)
		}
	}
}

// Without a leader nobody can be taken out, so that is no remedy then.
func TestStatusTellsRemediesThatCanBeFollowed(t *testing.T) {
	k := newKit(t)
	k.cluster.three.Store(true)
	for leads, want := range map[bool]string{true: "remove-peer c3", false: "demiurge-coordinator recover"} {
		k.cluster.leader.Store(leads)
		problems := k.statusNow().Problems
		i := slices.IndexFunc(problems, func(n api.StatusNote) bool { return n.Subject == "coordinator c3" })
		if i < 0 || !strings.Contains(problems[i].Remedy, want) {
			t.Errorf("leader %v: want %q in the remedy of %+v", leads, want, problems)
		}
	}
}

// A host that comes and goes answers, and its agent's log has nothing.
func TestStatusTellsWhatAHostIsSilentFor(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	const reason = "it failed and came back 3 times within 5m0s"
	k.apply(command.SetHostStatus{Meta: k.meta(), Host: k.host, Status: api.HostSilent, Reason: reason})
	for flaps, want := range map[int]string{0: "the agent's log", 3: "its line, its load"} {
		k.member(api.GossipMember{Status: "alive", Flaps: flaps})
		problems := k.statusNow().Problems
		i := slices.IndexFunc(problems, func(n api.StatusNote) bool { return n.Subject == "host h1" })
		if i < 0 || !strings.Contains(problems[i].Message, reason) || !strings.Contains(problems[i].Remedy, want) {
			t.Errorf("%d flaps: want %q and %q in %+v", flaps, reason, want, problems)
		}
	}
	h, err := k.client(api.RoleReader).Host(t.Context(), "h1")
	if err != nil || h.Reason != reason {
		t.Errorf("the host is silent because %q, %v", h.Reason, err)
	}
	k.apply(command.SetHostStatus{Meta: k.meta(), Host: k.host, Status: api.HostAlive, Reason: "it answers again"})
	if h, err = k.client(api.RoleReader).Host(t.Context(), "h1"); err != nil || h.Reason != "" {
		t.Errorf("the host is alive because %q, %v", h.Reason, err)
	}
}

// Right after a change a host may route something else than the state says; and what it routes is compared,
// not how much.
func TestRoutesAreComparedWhenAllIsQuiet(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	org := k.organization()
	out, _, err := k.client(api.RolePlatform).Start(context.Background(), start(org))
	if err != nil {
		t.Fatal(err)
	}
	gw, err := id.ParseGateway(out.GatewayID)
	if err != nil {
		t.Fatal(err)
	}
	var right gossip.RouteDigest
	right.Add(id.Organization(org), gw, id.Epoch(out.Epoch))
	routes := func(d gossip.RouteDigest) bool {
		k.member(api.GossipMember{Status: "alive", Digest: &api.MemberDigest{RouteDigest: uint64(d)}})
		return !slices.ContainsFunc(k.statusNow().Problems, func(n api.StatusNote) bool { return strings.Contains(n.Message, "its routes") })
	}
	if !routes(0) {
		t.Error("a change of just now is a problem")
	}
	k.offset.Store(int64(time.Minute))
	if !routes(right) {
		t.Error("the right routes are a problem")
	}
	right.Add(id.Organization(org), gw, id.Epoch(out.Epoch+1))
	if routes(right) {
		t.Error("another epoch is no problem")
	}
	if routes(0) {
		t.Error("a missing route is no problem")
	}
}

// When a drain has ended, no gateway is left on the host that would tell how lately something happened there.
func TestRoutesOfAHostThatWasJustEmptiedAreNotCompared(t *testing.T) {
	k := newKit(t)
	k.withGateways(0)
	var former gossip.RouteDigest
	former.Add(id.NewOrganization(), "gw-aaaaaaaaaa", 7)
	k.member(api.GossipMember{Status: "alive", Digest: &api.MemberDigest{RouteDigest: uint64(former)}})
	wrong := func() bool {
		return slices.ContainsFunc(k.statusNow().Problems, func(n api.StatusNote) bool { return strings.Contains(n.Message, "its routes") })
	}
	if !wrong() {
		t.Error("a route that nobody wants is no problem")
	}
	k.apply(command.DrainHost{Meta: k.meta(), Host: k.host})
	k.apply(command.NoteDrain{Meta: k.meta(), Host: k.host, State: api.DrainDrained})
	if wrong() {
		t.Error("the routes of a moment before the end of a drain are a problem")
	}
	k.offset.Store(int64(time.Minute))
	if !wrong() {
		t.Error("a route that stays after a drain is no problem")
	}
}

func TestABusyHostIsNoProblem(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	k.member(api.GossipMember{Status: "alive", Digest: &api.MemberDigest{Problems: []string{"load"}, LoadPercent: 900}})
	if st := k.statusNow(); !st.Healthy {
		t.Errorf("problems %+v", st.Problems)
	}
}

func TestStatusOfAnEmptySystem(t *testing.T) {
	st := newKit(t).statusNow()
	if st.Healthy || len(st.Problems) != 2 {
		t.Errorf("problems %+v", st.Problems)
	}
}

func (k *kit) setPool(minReady, limit int) {
	k.apply(command.PutPool{Meta: k.meta(), Pool: "default", MinReady: minReady, Step: 3, Max: limit, MaxInFlight: 10, Isolation: "serve", ActivationTimeout: 10 * time.Second})
}

func (k *kit) takeAll() {
	for range 2 {
		if _, _, err := k.client(api.RolePlatform).Start(context.Background(), start(k.organization())); err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *kit) breaker(s string) {
	k.apply(command.NotePool{Meta: k.meta(), Pool: "default", Breaker: s, Until: k.now().Add(time.Minute), Failures: 3, Reason: "the last said no such library"})
}

// What is wrong with a host comes before what its pools lack for it, and the remedies are about that.
func TestStatusNamesTheCauseFirst(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	k.setPool(5, 50)
	k.takeAll()
	k.agents.gone.Store(true)
	k.apply(command.ObserveHost{Meta: k.meta(), Host: k.host, Instance: "i1", Report: &command.HostReport{Capacity: 9, NginxState: api.NginxServing, LastError: "emerg: cannot load certificate"}})
	st := k.statusNow()
	if len(st.Problems) < 2 || !strings.Contains(st.Problems[0].Message, "cannot load certificate") || !strings.Contains(st.Problems[1].Message, "exhausted") {
		t.Errorf("problems %+v", st.Problems)
	}
	if r := st.Problems[1].Remedy; strings.Contains(r, "--max") {
		t.Errorf("nothing limits the pool, and the remedy is: %s", r)
	}
	k.breaker("open")
	st = k.statusNow()
	if !strings.Contains(st.Problems[1].Message, "no such library") || !strings.Contains(st.Problems[2].Message, "exhausted") || strings.Contains(st.Problems[2].Remedy, "--max") {
		t.Errorf("problems %+v", st.Problems)
	}
	if p := st.Pools[0]; p.Breaker != "open" || p.BreakerReason != "the last said no such library" {
		t.Errorf("pool %+v", p)
	}
}

// report lets one gateway be seen in a phase.
func (k *kit) report(phase string) {
	for g := range k.store.View().Gateways(nil) {
		k.apply(command.ObserveHost{Meta: k.meta(), Host: k.host, Instance: "i1", Gateways: []command.GatewayReport{{Gateway: g.ID, Incarnation: 1, Phase: phase, BootID: "b1"}}})
		return
	}
}

// TestAStatusLooksAtLittleOfEachAllocation counts the objects that it makes: there may be a hundred thousand allocations, and
// whoever watches a system asks often.
func TestAStatusLooksAtLittleOfEachAllocation(t *testing.T) {
	const many = 2000
	k := newKit(t, func(o *Options) { o.Limits.Token = Rate{1e9, 1e9} })
	k.withGateways(1)
	x := k.store.Begin()
	x.Entry(state.Origin{Index: 1 << 20, At: k.now()})
	for range many {
		organization, allocation, gateway := id.NewOrganization(), id.NewAllocation(), id.NewGateway()
		x.PutAllocation(state.Allocation{ID: allocation, Organization: organization, Pool: "default", Gateway: gateway, Host: k.host, State: state.AllocationActive}, "")
		x.PutGateway(state.Gateway{
			ID: gateway, Host: k.host, Pool: "default",
			Desired:  state.GatewayDesired{Target: api.TargetRun, Incarnation: 1, Organization: organization, Allocation: allocation},
			Observed: state.GatewayObserved{Incarnation: 1, Phase: api.PhaseServing},
		}, "")
	}
	x.Commit()
	if st := k.statusNow(); st.Allocations["active"] != many {
		t.Fatalf("allocations %v", st.Allocations)
	}
	objects := testing.AllocsPerRun(3, func() {
		r, err := http.NewRequest(get, "/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = "192.0.2.1:1"
		r.Header.Set("Authorization", "Bearer "+k.tokens[api.RoleReader])
		w := &discard{header: http.Header{}}
		if k.server.ServeHTTP(w, r); w.status != http.StatusOK {
			t.Fatalf("status %d", w.status)
		}
	})
	if objects > many/2 {
		t.Errorf("a status of %d allocations makes %v objects", many, objects)
	}
}

// TestAHostIsBusyWithOneOfItsAllocations, whichever comes first.
func TestAHostIsBusyWithOneOfItsAllocations(t *testing.T) {
	now := time.Now()
	old := state.Allocation{State: state.AllocationActive, ActiveAt: now.Add(-time.Minute), Epoch: 1}
	fresh := state.Allocation{State: state.AllocationActive, ActiveAt: now.Add(-time.Second), Epoch: 2}
	leaving := state.Allocation{State: state.AllocationReleasing, ActiveAt: old.ActiveAt, Epoch: 3}
	for what, c := range map[string]struct {
		of   []*state.Allocation
		busy bool
	}{
		"nothing": {nil, false}, "one": {[]*state.Allocation{&old}, false}, "a fresh one": {[]*state.Allocation{&fresh}, true},
		"a fresh one first": {[]*state.Allocation{&fresh, &old}, true}, "a fresh one last": {[]*state.Allocation{&old, &fresh}, true},
		"one that leaves": {[]*state.Allocation{&leaving, &old}, true},
	} {
		var r hostRoutes
		for _, a := range c.of {
			r.add(a, now)
		}
		if r.busy != c.busy {
			t.Errorf("%s: busy is %v", what, r.busy)
		}
	}
}
