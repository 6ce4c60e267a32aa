package consensus

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// paceBytes is how much of a large file is left to the kernel to write at its leisure. The kernel collects hundreds of
// megabytes and then writes all of them, and a log write that comes then waits: for 100–200 ms on a disk that needs 0.3
// ms for it, which is as long as a leader may be silent.
const paceBytes = 4 << 20

// paced is a large file that goes to the disk while it is written.
type paced struct {
	to   io.Writer
	sync func() error
	due  int // bytes since the last sync
}

// Write implements io.Writer.
func (p *paced) Write(b []byte) (int, error) {
	n, err := p.to.Write(b)
	if err != nil {
		return n, err
	}
	if p.due += n; p.due < paceBytes {
		return n, nil
	}
	p.due = 0
	return n, p.sync()
}

// pacedSnapshots are the library's snapshots, written at a pace that the log can bear.
type pacedSnapshots struct {
	*raft.FileSnapshotStore
	dir string // the one the store was opened with
}

// Create implements raft.SnapshotStore.
func (s pacedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, err
	}
	// A sync through one descriptor writes what came through another; the library has this file open already.
	f, err := os.Open(filepath.Join(s.dir, "snapshots", sink.ID()+".tmp", "state.bin"))
	if err != nil {
		_ = sink.Cancel()
		return nil, fmt.Errorf("cannot find the snapshot that is being written: %w", err)
	}
	return pacedSink{sink, &paced{to: sink, sync: f.Sync}, f}, nil
}

// pacedSink is one snapshot being written.
type pacedSink struct {
	raft.SnapshotSink
	paced *paced
	file  *os.File // to sync it; nothing is written through it
}

// Write implements raft.SnapshotSink.
func (s pacedSink) Write(b []byte) (int, error) { return s.paced.Write(b) }

// Close implements raft.SnapshotSink, which syncs what is still to be synced.
func (s pacedSink) Close() error {
	_ = s.file.Close()
	return s.SnapshotSink.Close()
}

// Cancel implements raft.SnapshotSink.
func (s pacedSink) Cancel() error {
	_ = s.file.Close()
	return s.SnapshotSink.Cancel()
}
