package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
	"golang.org/x/sys/unix"
)

// stat is what /proc/<pid>/stat says of a process.
type stat struct {
	pid     int
	state   byte
	session int
	start   uint64 // clock ticks since the machine's boot
}

// running is false for what has ended and only waits for its parent.
func (s stat) running() bool { return s.state != 'Z' && s.state != 'X' }

func machineBoot() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot tell this boot of the machine from others: %w: is /proc mounted?", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return stat{}, fmt.Errorf("cannot look at process %d: %w", pid, err)
	}
	return parseStat(pid, b)
}

// parseStat reads proc_pid_stat(5). The second field is the program's name in brackets and may hold
// anything, also brackets and spaces, so fields are counted from the last one.
func parseStat(pid int, b []byte) (stat, error) {
	end := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[end+1:])) // from the third field on
	if end < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return stat{}, fmt.Errorf("cannot look at process %d: /proc/%d/stat has another form than expected", pid, pid)
	}
	session, err := strconv.Atoi(fields[6-3])
	if err != nil {
		return stat{}, fmt.Errorf("cannot look at process %d: %w", pid, err)
	}
	start, err := strconv.ParseUint(fields[22-3], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("cannot look at process %d: %w", pid, err)
	}
	return stat{pid: pid, state: fields[0][0], session: session, start: start}, nil
}

// alive reports whether this very process still runs.
func (d *Driver) alive(p driver.Process) bool {
	if p.MachineBoot != d.boot || p.PID <= 1 {
		return false
	}
	s, err := readStat(p.PID)
	return err == nil && s.running() && s.start == p.StartTime
}

// open returns a handle of this very process, which stays its own when the number goes to another one.
func (d *Driver) open(p driver.Process) (*pidfd, error) {
	if !d.alive(p) {
		return nil, driver.ErrGone
	}
	fd, err := openPidfd(p.PID)
	if err != nil {
		return nil, err
	}
	if !d.alive(p) { // the handle may be that of a successor
		fd.close()
		return nil, driver.ErrGone
	}
	return fd, nil
}

// signal reaches this very process or nobody.
func (d *Driver) signal(p driver.Process, sig unix.Signal) error {
	fd, err := d.open(p)
	if err != nil {
		return err
	}
	defer fd.close()
	return fd.signal(sig)
}

// endSession kills what a gateway that has ended left behind.
func (d *Driver) endSession(p driver.Process) {
	for _, s := range d.leftovers(p) {
		fd, err := openPidfd(s.pid)
		if err != nil {
			continue // it ended by itself
		}
		if again, err := readStat(s.pid); err == nil && again.start == s.start {
			d.log.Info("ending a process that its gateway left behind", "gateway", p.Gateway, "pid", s.pid)
			if err := fd.signal(unix.SIGKILL); err != nil && !errors.Is(err, driver.ErrGone) {
				d.log.Warn("cannot end a process that its gateway left behind", "gateway", p.Gateway, "pid", s.pid, "error", err)
			}
		}
		fd.close()
	}
}

// sessionGone kills and looks again until nothing of the gateway runs: what is killed may have started
// another one just before.
func (d *Driver) sessionGone(ctx context.Context, p driver.Process) error {
	wait := time.Millisecond
	for {
		left := d.leftovers(p)
		if len(left) == 0 {
			return nil
		}
		d.endSession(p)
		if !sleep.For(ctx, wait) {
			return fmt.Errorf("process %d still runs: %w", left[0].pid, ctx.Err())
		}
		wait = min(2*wait, 100*time.Millisecond)
	}
}

// leftovers finds what runs in a gateway's session beside its first process. A session keeps its number
// as long as it has a member, so a process of that number with another start time means that the session
// is another one.
func (d *Driver) leftovers(p driver.Process) []stat {
	if p.MachineBoot != d.boot || p.PID <= 1 {
		return nil
	}
	if first, err := readStat(p.PID); err == nil && first.start != p.StartTime {
		return nil
	}
	var out []stat
	for _, m := range d.all.look() {
		if m.session != p.PID || m.pid == p.PID {
			continue
		}
		// The number may have gone to another process meanwhile, so its session is looked at again.
		if s, err := readStat(m.pid); err == nil && s.session == p.PID && s.running() && s.start >= p.StartTime {
			out = append(out, s)
		}
	}
	return out
}

// List implements driver.Driver. A gateway is its session's first process; a process with the mark whose
// session has lost that one is listed by itself, so that it can be stopped.
func (d *Driver) List(ctx context.Context) ([]driver.Process, error) {
	var out []driver.Process
	running := map[int]bool{}
	var found []stat
	for _, s := range processes() {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("cannot list gateway processes: %w", err)
		}
		if s.running() {
			running[s.pid] = true
			found = append(found, s)
		}
	}
	for _, s := range found {
		if s.pid != s.session && running[s.session] {
			continue
		}
		if gateway := d.marked(s.pid); gateway != "" {
			out = append(out, driver.Process{Gateway: gateway, PID: s.pid, StartTime: s.start, MachineBoot: d.boot})
		}
	}
	slices.SortFunc(out, func(a, b driver.Process) int { return a.PID - b.PID })
	return out, nil
}

// marked returns the gateway whose environment a process has, if its socket is below our run directory.
// The environment of another user's process cannot be read, and that process is not ours.
func (d *Driver) marked(pid int) id.Gateway {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return ""
	}
	return markOf(b, d.opts.RunDir)
}

// markOf reads the environment of a process, as in proc_pid_environ(5).
func markOf(environ []byte, runDir string) id.Gateway {
	var gateway id.Gateway
	listen := ""
	for entry := range strings.SplitSeq(string(environ), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		switch name {
		case driver.EnvGateway:
			gateway, _ = id.ParseGateway(value)
		case driver.EnvListen:
			listen = value
		}
	}
	if !below(runDir, listen) {
		return ""
	}
	return gateway
}

// member is a process and the session that it is in.
type member struct{ pid, session int }

// members lists all processes of the machine with their sessions; what ends meanwhile is left out. Every gateway that ends
// has the machine looked through, so the kernel is asked for the session alone: /proc/<pid>/stat costs a hundred times as much.
func members() []member {
	var out []member
	for _, pid := range pids() {
		session, err := unix.Getsid(pid)
		if err != nil { // it has ended, or somebody forbids to ask this way
			s, err := readStat(pid)
			if err != nil {
				continue
			}
			session = s.session
		}
		out = append(out, member{pid, session})
	}
	return out
}

// processes lists what runs on the machine; what ends meanwhile is left out.
func processes() []stat {
	var out []stat
	for _, pid := range pids() {
		if s, err := readStat(pid); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// pids are the numbers of all processes, as far as this user may see them.
func pids() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, _ := dir.Readdirnames(-1)
	out := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
