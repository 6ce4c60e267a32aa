package dev

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// announce says what can be done next, and that everything is ready.
func (s *system) announce(ctx context.Context) {
	program := s.programName()
	servers := strings.Join(s.ports.servers(), ",")
	fmt.Fprintf(s.opts.Stdout, `
A whole system runs in %s; its logs are in %s.
%sTry next, in another terminal:

  export DEMIURGE_ADDR=%s DEMIURGE_TOKEN=%s
  %[6]s status
  %[6]s alloc start %[7]s
  %[8]s
  %[6]s alloc stop %[7]s
  %[6]s events --follow
%[9]s
An interrupt (Ctrl-C) stops everything.
ready
`, s.home.dir, s.home.logs(), s.places(), servers, s.token, program, SampleOrganization, s.curl(), s.failures(ctx))
}

// curl asks for the sample organization, which is at one of the hosts.
func (s *system) curl() string {
	text := fmt.Sprintf("curl -H 'Host: %s' http://%s/", id.Hostname(SampleOrganization, s.opts.Domain), s.ports.Hosts[0].Nginx)
	if len(s.ports.Hosts) > 1 {
		text += "   # or at the address that the start says"
	}
	return text
}

// failures are ways to see one of several fail; nothing where there is only one of each.
func (s *system) failures(ctx context.Context) string {
	var out strings.Builder
	say := func(pid int, name, what string) {
		fmt.Fprintf(&out, "  kill -STOP %d   # %s; kill -CONT %[1]d ends that\n", pid, fmt.Sprintf(what, name))
	}
	if s.opts.Coordinators > 1 {
		leader := coordinatorName(0)
		if status, err := s.admin.Status(ctx); err == nil && s.pidOf(status.Leader) != 0 {
			leader = status.Leader
		}
		say(s.pidOf(leader), leader, "%s, which leads, does nothing any more: another one leads")
	}
	if s.opts.Hosts > 1 {
		last := s.opts.Hosts - 1
		say(s.pidOf(agentName(last)), agentName(last), "%s does nothing any more: what its host serves goes to another one")
	}
	if out.Len() > 0 {
		out.WriteString("  kill -9 of any of them: it is started again\n")
	}
	return out.String()
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

// places says where several coordinators and hosts are; nothing of one.
func (s *system) places() string {
	var coordinators, hosts []string
	for i, c := range s.ports.Coordinators {
		coordinators = append(coordinators, fmt.Sprintf("%s at %s", coordinatorName(i), hostOf(c.API)))
	}
	for i, h := range s.ports.Hosts {
		hosts = append(hosts, fmt.Sprintf("%s at %s", hostID(i), hostOf(h.Nginx)))
	}
	out := ""
	if len(coordinators) > 1 {
		out += "Coordinators: " + strings.Join(coordinators, ", ") + ".\n"
	}
	if len(hosts) > 1 {
		out += "Hosts: " + strings.Join(hosts, ", ") + ". An organization is served by one of them; " + s.ports.Coordinators[0].DNS + " knows its name in DNS.\n"
	}
	return out
}
