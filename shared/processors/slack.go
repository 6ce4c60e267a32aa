package processors

import (
	"fmt"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Slack is how much later than asked the timers of the programs may fire. Go has a watchman (sysmon) that looks at a
// program's processors every 20 µs while anything runs, each time with a thread that wakes up, and in programs whose work
// comes in small pieces this is a third of all switches between threads. With this slack it looks once in a millisecond,
// which is still far less than the 10 ms after which it does something about a goroutine that keeps a processor. A thread
// has its slack from the one that started it, and Go starts the watchman before any code of a program, so it has to be
// given from outside: the units have it as TimerSlackNSec.
const Slack = time.Millisecond

// Start starts a program with Slack, which what the program starts has from it. (A program that begins with too little
// of it works the same and costs more.)
func Start(cmd *exec.Cmd) error {
	runtime.LockOSThread() // the child has the slack of the thread that makes it
	defer runtime.UnlockOSThread()
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(Slack), 0, 0, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot set the timer slack of %s: %w", cmd.Path, err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(before), 0, 0, 0) }() // it has just worked
	return cmd.Start()
}
