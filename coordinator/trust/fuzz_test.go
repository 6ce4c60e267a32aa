package trust_test

import (
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/trust"
)

// FuzzParseRecord: whatever stands in trust.json is read or refused.
func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{`{}`, `{"version":1}`, `{"version":99}`, `[]`, `null`, `{"version":1,"more":2}`, "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := trust.ParseRecord(data); err == nil && r.Version == 0 {
			t.Errorf("%q is taken for a record of no version", data)
		}
	})
}
