package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

// configure writes the configuration files.
func (s *system) configure() error {
	if err := s.home.grow(len(s.ports.Coordinators), len(s.ports.Hosts)); err != nil {
		return err
	}
	chosen, err := json.Marshal(s.ports)
	if err != nil {
		return err
	}
	if err := writeFile(s.home.portsFile(), chosen); err != nil { // first: it says how many there are
		return err
	}
	if len(s.ports.Coordinators) > 1 {
		if err := s.makeKey(); err != nil {
			return fmt.Errorf("cannot make the key of the coordinators: %w", err)
		}
	}
	for i := range s.ports.Coordinators {
		if err := writeFile(s.home.coordinatorConfig(i), []byte(s.coordinatorConfig(i))); err != nil {
			return err
		}
	}
	for i := range s.ports.Hosts {
		if err := writeFile(s.home.agentConfig(i), []byte(s.agentConfig(i))); err != nil {
			return err
		}
	}
	return nil
}

// makeKey makes the key that the coordinators share. One alone makes its own.
func (s *system) makeKey() error {
	_, err := os.Lstat(s.home.clusterKey())
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeFile(s.home.clusterKey(), []byte(pki.NewKey().Reveal()+"\n"))
}

// coordinatorConfig is the configuration of a coordinator. Paths are of a plain alphabet, so that quoting is enough.
func (s *system) coordinatorConfig(i int) string {
	p := s.ports.Coordinators[i]
	profile := "fast # the only one that votes: nobody can be mistaken for dead"
	if len(s.ports.Coordinators) > 1 {
		profile = "default"
	}
	text := fmt.Sprintf(`# Written by demiurge dev at every start.
node_id: %s
data_dir: %q
domain: %q
public_url: "http://{hostname}:%s"
api:
  listen: %q
  plain: true
raft:
  listen: %q
  profile: %s
gossip:
  listen: %q
log:
  level: info
  format: text
`, coordinatorName(i), s.home.coordinatorData(i), s.opts.Domain, portOf(s.ports.Hosts[0].Nginx), p.API, p.Raft, profile, p.Gossip)
	if n := len(s.ports.Coordinators); n > 1 {
		var seeds []string
		for _, other := range s.ports.Coordinators {
			seeds = append(seeds, other.Gossip)
		}
		text += fmt.Sprintf("cluster:\n  key_file: %q\n  bootstrap_expect: %d\n  join: %s\n", s.home.clusterKey(), n, quoted(seeds))
	}
	if p.DNS != "" {
		var servers []string
		for n, c := range s.ports.Coordinators {
			servers = append(servers, fmt.Sprintf("ns%d.%s %s", n+1, s.opts.Domain, hostOf(c.DNS)))
		}
		text += fmt.Sprintf("dns:\n  provider: embedded\n  listen: %q\n  nameservers: %s\n", p.DNS, quoted(servers))
	}
	return text
}

func (s *system) agentConfig(i int) string {
	var coordinators []string
	for _, c := range s.ports.Coordinators {
		coordinators = append(coordinators, c.API)
	}
	p := s.ports.Hosts[i]
	return fmt.Sprintf(`# Written by demiurge dev at every start.
host_id: %s
coordinators: %s
data_dir: %q
run_dir: %q
domain: %q
address: %s
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
`, hostID(i), quoted(coordinators), s.home.agentData(i), s.home.runDir(i), s.opts.Domain, hostAddress(i), s.capacity(),
		s.tools.nginx, p.Nginx, s.tools.gateway, p.Gossip)
}

// quoted is a list in YAML.
func quoted(list []string) string {
	var out []string
	for _, s := range list {
		out = append(out, fmt.Sprintf("%q", s))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// capacity leaves room above what is kept ready.
func (s *system) capacity() int { return max(200, 4*s.opts.Gateways) }
