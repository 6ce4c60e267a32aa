package gossip

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fsx"
)

// FuzzKeyring: whatever stands in the file of the keys, it is one or two keys that are written and read as the same, or an
// error that names the file and not what is in it.
func FuzzKeyring(f *testing.F) {
	dir := f.TempDir()
	files, err := fsx.NewOS(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = files.Close() })
	a, b := NewKey().Text(), NewKey().Text()
	for _, s := range []string{`["` + a + `"]`, `["` + a + `","` + b + `"]`, `["` + a + `","` + a + `"]`, `["` + a + `","` + b + `","` + NewKey().Text() + `"]`, `[]`, `null`, `["` + a[:20] + `"]`, `["` + a + "\\n" + `"]`, `{}`, ""} {
		f.Add([]byte(s))
	}
	path := filepath.Join(dir, keyringFile)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := openRing(files, dir, Key{})
		if err != nil {
			if !strings.Contains(err.Error(), path) || len(data) > 20 && strings.Contains(err.Error(), strings.Trim(string(data), `[]"`)) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		again, err := openRing(files, dir, Key{})
		if err != nil || len(r.saved) == 0 || len(r.saved) > maxKeys || len(again.saved) != len(r.saved) || again.saved[0] != r.saved[0] {
			t.Fatalf("%d keys are read, and then %+v, %v", len(r.saved), again, err)
		}
	})
}

// FuzzSnapshot: whatever the library's list of earlier members holds, what is left for the library is whole lines of its
// own words.
func FuzzSnapshot(f *testing.F) {
	path := filepath.Join(f.TempDir(), snapshotFile)
	f.Add([]byte("alive: agent.h1 127.0.0.1:7402\nclock: 7\nleave\n#comment\n"))
	f.Add([]byte("alive: agent.h1 127.0.0.1:7402\nalive: ag"))
	f.Add([]byte("\x00\x00\n\n clock:\r\nbad\n"))
	n := &Node{log: hclog.NewNullLogger()}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.checkSnapshot(path); err != nil {
			t.Fatal(err)
		}
		sound, err := os.ReadFile(path)
		if err != nil || len(sound) > len(data) || len(sound) > maxSnapshot {
			t.Fatalf("%d of %d bytes are left, %v", len(sound), len(data), err)
		}
		for line := range strings.Lines(string(sound)) {
			if !strings.HasSuffix(line, "\n") || !strings.ContainsAny(line, "acdehlnoqrtuv-:#") {
				t.Fatalf("%q is left", line)
			}
		}
		if err := n.checkSnapshot(path); err != nil {
			t.Fatal(err)
		}
		if again, err := os.ReadFile(path); err != nil || string(again) != string(sound) {
			t.Fatalf("%q is left, and then %q, %v", sound, again, err)
		}
	})
}
