package consensus

import (
	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

// labelledSnapshots marks the steps of writing a snapshot as failpoints: before its file is made, before and
// after it becomes the newest one. What the library truncates of the log comes after that, with labels of its own.
type labelledSnapshots struct{ raft.SnapshotStore }

// Create implements raft.SnapshotStore.
func (s labelledSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	failpoint.Hit("raft.snapshot.create")
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, err
	}
	return labelledSink{sink}, nil
}

// labelledSink is one snapshot being written.
type labelledSink struct{ raft.SnapshotSink }

// Close implements raft.SnapshotSink.
func (s labelledSink) Close() error {
	failpoint.Hit("raft.snapshot.close.before")
	err := s.SnapshotSink.Close()
	failpoint.Hit("raft.snapshot.close.after")
	return err
}
