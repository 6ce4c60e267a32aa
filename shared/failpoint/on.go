//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Enabled tells whether this program was built with failpoints.
const Enabled = true

// points is what a test wants of this process.
type points struct {
	file, trace, full string // paths; empty: not asked for

	mu    sync.Mutex // guards what follows, and orders the trace
	fixed target     // of the environment
	armed target     // of the file
	text  string     // of the file when armed was read from it
}

// target is a label, and how often it must still be reached.
type target struct {
	label string
	left  int
}

// selected is read once, at the first Hit: the environment is fixed when the process starts, and a
// wrong value must stop the program before it does anything, or a test would pass without its fault.
var selected = sync.OnceValue(func() *points {
	p := &points{file: os.Getenv(FileVariable), trace: os.Getenv(TraceVariable), full: os.Getenv(FullVariable)}
	if value := os.Getenv(Variable); value != "" {
		p.fixed = parse(value)
	}
	return p
})

func parse(value string) target {
	label, n, err := Parse(value)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return target{label, n}
}

// Hit kills the own process with SIGKILL when environment or file select this label and count. It does
// not return in that case: nothing is flushed, deferred or closed.
func Hit(label string) {
	p := selected()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note(label)
	if p.fixed.reached(label) || p.armedAt(label) {
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way; no later step may begin
	}
}

// reached counts and tells whether this was the time.
func (t *target) reached(label string) bool {
	if t.label != label {
		return false
	}
	t.left--
	return t.left == 0
}

// armedAt looks into the file. Of two processes that reach the label only the one that removes the file
// dies.
func (p *points) armedAt(label string) bool {
	if p.file == "" {
		return false
	}
	b, err := os.ReadFile(p.file)
	if err != nil {
		p.text, p.armed = "", target{}
		return false
	}
	if text := strings.TrimSpace(string(b)); text != p.text {
		p.text, p.armed = text, parse(text)
	}
	return p.armed.reached(label) && os.Remove(p.file) == nil
}

// note appends a label to the trace. A trace that cannot be written would make a test miss steps.
func (p *points) note(label string) {
	if p.trace == "" {
		return
	}
	f, err := os.OpenFile(p.trace, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.WriteString(label + "\n")
		_ = f.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot write the trace of failpoints:", err)
		os.Exit(2)
	}
}

// Fail does to a step what the file of FullVariable says, while it is there: nothing, a delay, or an error.
func Fail(label string) error {
	p := selected()
	if p.full == "" {
		return nil
	}
	b, err := os.ReadFile(p.full)
	if err != nil {
		return nil
	}
	for _, word := range strings.Fields(string(b)) {
		f, err := ParseFault(word)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		if !strings.HasPrefix(label, f.Label) {
			continue
		}
		time.Sleep(f.Delay)
		if f.Err != nil {
			return &os.PathError{Op: "write", Path: label, Err: f.Err}
		}
	}
	return nil
}
