package poolkeeper

import (
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
