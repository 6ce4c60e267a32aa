package consensus

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"
)

// logFiles is where raft-wal keeps its log files: its own file system, but for two things. A new file is the spare one
// if that is ready, and a file is made durable by fdatasync.
//
// The bytes on the disk are those that raft-wal alone would leave, so that an older program reads them: what follows
// the last entry of a file reads as zeros either way.
type logFiles struct {
	*walfs.FS
	spare *spare
	syncs syncs
}

// syncs are the ways to make something durable.
type syncs struct {
	file func(*os.File) error   // all of a file
	data func(*os.File) error   // what is needed to read it
	dir  func(dir string) error // the names in a directory
}

var realSyncs = syncs{file: (*os.File).Sync, data: syncData, dir: syncNames}

// Create implements types.VFS.
func (l *logFiles) Create(dir, name string, size uint64) (types.WritableFile, error) {
	path := filepath.Join(dir, name)
	f, err := l.spare.take(path, int64(size))
	if f == nil && err == nil {
		f, err = allocated(path, int64(size))
	}
	if err != nil {
		return nil, err
	}
	return &logFile{File: f, dir: dir, in: l}, nil
}

// OpenWriter implements types.VFS.
func (l *logFiles) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &logFile{File: f, dir: dir, in: l}, nil
}

// logFile is a log file to which entries are appended.
type logFile struct {
	*os.File
	dir   string
	in    *logFiles
	named bool // Sync has made the file with its name durable; only Sync uses it, which raft-wal calls once at a time
}

// WriteAt implements types.WritableFile.
func (f *logFile) WriteAt(b []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(b, at)
	f.in.spare.wrote(n)
	return n, err
}

// Sync implements types.WritableFile. The first one makes the whole file and its name durable. Later ones leave out
// what nobody needs to read the entries, which is the time of the last write. In a file whose bytes were written before,
// nothing else has changed, and nothing goes through the journal of the file system.
func (f *logFile) Sync() error {
	if f.named {
		return f.in.syncs.data(f.File)
	}
	if err := f.in.syncs.file(f.File); err != nil {
		return err
	}
	if err := f.in.syncs.dir(f.dir); err != nil {
		return err
	}
	f.named = true
	return nil
}

// allocated makes a file that reads as zeros and has its space, which nothing else can take any more.
func allocated(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := allocate(f, size); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "fallocate", Path: path, Err: err}, f.Close(), os.Remove(path))
	}
	return f, nil
}

func allocate(f *os.File, size int64) error {
	err := retried(f, func(fd int) error { return unix.Fallocate(fd, 0, 0, size) })
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return f.Truncate(size) // not every file system can promise space
	}
	return err
}

func syncData(f *os.File) error {
	if err := retried(f, unix.Fdatasync); err != nil {
		return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}

func syncNames(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// retried makes a system call on a file until no signal interrupts it.
func retried(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for failed = call(int(fd)); errors.Is(failed, syscall.EINTR); {
			failed = call(int(fd))
		}
	})
	return errors.Join(err, failed)
}
