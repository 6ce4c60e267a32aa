package poolkeeper

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// New gateways are made on hosts that may take organizations, and what is ready on others does not count as ready.
func TestOnlyHostsThatMayBeUsedCount(t *testing.T) {
	store := state.New()
	machine, index, meta := fsm.New(store, nil), uint64(0), command.Meta{At: now}
	apply := func(c command.Command) {
		t.Helper()
		index++
		data, err := command.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if r := machine.Apply(&raft.Log{Index: index, Data: data}).(command.Result); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	apply(command.PutPool{Meta: meta, Pool: "default", MinReady: 2, Step: 3, Max: 50, MaxInFlight: 10})
	for _, h := range []id.Host{"cordoned", "silent", "wedged", "well"} {
		apply(command.ObserveHost{Meta: meta, Host: h, Instance: "i", Report: &command.HostReport{Capacity: 9, NginxState: api.NginxServing}})
		g := id.NewGateway()
		apply(command.CreateGateways{Meta: meta, Pool: "default", Gateways: []command.NewGateway{{ID: g, Host: h}, {ID: id.NewGateway(), Host: h}}})
		apply(command.ObserveHost{Meta: meta, Host: h, Instance: "i", Gateways: []command.GatewayReport{{Gateway: g, Incarnation: 1, Phase: api.PhaseReady, BootID: "b"}}})
	}
	apply(command.SetHostSchedulable{Meta: meta, Host: "cordoned"})
	apply(command.SetHostStatus{Meta: meta, Host: "silent", Status: api.HostSilent, Reason: "test"})
	apply(command.ObserveHost{Meta: meta, Host: "wedged", Instance: "i", Report: &command.HostReport{Capacity: 9, NginxState: api.NginxWedged}})
	view := store.View()
	hosts := eligible(view, nil)
	if len(hosts) != 1 || hosts[0] != (Host{ID: "well", Gateways: 2, Capacity: 9}) {
		t.Errorf("new gateways are made on %+v", hosts)
	}
	// What is ready on a host that does not answer for a moment is soon of use again; on a cordoned one it is not.
	if p := look(view, nil, view.Pool(nil, "default"), hosts); p.Ready != 3 || p.InFlight != 3 || p.Total != 8 {
		t.Errorf("%d ready, %d on their way, %d in all", p.Ready, p.InFlight, p.Total)
	}
}

// TestALookCostsHostsAndNotGateways counts what a look gathers, of a pool about which everything is to be known: gateways
// that failed, more than its maximum, and a breaker that waits for a ready one. One is made for nearly every change of the
// state.
func TestALookCostsHostsAndNotGateways(t *testing.T) {
	const hosts, each = 40, 500
	store := state.New()
	x := store.Begin()
	x.Entry(state.Origin{Index: 1, At: now})
	for h := range hosts {
		host := id.Host(fmt.Sprintf("h%02d", h))
		x.PutHost(state.Host{ID: host, Status: api.HostAlive, Report: command.HostReport{NginxState: api.NginxServing, Capacity: each}})
		for n := range each {
			organization, allocation := id.Organization(fmt.Sprintf("o%d-%d", h, n)), id.Allocation(fmt.Sprintf("al-%d-%d", h, n))
			g := state.Gateway{ID: id.Gateway(fmt.Sprintf("gw-%d-%d", h, n)), Host: host, Pool: "default"}
			g.Desired = state.GatewayDesired{Target: api.TargetRun, Incarnation: 1, Organization: organization, Allocation: allocation}
			g.Observed = state.GatewayObserved{Incarnation: 1, Phase: api.PhaseServing}
			switch {
			case h == 7 && n < 2: // one of them serves somebody, so that it is left alone
				g.Observed.Phase = api.PhaseFailed
				if n == 0 {
					g.Desired.Organization, g.Desired.Allocation = "", ""
				}
			case h%10 == 9 && n < 2:
				g.Desired.Organization, g.Desired.Allocation, g.Observed.Phase = "", "", api.PhaseReady
			}
			if g.Desired.Allocation != "" {
				x.PutAllocation(state.Allocation{ID: allocation, Organization: organization, Gateway: g.ID, Host: host, State: state.AllocationActive}, "")
			}
			x.PutGateway(g, "")
		}
	}
	x.Commit()
	x = store.Begin()
	x.Entry(state.Origin{Index: 2, At: now})
	x.PutPool(state.Pool{Name: "default", Max: 10, Breaker: state.Breaker{State: BreakerOpen, Failures: 1}})
	x.Commit()

	view := store.View()
	var ws state.WatchSet
	var p Pool
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const looks = 20
	for range looks {
		ws = state.WatchSet{}
		p = look(view, ws, view.Pool(ws, "default"), eligible(view, ws))
	}
	runtime.ReadMemStats(&after)
	if len(p.Failed) != 1 || p.Failed[0] != "gw-7-0" || len(p.Spare) != 8 || p.ReadySince || len(p.Hosts) != hosts {
		t.Fatalf("%d failed, %d to spare, ready since: %v, %d hosts", len(p.Failed), len(p.Spare), p.ReadySince, len(p.Hosts))
	}
	// All gateways' ids are 16 bytes each. One host has failed ones, whose ids are read.
	if bytes := (after.TotalAlloc - before.TotalAlloc) / looks; bytes > 16*hosts*each/4 {
		t.Errorf("a look at %d gateways gathers %d bytes", hosts*each, bytes)
	}
	if len(ws) > 10 {
		t.Errorf("a look at %d hosts waits for %d channels", hosts, len(ws))
	}

	x = store.Begin()
	x.Entry(state.Origin{Index: 3, At: now})
	g := *x.Gateway("gw-9-0")
	g.Observed.Phase = api.PhaseUnhealthy
	x.PutGateway(g, "")
	g.Observed.Phase = api.PhaseReady
	x.PutGateway(g, "")
	x.Commit()
	view = store.View()
	if p = look(view, nil, view.Pool(nil, "default"), nil); !p.ReadySince {
		t.Error("a gateway became ready since, and nothing tells of it")
	}
}
