package member

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// FuzzAccess: whatever lies where this host keeps how it enters the gossip, it is refused with the file's name and
// without the secrets in it, or it is keys and addresses that are such and are read the same when they are kept again.
func FuzzAccess(f *testing.F) {
	dir := f.TempDir()
	files, err := fsx.NewOS(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = files.Close() })
	key := gossip.NewKey().Text()
	for _, s := range []string{
		`{"addresses":["192.0.2.1:7402","[2001:db8::1]:7402","c1.example.org:7402"],"keys":["` + key + `"]}`, `{"addresses":["192.0.2.1"],"keys":["` + key + `"]}`,
		`{"addresses":[],"keys":["` + key[:20] + `"]}`, `{"keys":[""]}`, `{"keys":["` + key + `\n"]}`, `null`, `{}`, `{"keys":["`, `[]`, "", "\x00",
	} {
		f.Add([]byte(s))
	}
	path := filepath.Join(dir, accessFile)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := read(files, dir)
		if err != nil {
			if len(a.Addresses)+len(a.Keys) > 0 || !strings.Contains(err.Error(), path) || len(err.Error()) > 1000 || strings.Contains(err.Error(), key[:8]) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		for _, k := range a.Keys {
			if _, err := gossip.ParseKey(k); err != nil {
				t.Fatalf("%q is a key", k)
			}
		}
		for _, seed := range a.Addresses {
			if _, _, err := net.SplitHostPort(seed); err != nil {
				t.Fatalf("%q is an address", seed)
			}
		}
		again, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parse(again); err != nil || !reflect.DeepEqual(back, a) {
			t.Fatalf("%s is read as %+v, %v", again, back, err)
		}
	})
}
