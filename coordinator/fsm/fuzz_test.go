package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
)

// FuzzRestore: whatever is offered as a snapshot, it is restored as a whole, and saved and converted so that it can be
// restored again, or it is refused and nothing has changed. A frame around a state that can be read is taken when nothing
// is missing in it and nothing is too much.
func FuzzRestore(f *testing.F) {
	m := newMachine(f)
	m.check = false
	m.pool("default")
	m.host("h1", 10)
	m.ready("default", "h1", 1, 3)
	m.org(1)
	m.active(1, 1)
	whole := []byte(m.snapshot())
	const head = len("DEMIURGE-STATE") + 1
	f.Add(whole[head:len(whole)-sha256.Size], uint(0))
	f.Add([]byte{0}, uint(1))
	f.Add([]byte{0, 0}, uint(40))
	f.Add(whole[head:len(whole)-sha256.Size-1], uint(2))
	f.Fuzz(func(t *testing.T, content []byte, cut uint) {
		framed := append(bytes.Clone(whole[:head]), content...)
		sum := sha256.Sum256(framed)
		framed = append(framed, sum[:]...)
		store := state.New()
		machine := fsm.New(store, nil)
		before := store.Checkpoint().Hash()
		offer := func(data []byte) error {
			err := machine.Restore(io.NopCloser(bytes.NewReader(data)))
			if err != nil && (!strings.Contains(err.Error(), "cannot restore the snapshot") || store.Checkpoint().Hash() != before) {
				t.Fatalf("refused with %v; the state is the same: %v", err, store.Checkpoint().Hash() == before)
			}
			return err
		}
		_ = offer(content)
		if n := int(cut % uint(len(framed))); offer(framed[:n]) == nil {
			t.Fatalf("%d of %d bytes are restored", n, len(framed))
		}
		if offer(append(bytes.Clone(framed), 0)) == nil {
			t.Fatal("a byte too many is restored")
		}
		rest := bytes.NewReader(content)
		_, err := state.Load(rest)
		if got := offer(framed); (got == nil) != (err == nil && rest.Len() == 0) {
			t.Fatalf("loaded with %v and %d bytes left, and restored with %v", err, rest.Len(), got)
		} else if got != nil {
			return
		}
		var converted bytes.Buffer
		keep := func(_ string, saved *state.Trust) (*state.Trust, error) { return saved, nil }
		if err := fsm.Convert(bytes.NewReader(framed), &converted, start, keep); err != nil {
			t.Fatalf("what is restored cannot be converted: %v", err)
		}
		if err := fsm.Check(&converted); err != nil {
			t.Fatalf("what was converted cannot be restored: %v", err)
		}
	})
}
