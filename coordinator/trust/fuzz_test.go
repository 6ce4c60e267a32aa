package trust_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/trust"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// FuzzKeyFile: whatever stands in the file of the cluster key, it is a key that is written and read as the same, or an error
// that names the file and what to do, and not what is in it.
func FuzzKeyFile(f *testing.F) {
	dir := f.TempDir()
	path := trust.KeyPath(dir)
	key := pki.NewKey().Reveal()
	for _, s := range []string{key + "\n", key, "\ufeff" + key, strings.ToUpper(key), key[:62], key + key, "\x00" + key, "\v" + key + "\u0085", ""} {
		f.Add([]byte(s))
	}
	files, err := fsx.NewOS(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = files.Close() })
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		read, err := trust.ReadKey(path)
		if err != nil {
			said := strings.ReplaceAll(err.Error(), path, "")
			if said == err.Error() || !strings.Contains(said, "copy it from another coordinator") || len(said) > 500 || len(data) >= 16 && strings.Contains(said, string(data[:16])) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if err := trust.WriteKey(files, dir, read); err != nil {
			t.Fatal(err)
		}
		if again, err := trust.ReadKey(path); err != nil || again.Reveal() != read.Reveal() || !bytes.Contains(data, []byte(read.Reveal())) {
			t.Fatalf("%q is read, and then another key, %v", data, err)
		}
	})
}

// FuzzParseRecord: whatever stands in trust.json, it is of this program's format, and is written and read as the same, or it
// is refused with what to do.
func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{`{}`, `{"version":1}`, `{"version":99}`, `[]`, `null`, `{"version":1,"more":2}`, `{"version":2,"index":"x"}`, `{"version":1}}`, `{"version":1,"index":7,"bundle":"b","authority":"AA==","keyring":null}`, "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := trust.ParseRecord(data)
		if err != nil {
			if !strings.Contains(err.Error(), "trust.json") || !strings.Contains(err.Error(), "; join again") && !strings.Contains(err.Error(), "; use the program version") {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		text, err := json.Marshal(r)
		if err != nil || r.Version == 0 {
			t.Fatalf("%q is taken for %+v, %v", data, r, err)
		}
		if again, err := trust.ParseRecord(text); err != nil || !bytes.Equal(again.Authority, r.Authority) || !bytes.Equal(again.Keyring, r.Keyring) || again.Bundle != r.Bundle || again.Index != r.Index {
			t.Fatalf("%q is read as %+v, and that as %+v, %v", data, r, again, err)
		}
	})
}
