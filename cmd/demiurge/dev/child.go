package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/lifecycle"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

const (
	firstPause = 100 * time.Millisecond // before a program is started again
	lastPause  = time.Second
	calmAfter  = time.Second // a program that ran this long starts again with the first pause
)

// program is one supervised child.
type program struct {
	name    string                      // as in dev.json
	log     string                      // file for its output
	prepare func(context.Context) error // before every start; nil: nothing
	argv    []string
	started func(identity) // told of every start; nil: nobody
	stop    []ending       // tried in turn, then SIGKILL
}

// ending is a signal and how long it may take to work.
type ending struct {
	signal   syscall.Signal
	patience time.Duration
}

// keep runs so many programs of one kind until the stack stops, and then stops all of them at once.
func (s *system) keep(stack *lifecycle.Stack, kind func(i int) program, n int) {
	stack.Go(kind(0).name, func(ctx context.Context) {
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() { s.supervise(ctx, kind(i)) })
		}
		all.Wait()
	})
}

// supervise runs a program and starts it again when it dies.
func (s *system) supervise(ctx context.Context, p program) {
	pause := firstPause
	for {
		begun := time.Now()
		err := s.once(ctx, p)
		if ctx.Err() != nil {
			return
		}
		if !s.died(err) {
			return
		}
		if time.Since(begun) > calmAfter {
			pause = firstPause
		}
		fmt.Fprintf(s.opts.Stderr, "%s\n  starting it again in %s\n", err, pause)
		if !sleep.For(ctx, pause) {
			return
		}
		pause = min(2*pause, lastPause)
	}
}

// once runs a program from start to end. It returns why it ended, with its last words.
func (s *system) once(ctx context.Context, p program) error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the log of %s: %w", p.name, err)
	}
	defer log.Close()
	words := lastWords{file: p.log}
	if info, err := log.Stat(); err == nil {
		words.from = info.Size()
	}
	if p.prepare != nil {
		if err := p.prepare(ctx); err != nil {
			return fmt.Errorf("cannot prepare %s: %w", p.name, err)
		}
	}
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Env, cmd.Dir = s.environ, s.home.dir
	cmd.Stdout, cmd.Stderr = log, log
	running, err := s.family.start(cmd)
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", p.name, err)
	}
	s.record(p.name, running)
	if p.started != nil {
		p.started(running)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.family.wait(cmd) }() // waited for below, on every path
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = s.stop(p, running, ended)
	}
	s.record(p.name, identity{})
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("%s (pid %d) ended: %w%s", p.name, running.PID, err, words)
}

// stop ends a running program: its signals in turn, SIGKILL when they do not work or in a hurry.
func (s *system) stop(p program, running identity, ended <-chan error) error {
	for _, e := range p.stop {
		running.signal(e.signal)
		running.signal(syscall.SIGCONT) // one that somebody stopped hears nothing
		select {
		case err := <-ended:
			return err
		case <-s.opts.Hurry:
		case <-time.After(e.patience):
		}
	}
	running.signal(syscall.SIGKILL)
	return <-ended
}

// command runs a helper program to its end and returns an error with what it said.
func (s *system) command(ctx context.Context, argv ...string) error {
	return s.commandWith(ctx, "", argv...)
}

// commandWith is command for a program that reads something from its standard input.
func (s *system) commandWith(ctx context.Context, input string, argv ...string) error {
	var said strings.Builder
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Env, cmd.Dir = s.environ, s.home.dir
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	if _, err := s.family.start(cmd); err != nil {
		return err
	}
	if err := s.family.wait(cmd); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// lastWords are the last lines that a run of a program wrote to its log.
type lastWords struct {
	file string
	from int64 // size of the log before the run
}

const (
	lastLines = 8
	lastBytes = 8 << 10
)

// String prints the lines indented below each other, and where there is more.
func (l lastWords) String() string {
	f, err := os.Open(l.file)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() <= l.from {
		return "\n  it said nothing; its log is " + l.file
	}
	from := max(l.from, info.Size()-lastBytes)
	b, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > lastLines {
		lines = lines[len(lines)-lastLines:]
	}
	return "\n  the last lines of " + l.file + ":\n    " + strings.Join(lines, "\n    ")
}
