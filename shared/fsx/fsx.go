// Package fsx is the seam between the parts of Demiurge that must survive a crash and the file system.
// Every call carries a label that says what it is for ("nginx.pointer.rename"), so that a test can fail
// or crash exactly that call (package fsxtest) and a real program can be killed there (package
// failpoint). Steps that are no file operation (a signal, a probe) go through the same seam as Step.
package fsx

import (
	"crypto/rand"
	"encoding/hex"
	"io/fs"
	"path/filepath"
	"strings"
)

// FS is what crash-safe code does to the file system. Paths are absolute and clean. An implementation
// is safe for concurrent use.
type FS interface {
	// Step marks an effect that is no file operation, right before it happens. An error means that the
	// effect must not happen.
	Step(label string) error

	// MkdirAll makes a directory and its parents; one that exists is left as it is.
	MkdirAll(label, path string, perm fs.FileMode) error
	// Write replaces a file's content in place without making it durable. For files that nobody reads
	// yet; SyncFS makes many of them durable at once.
	Write(label, path string, data []byte, perm fs.FileMode) error
	// WriteSync is Write, then fsync of the file.
	WriteSync(label, path string, data []byte, perm fs.FileMode) error
	// SyncFile makes a file that was written durable, as it is now.
	SyncFile(label, path string) error
	// SyncDir makes the entries of a directory durable.
	SyncDir(label, path string) error
	// SyncFS makes everything written so far to the file system of path durable.
	SyncFS(label, path string) error
	// Symlink makes path a symbolic link to target; it fails if path exists.
	Symlink(label, target, path string) error
	// Link makes path another name of the file old.
	Link(label, old, path string) error
	// Rename moves old over path, atomically.
	Rename(label, old, path string) error
	// Remove removes a file or an empty directory; what does not exist is fs.ErrNotExist.
	Remove(label, path string) error
	// RemoveAll removes a tree; what does not exist is no error.
	RemoveAll(label, path string) error

	// ReadFile reads a whole file.
	ReadFile(label, path string) ([]byte, error)
	// Readlink reads a symbolic link.
	Readlink(label, path string) (string, error)
	// ReadDir lists a directory in name order.
	ReadDir(label, path string) ([]fs.DirEntry, error)
	// Lstat describes a file without following a symbolic link.
	Lstat(label, path string) (fs.FileInfo, error)
}

// tempMark is in every temporary name, so that leftovers of a crash are recognised.
const tempMark = ".fsx-tmp-"

// TempName returns a fresh name beside path for something that will be renamed over it. It is random:
// two writers of one file never share a temporary file.
func TempName(path string) string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
	return filepath.Join(filepath.Dir(path), tempMark+hex.EncodeToString(b[:]))
}

// IsTemp tells whether name (the last element of a path) came from TempName.
func IsTemp(name string) bool { return strings.HasPrefix(name, tempMark) }

// WriteAtomic replaces a file so that after any crash it has the old or the new content, whole, and
// after success the new one for good. Its steps are labelled label.write, label.rename and label.sync.
func WriteAtomic(f FS, label, path string, data []byte, perm fs.FileMode) error {
	temp := TempName(path)
	if err := f.WriteSync(label+".write", temp, data, perm); err != nil {
		_ = f.Remove(label+".clean", temp)
		return err
	}
	if err := f.Rename(label+".rename", temp, path); err != nil {
		_ = f.Remove(label+".clean", temp)
		return err
	}
	return f.SyncDir(label+".sync", filepath.Dir(path))
}

// SymlinkAtomic makes path a symbolic link to target in one rename, whether or not path exists: no
// reader ever finds it missing. Durable only after a SyncDir, which callers batch. Its steps are
// labelled label.symlink and label.rename.
func SymlinkAtomic(f FS, label, target, path string) error {
	temp := TempName(path)
	if err := f.Symlink(label+".symlink", target, temp); err != nil {
		return err
	}
	if err := f.Rename(label+".rename", temp, path); err != nil {
		_ = f.Remove(label+".clean", temp)
		return err
	}
	return nil
}

// RemoveTemps removes what a crash left of WriteAtomic and SymlinkAtomic in dir. Call it before anybody
// writes there.
func RemoveTemps(f FS, label, dir string) error {
	entries, err := f.ReadDir(label+".list", dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if IsTemp(entry.Name()) {
			if err := f.Remove(label+".remove", filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
