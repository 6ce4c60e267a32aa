package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/records"
)

// FuzzDecode: no file makes the decoder fail in another way than its own error, and what it calls whole
// decodes to the same again.
func FuzzDecode(f *testing.F) {
	seed := []byte(header)
	for _, r := range []record{{"gateway/a", json.RawMessage(`{"n":1}`)}, {"body/a", json.RawMessage(`[]`)}, {Key: "gateway/a"}} {
		var err error
		if seed, err = encode(seed, r); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(seed)
	f.Add(seed[:len(seed)-3])
	f.Add([]byte(header[:5]))
	f.Add([]byte{})
	f.Add(append([]byte(header), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		values, whole, err := decode(data)
		if err != nil {
			if !errors.Is(err, records.ErrFormat) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if whole > len(data) || whole != 0 && whole < len(header) {
			t.Fatalf("%d of %d bytes are whole", whole, len(data))
		}
		again, length, err := decode(data[:whole])
		if err != nil || length != whole || len(again) != len(values) {
			t.Fatalf("the whole part decodes to %d values in %d bytes (%v), not %d in %d", len(again), length, err, len(values), whole)
		}
		for k, v := range values {
			if !bytes.Equal(again[k], v) || k == "" || len(v) == 0 {
				t.Fatalf("key %q is %q and then %q", k, v, again[k])
			}
		}
	})
}

// FuzzEntries: whatever a file of whole records says of a gateway, it is refused with the record that is wrong, or it is
// something that can be written and read as the same, with names and numbers that an assignment can have.
func FuzzEntries(f *testing.F) {
	const gateway, org = "gw-aaaaaaaaaa", "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"
	good := `{"gateway":"` + gateway + `","wanted":{"target":"run","incarnation":2,"drain":"30s"},"incarnation":2,"process":{"gateway":"` + gateway + `","pid":7,"start_time":8},` +
		`"grant":{"organization":"` + org + `","allocation":"al-aaaaaaaaaaaaaaaa","epoch":9,"version":3},"change":{"steps":[{"name":"activate","status":1}]}}`
	f.Add(gateway, good, `{"organization_id":"`+org+`","epoch":9}`)
	for old, damaged := range map[string]string{
		org: "../../../../../../../../../../etc/passwd", `"epoch":9`: `"epoch":0`, "al-aaaaaaaaaaaaaaaa": "al-", `"30s"`: `"-30s"`, `"drain":"30s"`: `"limits":{"body_bytes":-1}`, `"incarnation":2}`: `"incarnation":-2}`,
		`"incarnation":2,"process"`: `"incarnation":2,"restarts":-1,"process"`, gateway: "gw-bbbbbbbbbb", "6f1c": "6F1C", `"drain"`: `"lease":"-1ns","drain"`,
	} {
		f.Add(gateway, strings.ReplaceAll(good, old, damaged), "null")
	}
	f.Add("../x", `{"gateway":"../x"}`, "")
	f.Add(gateway, "null", "[]")
	f.Add(gateway, good, `{"epoch":-1}`)
	f.Fuzz(func(t *testing.T, name, value, body string) {
		list, err := entriesOf(map[string]json.RawMessage{gatewayKey + name: json.RawMessage(value), bodyKey + name: json.RawMessage(body)})
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Fatalf("refused with %d bytes", len(err.Error()))
			}
			return
		}
		if len(list) != 1 || string(list[0].Gateway.Gateway) != name {
			t.Fatalf("%+v is read of gateway %q", list, name)
		}
		e := list[0]
		if _, err := id.ParseGateway(name); err != nil || e.Restarts < 0 || e.Wanted.Drain < 0 || e.Wanted.Lease < 0 || e.Wanted.Limits.BodyBytes < 0 || (e.Body != nil) && e.Grant == nil {
			t.Fatalf("%+v is read", e)
		}
		if g := e.Grant; g != nil {
			_, _, err := id.ParseTermName(id.TermName(g.Organization, g.Epoch)) // it is the name of directories
			if _, wrong := id.ParseAllocation(string(g.Allocation)); err != nil || wrong != nil {
				t.Fatalf("%+v is granted: %v %v", g, err, wrong)
			}
		}
		first, err := recordOf(gatewayKey+name, &e.Gateway)
		if err != nil {
			t.Fatal(err)
		}
		again, err := entriesOf(map[string]json.RawMessage{first.Key: first.Value, bodyKey + name: json.RawMessage(body)})
		if err != nil {
			t.Fatalf("its own record is refused: %v", err)
		}
		second, err := recordOf(first.Key, &again[0].Gateway)
		if err != nil || !bytes.Equal(first.Value, second.Value) || !reflect.DeepEqual(again[0].Body, e.Body) {
			t.Fatalf("%s is written and %s is read, %v", first.Value, second.Value, err)
		}
	})
}

// What is wrong with a record stands beside the file and what to do about it.
func TestARecordThatCannotBeIsRefused(t *testing.T) {
	const path = "/data/journal"
	j := &Journal{log: &log{path: path, values: map[string]json.RawMessage{gatewayKey + "gw-aaaaaaaaaa": json.RawMessage(`{"gateway":"gw-aaaaaaaaaa","grant":{"organization":"../x"}}`)}}}
	_, err := j.Entries()
	for _, want := range []string{path, `gateway/gw-aaaaaaaaaa`, `"../x" is no organization`, "move it away"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("refused with %v, without %q", err, want)
		}
	}
}

func TestARecordThatIsTooLargeIsRefused(t *testing.T) {
	huge := record{Key: "body/a", Value: json.RawMessage(`"` + string(bytes.Repeat([]byte("x"), maxPayload)) + `"`)}
	if _, err := encode(nil, huge); err == nil {
		t.Fatal("it was taken")
	}
}
