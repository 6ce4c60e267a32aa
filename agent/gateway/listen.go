package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxSocketPath is what fits in sockaddr_un (unix(7)), without the final zero.
const maxSocketPath = 107

// probeTimeout is how long whoever owns a socket may take to accept.
const probeTimeout = time.Second

// listener is a listening socket and, when the gateway made it, its file.
type listener struct {
	net.Listener
	path  string
	made  os.FileInfo
	close sync.Once
}

// listen opens the socket of Options.Listen.
func listen(where string) (*listener, error) {
	fd, err := parseListen(where)
	if err != nil {
		return nil, err
	}
	if fd != 0 {
		return listenFD(fd)
	}
	if err := clearStale(where); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: where, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w: does the directory exist, and may this user write there?", where, err)
	}
	l.SetUnlinkOnClose(false) // close looks first whose file it is by then
	// nginx connects as another user: it is let in by the group, which a directory with the setgid bit gives.
	if err := os.Chmod(where, 0o660); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("cannot let nginx's group use %s: %w", where, err)
	}
	made, err := os.Lstat(where)
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("cannot listen on %s: it was removed at once: %w", where, err)
	}
	return &listener{Listener: l, path: where, made: made}, nil
}

// parseListen reads Options.Listen: the number of a descriptor, or 0 for a path.
func parseListen(where string) (fd int, err error) {
	if number, ok := strings.CutPrefix(where, "fd:"); ok {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n < 3 {
			return 0, fmt.Errorf("cannot listen on %.40q: want the number of a passed descriptor, 3 or more", where)
		}
		return int(n), nil
	}
	if !filepath.IsAbs(where) {
		return 0, fmt.Errorf("cannot listen on %.200q: want the absolute path of a unix socket, or fd:N for a passed descriptor", where)
	}
	if len(where) > maxSocketPath {
		return 0, fmt.Errorf("cannot listen on %.200q: the path has %d bytes and the kernel takes %d: use a shorter run directory", where, len(where), maxSocketPath)
	}
	return 0, nil
}

// clearStale removes the socket of a predecessor that is dead. One on which somebody answers stays.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot look at %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("cannot listen on %s: there is a file that is no socket: remove it, or use another path", path)
	}
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("cannot listen on %s: another process answers there: stop it first", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("cannot tell whether another process listens on %s: %w: remove the file if none does", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("cannot remove the socket that a dead process left at %s: %w", path, err)
	}
	return nil
}

// listenFD takes a socket that whoever started this process has opened.
func listenFD(fd int) (*listener, error) {
	syscall.CloseOnExec(fd)
	file := os.NewFile(uintptr(fd), "listen")
	defer func() { _ = file.Close() }() // FileListener has its own copy
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on fd:%d: %w: pass a listening socket", fd, err)
	}
	return &listener{Listener: l}, nil
}

// Close removes the socket's file, unless a successor has put its own there, and ends listening.
func (l *listener) Close() error {
	var err error
	l.close.Do(func() { // once: the file system may give a successor's socket the same number
		if l.made != nil {
			if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.made) {
				err = os.Remove(l.path)
			}
		}
		err = errors.Join(err, l.Listener.Close())
	})
	return err
}
