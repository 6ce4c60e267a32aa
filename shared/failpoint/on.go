//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"sync"
	"syscall"
)

// Enabled tells whether this program was built with failpoints.
const Enabled = true

type point struct {
	mu    sync.Mutex
	label string
	left  int
}

// selected is read once, at the first Hit: the environment is fixed when the process starts, and a
// wrong value must stop the program before it does anything, or a test would pass without its fault.
var selected = sync.OnceValue(func() *point {
	value, ok := os.LookupEnv(Variable)
	if !ok || value == "" {
		return &point{}
	}
	label, n, err := Parse(value)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return &point{label: label, left: n}
})

// Hit kills the own process with SIGKILL when the environment selects this label and count. It does
// not return in that case: nothing is flushed, deferred or closed.
func Hit(label string) {
	p := selected()
	if p.label != label {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left--; p.left == 0 {
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way; no later step may begin
	}
}
