package consensus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// formatVersion is the layout of the data directory. It rises when an older program could no longer read it.
const formatVersion = 1

const (
	versionFile = "VERSION"
	lockFile    = "LOCK"
	probeFile   = "probe.tmp"
	walDir      = "wal"
)

// remedyDamaged is for what a node alone has on its disk, and cannot do without.
const remedyDamaged = "restore the directory from a backup, or empty it and let the node join again"

// dirVersion is the content of the VERSION file.
type dirVersion struct {
	Format int    `json:"format"`
	NodeID string `json:"node_id"`
}

// dataDir is a data directory held by this process.
type dataDir struct {
	path string
	lock *os.File
}

// openDir makes, locks and probes the directory and checks that it belongs to this node. need is the
// room that must be free; a directory that cannot be written to within limit is refused.
func openDir(path, nodeID string, need uint64, limit time.Duration) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the data directory: %w; make it by hand and give it to the user of this process", err)
	}
	d := &dataDir{path: path}
	if err := d.acquire(); err != nil {
		return nil, err
	}
	if err := d.check(nodeID, need, limit); err != nil {
		return nil, errors.Join(err, d.release())
	}
	return d, nil
}

func (d *dataDir) check(nodeID string, need uint64, limit time.Duration) error {
	known, err := d.version(nodeID)
	if err != nil {
		return err
	}
	if err := d.room(need); err != nil {
		return err
	}
	if err := d.probe(limit); err != nil {
		return err
	}
	if known {
		return nil
	}
	raw, err := json.Marshal(dirVersion{Format: formatVersion, NodeID: nodeID})
	if err != nil {
		return fmt.Errorf("cannot encode %s: %w", versionFile, err)
	}
	return d.writeFile(versionFile, append(raw, '\n'))
}

// acquire takes the lock that keeps a second process out. The kernel drops it with the process.
func (d *dataDir) acquire() error {
	f, err := os.OpenFile(filepath.Join(d.path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return d.refused("cannot write to the data directory", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("cannot use the data directory %s: another running process holds it; stop that process first", d.path)
		}
		return fmt.Errorf("cannot lock the data directory %s: %w", d.path, err)
	}
	d.lock = f
	return nil
}

// Hold keeps every node out of a directory until release is called; it is refused while one runs there. Where no node ever
// ran there is nothing to hold.
func Hold(dir string) (release func() error, err error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return func() error { return nil }, nil
	}
	d := &dataDir{path: dir}
	if err := d.acquire(); err != nil {
		return nil, err
	}
	return d.release, nil
}

// release gives the directory back. The lock file stays: removing it would let two processes lock two files.
func (d *dataDir) release() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("cannot release the data directory %s: %w", d.path, err)
	}
	return nil
}

// version reads the VERSION file and reports whether there is one. A directory without one must be empty.
func (d *dataDir) version(nodeID string) (bool, error) {
	raw, err := os.ReadFile(filepath.Join(d.path, versionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, d.empty()
	}
	if err != nil {
		return false, fmt.Errorf("cannot read %s of the data directory %s: %w", versionFile, d.path, err)
	}
	v, err := parseVersion(raw)
	if err != nil {
		return false, fmt.Errorf("cannot use the data directory %s: %w", d.path, err)
	}
	if v.NodeID != nodeID {
		return false, fmt.Errorf("cannot use the data directory %s: it belongs to node %.80q and this is node %q; correct the node id or choose another directory", d.path, v.NodeID, nodeID)
	}
	return true, nil
}

// parseVersion reads the VERSION file. Of a newer format only the number is known, whatever else it says.
func parseVersion(raw []byte) (dirVersion, error) {
	var v dirVersion
	err := json.Unmarshal(raw, &v)
	if v.Format > formatVersion {
		return dirVersion{}, fmt.Errorf("it has format %d and this program reads format %d; run the program version that wrote it", v.Format, formatVersion)
	}
	if err != nil || v.Format != formatVersion || v.NodeID == "" {
		return dirVersion{}, fmt.Errorf("its %s file is damaged; %s", versionFile, remedyDamaged)
	}
	return v, nil
}

// empty refuses a directory that holds anything this package did not leave there in a first start cut short.
func (d *dataDir) empty() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("cannot list the data directory %s: %w", d.path, err)
	}
	for _, e := range entries {
		switch e.Name() {
		case lockFile, probeFile, versionFile + ".tmp", "lost+found":
		default:
			return fmt.Errorf("cannot use the data directory %s: it holds %s but no %s file, so it is not a data directory of a coordinator; choose an empty directory", d.path, e.Name(), versionFile)
		}
	}
	return nil
}

// room refuses a file system without the space for the log's next pre-allocated files.
func (d *dataDir) room(need uint64) error {
	free, _, err := fileSystem(d.path)
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("cannot use the data directory %s: its disk is full, %d MiB are free and %d MiB are needed; free some space", d.path, free>>20, need>>20)
	}
	return nil
}

// fileSystem is how much of the file system of a path this process may still use, and its size, in bytes.
func fileSystem(path string) (free, total uint64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("cannot measure the free space of %s: %w", path, err)
	}
	return st.Bavail * uint64(st.Bsize), st.Blocks * uint64(st.Bsize), nil
}

// probe writes and syncs a file, so that a node that cannot persist refuses to start instead of winning
// elections that it cannot use.
func (d *dataDir) probe(limit time.Duration) error {
	done := make(chan error, 1)
	go func() { // ends with the write; a write that hangs for ever ends with the process, which refuses to start
		done <- d.writeProbe()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("cannot use the data directory %s: a write to it did not finish within %s; check the disk", d.path, limit)
	}
}

func (d *dataDir) writeProbe() error {
	path := filepath.Join(d.path, probeFile)
	if err := writeSync(path, make([]byte, 4096)); err != nil {
		return d.refused("cannot write to the data directory", err)
	}
	if err := os.Remove(path); err != nil {
		return d.refused("cannot remove a file from the data directory", err)
	}
	return nil
}

// writeFile replaces a small file so that a crash leaves the old or the new one.
func (d *dataDir) writeFile(name string, data []byte) error {
	path := filepath.Join(d.path, name)
	if err := writeSync(path+".tmp", data); err != nil {
		return d.refused("cannot write "+name+" in the data directory", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return d.refused("cannot write "+name+" in the data directory", err)
	}
	return d.sync()
}

// sync makes names made, changed and removed in the directory durable.
func (d *dataDir) sync() error {
	dir, err := os.Open(d.path)
	if err != nil {
		return d.refused("cannot open the data directory", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return d.refused("cannot sync the data directory", err)
	}
	return nil
}

func writeSync(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// sweep removes what a crash left over.
func (d *dataDir) sweep(pattern string) error {
	left, err := filepath.Glob(filepath.Join(d.path, pattern))
	if err != nil {
		return fmt.Errorf("cannot search the data directory %s: %w", d.path, err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return d.refused("cannot remove a leftover from the data directory", err)
		}
	}
	return nil
}

// refused words a failed write by its cause.
func (d *dataDir) refused(what string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s %s: its disk is full: %w; free some space", what, d.path, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s %s: it is not writable: %w; give it to the user of this process and mount it writable", what, d.path, err)
	}
	return fmt.Errorf("%s %s: %w", what, d.path, err)
}
