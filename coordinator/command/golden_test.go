package command_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// update writes golden files that are missing. It never rewrites one: the bytes are in logs already.
var update = flag.Bool("update", false, "write the golden files that are missing")

var (
	at   = time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	meta = command.Meta{At: at, Actor: "tk-abcdefghij", Source: "192.0.2.7"}
)

const (
	org        = id.Organization("6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11")
	otherOrg   = id.Organization("6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b12")
	allocation = id.Allocation("al-abcdefghijklmnop")
	gateway    = id.Gateway("gw-abcdefghij")
	host       = id.Host("host-1")
	pool       = id.Pool("default")
	token      = id.Token("tk-abcdefghij")
	join       = id.JoinToken("jt-abcdefghij")
)

// samples has every command of the newest version with every field set.
func samples() map[string]command.Command {
	step := command.Step{Step: "activate", State: "failed", StartedAt: at, EndedAt: at.Add(time.Second), Error: "no answer", Code: "verify_failed"}
	report := command.GatewayReport{
		Gateway: gateway, Incarnation: 2, Phase: "serving", Organization: org, Epoch: 7, BootID: "b1", PID: 42,
		Restarts: 1, Code: "internal", Message: "it died", Undo: []command.Step{step},
	}
	event := command.Event{
		Type: "host.note", At: at, Reason: "because", Code: "internal", Organization: org, Allocation: allocation,
		Gateway: gateway, Host: host, Pool: pool,
	}
	limits := command.Limits{MemoryBytes: 1 << 20, CPUPercent: 50, Tasks: 10, BodyBytes: 1 << 26}
	return map[string]command.Command{
		"init_cluster": command.InitCluster{Meta: meta, ClusterID: "c1"},
		"reserve": command.Reserve{
			Meta: meta, Pool: pool, Items: []command.ReserveItem{{Organization: org, Allocation: allocation}},
			QueueUntil: at.Add(time.Minute), TTL: time.Hour, Metadata: map[string]string{"b": "2", "a": "1"}, Key: "k", Digest: "d",
			PoolNamed: true,
		},
		"confirm": command.Confirm{
			Meta: meta, Allocation: allocation, Epoch: 7, Journal: []command.Step{step}, Observed: report,
			Timings: command.Timings{Queue: 1, Reserve: 2, Activate: 3, Route: 4, DNS: 5, Verify: 6, Confirm: 7, Total: 28},
		},
		"fail": command.Fail{
			Meta: meta, Allocation: allocation, Epoch: 7, Code: "verify_failed", Message: "no answer",
			Journal: []command.Step{step}, BlameGateway: true,
		},
		"release": command.Release{Meta: meta, Allocation: allocation, Drain: 30 * time.Second, Reason: "asked"},
		"observe_host": command.ObserveHost{
			Meta: meta, Host: host, Instance: "i1", Full: true, Gateways: []command.GatewayReport{report}, Events: []command.Event{event},
			Report: &command.HostReport{
				Address: "192.0.2.1", Capacity: 200, Version: "1.0.0", NginxState: "serving", DesiredGeneration: 3,
				LiveGeneration: 2, Quarantined: []command.Quarantined{{Part: "p", Message: "bad", Since: at}}, LastError: "e",
			},
			StaysSilent: true,
		},
		"set_host_status":      command.SetHostStatus{Meta: meta, Host: host, Status: "lost", Reason: "no gossip"},
		"set_host_schedulable": command.SetHostSchedulable{Meta: meta, Host: host, Schedulable: true},
		"delete_host":          command.DeleteHost{Meta: meta, Host: host},
		"put_pool": command.PutPool{
			Meta: meta, Pool: pool, MinReady: 2, Step: 3, Max: 50, MaxInFlight: 10, Release: "1.0.0", Limits: limits,
			Isolation: "serve", ActivationTimeout: 10 * time.Second,
		},
		"delete_pool": command.DeletePool{Meta: meta, Pool: pool},
		"note_pool":   command.NotePool{Meta: meta, Pool: pool, Breaker: "open", Until: at, Failures: 3, Limited: "breaker", Reason: "they fail"},
		"create_gateways": command.CreateGateways{
			Meta: meta, Pool: pool, Gateways: []command.NewGateway{{ID: gateway, Host: host}}, Reason: "ready 0 < 2", BesidesLost: true,
		},
		"retire_gateways":    command.RetireGateways{Meta: meta, Gateways: []id.Gateway{gateway}, Reason: "too many"},
		"recycle_gateway":    command.RecycleGateway{Meta: meta, Gateway: gateway, Reason: "asked"},
		"quarantine_gateway": command.QuarantineGateway{Meta: meta, Gateway: gateway, Reason: "asked"},
		"put_organization": command.PutOrganization{
			Meta: meta, Organization: org, Name: "Org", Members: []command.Member{{User: "alice", Username: "Alice", Role: "owner"}},
			Projects: []command.Project{{ID: "p1", Name: "P"}}, KeepOwner: true,
		},
		"edit_organization": command.EditOrganization{
			Meta: meta, Organization: org, PutMember: &command.Member{User: "bob", Username: "Bob", Role: "admin"}, DeleteMember: "carol",
			PutProject: &command.Project{ID: "p2", Name: "Q"}, DeleteProject: "p3",
		},
		"delete_organization": command.DeleteOrganization{Meta: meta, Organization: otherOrg},
		"put_token": command.PutToken{
			Meta: meta, Token: token, Role: "agent", Name: "n", Host: host, Hash: strings.Repeat("ab", 32), ExpiresAt: at, Key: "k2", Digest: "d",
		},
		"delete_token":  command.DeleteToken{Meta: meta, Token: token},
		"collect":       command.Collect{Meta: meta, Before: at},
		"record_events": command.RecordEvents{Meta: meta, Events: []command.Event{event}},
		"put_trust":     command.PutTrust{Meta: meta, Base: 5, Bundle: []byte("roots"), Authority: []byte("sealed"), Keyring: []byte("keys"), Reason: "rotation"},
		"put_join_token": command.PutJoinToken{
			Meta: meta, Token: join, Role: "agent", Name: "host-1", Hash: strings.Repeat("ab", 32), ExpiresAt: at, Key: "k3", Digest: "d",
		},
		"delete_join_token": command.DeleteJoinToken{Meta: meta, Token: join},
		"enroll":            command.Enroll{Meta: meta, Token: join, Name: "host-1", PublicKey: strings.Repeat("cd", 32)},
		"delete_enrolment":  command.DeleteEnrolment{Meta: meta, Role: "agent", Name: "host-1", Reason: "stolen"},
		"lose_host":         command.LoseHost{Meta: meta, Host: host, Reason: "no gossip", FencedBy: at.Add(9 * time.Second)},
		"relocate": command.Relocate{
			Meta: meta, Items: []command.RelocateItem{{Allocation: allocation, Epoch: 7}}, Cause: "migrate", To: "host-2",
			Drain: 30 * time.Second, Force: true, Reason: "asked", Key: "k4", Digest: "d",
		},
		"place":      command.Place{Meta: meta, Allocations: []id.Allocation{allocation}},
		"drain_host": command.DrainHost{Meta: meta, Host: host, Deadline: at.Add(time.Hour), Drain: 30 * time.Second, Force: true},
		"note_drain": command.NoteDrain{Meta: meta, Host: host, State: "overdue", Reason: "no gateway"},
		"renew_gateways": command.RenewGateways{
			Meta: meta, Host: host, Gateways: []command.BegunByItsHost{{Gateway: gateway, Incarnation: 9}}, Reason: "the state was restored",
		},
	}
}

func TestGoldenBytes(t *testing.T) {
	types := map[command.Type]bool{}
	for name, c := range samples() {
		types[c.Type()] = true
		t.Run(name, func(t *testing.T) {
			if field := unset(reflect.ValueOf(c)); field != "" {
				t.Fatalf("field %s of the sample is zero, so the golden bytes do not show it", field)
			}
			data, err := command.Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", fmt.Sprintf("%s.v%d.golden", name, c.Version()))
			golden, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) && *update {
				golden, err = data, os.WriteFile(path, data, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(data, golden) {
				t.Errorf("the bytes of a written version changed; make a new version instead\n got %s\nwant %s", data, golden)
			}
			back, err := command.Decode(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(back, c) {
				t.Errorf("decoded %#v\nwant    %#v", back, c)
			}
		})
	}
	for kind := command.TypeInitCluster; kind <= command.TypeRenewGateways; kind++ {
		if !types[kind] {
			t.Errorf("command %d has no golden bytes", kind)
		}
	}
}

// Version 1 is written still: of every host that is not silent.
func TestObservationsOfHostsThatAreNotSilentKeepTheirBytes(t *testing.T) {
	c := samples()["observe_host"].(command.ObserveHost)
	c.StaysSilent = false
	data, err := command.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile(filepath.Join("testdata", "observe_host.v1.golden"))
	if err != nil || !bytes.Equal(data, golden) {
		t.Errorf("%v; the bytes of version 1 changed\n got %s\nwant %s", err, data, golden)
	}
	if back, err := command.Decode(golden); err != nil || !reflect.DeepEqual(back, command.Command(c)) {
		t.Errorf("decoded %#v, %v", back, err)
	}
	later, err := command.Encode(samples()["observe_host"])
	if err != nil {
		t.Fatal(err)
	}
	if c, err := command.Decode(append([]byte{later[0], 1}, later[2:]...)); err == nil {
		t.Errorf("version 1 was read with a field that it does not have: %+v", c)
	}
}

// unset names a field that has its zero value.
func unset(v reflect.Value) string {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		if v.Interface().(time.Time).IsZero() {
			return "time"
		}
	case v.Kind() == reflect.Pointer:
		if v.IsNil() {
			return "pointer"
		}
		return unset(v.Elem())
	case v.Kind() == reflect.Slice:
		if v.Len() == 0 {
			return "list"
		}
		return unset(v.Index(0))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if why := unset(v.Field(i)); why != "" {
				return v.Type().Field(i).Name + " (" + why + ")"
			}
		}
	case v.IsZero():
		return v.Kind().String()
	}
	return ""
}

func TestEveryGoldenFileDecodes(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.golden"))
	if err != nil || len(files) < 23 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := command.Decode(data); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestTypeNumbersAreFrozen(t *testing.T) {
	want := []command.Type{
		command.TypeInitCluster, command.TypeReserve, command.TypeConfirm, command.TypeFail, command.TypeRelease,
		command.TypeObserveHost, command.TypeSetHostStatus, command.TypeSetHostSchedulable, command.TypeDeleteHost,
		command.TypePutPool, command.TypeDeletePool, command.TypeNotePool, command.TypeCreateGateways,
		command.TypeRetireGateways, command.TypeRecycleGateway, command.TypeQuarantineGateway,
		command.TypePutOrganization, command.TypeEditOrganization, command.TypeDeleteOrganization,
		command.TypePutToken, command.TypeDeleteToken, command.TypeCollect, command.TypeRecordEvents,
	}
	for i, kind := range want {
		if kind != command.Type(i+1) {
			t.Errorf("type %d of the list is stored as %d", i+1, kind)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := command.Encode(samples()["reserve"])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data []byte
		is   error
		text string
	}{
		"nothing":         {nil, nil, "type and version are missing"},
		"type alone":      {good[:1], nil, "type and version are missing"},
		"unknown type":    {append([]byte{99, 1}, good[2:]...), command.ErrUnknownType, "command 99"},
		"type zero":       {append([]byte{0, 1}, good[2:]...), command.ErrUnknownType, "command 0"},
		"unknown version": {append([]byte{2, 9}, good[2:]...), command.ErrUnknownVersion, "version 9"},
		"version zero":    {append([]byte{2, 0}, good[2:]...), command.ErrUnknownVersion, "version 0"},
		"cut":             {good[:len(good)-1], nil, "unexpected EOF"},
		"no payload":      {good[:2], nil, "EOF"},
		"unknown field":   {[]byte("\x02\x01" + `{"at":"2026-01-02T03:04:05Z","pool":"p","items":null,"new":1}`), nil, "unknown field"},
		"more behind":     {append(bytes.Clone(good), '{', '}'), nil, "more after the payload"},
		"other payload":   {[]byte("\x02\x01[]"), nil, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := command.Decode(c.data)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("%#v, %v", got, err)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Fatalf("%v is not %v", err, c.is)
			}
		})
	}
}

func TestSkippable(t *testing.T) {
	c, err := command.Decode([]byte{byte(command.Skippable | 99), 3, 0xff})
	if err != nil {
		t.Fatal(err)
	}
	if c != (command.Skipped{Kind: command.Skippable | 99, Revision: 3}) || c.Type() != command.Skippable|99 || c.Version() != 3 {
		t.Fatalf("%#v", c)
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range samples() {
		data, err := command.Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{0x90, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := command.Decode(data)
		if err != nil {
			return
		}
		if _, ok := c.(command.Skipped); ok {
			return
		}
		again, err := command.Encode(c)
		if err != nil {
			t.Fatalf("%#v decodes and does not encode: %v", c, err)
		}
		back, err := command.Decode(again)
		if err != nil {
			t.Fatalf("%s does not decode: %v", again, err)
		}
		third, err := command.Encode(back)
		if err != nil || !bytes.Equal(again, third) {
			t.Fatalf("round trip: %s\nthen %s, %v", again, third, err)
		}
	})
}
