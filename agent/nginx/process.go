package nginx

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Process runs nginx in the foreground, for tests and for hosts without systemd: prepare, start, and
// again when it dies.
type Process struct {
	opts   Options
	cancel context.CancelFunc
	done   chan struct{} // closed when nginx has ended for good

	mu  sync.Mutex // guards pid and err
	pid int        // 0 while nginx does not run
	err error      // of the last start
}

// restartPause keeps a nginx that dies at once from using up the machine.
const restartPause = 100 * time.Millisecond

// StartProcess prepares and starts nginx and waits until it serves.
func StartProcess(ctx context.Context, opts Options) (*Process, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := opts.prepareDirs(); err != nil {
		return nil, err
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &Process{opts: opts, cancel: cancel, done: make(chan struct{})}
	go p.run(runCtx) // Stop waits for it
	if err := p.waitServing(ctx); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

func (p *Process) run(ctx context.Context) {
	defer close(p.done)
	for ctx.Err() == nil {
		err := Prepare(ctx, p.opts)
		if err == nil {
			err = p.once(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		p.set(0, err)
		p.opts.Logger.Warn("nginx ended and is started again", "error", err)
		sleep.For(ctx, restartPause)
	}
}

// once runs nginx until it ends or ctx ends.
func (p *Process) once(ctx context.Context) error {
	l := layout{data: p.opts.DataDir, run: p.opts.RunDir}
	cmd := exec.Command(p.opts.Binary, "-e", l.errorLog(), "-p", prefix, "-c", l.mainConf(), "-g", "daemon off;")
	cmd.Env = append(os.Environ(), hugePages)
	// A signal to our terminal is not for nginx, and nginx must not outlive us without an owner.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	tail := tailFrom(l.errorLog())
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start nginx: %w", err)
	}
	p.set(cmd.Process.Pid, nil)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // received below
	select {
	case err := <-ended:
		if said := words(strings.Join(tail.lines(cmd.Process.Pid), "\n"), "[emerg]"); said != "" {
			return fmt.Errorf("nginx ended (%v): %s", err, said)
		}
		return fmt.Errorf("nginx ended (%v); its log is %s", err, l.errorLog())
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGCONT)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(3 * time.Second):
		_ = cmd.Process.Kill()
		<-ended
	}
	p.set(0, nil)
	return nil
}

func (p *Process) set(pid int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid, p.err = pid, err
}

// waitServing waits for the first answer of the generation that the pointer names.
func (p *Process) waitServing(ctx context.Context) error {
	l := layout{data: p.opts.DataDir, run: p.opts.RunDir}
	return poll(ctx, func() (bool, error) {
		p.mu.Lock()
		pid, err := p.pid, p.err
		p.mu.Unlock()
		if pid == 0 {
			return false, err
		}
		o, err := findMaster(l, p.opts.Binary)
		if err != nil || o.pid != pid {
			return false, nil
		}
		sockets, err := liveSocket(ctx, l)
		return sockets, err
	})
}

// liveSocket tells whether the generation that the journal calls live answers.
func liveSocket(ctx context.Context, l layout) (bool, error) {
	j, err := readJournalFile(l)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got, err := askGeneration(ctx, l.socket(j.Live))
	return err == nil && got == j.Live, nil
}

// PID is the pid of the nginx master, 0 while it does not run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Stop ends nginx and its workers and waits for that.
func (p *Process) Stop() {
	p.cancel()
	<-p.done
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for len(orphans(layout{data: p.opts.DataDir, run: p.opts.RunDir})) > 0 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
}
