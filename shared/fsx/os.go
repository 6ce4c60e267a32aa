package fsx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

// OS is the real file system below a fixed set of directories. No path, symbolic link or ".." leads out
// of them (os.Root). Every effect is a failpoint of its label, and what needs space can be made to fail there.
type OS struct {
	roots []root
}

type root struct {
	dir string
	os  *os.Root
}

// NewOS opens the directories that effects may touch. They must exist.
func NewOS(dirs ...string) (*OS, error) {
	o := &OS{}
	for _, dir := range dirs {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, errors.Join(err, o.Close())
		}
		r, err := os.OpenRoot(abs)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot open directory %s: %w", abs, err), o.Close())
		}
		o.roots = append(o.roots, root{dir: abs, os: r})
	}
	return o, nil
}

// Close gives the directories back.
func (o *OS) Close() error {
	var errs []error
	for _, r := range o.roots {
		errs = append(errs, r.os.Close())
	}
	o.roots = nil
	return errors.Join(errs...)
}

// below finds the root of a path and the path's name in it.
func (o *OS) below(path string) (*os.Root, string, error) {
	for _, r := range o.roots {
		if path == r.dir {
			return r.os, ".", nil
		}
		if rest, ok := strings.CutPrefix(path, r.dir+"/"); ok {
			return r.os, rest, nil
		}
	}
	return nil, "", fmt.Errorf("cannot use path %s: it is outside the directories of this program", path)
}

// pair is below for two paths that must share a root, as rename and link need.
func (o *OS) pair(old, path string) (*os.Root, string, string, error) {
	r, from, err := o.below(old)
	if err != nil {
		return nil, "", "", err
	}
	r2, to, err := o.below(path)
	if err != nil {
		return nil, "", "", err
	}
	if r != r2 {
		return nil, "", "", fmt.Errorf("cannot move %s to %s: they are in different directories of this program", old, path)
	}
	return r, from, to, nil
}

// Step implements FS.
func (o *OS) Step(label string) error {
	failpoint.Hit(label)
	return failpoint.Fail(label)
}

// MkdirAll implements FS.
func (o *OS) MkdirAll(label, path string, perm fs.FileMode) error {
	failpoint.Hit(label)
	if err := failpoint.Fail(label); err != nil {
		return err
	}
	r, name, err := o.below(path)
	if err != nil || name == "." {
		return err
	}
	return r.MkdirAll(name, perm)
}

// Write implements FS.
func (o *OS) Write(label, path string, data []byte, perm fs.FileMode) error {
	return o.write(label, path, data, perm, false)
}

// WriteSync implements FS.
func (o *OS) WriteSync(label, path string, data []byte, perm fs.FileMode) error {
	return o.write(label, path, data, perm, true)
}

func (o *OS) write(label, path string, data []byte, perm fs.FileMode, sync bool) error {
	failpoint.Hit(label)
	if err := failpoint.Fail(label); err != nil {
		return err
	}
	r, name, err := o.below(path)
	if err != nil {
		return err
	}
	file, err := r.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	// Two writes, so that a program killed at label.half leaves a torn file, as a power cut would.
	half := len(data) / 2
	if _, err = file.Write(data[:half]); err == nil {
		failpoint.Hit(label + ".half")
		_, err = file.Write(data[half:])
	}
	if err == nil && sync {
		failpoint.Hit(label + ".fsync")
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// SyncFile implements FS.
func (o *OS) SyncFile(label, path string) error {
	return o.opened(label, path, (*os.File).Sync)
}

// SyncDir implements FS.
func (o *OS) SyncDir(label, path string) error {
	return o.opened(label, path, (*os.File).Sync)
}

// SyncFS implements FS.
func (o *OS) SyncFS(label, path string) error {
	return o.opened(label, path, func(dir *os.File) error { return unix.Syncfs(int(dir.Fd())) })
}

// opened does something with a file or directory.
func (o *OS) opened(label, path string, do func(*os.File) error) error {
	failpoint.Hit(label)
	r, name, err := o.below(path)
	if err != nil {
		return err
	}
	file, err := r.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(do(file), file.Close())
}

// Symlink implements FS.
func (o *OS) Symlink(label, target, path string) error {
	failpoint.Hit(label)
	if err := failpoint.Fail(label); err != nil {
		return err
	}
	r, name, err := o.below(path)
	if err != nil {
		return err
	}
	return r.Symlink(target, name)
}

// Link implements FS.
func (o *OS) Link(label, old, path string) error {
	failpoint.Hit(label)
	if err := failpoint.Fail(label); err != nil {
		return err
	}
	r, from, to, err := o.pair(old, path)
	if err != nil {
		return err
	}
	return r.Link(from, to)
}

// Rename implements FS.
func (o *OS) Rename(label, old, path string) error {
	failpoint.Hit(label)
	r, from, to, err := o.pair(old, path)
	if err != nil {
		return err
	}
	return r.Rename(from, to)
}

// Remove implements FS.
func (o *OS) Remove(label, path string) error {
	failpoint.Hit(label)
	r, name, err := o.below(path)
	if err != nil {
		return err
	}
	return r.Remove(name)
}

// RemoveAll implements FS.
func (o *OS) RemoveAll(label, path string) error {
	failpoint.Hit(label)
	r, name, err := o.below(path)
	if err != nil {
		return err
	}
	return r.RemoveAll(name)
}

// ReadFile implements FS.
func (o *OS) ReadFile(_, path string) ([]byte, error) {
	r, name, err := o.below(path)
	if err != nil {
		return nil, err
	}
	return r.ReadFile(name)
}

// Readlink implements FS.
func (o *OS) Readlink(_, path string) (string, error) {
	r, name, err := o.below(path)
	if err != nil {
		return "", err
	}
	return r.Readlink(name)
}

// ReadDir implements FS. An os.Root asks for the attributes of every entry, in case somebody wants them; that
// makes a listing of 50,000 several times as long. So the directory is opened below its root, and then read as any.
func (o *OS) ReadDir(_, path string) ([]fs.DirEntry, error) {
	r, name, err := o.below(path)
	if err != nil {
		return nil, err
	}
	dir, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: path, Err: err}
	}
	plain := os.NewFile(uintptr(fd), path)
	defer func() { _ = plain.Close() }()
	entries, err := plain.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for i, entry := range entries {
		entries[i] = below{entry, r, filepath.Join(name, entry.Name())}
	}
	return entries, err
}

// below is an entry whose attributes are asked for below its root as well.
type below struct {
	fs.DirEntry
	root *os.Root
	name string
}

// Info implements fs.DirEntry.
func (e below) Info() (fs.FileInfo, error) { return e.root.Lstat(e.name) }

// Lstat implements FS.
func (o *OS) Lstat(_, path string) (fs.FileInfo, error) {
	r, name, err := o.below(path)
	if err != nil {
		return nil, err
	}
	return r.Lstat(name)
}
