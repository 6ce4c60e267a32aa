package dev

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/client"
)

const poolName = "default"

// Names of the programs in dev.json, by their place among their like. Coordinators and hosts are named so in the
// system, too.
func coordinatorName(i int) string { return fmt.Sprintf("coordinator-%d", i+1) }
func agentName(i int) string       { return fmt.Sprintf("agent-%d", i+1) }
func nginxName(i int) string       { return fmt.Sprintf("nginx-%d", i+1) }
func hostID(i int) string          { return fmt.Sprintf("host-%d", i+1) }

// system is one dev system while it starts, runs and stops.
type system struct {
	opts    Options
	tools   programs
	home    *home
	ports   ports
	environ []string
	family  *family
	open    []*client.Client // of each coordinator alone, without token
	broken  chan struct{}    // closed when a program dies before everything is ready

	// Set by tokens, read by later steps.
	token string
	admin *client.Client

	mu        sync.Mutex // guards what follows
	ready     bool       // from here on what dies is started again
	startErr  error
	seen      string // what the start waits for, for its error
	processes map[string]identity
	changed   chan struct{} // holds one value when processes has changed since dev.json was written
}

func newSystem(opts Options, tools programs, h *home, p ports) (*system, error) {
	s := &system{
		opts: opts, tools: tools, home: h, ports: p, environ: cleanEnvironment(opts.Environ), family: newFamily(),
		broken: make(chan struct{}), processes: map[string]identity{}, changed: make(chan struct{}, 1),
	}
	for _, server := range p.servers() {
		open, err := client.New(client.Options{Addresses: []string{server}, RetryFor: -1})
		if err != nil {
			return nil, err
		}
		s.open = append(s.open, open)
	}
	return s, nil
}

func (s *system) coordinator(i int) program {
	return program{
		name: coordinatorName(i), log: s.home.log(coordinatorName(i)),
		argv: []string{s.tools.coordinator, "run", "--config", s.home.coordinatorConfig(i)},
		stop: []ending{{syscall.SIGTERM, 25 * time.Second}},
	}
}

func (s *system) agent(i int) program {
	return program{
		name: agentName(i), log: s.home.log(agentName(i)),
		argv: []string{s.tools.agent, "run", "--config", s.home.agentConfig(i)},
		stop: []ending{{syscall.SIGTERM, 15 * time.Second}},
	}
}

// nginx is started as a service manager would: the agent's program first puts its configuration into a
// state that is proven. The workers of a master that was killed still listen, so they go before.
func (s *system) nginx(i int) program {
	conf := filepath.Join(s.home.agentData(i), "nginx", "nginx.conf")
	group := 0
	return program{
		name: nginxName(i), log: s.home.log(nginxName(i)),
		prepare: func(ctx context.Context) error {
			if group != 0 {
				if err := end(func() []identity { return orphansOf(group) }, time.Second, s.opts.Hurry); err != nil {
					return err
				}
			}
			return s.command(ctx, s.tools.agent, "nginx-prepare", "--config", s.home.agentConfig(i))
		},
		started: func(master identity) { group = master.PID },
		argv:    []string{s.tools.nginx, "-e", "stderr", "-p", "./", "-c", conf, "-g", "daemon off;"},
		stop:    []ending{{syscall.SIGQUIT, 3 * time.Second}, {syscall.SIGTERM, 3 * time.Second}},
	}
}

// record notes the pid of a program, or that it has none.
func (s *system) record(name string, i identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.PID == 0 {
		delete(s.processes, name)
	} else {
		s.processes[name] = i
	}
	s.noteChange()
}

// pidOf is the process of a program that runs, else 0.
func (s *system) pidOf(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.processes[name].PID
}

// noteChange is called with mu held. The record is written here, before anything else can happen to this
// process: it is for the case that it is killed.
func (s *system) noteChange() {
	if err := s.home.writeRecord(s.processes); err != nil {
		fmt.Fprintf(s.opts.Stderr, "cannot write %s: %v\n", s.home.recordFile(), err)
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// died says whether a program that ended shall be started again: not before everything was ready once.
func (s *system) died(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready {
		return true
	}
	if s.startErr == nil {
		s.startErr = err
		close(s.broken)
	}
	return false
}

func (s *system) startError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.startErr
}

// settled ends the start: what dies from now on is started again.
func (s *system) settled() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = s.startErr == nil
	return s.startErr
}

// killRest ends whatever runs below this process: gateways outlive their agent.
func (s *system) killRest() error {
	self := os.Getpid()
	return end(func() []identity { return descendants(self) }, endPatience, s.opts.Hurry)
}
