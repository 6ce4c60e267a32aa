// Package process runs gateways as plain processes in sessions of their own: for development, containers
// and tests. They outlive the agent, which adopts them when it is back.
//
// Of the limits it can enforce: the memory limit reaches a gateway written in Go as GOMEMLIMIT (a soft
// one: the collector works harder near it) and makes every gateway the kernel's first choice when memory
// runs out (oom_score_adj); the processor limit reaches it as GOMAXPROCS, rounded up to whole cores; open
// files are bounded (RLIMIT_NOFILE). It cannot enforce a hard memory limit (RLIMIT_AS would count address
// space, of which a Go program reserves far more than it uses), parts of a core, or the number of tasks
// (RLIMIT_NPROC counts all processes of the user). The systemd driver enforces those.
//
// A grandchild that makes a session of its own outlives its gateway. List finds it by its environment and
// names it like a gateway, so that it can be stopped.
package process

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/procfs"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// Defaults of Options.
const (
	DefaultMaxFiles    = 65536
	DefaultMaxLogBytes = 16 << 20
	DefaultLogCheck    = 10 * time.Second
)

// oomScore is added to a gateway's badness: it is to go before the agent and nginx.
const oomScore = 500

// Options of a Driver.
type Options struct {
	RunDir      string        // absolute; the sockets of all gateways lie below it, and List finds them by it
	MaxFiles    uint64        // open files of one gateway; default DefaultMaxFiles, never above the agent's own
	MaxLogBytes int64         // a longer log becomes <log>.1 and a new one begins; default DefaultMaxLogBytes
	LogCheck    time.Duration // how often Wait looks at the log's length; default DefaultLogCheck
	Logger      hclog.Logger
}

// Driver implements driver.Driver.
type Driver struct {
	opts Options
	log  hclog.Logger
	boot string // id of the machine's boot
	all  *table

	mu       sync.Mutex
	children map[driver.Process]*child // started by this Driver; finished ones stay until a later Start
}

var _ driver.Driver = (*Driver)(nil)

// child is a process that this Driver is the parent of.
type child struct {
	done chan struct{} // closed when exit is set and the process is reaped
	exit driver.Exit
}

// New makes a Driver. It has nothing to stop: gateways outlive it.
func New(opts Options) (*Driver, error) {
	if !filepath.IsAbs(opts.RunDir) {
		return nil, fmt.Errorf("cannot run gateways below %q: the run directory is not an absolute path", opts.RunDir)
	}
	if opts.MaxFiles == 0 {
		opts.MaxFiles = DefaultMaxFiles
	}
	if opts.MaxLogBytes == 0 {
		opts.MaxLogBytes = DefaultMaxLogBytes
	}
	if opts.LogCheck == 0 {
		opts.LogCheck = DefaultLogCheck
	}
	if opts.Logger == nil {
		opts.Logger = hclog.NewNullLogger()
	}
	opts.RunDir = filepath.Clean(opts.RunDir)
	boot, err := procfs.Boot()
	if err != nil {
		return nil, err
	}
	return &Driver{opts: opts, log: opts.Logger.Named("process"), boot: boot, all: newTable(members), children: map[driver.Process]*child{}}, nil
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Process, error) {
	none := driver.Process{}
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("cannot start gateway %s: %w", spec.Gateway, err)
	}
	if err := spec.Check(); err != nil {
		return none, err
	}
	if !below(d.opts.RunDir, spec.Listen) {
		return none, fmt.Errorf("cannot start gateway %s: its socket %s is not below the run directory %s, so it would not be found again", spec.Gateway, spec.Listen, d.opts.RunDir)
	}
	if err := os.MkdirAll(spec.StateDir, 0o700); err != nil {
		return none, fmt.Errorf("cannot start gateway %s: cannot make its state directory: %w", spec.Gateway, err)
	}
	logFile, err := openLog(spec.LogFile, d.opts.MaxLogBytes)
	if err != nil {
		return none, fmt.Errorf("cannot start gateway %s: %w", spec.Gateway, err)
	}
	defer func() { _ = logFile.Close() }()

	keepDescriptors()
	cmd := exec.Command(spec.Program, spec.Args...)
	cmd.Dir = spec.StateDir
	cmd.Env = append(limitEnv(spec), spec.Environ()...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return none, startError(spec, err)
	}
	p := driver.Process{Gateway: spec.Gateway, PID: cmd.Process.Pid, MachineBoot: d.boot}
	stat, err := procfs.Read(p.PID) // it is not reaped yet, so it is there
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return none, fmt.Errorf("cannot start gateway %s: %w: is /proc mounted?", spec.Gateway, err)
	}
	p.StartTime = stat.Start
	if err := d.follow(cmd, p); err != nil {
		return none, fmt.Errorf("cannot start gateway %s: %w", spec.Gateway, err)
	}
	d.limit(p)
	d.log.Info("gateway process started", "gateway", p.Gateway, "pid", p.PID)
	return p, nil
}

// follow records the child and reaps it when it ends.
func (d *Driver) follow(cmd *exec.Cmd, p driver.Process) error {
	fd, err := openPidfd(p.PID)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	c := &child{done: make(chan struct{})}
	d.mu.Lock()
	for old, finished := range d.children {
		select {
		case <-finished.done:
			if old.Gateway == p.Gateway || len(d.children) > 1024 {
				delete(d.children, old)
			}
		default:
		}
	}
	d.children[p] = c
	d.mu.Unlock()
	go func() { // nobody waits for it: it lives as long as the gateway, which outlives the agent
		_ = fd.wait(context.Background())
		fd.close()
		// Before the process is reaped its number cannot go to another one.
		d.endSession(p)
		err := cmd.Wait()
		c.exit = exitOf(cmd.ProcessState)
		close(c.done)
		d.log.Info("gateway process ended", "gateway", p.Gateway, "pid", p.PID, "how", c.exit.String(), "error", waitError(err))
	}()
	return nil
}

// Adopt implements driver.Driver.
func (d *Driver) Adopt(_ context.Context, p driver.Process) error {
	if !d.alive(p) {
		return fmt.Errorf("cannot adopt process %d of gateway %s: %w", p.PID, p.Gateway, driver.ErrGone)
	}
	return nil
}

// Wait implements driver.Driver.
func (d *Driver) Wait(ctx context.Context, p driver.Process) (driver.Exit, error) {
	type result struct {
		exit driver.Exit
		err  error
	}
	ended := make(chan result, 1)
	var reaped, over <-chan struct{}
	own := d.child(p)
	if own != nil { // then there is a goroutine that waits for it already
		reaped, over = own.done, ctx.Done()
	} else {
		go func() { // waited for below: it ends with the process or the context
			exit, err := d.gone(ctx, p)
			ended <- result{exit, err}
		}()
	}
	logs := time.NewTicker(d.opts.LogCheck)
	defer logs.Stop()
	for {
		select {
		case <-reaped:
			return own.exit, nil
		case <-over:
			return driver.Exit{}, fmt.Errorf("cannot wait for gateway %s: %w", p.Gateway, ctx.Err())
		case r := <-ended:
			if r.err != nil {
				return r.exit, fmt.Errorf("cannot wait for gateway %s: %w", p.Gateway, r.err)
			}
			return r.exit, nil
		case <-logs.C:
			if !d.alive(p) {
				continue
			}
			if err := bound(p.PID, d.opts.MaxLogBytes); err != nil {
				d.log.Warn("cannot bound the log of a gateway", "gateway", p.Gateway, "error", err)
			}
		}
	}
}

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, p driver.Process, grace time.Duration) error {
	if p.MachineBoot != d.boot {
		return nil // nothing outlives the machine
	}
	err := d.signal(p, unix.SIGTERM)
	if err == nil || errors.Is(err, driver.ErrGone) {
		graceCtx, cancel := context.WithTimeout(ctx, grace)
		_, err = d.gone(graceCtx, p)
		cancel()
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		d.log.Warn("gateway did not stop in its grace: killing it", "gateway", p.Gateway, "pid", p.PID, "grace", grace)
		if err = d.signal(p, unix.SIGKILL); err == nil || errors.Is(err, driver.ErrGone) {
			_, err = d.gone(ctx, p)
		}
	}
	if err == nil {
		err = d.sessionGone(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("cannot stop gateway %s, process %d: %w", p.Gateway, p.PID, err)
	}
	return nil
}

// child is a process that this driver has started; nil: it has not.
func (d *Driver) child(p driver.Process) *child {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.children[p]
}

// gone waits until the process has ended, whoever its parent is, and ends what is left of its session.
func (d *Driver) gone(ctx context.Context, p driver.Process) (driver.Exit, error) {
	if c := d.child(p); c != nil {
		select {
		case <-c.done:
			return c.exit, nil
		case <-ctx.Done():
			return driver.Exit{}, ctx.Err()
		}
	}
	fd, err := d.open(p)
	if err == nil {
		err = fd.wait(ctx)
		fd.close()
	}
	if err != nil && !errors.Is(err, driver.ErrGone) {
		return driver.Exit{}, err
	}
	d.endSession(p)
	return driver.Exit{}, nil
}

// limitEnv is how limits reach a program written in Go; the pool's own settings come later and win.
func limitEnv(spec driver.Spec) []string {
	var env []string
	if m := spec.Limits.MemoryBytes; m > 0 {
		env = append(env, "GOMEMLIMIT="+strconv.FormatInt(m/10*9, 10)) // what the heap does not count needs room
	}
	if c := spec.Limits.CPUPercent; c > 0 {
		env = append(env, "GOMAXPROCS="+strconv.Itoa(int(math.Ceil(float64(c)/100))))
	}
	return env
}

// limit sets what the kernel enforces. The process runs already, so a failure is a warning.
func (d *Driver) limit(p driver.Process) {
	var own unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own)
	if err == nil {
		files := min(d.opts.MaxFiles, own.Max)
		err = unix.Prlimit(p.PID, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files}, nil)
	}
	if err != nil {
		d.log.Warn("cannot bound the open files of a gateway", "gateway", p.Gateway, "error", err)
	}
	score := []byte(strconv.Itoa(oomScore))
	if err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(p.PID), "oom_score_adj"), score, 0); err != nil {
		d.log.Warn("cannot make a gateway the first to go when memory runs out", "gateway", p.Gateway, "error", err)
	}
}

// keepDescriptors marks everything this process has open as its own, also what it inherited itself. Go
// opens files that way already; kernels before 5.11 do not know the flag, and then only those are kept.
func keepDescriptors() { _ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) }

func startError(spec driver.Spec, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("cannot start gateway %s: the program %s does not exist, or what it needs to be loaded: install the release, or correct the path: %w", spec.Gateway, spec.Program, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("cannot start gateway %s: the program %s may not be executed by this user: correct its mode: %w", spec.Gateway, spec.Program, err)
	}
	return fmt.Errorf("cannot start gateway %s with %s: %w", spec.Gateway, spec.Program, err)
}

// waitError keeps what is not already in the exit.
func waitError(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

func exitOf(state *os.ProcessState) driver.Exit {
	if state == nil {
		return driver.Exit{}
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return driver.Exit{Known: true, Code: -1, Signal: unix.SignalName(status.Signal())}
	}
	return driver.Exit{Known: true, Code: state.ExitCode()}
}

func below(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel) && rel != "."
}
