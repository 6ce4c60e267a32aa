package records_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/records"
)

const header = "demiurge test records 1\n"

func scan(t testing.TB, data []byte, largest int) ([]string, int) {
	t.Helper()
	var got []string
	whole, err := records.Scan(data, header, largest, func(p []byte) bool {
		got = append(got, string(p))
		return string(p) != "unreadable"
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, whole
}

func TestWhatIsWholeIsRead(t *testing.T) {
	one := records.Append([]byte(header), []byte("one"))
	both := records.Append(bytes.Clone(one), nil)
	for cut := range len(both) + 1 {
		got, whole := scan(t, both[:cut], 100)
		want := 0
		switch {
		case cut == len(both):
			want = 2
		case cut >= len(one):
			want = 1
		}
		if len(got) != want || whole > cut {
			t.Fatalf("of %d bytes %d records and %d bytes are whole", cut, len(got), whole)
		}
	}
	for i := len(header); i < len(one); i++ {
		broken := bytes.Clone(both)
		broken[i] ^= 1
		if got, whole := scan(t, broken, 100); len(got) != 0 || whole != len(header) {
			t.Fatalf("byte %d is flipped and %q was read", i, got)
		}
	}
	if got, whole := scan(t, one, 2); len(got) != 0 || whole != len(header) {
		t.Fatalf("a record above the largest was read: %q", got)
	}
	if _, whole := scan(t, records.Append(bytes.Clone(one), []byte("unreadable")), 100); whole != len(one) {
		t.Fatalf("a record that its reader refuses is whole: %d bytes", whole)
	}
	for _, other := range []string{"x", strings.Repeat("x", 100), "demiurge test records 2\n"} {
		if _, err := records.Scan([]byte(other), header, 100, nil); !errors.Is(err, records.ErrFormat) {
			t.Fatalf("%q: %v", other, err)
		}
	}
}

func TestALinkIsNotAppendedTo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := records.OpenAppend(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("b"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "ab" {
		t.Fatalf("%q %v", data, err)
	}
	if err := os.Symlink(path, path+".link"); err != nil {
		t.Fatal(err)
	}
	if _, err := records.OpenAppend(path + ".link"); err == nil {
		t.Fatal("a symbolic link was opened")
	}
}
