package dev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// identity tells one process from a later one with the same number.
type identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start_time"` // clock ticks since the machine's boot: /proc/<pid>/stat, field 22
}

// process is one line of the process table.
type process struct {
	identity
	parent int
	group  int
	state  byte
}

func (p process) zombie() bool { return p.state == 'Z' || p.state == 'X' }

// look reads one process; false when there is none.
func look(pid int) (process, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	i := bytes.LastIndex(b, []byte(") ")) // the name in parentheses may hold anything
	if i < 0 {
		return process{}, false
	}
	f := strings.Fields(string(b[i+2:]))
	if len(f) < 20 {
		return process{}, false
	}
	p := process{state: f[0][0]}
	p.PID = pid
	var errs [3]error
	p.parent, errs[0] = strconv.Atoi(f[1])
	p.group, errs[1] = strconv.Atoi(f[2])
	p.Start, errs[2] = strconv.ParseUint(f[19], 10, 64)
	return p, errors.Join(errs[:]...) == nil
}

// table is all processes that can be seen.
func table() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := look(pid); ok {
			out = append(out, p)
		}
	}
	return out
}

// alive reports whether this very process runs.
func (i identity) alive() bool {
	p, ok := look(i.PID)
	return ok && p.Start == i.Start && !p.zombie()
}

// signal reaches this very process or nobody.
func (i identity) signal(sig syscall.Signal) {
	if i.alive() {
		_ = syscall.Kill(i.PID, sig)
	}
}

// descendants are the children of a process, their children and so on, without zombies.
func descendants(of int) []identity {
	children := map[int][]process{}
	for _, p := range table() {
		children[p.parent] = append(children[p.parent], p)
	}
	var out []identity
	for queue := []int{of}; len(queue) > 0; queue = queue[1:] {
		for _, p := range children[queue[0]] {
			queue = append(queue, p.PID)
			if !p.zombie() {
				out = append(out, p.identity)
			}
		}
	}
	return out
}

// belongsTo reports whether a process is one of ours that works below dir: its program by name, and a
// word of its command line or a variable of its environment that names a path there.
func belongsTo(pid int, dir string) bool {
	base := fmt.Sprintf("/proc/%d/", pid)
	exe, err := os.Readlink(base + "exe")
	if err != nil {
		return false
	}
	switch strings.TrimSuffix(filepath.Base(exe), " (deleted)") {
	case "demiurge-coordinator", "demiurge-agent", "demiurge-gateway", "nginx":
	default:
		return false
	}
	var words [][]byte
	for _, file := range []string{"cmdline", "environ"} {
		b, _ := os.ReadFile(base + file)
		words = append(words, bytes.FieldsFunc(b, func(r rune) bool { return r == 0 || r == ' ' })...)
	}
	for _, w := range words {
		if _, value, ok := bytes.Cut(w, []byte("=")); ok {
			w = value
		}
		if bytes.HasPrefix(w, []byte(dir+"/")) {
			return true
		}
	}
	return false
}

// end asks processes to end and kills those that have not after the patience, or at once in a hurry. find
// is asked again and again, because what ends may have started something meanwhile. A process that ends has lost what it
// is found by some moments before its files and ports: those that were found are waited for.
func end(find func() []identity, patience time.Duration, hurry <-chan struct{}) error {
	asked := map[identity]bool{} // of those found
	deadline := time.Now().Add(patience)
	for until := deadline.Add(10 * time.Second); ; {
		left := find()
		for p := range asked {
			if p.alive() && !slices.Contains(left, p) {
				left = append(left, p)
			}
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-hurry:
			deadline = time.Time{}
		default:
		}
		for _, p := range left {
			if time.Now().After(deadline) {
				p.signal(syscall.SIGKILL)
			} else if !asked[p] {
				p.signal(syscall.SIGTERM)
				p.signal(syscall.SIGCONT) // one that somebody stopped hears nothing
			}
			asked[p] = true
		}
		if time.Now().After(until) {
			return fmt.Errorf("cannot end %d processes, the first with pid %d", len(left), left[0].PID)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// bootID names this run of the machine: start times of another one mean nothing.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}
