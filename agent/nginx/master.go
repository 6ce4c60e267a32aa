package nginx

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// process identifies a running process for longer than its number lives: pids are reused, pids with
// start times are not.
type process struct {
	pid   int
	start uint64 // clock ticks after boot
	stray bool   // an nginx master that was started without our prefix: it would not find the routes
}

// prefix is what nginx is started with (-p): relative paths of the configuration, the roots of
// organizations, begin where its workers stand.
const prefix = "./"

var (
	errNoMaster = errors.New("nginx does not run")
	errWedged   = errors.New("the nginx master is stopped")
	errStray    = errors.New("nginx was started without -p " + prefix + " and would find no route: restart it the way its unit does (systemctl restart demiurge-nginx)")
)

// findMaster finds the nginx master that was started with our nginx.conf. The pid file alone proves
// nothing: it survives a crash, and its number may belong to anybody now.
func findMaster(l layout, binary string) (process, error) {
	b, err := os.ReadFile(l.pid())
	if errors.Is(err, os.ErrNotExist) {
		return process{}, errNoMaster
	}
	if err != nil {
		return process{}, fmt.Errorf("cannot read the pid file of nginx: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 2 {
		return process{}, errNoMaster // empty while nginx starts
	}
	s, err := procfs.Read(pid)
	if err != nil || !s.Running() {
		return process{}, errNoMaster
	}
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return process{}, errNoMaster
	}
	title = bytes.ReplaceAll(title, []byte{0}, []byte{' '})
	if !isMaster(pid, title, l, binary) {
		return process{}, errNoMaster
	}
	return process{pid: pid, start: s.Start, stray: !bytes.Contains(title, []byte(" -p "+prefix+" "))}, nil
}

// isMaster checks the title, which nginx keeps with its arguments, and where the system lets us the
// executable.
func isMaster(pid int, title []byte, l layout, binary string) bool {
	if !bytes.HasPrefix(title, []byte("nginx: master process ")) || !bytes.Contains(title, []byte(l.mainConf())) {
		return false
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return true // a master with capabilities of its own hides its executable from us
	}
	real, err := filepath.EvalSymlinks(binary)
	if err != nil {
		real = binary
	}
	exe = strings.TrimSuffix(exe, " (deleted)") // after an upgrade of nginx under a running master
	return exe == real || filepath.Base(exe) == "nginx"
}

// lookAt identifies the process that has a number now.
func lookAt(pid int) (process, error) {
	s, err := procfs.Read(pid)
	return process{pid: pid, start: s.Start}, err
}

// now is what the system says of the very same process.
func (p process) now() (procfs.Stat, bool) {
	s, err := procfs.Read(p.pid)
	return s, err == nil && s.Start == p.start
}

// alive tells whether the very same process still runs.
func (p process) alive() bool {
	s, same := p.now()
	return same && s.Running()
}

// stopped tells whether the process is stopped by a signal or a debugger.
func (p process) stopped() bool {
	s, same := p.now()
	return same && s.Stopped()
}

// signal sends a signal to the process if it is still the same.
func (p process) signal(s syscall.Signal) error {
	if !p.alive() {
		return errNoMaster
	}
	if err := syscall.Kill(p.pid, s); err != nil {
		return fmt.Errorf("cannot signal nginx (pid %d): %w", p.pid, err)
	}
	return nil
}

// draining counts the workers that no longer accept but still hold connections.
func (p process) draining() int {
	n := 0
	for _, pid := range children(p.pid) {
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(title, []byte(endingTitle)) {
			n++
		}
	}
	return n
}

func children(pid int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return childrenByScan(pid)
	}
	var out []int
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// childrenByScan is children for kernels without that file.
func childrenByScan(parent int) []int {
	var out []int
	for _, s := range procfs.All() {
		if s.Parent == parent {
			out = append(out, s.PID)
		}
	}
	return out
}

// parentOf is 0 for a process that is no more.
func parentOf(pid int) int {
	s, _ := procfs.Read(pid)
	return s.Parent
}

// orphans are workers of this data directory whose master is dead. They would go on serving an old
// configuration and keep the ports from the next nginx. They are known by the log that they hold open; in a container
// with files of its own a log of the same path is another one.
func orphans(l layout) []process {
	var out []process
	for _, pid := range procfs.PIDs() {
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !bytes.HasPrefix(title, []byte(workerTitle)) || !holds(pid, l.accessLog()) || !procfs.Shares(pid, l.accessLog()) {
			continue
		}
		parent, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", parentOf(pid)))
		if err == nil && bytes.HasPrefix(parent, []byte("nginx: master process")) {
			continue
		}
		if p, err := lookAt(pid); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func holds(pid int, path string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && target == path {
			return true
		}
	}
	return false
}

// descriptorLimit is the soft limit on open files of a process, which its -t must be run with.
func descriptorLimit(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0, fmt.Errorf("cannot read the limits of nginx: %w", err)
	}
	return parseDescriptorLimit(pid, b)
}

// parseDescriptorLimit reads /proc/<pid>/limits.
func parseDescriptorLimit(pid int, b []byte) (uint64, error) {
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				if f[0] == "unlimited" {
					return math.MaxUint64, nil
				}
				if n, err := strconv.ParseUint(f[0], 10, 64); err == nil {
					return n, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("cannot find the limit on open files of process %d", pid)
}
