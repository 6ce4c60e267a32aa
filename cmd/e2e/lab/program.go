package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Program is a real program on a host. It ends with the process that started it, however that ends.
type Program struct {
	Name string

	host *Host
	args []string
	env  []string
	log  string // file that its output is appended to

	mu     sync.Mutex
	cmd    *exec.Cmd     // nil while it does not run; guarded by mu
	exited chan struct{} // closed when cmd has ended
}

// Program describes a program on this host: the path, its arguments, what is added to the environment, and
// the file for its output.
func (h *Host) Program(name, log string, env []string, args ...string) *Program {
	return &Program{Name: name, host: h, args: args, env: env, log: log}
}

// Start starts the program, if it does not run.
func (p *Program) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return nil
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the log of %s: %w", p.Name, err)
	}
	defer log.Close()
	cmd := exec.Command("ip", append([]string{"netns", "exec", p.host.namespace}, p.args...)...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), p.env...), log, log
	// ip becomes the program, which keeps the process id and dies when this process does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start %s: %w", p.Name, err)
	}
	exited := make(chan struct{})
	p.cmd, p.exited = cmd, exited
	go func() { // ends with the program
		_ = cmd.Wait() // however it ends, it is not running any more
		close(exited)
	}()
	return nil
}

// running reports whether it runs; the caller holds mu.
func (p *Program) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Running reports whether the program runs, be it paused.
func (p *Program) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running()
}

// Signal sends the program a signal; one that does not run gets none.
func (p *Program) Signal(s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return nil
	}
	return p.cmd.Process.Signal(s)
}

// End asks the program to end, as systemd does, and waits until it has. One that does not is killed.
func (p *Program) End() error {
	p.mu.Lock()
	running, exited := p.running(), p.exited
	if running {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			p.mu.Unlock()
			return fmt.Errorf("cannot end %s: %w", p.Name, err)
		}
	}
	p.mu.Unlock()
	if !running {
		return nil
	}
	select {
	case <-exited:
		return nil
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("%s did not end within %s", p.Name, patience), p.Kill())
	}
}

// Kill ends the program at once, with all processes of its group, and waits until it is gone.
func (p *Program) Kill() error {
	p.mu.Lock()
	if p.running() {
		if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			p.mu.Unlock()
			return fmt.Errorf("cannot kill %s: %w", p.Name, err)
		}
	}
	exited := p.exited
	p.mu.Unlock()
	if exited != nil {
		<-exited
	}
	return nil
}

// Files counts the files that the program has open.
func (p *Program) Files() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return 0, fmt.Errorf("%s does not run", p.Name)
	}
	open, err := filepath.Glob("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/fd/*")
	return len(open), err
}
