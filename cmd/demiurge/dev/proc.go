package dev

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// identity tells one process from a later one with the same number.
type identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start_time"` // clock ticks since the machine's boot: /proc/<pid>/stat, field 22
}

func identityOf(s procfs.Stat) identity { return identity{s.PID, s.Start} }

// alive reports whether this very process runs.
func (i identity) alive() bool {
	s, err := procfs.Read(i.PID)
	return err == nil && s.Start == i.Start && s.Running()
}

// signal reaches this very process or nobody.
func (i identity) signal(sig syscall.Signal) {
	if i.alive() {
		_ = syscall.Kill(i.PID, sig)
	}
}

// descendants are the children of a process, their children and so on, without zombies.
func descendants(of int) []identity {
	children := map[int][]procfs.Stat{}
	for _, p := range procfs.All() {
		children[p.Parent] = append(children[p.Parent], p)
	}
	var out []identity
	for queue := []int{of}; len(queue) > 0; queue = queue[1:] {
		for _, p := range children[queue[0]] {
			queue = append(queue, p.PID)
			if p.Running() {
				out = append(out, identityOf(p))
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
