// Package procfs reads what Linux tells of this machine's processes below /proc.
package procfs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Stat is what /proc/<pid>/stat says of a process: proc_pid_stat(5).
type Stat struct {
	PID     int
	State   byte // such as S: it sleeps
	Parent  int
	Group   int
	Session int
	Used    time.Duration // processor time so far, in user and kernel mode
	Start   uint64        // clock ticks since the machine's boot; with the pid it names one process of that boot
}

// Running is false for what has ended and only waits for its parent.
func (s Stat) Running() bool { return s.State != 'Z' && s.State != 'X' }

// Stopped is true for what a signal or a debugger has stopped.
func (s Stat) Stopped() bool { return s.State == 'T' || s.State == 't' }

// Read looks at one process.
func Read(pid int) (Stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, fmt.Errorf("cannot look at process %d: %w", pid, err)
	}
	return Parse(pid, b)
}

// tick is the unit of processor time: Linux shows every program 100 a second, whatever it counts with.
const tick = 10 * time.Millisecond

// Parse reads the text of /proc/<pid>/stat. The second field is the program's name in brackets and may hold anything, also
// brackets and spaces, so fields are counted from its last bracket on.
func Parse(pid int, b []byte) (Stat, error) {
	unexpected := func(why any) (Stat, error) {
		return Stat{}, fmt.Errorf("cannot look at process %d: /proc/%d/stat has another form than expected: %v", pid, pid, why)
	}
	s := Stat{PID: pid}
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return unexpected("there is no name")
	}
	n := 2
	for field := range bytes.FieldsSeq(b[end+1:]) {
		var err error
		switch n++; n {
		case 3:
			if len(field) != 1 {
				return unexpected("a state is one letter")
			}
			s.State = field[0]
		case 4:
			s.Parent, err = strconv.Atoi(string(field))
		case 5:
			s.Group, err = strconv.Atoi(string(field))
		case 6:
			s.Session, err = strconv.Atoi(string(field))
		case 14, 15:
			var ticks int64
			ticks, err = strconv.ParseInt(string(field), 10, 64)
			s.Used += time.Duration(ticks) * tick
		case 22:
			s.Start, err = strconv.ParseUint(string(field), 10, 64)
		}
		if err != nil {
			return unexpected(err)
		}
		if n == 22 {
			return s, nil
		}
	}
	return unexpected("it is cut off")
}

// All looks at every process that this user may see; what ends meanwhile is left out.
func All() []Stat {
	var out []Stat
	for _, pid := range PIDs() {
		if s, err := Read(pid); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// PIDs are the numbers of all processes that this user may see.
func PIDs() []int {
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

// Shares reports whether a process has the same file or directory at an absolute path as this one. In a container with
// files of its own the same path is another file. What cannot be told, because one of them has nothing there or may not
// be asked, counts as shared.
func Shares(pid int, path string) bool {
	ours, err := os.Stat(path)
	if err != nil {
		return true
	}
	theirs, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/root" + path)
	return err != nil || os.SameFile(ours, theirs)
}

// Boot names this run of the machine: pids and start times of another one mean nothing.
func Boot() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot tell this boot of the machine from others: %w; is /proc mounted?", err)
	}
	return strings.TrimSpace(string(b)), nil
}
