package coordinator

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// TestNamesFollowTheHost: an organization's name leads to what serves it: to the old host until the new one is
// confirmed, and to the new one at once where the old one is lost.
func TestNamesFollowTheHost(t *testing.T) {
	t.Parallel()
	store := state.New()
	machine, index := fsm.New(store, nil), uint64(0)
	meta := command.Meta{At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Actor: "test"}
	apply := func(c command.Command) {
		t.Helper()
		data, err := command.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		index++
		if r := machine.Apply(&raft.Log{Index: index, Type: raft.LogCommand, Data: data}).(command.Result); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	apply(command.PutPool{Meta: meta, Pool: "default", Max: 9, Step: 1, MaxInFlight: 9, Isolation: "serve"})
	gateways := map[id.Host]id.Gateway{}
	host := func(h id.Host, address string) {
		g := id.NewGateway()
		gateways[h] = g
		apply(command.ObserveHost{Meta: meta, Host: h, Instance: "i", Report: &command.HostReport{Address: address, Capacity: 5, NginxState: api.NginxServing}})
		apply(command.CreateGateways{Meta: meta, Pool: "default", Gateways: []command.NewGateway{{ID: g, Host: h}}})
		apply(command.ObserveHost{Meta: meta, Host: h, Instance: "i", Gateways: []command.GatewayReport{{Gateway: g, Incarnation: 1, Phase: api.PhaseReady, BootID: "b"}}})
	}
	org, a := id.NewOrganization(), id.NewAllocation()
	points := func(when, want string) {
		t.Helper()
		got, ok := answers{store}.Addresses(org)
		if !ok || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: %v, %v, want %s", when, got, ok, want)
		}
		c := &Coordinator{store: store, opts: Options{Config: DefaultConfig()}}
		wanted, _ := c.wantedNames()
		if len(wanted) != 1 || wanted[0].Addresses[0].String() != want || wanted[0].Pending {
			t.Errorf("%s: the records wanted are %+v, want %s", when, wanted, want)
		}
	}
	confirm := func() {
		t.Helper()
		to, _ := store.View().Allocation(nil, a).Pending()
		apply(command.Confirm{Meta: meta, Allocation: a, Epoch: to.Epoch, Observed: command.GatewayReport{
			Gateway: to.Gateway, Incarnation: 1, Phase: api.PhaseServing, Organization: org, Epoch: to.Epoch, BootID: "b",
		}})
	}
	host("h1", "192.0.2.1")
	apply(command.PutOrganization{Meta: meta, Organization: org, Name: "o"})
	apply(command.Reserve{Meta: meta, Pool: "default", Items: []command.ReserveItem{{Organization: org, Allocation: a}}})
	confirm()
	points("served", "192.0.2.1")
	host("h2", "192.0.2.2")
	apply(command.Relocate{Meta: meta, Cause: state.CauseMigrate, Items: []command.RelocateItem{{Allocation: a}}})
	points("on its way", "192.0.2.1")
	confirm()
	points("moved", "192.0.2.2")
	host("h3", "192.0.2.3")
	apply(command.SetHostSchedulable{Meta: meta, Host: "h1"})
	apply(command.LoseHost{Meta: meta, Host: "h2", Reason: "test"})
	points("its host is lost", "192.0.2.3")
	confirm()
	points("served elsewhere", "192.0.2.3")
}
