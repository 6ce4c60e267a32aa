package consensus

import (
	"bytes"
	"errors"
	"testing"
)

// TestLargeFilesGoToTheDiskAsTheyAreWritten has less than two paces unsynced at any time, and a failed sync fail the
// write.
func TestLargeFilesGoToTheDiskAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	var to bytes.Buffer
	synced, broken := 0, error(nil)
	p := &paced{to: &to, sync: func() error { synced = to.Len(); return broken }}
	piece := make([]byte, 300<<10)
	for range 100 {
		if n, err := p.Write(piece); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
		if left := to.Len() - synced; left >= paceBytes {
			t.Fatalf("%d of %d bytes are not synced", left, to.Len())
		}
	}
	broken = errors.New("the disk is gone")
	var err error
	for range 100 {
		if _, err = p.Write(piece); err != nil {
			break
		}
	}
	if !errors.Is(err, broken) {
		t.Errorf("a failed sync gave %v", err)
	}
}
