package fsx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
	"golang.org/x/sys/unix"
)

// ErrLocked says that another holder has the lock.
var ErrLocked = errors.New("locked by another process")

// TryLock takes an exclusive lock on a file, which is made if it does not exist. The kernel gives the
// lock back when the process ends in whatever way. The returned function ends it and may be called
// more than once.
func TryLock(path string) (func(), error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open lock file %s: %w", path, err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot lock %s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	return sync.OnceFunc(func() {
		// Closing alone is not enough: a child between fork and exec still holds the file for a moment.
		_ = unix.Flock(int(file.Fd()), unix.LOCK_UN)
		_ = file.Close()
	}), nil
}

// Lock is TryLock that waits for the other holder until ctx ends.
func Lock(ctx context.Context, path string) (func(), error) {
	for {
		unlock, err := TryLock(path)
		if !errors.Is(err, ErrLocked) {
			return unlock, err
		}
		if !sleep.For(ctx, 5*time.Millisecond) {
			return nil, err
		}
	}
}
