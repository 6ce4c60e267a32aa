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
)

// process identifies a running process for longer than its number lives: pids are reused, pids with
// start times are not.
type process struct {
	pid   int
	start uint64 // clock ticks after boot
	state byte   // as in /proc/<pid>/stat when it was looked at
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
	p, err := lookAt(pid)
	if err != nil || p.state == 'Z' || p.state == 'X' {
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
	p.stray = !bytes.Contains(title, []byte(" -p "+prefix+" "))
	return p, nil
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

// lookAt reads state and start time of a process.
func lookAt(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	return parseProcess(pid, b)
}

// parseProcess reads /proc/<pid>/stat.
func parseProcess(pid int, b []byte) (process, error) {
	f := statFields(b)
	if len(f) < 20 || len(f[0]) != 1 {
		return process{}, fmt.Errorf("cannot read the state of process %d", pid)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("cannot read the start time of process %d: %w", pid, err)
	}
	return process{pid: pid, start: start, state: f[0][0]}, nil
}

// statFields are the fields of /proc/<pid>/stat from the state on. The name before them stands in
// parentheses and may hold anything.
func statFields(b []byte) []string {
	i := bytes.LastIndex(b, []byte(") "))
	if i < 0 {
		return nil
	}
	return strings.Fields(string(b[i+2:]))
}

// alive tells whether the very same process still runs.
func (p process) alive() bool {
	now, err := lookAt(p.pid)
	return err == nil && now.start == p.start && now.state != 'Z' && now.state != 'X'
}

// stopped tells whether the process is stopped by a signal or a debugger.
func (p process) stopped() bool {
	now, err := lookAt(p.pid)
	return err == nil && now.start == p.start && (now.state == 'T' || now.state == 't')
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
	for _, pid := range processes() {
		if parentOf(pid) == parent {
			out = append(out, pid)
		}
	}
	return out
}

func processes() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, n)
		}
	}
	return out
}

func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := statFields(b)
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n
}

// orphans are workers of this data directory whose master is dead. They would go on serving an old
// configuration and keep the ports from the next nginx. They are known by the log that they hold open.
func orphans(l layout) []process {
	var out []process
	for _, pid := range processes() {
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !bytes.HasPrefix(title, []byte(workerTitle)) || !holds(pid, l.accessLog()) {
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
