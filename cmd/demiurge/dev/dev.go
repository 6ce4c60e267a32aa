// Package dev runs a whole Demiurge system on one machine: the real programs as child processes, nginx, a
// pool of gateways and one sample organization, all below one directory. It starts again what dies and
// leaves nothing behind. There may be several coordinators and hosts: each is a machine in small, with a
// loopback address and directories of its own.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/lifecycle"
)

// SampleOrganization is the organization that every dev system has from the beginning.
const SampleOrganization = "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"

// readyWithin is how long a system may take from the start of its first program until it is ready: far more
// than the few seconds it needs on an idle machine.
const readyWithin = 2 * time.Minute

// tellEvery is how long whoever waits for a start is left without a word of what it waits for.
const tellEvery = 10 * time.Second

// mostHosts is how many hosts a machine may be divided into.
const mostHosts = 20

// Options of a dev system.
type Options struct {
	DataDir      string   // everything is below it, and it is kept; empty: a temporary one, removed at the end
	Address      string   // of the first coordinator's API, on loopback; port 0: a free one
	NginxPort    int      // of every host; 0: a free one
	Gateways     int      // to keep ready
	Hosts        int      // 0: as many as DataDir has, else one
	Coordinators int      // likewise
	Domain       string   // organizations are served as org-<id>.<domain>
	Executable   string   // this program: the others are beside it
	Environ      []string // of this program; what configures Demiurge is not handed on
	Stdout       io.Writer
	Stderr       io.Writer
	Hurry        <-chan struct{} // closed when stopping shall not be polite any more; nil: never
}

// Check finds what is wrong with the options by themselves.
func (o Options) Check() error {
	host, port, err := net.SplitHostPort(o.Address)
	if err != nil {
		return fmt.Errorf("cannot use %q as --address: want host:port such as 127.0.0.1:7400", o.Address)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("cannot use %q as --address: a dev system takes callers without TLS and serves loopback only, such as 127.0.0.1:7400", o.Address)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("cannot use %q as --address: want a port from 0 to 65535", o.Address)
	}
	if o.NginxPort < 0 || o.NginxPort > 65535 {
		return fmt.Errorf("cannot use %d as --nginx-port: want 0 to 65535", o.NginxPort)
	}
	if o.Gateways < 0 || o.Gateways > 1000 {
		return fmt.Errorf("cannot use %d as --gateways: want 0 to 1000", o.Gateways)
	}
	if _, err := id.ParseDomain(o.Domain); err != nil {
		return fmt.Errorf("--domain: %w", err)
	}
	if o.Hosts < 0 || o.Hosts > mostHosts {
		return fmt.Errorf("cannot use %d as --hosts: want 1 to %d", o.Hosts, mostHosts)
	}
	switch o.Coordinators {
	case 0, 1, 3, 5:
	case 2, 4:
		return fmt.Errorf("cannot use %d as --coordinators: %d of %d have to be there, so that it bears the loss of no more than with %d; want 1, 3 or 5",
			o.Coordinators, o.Coordinators/2+1, o.Coordinators, o.Coordinators-1)
	default:
		return fmt.Errorf("cannot use %d as --coordinators: want 1, 3 or 5", o.Coordinators)
	}
	if o.Coordinators > 0 {
		_, err = coordinatorAddress(o.Address, o.Coordinators-1)
	}
	return err
}

// sized settles how many coordinators and hosts there are, by what was asked for and what the data directory has:
// hosts may come to it, and nothing may go.
func (o Options) sized(dir string, earlier ports) (Options, error) {
	coordinators, hosts := len(earlier.Coordinators), len(earlier.Hosts)
	if coordinators > 0 && o.Coordinators > 0 && o.Coordinators != coordinators {
		return o, fmt.Errorf("cannot run %s on %s: what it holds was begun by %d, and only those can go on with it; leave --coordinators out or give %d, or choose a new directory with --data-dir",
			count(o.Coordinators, "coordinator"), dir, coordinators, coordinators)
	}
	if o.Hosts > 0 && o.Hosts < hosts {
		return o, fmt.Errorf("cannot run %s on %s: it has %d, and organizations may be on any of them; leave --hosts out or give %d or more, or choose a new directory with --data-dir",
			count(o.Hosts, "host"), dir, hosts, hosts)
	}
	o.Coordinators, o.Hosts = max(1, o.Coordinators, coordinators), max(1, o.Hosts, hosts)
	return o, o.Check() // once more: the address may have no room for as many as there are
}

// count is a number of things.
func count(n int, thing string) string { return fmt.Sprintf("%d %s", n, plural(n, thing)) }

func plural(n int, thing string) string {
	if n == 1 {
		return thing
	}
	return thing + "s"
}

// Run starts the system, prints "ready", and keeps it running until ctx ends; then it stops all of it.
// An end by ctx is no error, before and after it was ready.
func Run(ctx context.Context, opts Options) (err error) {
	if err := opts.Check(); err != nil {
		return err
	}
	tools, err := findPrograms(opts.Executable)
	if err != nil {
		return err
	}
	// A reader of this program's output that went away must not end it with everything left running.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)
	cleanTemporary(opts.Stderr)
	home, err := openHome(opts.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, home.close()) }()
	if err := home.cleanLeftovers(opts.Stderr); err != nil {
		return err
	}
	earlier, err := home.earlierPorts()
	if err != nil {
		return err
	}
	if opts, err = opts.sized(home.dir, earlier); err != nil {
		return err
	}
	ports, err := choosePorts(opts, earlier)
	if err != nil {
		return err
	}
	s, err := newSystem(opts, tools, home, ports)
	if err != nil {
		return err
	}
	return s.run(ctx)
}

// run is Run when nothing stands in the way any more.
func (s *system) run(ctx context.Context) error {
	var stack lifecycle.Stack
	err := s.start(ctx, &stack)
	if err == nil {
		s.announce(ctx)
		<-ctx.Done()
		fmt.Fprintln(s.opts.Stderr, "stopping; once more to stop at once")
	}
	if stopErr := stack.Stop(context.Background()); stopErr != nil {
		err = errors.Join(err, stopErr)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(s.opts.Stderr, "interrupted before it was ready; everything is stopped"+s.missing())
		return nil
	}
	return err
}

// start brings everything up in order. What it started is on the stack, also when it fails.
func (s *system) start(ctx context.Context, stack *lifecycle.Stack) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("the system was not ready within %s; see the logs in %s", readyWithin, s.home.logs()))
	defer cancel()
	if err := s.configure(); err != nil {
		return err
	}
	if err := s.family.adopt(stack); err != nil {
		return err
	}
	stack.PushClose("what is left over", s.killRest)
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{plural(s.opts.Coordinators, "coordinator"), func(ctx context.Context) error {
			s.keep(stack, s.coordinator, s.opts.Coordinators)
			return s.waitReady(ctx)
		}},
		{"tokens", s.tokens},
		{"certificates", s.certificates},
		{"nginx", func(context.Context) error { s.keep(stack, s.nginx, s.opts.Hosts); return nil }},
		{plural(s.opts.Hosts, "agent"), func(ctx context.Context) error {
			s.keep(stack, s.agent, s.opts.Hosts)
			return s.waitHosts(ctx)
		}},
		{"pool", s.pool},
		{"sample organization", s.organization},
		{"gateways", s.waitGateways},
	}
	for _, step := range steps {
		fmt.Fprintf(s.opts.Stderr, "starting: %s\n", step.what)
		if err := s.watched(ctx, step.do); err != nil {
			return fmt.Errorf("cannot start the %s: %w", step.what, err)
		}
	}
	if err := s.settled(); err != nil {
		return err
	}
	stack.PushClose("dev.json", s.home.removeDevFile)
	if err := s.writeDevFile(ctx); err != nil {
		return err
	}
	stack.Go("dev.json writer", s.watchProcesses)
	return nil
}

// watched runs a step of the start and ends it when a program dies meanwhile.
func (s *system) watched(ctx context.Context, do func(context.Context) error) error {
	stepCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over := make(chan struct{})
	defer close(over)
	go func() { // ends with the step
		select {
		case <-s.broken:
			cancel(s.startError())
		case <-over:
		}
	}()
	err := do(stepCtx)
	switch cause := context.Cause(stepCtx); {
	case cause == nil:
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w%s", cause, s.missing())
	default:
		return cause
	}
}
