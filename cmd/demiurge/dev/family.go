package dev

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/demiurge-platform/demiurge/shared/lifecycle"
	"github.com/demiurge-platform/demiurge/shared/processors"
	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// family is every process below this one. Gateways outlive their agent; because this process is a
// subreaper they become its children then, and somebody has to take their exit status: until that is done
// they look alive to the next agent.
type family struct {
	mu  sync.Mutex   // held from before a child is made until it is in own, so that reap cannot take it
	own map[int]bool // children whose exit status exec.Cmd takes
}

func newFamily() *family { return &family{own: map[int]bool{}} }

// adopt makes this process the parent of orphans among its descendants, until the stack stops.
func (f *family) adopt(stack *lifecycle.Stack) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot become the parent of gateways that outlive their agent: %w", err)
	}
	stack.PushClose("parenthood", func() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
	stack.Go("reaper", f.reapUntil)
	return nil
}

// reapUntil reaps whenever a child ended. The ticker is for what no signal told of; beside hundreds of gateways
// the table of all processes is dear to read.
func (f *family) reapUntil(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	for {
		f.reap()
		select {
		case <-ctx.Done():
			return
		case <-ended:
		case <-ticker.C:
		}
	}
}

// reap takes the exit status of children that are nobody's.
func (f *family) reap() {
	self := os.Getpid()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range procfs.All() {
		if p.Parent == self && !p.Running() && !f.own[p.PID] {
			_, _ = syscall.Wait4(p.PID, nil, syscall.WNOHANG, nil)
		}
	}
}

// start starts a child in a process group of its own, so that a terminal's interrupt reaches only this
// process, and with the timer slack that the units give it elsewhere.
func (f *family) start(cmd *exec.Cmd) (identity, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := processors.Start(cmd); err != nil {
		return identity{}, err
	}
	f.own[cmd.Process.Pid] = true
	p, _ := procfs.Read(cmd.Process.Pid) // a child that ended already is still there as a zombie
	return identityOf(p), nil
}

// wait waits for a child that start started.
func (f *family) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	f.mu.Lock()
	delete(f.own, cmd.Process.Pid)
	f.mu.Unlock()
	return err
}

// orphansOf are what a dead child left in its process group: an nginx master's workers.
func orphansOf(group int) []identity {
	var out []identity
	self := os.Getpid()
	for _, p := range procfs.All() {
		if p.Group == group && p.Parent == self && p.PID != group && p.Running() {
			out = append(out, identityOf(p))
		}
	}
	return out
}
