package records_test

import (
	"bytes"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/records"
)

// FuzzScan: whatever a file holds, what is read of it are records that are written as the same bytes, none is larger than
// it may be, and what is whole is read as the same again. What is appended to the whole part is read.
func FuzzScan(f *testing.F) {
	one := records.Append([]byte(header), []byte("one"))
	f.Add([]byte(header), []byte("x"), 16)
	f.Add(records.Append(bytes.Clone(one), nil), []byte(nil), 3)
	f.Add(append(bytes.Clone(one), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0), []byte("more"), 1<<32)
	f.Add(append(bytes.Clone(one), 0, 0, 0, 0, 0, 0, 0), []byte("more"), -1)
	f.Add([]byte(header[:4]), []byte("x"), 0)
	f.Fuzz(func(t *testing.T, data, next []byte, largest int) {
		read := func(data []byte) (whole int, written []byte, err error) {
			written = []byte(header)
			whole, err = records.Scan(data, header, largest, func(p []byte) bool {
				if len(p) > largest {
					t.Fatalf("a record of %d bytes is read where %d are the most", len(p), largest)
				}
				written = records.Append(written, p)
				return true
			})
			return whole, written, err
		}
		whole, written, err := read(data)
		if err != nil {
			if bytes.HasPrefix(data, []byte(header)) || whole != 0 {
				t.Fatalf("%q: %d bytes are whole, %v", data, whole, err)
			}
			return
		}
		if whole == 0 { // the header is not whole
			if !bytes.HasPrefix([]byte(header), data) || len(data) == len(header) {
				t.Fatalf("nothing of %q is whole", data)
			}
			return
		}
		if !bytes.Equal(data[:whole], written) {
			t.Fatalf("%q is read, and written as %q", data[:whole], written)
		}
		longer := records.Append(bytes.Clone(data[:whole]), next)
		want := len(longer)
		if len(next) > largest {
			want = whole
		}
		if got, _, err := read(longer); err != nil || got != want {
			t.Fatalf("of %q %d bytes are whole, %v, want %d", longer, got, err, want)
		}
	})
}
