package process

import (
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
	"github.com/demiurge-platform/demiurge/shared/procfs"
	"github.com/demiurge-platform/demiurge/shared/sleep"
	"golang.org/x/sys/unix"
)

// alive reports whether this very process still runs.
func (d *Driver) alive(p driver.Process) bool {
	if p.MachineBoot != d.boot || p.PID <= 1 {
		return false
	}
	s, err := procfs.Read(p.PID)
	return err == nil && s.Running() && s.Start == p.StartTime
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
		fd, err := openPidfd(s.PID)
		if err != nil {
			continue // it ended by itself
		}
		if again, err := procfs.Read(s.PID); err == nil && again.Start == s.Start {
			d.log.Info("ending a process that its gateway left behind", "gateway", p.Gateway, "pid", s.PID)
			if err := fd.signal(unix.SIGKILL); err != nil && !errors.Is(err, driver.ErrGone) {
				d.log.Warn("cannot end a process that its gateway left behind", "gateway", p.Gateway, "pid", s.PID, "error", err)
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
			return fmt.Errorf("process %d still runs: %w", left[0].PID, ctx.Err())
		}
		wait = min(2*wait, 100*time.Millisecond)
	}
}

// leftovers finds what runs in a gateway's session beside its first process. A session keeps its number
// as long as it has a member, so a process of that number with another start time means that the session
// is another one.
func (d *Driver) leftovers(p driver.Process) []procfs.Stat {
	if p.MachineBoot != d.boot || p.PID <= 1 {
		return nil
	}
	if first, err := procfs.Read(p.PID); err == nil && first.Start != p.StartTime {
		return nil
	}
	var out []procfs.Stat
	for _, m := range d.all.look() {
		if m.session != p.PID || m.pid == p.PID {
			continue
		}
		// The number may have gone to another process meanwhile, so its session is looked at again.
		if s, err := procfs.Read(m.pid); err == nil && s.Session == p.PID && s.Running() && s.Start >= p.StartTime {
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
	var found []procfs.Stat
	for _, s := range procfs.All() {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("cannot list gateway processes: %w", err)
		}
		if s.Running() {
			running[s.PID] = true
			found = append(found, s)
		}
	}
	for _, s := range found {
		if s.PID != s.Session && running[s.Session] {
			continue
		}
		if gateway := d.marked(s.PID); gateway != "" {
			out = append(out, driver.Process{Gateway: gateway, PID: s.PID, StartTime: s.Start, MachineBoot: d.boot})
		}
	}
	slices.SortFunc(out, func(a, b driver.Process) int { return a.PID - b.PID })
	return out, nil
}

// marked returns the gateway whose environment a process has, if its socket is below our run directory.
// The environment of another user's process cannot be read, and that process is not ours. Nor is one that has another
// directory in that place: it belongs to an agent in a container that shares the machine's processes, but not its files.
func (d *Driver) marked(pid int) id.Gateway {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return ""
	}
	gateway := markOf(b, d.opts.RunDir)
	if gateway != "" && !procfs.Shares(pid, d.opts.RunDir) {
		return ""
	}
	return gateway
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
	for _, pid := range procfs.PIDs() {
		session, err := unix.Getsid(pid)
		if err != nil { // it has ended, or somebody forbids to ask this way
			s, err := procfs.Read(pid)
			if err != nil {
				continue
			}
			session = s.Session
		}
		out = append(out, member{pid, session})
	}
	return out
}
