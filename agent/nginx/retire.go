package nginx

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// predecessors are the workers that nginx had when the pointer still named the generation before: whatever
// nginx does meanwhile, none of them serves the new one. Each is held by a descriptor, so that a number that
// the system gives to another process is never signalled.
type predecessors struct {
	master process
	held   []worker
	why    error // one of them could not be held: nginx is left to end them itself
}

// worker is one process of nginx.
type worker struct{ pid, fd int }

const (
	workerTitle = "nginx: worker process"
	endingTitle = "is shutting down"
)

// serves tells whether a process is a worker that takes connections. nginx gives a worker its title when it
// listens, and another one when it has stopped.
func serves(pid int) bool {
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.HasPrefix(title, []byte(workerTitle)) && !bytes.Contains(title, []byte(endingTitle))
}

// hold takes hold of the master's workers. The caller releases them.
func hold(master process) *predecessors {
	p := &predecessors{master: master}
	for _, pid := range children(master.pid) {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			p.why = fmt.Errorf("cannot hold worker %d of nginx: %w", pid, err)
			break
		}
		// What was read by number is the held process's if it lives after that.
		ours := parentOf(pid) == master.pid && serves(pid)
		if ours {
			err = unix.PidfdSendSignal(fd, 0, nil, 0)
		}
		if ours && err == nil {
			p.held = append(p.held, worker{pid, fd})
			continue
		}
		_ = unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			p.why = fmt.Errorf("cannot signal worker %d of nginx: %w", pid, err)
			break
		}
	}
	return p
}

func (p *predecessors) release() {
	for _, w := range p.held {
		_ = unix.Close(w.fd)
	}
	p.held = nil
}

// succeeded tells whether the master has that many workers that take connections and came after these.
func (p *predecessors) succeeded(workers int) bool {
	n := 0
	for _, pid := range children(p.master.pid) {
		if !slices.ContainsFunc(p.held, func(w worker) bool { return w.pid == pid }) && serves(pid) {
			n++
		}
	}
	return n >= workers
}

// end tells them to end gracefully, as the master will.
func (p *predecessors) end() error {
	if !p.master.alive() {
		return errNoMaster
	}
	for _, w := range p.held {
		if err := unix.PidfdSendSignal(w.fd, unix.SIGQUIT, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("cannot signal worker %d of nginx: %w", w.pid, err)
		}
	}
	return nil
}

// retire ends the workers of the generations before as soon as the new ones take connections; the new
// generation has answered before. nginx's master sleeps for 100 ms and then does the same, so whatever is
// in the way here costs no more than that. It tells whether there is nothing left to try.
func (e *Engine) retire(p *predecessors) (done bool) {
	if len(p.held) == 0 && p.why == nil {
		return true
	}
	err := p.why
	if err == nil {
		if !p.succeeded(e.opts.Workers) {
			return false
		}
		if e.fs.Step("nginx.workers.quit") != nil {
			return true
		}
		err = p.end()
	}
	if err != nil {
		e.waits.Do(func() { e.log.Debug("old workers are left to nginx, which takes 100 ms longer", "error", err) })
	}
	return true
}
