package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	hostID   = "host-1"
	nodeID   = "coordinator-1"
	poolName = "default"
)

// Names of the programs in dev.json.
const (
	coordinatorName = "coordinator-1"
	agentName       = "agent-1"
	nginxName       = "nginx-1"
)

// system is one dev system while it starts, runs and stops.
type system struct {
	opts    Options
	tools   programs
	home    *home
	ports   ports
	environ []string
	family  *family
	open    *client.Client // without token, for what needs none
	broken  chan struct{}  // closed when a program dies before everything is ready

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
	open, err := client.New(client.Options{Addresses: []string{"http://" + p.API}, RetryFor: -1})
	if err != nil {
		return nil, err
	}
	return &system{
		opts: opts, tools: tools, home: h, ports: p, environ: cleanEnvironment(opts.Environ), family: newFamily(), open: open,
		broken: make(chan struct{}), processes: map[string]identity{}, changed: make(chan struct{}, 1),
	}, nil
}

// configure writes the configuration files. Paths are of a plain alphabet, so that quoting is enough.
func (s *system) configure() error {
	_, webPort, err := net.SplitHostPort(s.ports.Nginx)
	if err != nil {
		return err
	}
	coordinator := fmt.Sprintf(`# Written by demiurge dev at every start.
node_id: %s
data_dir: %q
domain: %q
public_url: "http://{hostname}:%s"
api:
  listen: %q
  plain: true
raft:
  listen: %q
  profile: fast # the only one that votes: nobody can be mistaken for dead
gossip:
  listen: %q
log:
  level: info
  format: text
`, nodeID, s.home.coordinatorData(), s.opts.Domain, webPort, s.ports.API, s.ports.Raft, s.ports.Gossip)
	agent := fmt.Sprintf(`# Written by demiurge dev at every start.
host_id: %s
coordinators: [%q]
data_dir: %q
run_dir: %q
domain: %q
address: 127.0.0.1
capacity: %d
driver: process
nginx:
  binary: %q
  listen: [%q]
  workers: 2
gateway:
  program: %q
gossip:
  listen: %q
log:
  level: info
  format: text
`, hostID, s.ports.API, s.home.agentData(), s.home.runDir(), s.opts.Domain, s.capacity(),
		s.tools.nginx, s.ports.Nginx, s.tools.gateway, s.ports.Member)
	chosen, err := json.Marshal(s.ports)
	if err != nil {
		return err
	}
	return errors.Join(
		writeFile(s.home.coordinatorConfig(), []byte(coordinator)),
		writeFile(s.home.agentConfig(), []byte(agent)),
		writeFile(s.home.portsFile(), chosen),
	)
}

// capacity leaves room above what is kept ready.
func (s *system) capacity() int { return max(200, 4*s.opts.Gateways) }

func (s *system) coordinator() program {
	return program{
		name: coordinatorName, log: s.home.log(coordinatorName),
		argv: []string{s.tools.coordinator, "run", "--config", s.home.coordinatorConfig()},
		stop: []ending{{syscall.SIGTERM, 25 * time.Second}},
	}
}

func (s *system) agent() program {
	return program{
		name: agentName, log: s.home.log(agentName),
		argv: []string{s.tools.agent, "run", "--config", s.home.agentConfig()},
		stop: []ending{{syscall.SIGTERM, 15 * time.Second}},
	}
}

// nginx is started as a service manager would: the agent's program first puts its configuration into a
// state that is proven. The workers of a master that was killed still listen, so they go before.
func (s *system) nginx() program {
	conf := filepath.Join(s.home.agentData(), "nginx", "nginx.conf")
	group := 0
	return program{
		name: nginxName, log: s.home.log(nginxName),
		prepare: func(ctx context.Context) error {
			if group != 0 {
				if err := end(func() []identity { return orphansOf(group) }, time.Second, s.opts.Hurry); err != nil {
					return err
				}
			}
			return s.command(ctx, s.tools.agent, "nginx-prepare", "--config", s.home.agentConfig())
		},
		started: func(i identity) { group = i.PID },
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
func (s *system) died(p program, err error) bool {
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

// announce says what can be done next, and that everything is ready.
func (s *system) announce() {
	program := s.programName()
	hostname := id.Hostname(SampleOrganization, s.opts.Domain)
	fmt.Fprintf(s.opts.Stdout, `
A whole system runs in %s; its logs are in %s.
Try next, in another terminal:

  export DEMIURGE_ADDR=http://%s DEMIURGE_TOKEN=%s
  %[5]s status
  %[5]s alloc start %[6]s
  curl -H 'Host: %[7]s' http://%[8]s/
  %[5]s alloc stop %[6]s
  %[5]s events --follow

An interrupt (Ctrl-C) stops everything.
ready
`, s.home.dir, s.home.logs(), s.ports.API, s.token, program, SampleOrganization, hostname, s.ports.Nginx)
}

// programName is how this program can be called from the current directory.
func (s *system) programName() string {
	if path, err := exec.LookPath("demiurge"); err == nil && sameFile(path, s.opts.Executable) {
		return "demiurge"
	}
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, s.opts.Executable); err == nil && !strings.HasPrefix(rel, "..") {
			if !strings.Contains(rel, "/") {
				return "./" + rel
			}
			return rel
		}
	}
	return s.opts.Executable
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}
