package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"

	"github.com/demiurge-platform/demiurge/shared/freeport"
)

// ports are the addresses that a system listens on. Coordinators and hosts are machines in small: the second of
// each has the loopback address after that of the first, and the same ports.
type ports struct {
	Coordinators []coordinatorPorts `json:"coordinators"`
	Hosts        []hostPorts        `json:"hosts"`
}

// coordinatorPorts are those of one coordinator.
type coordinatorPorts struct {
	API    string `json:"api"`
	Raft   string `json:"raft"`
	Gossip string `json:"gossip"`
	DNS    string `json:"dns,omitempty"` // empty with one host: there is only one place to lead to
}

// hostPorts are those of one host.
type hostPorts struct {
	Gossip string `json:"gossip"` // of the agent
	Nginx  string `json:"nginx"`
}

// UnmarshalJSON also reads what was written when a system had one coordinator and one host.
func (p *ports) UnmarshalJSON(b []byte) error {
	type several ports
	var all struct {
		several
		API, Raft, Gossip, Member, Nginx string
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	*p = ports(all.several)
	if all.Raft != "" && len(p.Coordinators) == 0 && len(p.Hosts) == 0 {
		p.Coordinators = []coordinatorPorts{{API: all.API, Raft: all.Raft, Gossip: all.Gossip}}
		p.Hosts = []hostPorts{{Gossip: all.Member, Nginx: all.Nginx}}
	}
	return nil
}

// parsePorts reads what the run before wrote. Nothing but addresses on loopback is listened on: a dev system takes callers
// without TLS.
func parsePorts(b []byte) (ports, error) {
	var p ports
	if err := json.Unmarshal(b, &p); err != nil {
		return ports{}, err
	}
	c, h := len(p.Coordinators), len(p.Hosts)
	if c != 1 && c != 3 && c != 5 || h < 1 || h > mostHosts {
		return ports{}, fmt.Errorf("it has %s and %s", count(c, "coordinator"), count(h, "host"))
	}
	var all []string
	for _, c := range p.Coordinators {
		all = append(all, c.API, c.Raft, c.Gossip, c.DNS)
	}
	for _, h := range p.Hosts {
		all = append(all, h.Gossip, h.Nginx)
	}
	for _, address := range all {
		if a, err := netip.ParseAddrPort(address); address != "" && (err != nil || !a.Addr().IsLoopback() || a.Port() == 0) {
			return ports{}, fmt.Errorf("%.80q is no address on loopback with a port", address)
		}
	}
	return p, nil
}

// servers are the URLs of all coordinators.
func (p ports) servers() []string {
	var out []string
	for _, c := range p.Coordinators {
		out = append(out, "http://"+c.API)
	}
	return out
}

// chooser holds every address that was chosen until all are, so that no two are the same.
type chooser struct{ held []io.Closer }

func (c *chooser) release(from int) {
	for _, h := range c.held[from:] {
		_ = h.Close()
	}
	c.held = c.held[:from]
}

// take gives the first of the candidates that is free, without the empty ones.
func (c *chooser) take(candidates ...string) (string, error) { return c.first(false, candidates) }

// takeBoth is take for what needs TCP and UDP.
func (c *chooser) takeBoth(candidates ...string) (string, error) { return c.first(true, candidates) }

func (c *chooser) first(udp bool, candidates []string) (address string, err error) {
	for _, candidate := range offered(candidates) {
		var l net.Listener
		if l, err = net.Listen("tcp", candidate); err != nil {
			continue
		}
		address = l.Addr().String()
		if udp {
			var u net.PacketConn
			if u, err = net.ListenPacket("udp", address); err != nil {
				_ = l.Close()
				continue
			}
			c.held = append(c.held, u)
		}
		c.held = append(c.held, l)
		return address, nil
	}
	return "", err
}

// offered puts ports that no connection gets in the place of port 0, before it, and leaves out the empty candidates.
func offered(candidates []string) (out []string) {
	for _, candidate := range candidates {
		switch {
		case candidate == "":
			continue
		case portOf(candidate) == "0":
			for range 20 {
				out = append(out, withPort(candidate, strconv.Itoa(freeport.Pick())))
			}
		}
		out = append(out, candidate)
	}
	return out
}

// choosePorts checks that the wanted addresses are free before anything starts, and chooses those that
// are left open: the earlier ones while they are free, because the log remembers the one of Raft and the
// configuration that nginx starts with the one of nginx.
func choosePorts(opts Options, earlier ports) (ports, error) {
	var c chooser
	defer func() { c.release(0) }()
	p := ports{Coordinators: make([]coordinatorPorts, opts.Coordinators), Hosts: make([]hostPorts, opts.Hosts)}
	for i := range p.Coordinators { // what somebody asked for goes before what is chosen freely
		var err error
		if p.Coordinators[i].API, err = c.api(opts, i, p, earlier); err != nil {
			return p, err
		}
	}
	if err := c.nginx(opts, p, earlier); err != nil {
		return p, err
	}
	for i := range p.Coordinators {
		if err := c.between(i, opts, p, earlier); err != nil {
			return p, err
		}
	}
	for i := range p.Hosts {
		host := hostAddress(i)
		near := beside(net.JoinHostPort(host, portOf(p.Coordinators[0].API)), 3)
		var err error
		if p.Hosts[i].Gossip, err = c.takeBoth(at(earlier.Hosts, i).Gossip, near, net.JoinHostPort(host, "0")); err != nil {
			return p, fmt.Errorf("cannot find a free port on %s for the gossip of %s: %w", host, agentName(i), err)
		}
	}
	return p, nil
}

// api chooses where the API of a coordinator is: the first is where it was asked for, the others have its port.
func (c *chooser) api(opts Options, i int, p, earlier ports) (string, error) {
	wanted, err := coordinatorAddress(opts.Address, i)
	if err != nil {
		return "", err
	}
	like := ""
	if i > 0 && portOf(wanted) == "0" {
		like = withPort(wanted, portOf(p.Coordinators[0].API))
	}
	got, err := c.take(leftOpen(wanted, at(earlier.Coordinators, i).API), like, wanted)
	if err != nil {
		return "", portError(coordinatorName(i), wanted, "--address", err)
	}
	return got, nil
}

// nginx chooses one port for nginx on all hosts: an organization has one URL, wherever it is.
func (c *chooser) nginx(opts Options, p, earlier ports) error {
	wanted := strconv.Itoa(opts.NginxPort)
	tries := []string{portOf(leftOpen(net.JoinHostPort(hostAddress(0), wanted), at(earlier.Hosts, 0).Nginx)), wanted}
	if wanted == "0" && len(p.Hosts) > 1 { // free on the first host's address is not free on all
		tries = append(tries, slices.Repeat([]string{wanted}, 20)...)
	}
	var err error
	for _, port := range tries {
		if port == "" {
			continue
		}
		before := len(c.held)
		for i := range p.Hosts {
			address := net.JoinHostPort(hostAddress(i), port)
			if k := slices.IndexFunc(p.Coordinators, func(c coordinatorPorts) bool { return c.API == address }); k >= 0 {
				return fmt.Errorf("cannot use %s as --nginx-port: the API of %s is at %s, as --address says; choose another", port, coordinatorName(k), address)
			}
			if p.Hosts[i].Nginx, err = c.take(address); err != nil {
				err = portError(nginxName(i), address, "--nginx-port", err)
				c.release(before)
				break
			}
			port = portOf(p.Hosts[i].Nginx)
		}
		if err == nil {
			return nil
		}
	}
	return err
}

// between chooses what coordinators have for themselves. Several know each other by their Raft addresses, which
// are in the log: those stay what they were.
func (c *chooser) between(i int, opts Options, p, earlier ports) (err error) {
	api, was, name := p.Coordinators[i].API, at(earlier.Coordinators, i), coordinatorName(i)
	host, free := hostOf(api), withPort(api, "0")
	now := &p.Coordinators[i]
	if len(p.Coordinators) > 1 && was.Raft != "" {
		if now.Raft, err = c.take(was.Raft); err != nil {
			return fmt.Errorf("cannot start %s: cannot listen on %s, by which the other coordinators of this data directory know it: %w; stop the program that does", name, was.Raft, err)
		}
	} else if now.Raft, err = c.take(was.Raft, beside(api, 1), free); err != nil {
		return fmt.Errorf("cannot find a free port on %s for the Raft log of %s: %w", host, name, err)
	}
	if now.Gossip, err = c.takeBoth(was.Gossip, beside(api, 2), free); err != nil {
		return fmt.Errorf("cannot find a free port on %s for the gossip of %s: %w", host, name, err)
	}
	if opts.Hosts > 1 {
		if now.DNS, err = c.takeBoth(was.DNS, beside(api, 53), free); err != nil {
			return fmt.Errorf("cannot find a free port on %s for the DNS of %s: %w", host, name, err)
		}
	}
	return nil
}

// at is the element of a list that may be shorter.
func at[T any](list []T, i int) (element T) {
	if i < len(list) {
		element = list[i]
	}
	return element
}

// hostAddress is that of the machine in small that a host is.
func hostAddress(i int) string { return netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}).String() }

// coordinatorAddress is where the API of a coordinator is wanted, when that of the first is.
func coordinatorAddress(first string, i int) (string, error) {
	address, err := netip.ParseAddrPort(first)
	if err != nil {
		return "", err
	}
	ip := address.Addr()
	for range i {
		if ip = ip.Next(); !ip.IsLoopback() {
			return "", fmt.Errorf("cannot use %q as --address of several coordinators: each takes a loopback address of its own, and there are not so many from this one on; want one such as 127.0.0.1:7400", first)
		}
	}
	return netip.AddrPortFrom(ip, address.Port()).String(), nil
}

// beside is an address with a port so much higher, or "".
func beside(address string, by int) string {
	n, err := strconv.Atoi(portOf(address))
	if err != nil || n > 65535-by {
		return ""
	}
	return withPort(address, strconv.Itoa(n+by))
}

func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return port
}

func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return host
}

func withPort(address, port string) string {
	return net.JoinHostPort(hostOf(address), port)
}

// leftOpen is the earlier address where the wanted one leaves its port open, else "".
func leftOpen(wanted, earlier string) string {
	host, port, err := net.SplitHostPort(wanted)
	if err != nil || port != "0" {
		return ""
	}
	if hostOf(earlier) != host {
		return ""
	}
	return earlier
}

func portError(program, address, flag string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot start %s: cannot listen on %s: another program does; stop it, or choose another port with %s (0: any free one)", program, address, flag)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("cannot start %s: cannot listen on %s: ports below 1024 need rights that this user does not have; choose a higher one with %s", program, address, flag)
	}
	return fmt.Errorf("cannot start %s: cannot listen on %s: %w; choose another with %s", program, address, err, flag)
}
