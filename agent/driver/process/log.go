package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// openLog opens a gateway's log for appending. The last words of the process before stay in it; when it
// has grown too long it becomes <log>.1 first, and only the one before that goes.
func openLog(path string, limit int64) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the log directory: %w", err)
	}
	if info, err := os.Lstat(path); err == nil && info.Size() > limit {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("cannot set the old log aside: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the log: %w", err)
	}
	return f, nil
}

// bound keeps the log of a running gateway short. The process holds the file open and outlives the agent,
// so nothing can stand between the two: the text is copied to <log>.1 and then cut off. A line that is
// written between the last look and the cut, some microseconds, is lost; the process appends, so it goes
// on at the new end.
func bound(pid int, limit int64) error {
	path, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "fd", "1"))
	if err != nil {
		return nil // it has ended
	}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() <= limit {
		return nil // short, removed, or not a file
	}
	log, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot open the log: %w", err)
	}
	defer func() { _ = log.Close() }()
	fresh := path + ".new"
	old, err := os.OpenFile(fresh, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot set the old log aside: %w", err)
	}
	_, err = io.Copy(old, log) // to the end, also what came while copying
	if err = errors.Join(err, old.Close()); err == nil {
		err = os.Rename(fresh, path+".1")
	}
	if err != nil {
		_ = os.Remove(fresh)
		return fmt.Errorf("cannot set the old log aside: %w", err)
	}
	if err := log.Truncate(0); err != nil {
		return fmt.Errorf("cannot cut the log: %w", err)
	}
	return nil
}
