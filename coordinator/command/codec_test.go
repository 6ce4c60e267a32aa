package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// usual are commands as they are proposed, each with fields that are set and fields that are not.
func usual() []Command {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	there := at.In(time.FixedZone("", 2*3600))
	meta := Meta{At: at, Actor: "allocator"}
	step := Step{Step: "route", State: "done", StartedAt: there, EndedAt: at}
	report := GatewayReport{Gateway: "gw-1", Incarnation: 1, Phase: "serving", Organization: "o", Epoch: 12, PID: 7}
	return []Command{
		Reserve{},
		Reserve{Meta: meta, Pool: "default", Items: []ReserveItem{}},
		Reserve{Meta: meta, Pool: "default", Items: []ReserveItem{{"o1", "a1"}, {"o2", "a2"}, {"o3", ""}}},
		Reserve{Meta: Meta{At: there, Source: "::1"}, Items: []ReserveItem{{}}, QueueUntil: there, TTL: -1, Key: "k", Digest: "d"},
		Confirm{},
		Confirm{Meta: meta, Allocation: "a", Epoch: 1, Journal: []Step{step, {}}, Timings: Timings{Route: 3, Total: 1 << 60}, Observed: report},
		Release{Meta: meta, Allocation: "a"},
		Release{Meta: meta, Allocation: "a", Drain: time.Hour, Reason: "asked"},
		ObserveHost{Meta: meta, Host: "h"},
		ObserveHost{Meta: meta, Host: "h", Instance: "i", Full: true, Gateways: []GatewayReport{report, {Undo: []Step{step}}}},
	}
}

// odd are commands that codec has to leave to encoding/json.
func odd() []Command {
	return []Command{
		Reserve{Key: "a\"b"},
		Reserve{Key: "<&>"},
		Reserve{Key: "\u2028é\x7f\xff"},
		Reserve{Key: "back\\slash"},
		Reserve{Metadata: map[string]string{"b": "1", "a": "2"}},
		ObserveHost{Report: &HostReport{Capacity: 3}},
		ObserveHost{Events: []Event{{Type: "t"}}, Gateways: []GatewayReport{{}}},
		Fail{Allocation: id.Allocation("a")},
	}
}

func TestCodecWritesWhatJSONWrites(t *testing.T) {
	for _, c := range append(usual(), odd()...) {
		want, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[2:], want) {
			t.Errorf("got  %s\nwant %s", got[2:], want)
		}
		checkRead(t, got)
	}
	for _, c := range usual() {
		if _, ok := appendFast(nil, c); !ok {
			t.Errorf("%#v was left to encoding/json", c)
		}
	}
	for _, c := range odd() {
		if data, ok := appendFast(nil, c); ok {
			t.Errorf("%#v was not left to encoding/json: %s", c, data)
		}
	}
}

func TestCodecLeavesErrorsToJSON(t *testing.T) {
	if data, err := Encode(Release{Meta: Meta{At: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}}); err == nil {
		t.Fatalf("a time that has no text became %s", data)
	}
}

// checkRead compares what codec reads with what encoding/json reads.
func checkRead(t *testing.T, data []byte) {
	t.Helper()
	if len(data) < 2 {
		return
	}
	for _, c := range []any{&Reserve{}, &Confirm{}, &Release{}, &ObserveHost{}} {
		if !readFast(data[2:], c) {
			continue
		}
		want := reflect.New(reflect.TypeOf(c).Elem()).Interface()
		d := json.NewDecoder(bytes.NewReader(data[2:]))
		d.DisallowUnknownFields()
		if err := d.Decode(want); err != nil {
			t.Fatalf("%s was read, and encoding/json says %v", data[2:], err)
		}
		if d.More() {
			t.Fatalf("%s was read, and there is more in it", data[2:])
		}
		if !reflect.DeepEqual(c, want) {
			t.Fatalf("%s was read as %#v and is %#v", data[2:], c, want)
		}
	}
}

func TestCodecReadsWhatIsUsual(t *testing.T) {
	for _, c := range usual() {
		data, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		into := reflect.New(reflect.TypeOf(c)).Interface()
		if len(data) > 2 && !readFast(data[2:], into) && !bytes.Contains(data, []byte("null")) && !bytes.Contains(data, []byte("-1")) {
			t.Errorf("%s was left to encoding/json", data[2:])
		}
		for n := range data {
			if _, err := Decode(data[:n]); err == nil {
				t.Fatalf("%q is cut and was read", data[:n])
			}
		}
	}
}

func FuzzCodecReadsWhatJSONReads(f *testing.F) {
	for _, c := range append(usual(), odd()...) {
		data, err := Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("\x02\x01" + `{"at":"2026-01-02T03:04:05Z","pool":"p","items":null,"ttl":01}`))
	f.Fuzz(func(t *testing.T, data []byte) { checkRead(t, data) })
}

func TestDecodeStartsAgain(t *testing.T) {
	// An unknown field behind others: what was read before it must not be in the way.
	_, err := Decode([]byte("\x05\x01" + `{"at":"2026-01-02T03:04:05Z","allocation":"a","reason":"r\n","reason":"s","new":1}`))
	if err == nil || errors.Is(err, ErrUnknownType) {
		t.Fatal(err)
	}
	c, err := Decode([]byte("\x05\x01" + `{"at":"2026-01-02T03:04:05Z","actor":"x","allocation":"a","drain":1e3}`))
	if err == nil {
		t.Fatalf("%#v", c)
	}
	c, err = Decode([]byte("\x05\x01" + `{ "allocation":"a", "at":"2026-01-02T03:04:05Z" }`))
	if err != nil || c.(Release).Allocation != "a" {
		t.Fatal(c, err)
	}
}
