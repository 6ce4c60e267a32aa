package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"golang.org/x/sys/unix"
)

// pidfd is a handle of one process. Waiting goes through the runtime's poller: two hundred gateways that
// are waited for cost two hundred goroutines and no thread.
type pidfd struct{ file *os.File }

// openPidfd needs Linux 5.10.
func openPidfd(pid int) (*pidfd, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, driver.ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open a handle of process %d: %w: Linux 5.10 or later is needed", pid, err)
	}
	return &pidfd{os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait blocks until the process has ended (a zombie has).
func (p *pidfd) wait(ctx context.Context) error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("cannot watch a process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var pollErr error
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			pollErr = err
			return true
		}
		return n > 0
	})
	if err := errors.Join(err, pollErr); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("cannot watch a process: %w", err)
	}
	return nil
}

func (p *pidfd) signal(sig unix.Signal) error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("cannot signal a process: %w", err)
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("cannot signal a process: %w", err)
	}
	if errors.Is(sent, unix.ESRCH) {
		return driver.ErrGone
	}
	if sent != nil {
		return fmt.Errorf("cannot send %s: %w", unix.SignalName(sig), sent)
	}
	return nil
}

func (p *pidfd) close() { _ = p.file.Close() }
