package agentlink_test

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// observed is a coordinator with one host and one gateway, to which an observation was told.
func observed(t *testing.T, obs api.Observation) (*kit, error) {
	k := &kit{t: t, store: state.New(), held: map[command.Type]chan struct{}{}}
	k.machine = fsm.New(k.store, nil)
	meta := command.Meta{At: time.Unix(1_800_000_000, 0), Actor: "test"}
	k.must(command.PutPool{Meta: meta, Pool: "default", Max: 1, MaxInFlight: 1, Step: 1, Isolation: "serve", ActivationTimeout: time.Hour})
	k.must(command.ObserveHost{Meta: meta, Host: host, Instance: "i", Full: true, Report: &command.HostReport{Capacity: 1, NginxState: api.NginxServing}})
	k.must(command.CreateGateways{Meta: meta, Pool: "default", Gateways: []command.NewGateway{{ID: gateway, Host: host}}})
	link := agentlink.New(agentlink.Options{
		Store: k.store, Proposer: k, Domain: "example.org", Heartbeat: time.Second, Logger: hclog.NewNullLogger(), Now: time.Now,
	})
	k.receiver = agentlink.NewReceiver(link, &log{})
	_, err := k.receiver.Observe(context.Background(), host, obs)
	return k, err
}

// named is the form of what a report of an agent may call an event.
var named = regexp.MustCompile(`^(host|gateway)\.[a-z0-9_-]+$`)

// usable makes sure that what is in the state after a report can be saved, loaded and told to whoever asks.
func usable(t *testing.T, k *kit) {
	t.Helper()
	snapshot, err := k.machine.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var saved sink
	if err := snapshot.Persist(&saved); err != nil {
		t.Fatalf("no snapshot can be made any more: %v", err)
	}
	if err := fsm.Check(&saved); err != nil {
		t.Fatalf("the snapshot cannot be restored: %v", err)
	}
	events, _, _ := k.store.Events(state.EventID{}, state.KeptEvents)
	for _, e := range events {
		if _, err := json.Marshal(e.At.UTC()); err != nil {
			t.Fatalf("the feed cannot be told any more: %v", err)
		}
		if e.Actor == "agent/h1" && !named.MatchString(e.Type) || len(e.Reason) > 5000 {
			t.Fatalf("an agent put an event of type %q into the feed, with a reason of %d bytes", e.Type, len(e.Reason))
		}
	}
}

// FuzzObservation: whatever an agent reports is refused as a whole with its reason, or the state can be saved, loaded and
// told as before.
func FuzzObservation(f *testing.F) {
	now := time.Unix(1_800_000_001, 0).UTC()
	usual := api.Observation{
		HostID: string(host), Instance: "i", Full: true,
		Host: &api.HostReport{Address: "192.0.2.1", Capacity: 7, Version: "1.0.0", Nginx: api.NginxStatus{
			State: api.NginxServing, LiveGeneration: 3, DesiredGeneration: 3,
			Quarantined: []api.QuarantinedPart{{Part: "sites/" + string(org), Message: "no", Since: now}},
		}},
		Gateways: []api.GatewayReport{{
			GatewayID: string(gateway), Incarnation: 1, Phase: api.PhaseReady, BootID: "b", PID: 7,
			Undo: []api.Step{{Step: api.StepRecycle, State: api.StepDone, StartedAt: now, EndedAt: &now}},
		}},
		Steps:  []api.StepReport{{AllocationID: "al-aaaaaaaaaaaaaaaa", Epoch: 3, Step: api.Step{Step: api.StepRoute, State: api.StepFailed, StartedAt: now, Code: "route_apply_failed"}}},
		Events: []api.AgentEvent{{Type: "gateway.exited", At: now, GatewayID: string(gateway), OrganizationID: string(org), Reason: "exit status 1"}},
	}
	seed, err := json.Marshal(usual)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(seed))
	for _, s := range []string{
		`{"host_id":"h1","events":[{"type":"host.x","at":"9999-12-31T23:59:59-01:00"}]}`,
		`{"host_id":"h1","events":[{"type":"host.x\ndata: {}\n\n","at":"2026-01-01T00:00:00Z"}]}`,
		`{"host_id":"h1","gateways":[{"gateway_id":"gw-aaaaaaaaaa","incarnation":18446744073709551615,"phase":"ready","undo":[{"step":"recycle","state":"done","started_at":"0000-01-01T00:00:00+01:00"}]}]}`,
		`{"host_id":"h1","host":{"nginx":{"quarantined":[{"since":"0000-01-01T00:00:00+01:00"}]}}}`,
		`{"host_id":"h2"}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		var obs api.Observation
		if json.Unmarshal([]byte(body), &obs) != nil {
			return
		}
		k, err := observed(t, obs)
		switch code := fault.CodeOf(err); {
		case err == nil:
			usable(t, k)
		case code == fault.InvalidRequest && strings.Contains(err.Error(), "of the observation"):
		case code == fault.Forbidden && obs.HostID != string(host):
		default:
			t.Fatalf("refused with %v", err)
		}
	})
}

// A report is refused that would be in the state for good and in the way of all others there, and one that would speak for
// somebody else. What is only long is shortened.
func TestReportsThatWouldDoHarmAreRefused(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	late := time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600)) // JSON has it, and not in UTC
	early := time.Date(0, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600))
	ready := api.GatewayReport{GatewayID: string(gateway), Incarnation: 1, Phase: api.PhaseReady}
	with := func(change func(*api.GatewayReport)) api.Observation {
		g := ready
		change(&g)
		return api.Observation{Gateways: []api.GatewayReport{g}}
	}
	event := func(e api.AgentEvent) api.Observation { return api.Observation{Events: []api.AgentEvent{e}} }
	long := strings.Repeat("x", 1<<20)
	for what, test := range map[string]struct {
		obs  api.Observation
		want string // "": taken
	}{
		"an event after all years":          {event(api.AgentEvent{Type: "host.x", At: late}), "events[0] of the observation: 10000 is not a year"},
		"an event before all years":         {event(api.AgentEvent{Type: "host.x", At: early}), "is not a year"},
		"an undo of no year":                {with(func(g *api.GatewayReport) { g.Undo = []api.Step{{StartedAt: late}} }), "gateways[0] of the observation: 10000"},
		"an end of no year":                 {with(func(g *api.GatewayReport) { g.Undo = []api.Step{{StartedAt: at, EndedAt: &late}} }), "is not a year"},
		"a step of no year":                 {api.Observation{Steps: []api.StepReport{{AllocationID: "al-aaaaaaaaaaaaaaaa", Step: api.Step{StartedAt: late}}}}, "steps[0] of the observation: 10000"},
		"a quarantine of no year":           {api.Observation{Host: &api.HostReport{Nginx: api.NginxStatus{Quarantined: []api.QuarantinedPart{{Since: late}}}}}, "host of the observation: 10000"},
		"an event in the words of a stream": {event(api.AgentEvent{Type: "host.x\n\ndata: {}", At: at}), "is not the type of an event"},
		"an event of the cluster's trust":   {event(api.AgentEvent{Type: "trust.ca_rotated", At: at}), "is not the type of an event of a host or gateway"},
		"an event of nothing":               {event(api.AgentEvent{Type: "host.", At: at}), "is not the type of an event"},
		"an incarnation above all":          {with(func(g *api.GatewayReport) { g.Incarnation = 1<<64 - 1 }), "is not an incarnation"},
		"an undo without an end":            {with(func(g *api.GatewayReport) { g.Undo = make([]api.Step, 65) }), "65 steps took a grant back"},
		"a boot id of a megabyte":           {with(func(g *api.GatewayReport) { g.BootID = long }), "is not a boot id"},
		"a code that is text":               {with(func(g *api.GatewayReport) { g.Code = "no code" }), "is not a code"},
		"a phase that is none":              {with(func(g *api.GatewayReport) { g.Phase = long }), "is not a phase"},
		"an event with an offset":           {event(api.AgentEvent{Type: "host.x", At: at.In(time.FixedZone("", 3600))}), ""},
		"a message of a megabyte":           {with(func(g *api.GatewayReport) { g.Message = long }), ""},
		"a reason of a megabyte":            {event(api.AgentEvent{Type: "gateway.exited", At: at, Reason: long}), ""},
		"an error of nginx of a megabyte":   {api.Observation{Host: &api.HostReport{Nginx: api.NginxStatus{LastError: long}}}, ""},
		"a refused part of a megabyte":      {api.Observation{Host: &api.HostReport{Nginx: api.NginxStatus{Quarantined: []api.QuarantinedPart{{Part: long, Message: long, Since: at}}}}}, ""},
		"a gossip of megabytes":             {api.Observation{Host: &api.HostReport{Gossip: api.HostGossip{Address: long, Run: long, Problem: long}}}, ""},
	} {
		test.obs.HostID, test.obs.Instance = string(host), "i"
		k, err := observed(t, test.obs)
		if test.want == "" && err != nil || test.want != "" && (!fault.Is(err, fault.InvalidRequest) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %.300v, want %q", what, err, test.want)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("%s: the refusal has %d bytes", what, len(err.Error()))
		}
		usable(t, k)
		if g := k.store.View().Gateway(nil, gateway); len(g.Observed.Message) > 5000 {
			t.Errorf("%s: a message of %d bytes is kept", what, len(g.Observed.Message))
		}
		nginx, _, _ := k.receiver.Ephemeral(host)
		form, err := json.Marshal([]any{nginx, k.receiver.Gossip(host)})
		if err != nil || len(form) > 20_000 {
			t.Errorf("%s: %d bytes are kept beside the log, %v", what, len(form), err)
		}
	}
}
