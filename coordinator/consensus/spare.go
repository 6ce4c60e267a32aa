package consensus

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

const (
	spareFile = "next" // in the directory of the log, where raft-wal sees only files whose names end in .wal

	// spareBytes is how much of the spare file is written and synced at one go: few milliseconds of the disk.
	spareBytes = 256 << 10
)

// zeros is never written to.
var zeros [spareBytes]byte

// spare makes the next log file ready while the one in use fills up: it writes zeros to all of it. The first write to
// space that is only allocated changes what the file system knows of the file, and that has to go through the file
// system's journal in the same sync. A write over zeros changes nothing but the bytes.
//
// The log itself sets the pace: for each byte of it two of the spare file are written, so that the file is ready when
// the one in use is half full, a busy log is not held up by a burst of zeros, and a log at rest writes none. Whatever
// goes wrong costs time only: without a spare file the log takes one that is allocated.
type spare struct {
	path string
	size int64
	low  func() bool // the disk is short of space: none of it is used for a spare file
	log  hclog.Logger

	wake chan struct{} // something is due
	due  atomic.Int64  // bytes that may be written

	mu    sync.Mutex
	ready bool // the file is whole, closed, and durable but for its name

	// What follows is used by run alone.
	file *os.File // being written; nil: none
	done int64    // bytes of it that are written
}

func newSpare(path string, size int, low func() bool, log hclog.Logger) *spare {
	return &spare{path: path, size: int64(size), low: low, log: log, wake: make(chan struct{}, 1)}
}

// wrote counts bytes that were appended to the log.
func (s *spare) wrote(n int) {
	if s.due.Add(2*int64(n)) < s.piece() {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default: // it is awake
	}
}

func (s *spare) piece() int64 { return min(spareBytes, s.size) }

// take makes the spare file the log file of that name and size, which must not exist. It gives nil when none is ready.
func (s *spare) take(path string, size int64) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready || size != s.size {
		return nil, nil
	}
	s.ready = false
	s.due.Store(0)
	if err := unix.Renameat2(unix.AT_FDCWD, s.path, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		s.log.Warn("cannot use the log file that was made ready; writes of the log may take longer", "file", s.path, "error", err)
		return nil, nil
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// run makes files ready until ctx is done. What is there then is removed.
func (s *spare) run(ctx context.Context) {
	defer s.discard()
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil && s.wanted() {
			if err := s.extend(); err != nil {
				s.log.Warn("cannot make the next log file ready; writes of the log may take longer", "file", s.path, "error", err)
				s.discard()
				s.due.Store(-s.size) // not again before half a log file is written
			}
		}
	}
}

// wanted tells whether the next piece of the file is to be written now.
func (s *spare) wanted() bool {
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	if ready || s.due.Load() < s.piece() {
		return false
	}
	if s.low() {
		s.discard()
		s.due.Store(0)
		return false
	}
	return true
}

// extend writes the next piece of the file; before the first one it makes the file.
func (s *spare) extend() error {
	if s.file == nil {
		if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err // left by a take that failed
		}
		f, err := allocated(s.path, s.size)
		if err != nil {
			return err
		}
		s.file, s.done = f, 0
	}
	n, err := s.file.WriteAt(zeros[:min(s.piece(), s.size-s.done)], s.done)
	if err != nil {
		return err
	}
	if err := s.file.Sync(); err != nil {
		return err
	}
	s.due.Add(-int64(n))
	if s.done += int64(n); s.done < s.size {
		return nil
	}
	f := s.file
	s.file = nil
	if err := f.Close(); err != nil {
		return errors.Join(err, os.Remove(s.path))
	}
	s.mu.Lock()
	s.ready = true
	s.mu.Unlock()
	return nil
}

// discard removes the file as far as there is one.
func (s *spare) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil && !s.ready {
		return
	}
	err := os.Remove(s.path)
	if s.file != nil {
		err = errors.Join(err, s.file.Close())
	}
	s.file, s.ready = nil, false
	if err != nil {
		s.log.Warn("cannot remove the log file that was made ready", "file", s.path, "error", err)
	}
}
