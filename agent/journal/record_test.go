package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

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

func TestARecordThatIsTooLargeIsRefused(t *testing.T) {
	huge := record{Key: "body/a", Value: json.RawMessage(`"` + string(bytes.Repeat([]byte("x"), maxPayload)) + `"`)}
	if _, err := encode(nil, huge); err == nil {
		t.Fatal("it was taken")
	}
}
