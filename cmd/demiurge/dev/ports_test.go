package dev

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// free are options of so many that leave all ports open.
func free(coordinators, hosts int) Options {
	o := valid()
	o.Address, o.NginxPort, o.Coordinators, o.Hosts = "127.0.0.1:0", 0, coordinators, hosts
	return o
}

// listen takes an address and gives it with its port.
func listen(t *testing.T, address string) (string, int) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String(), l.Addr().(*net.TCPAddr).Port
}

// all are all addresses, sorted.
func (p ports) all() []string {
	var out []string
	for _, c := range p.Coordinators {
		out = append(out, c.API, c.Raft, c.Gossip)
		if c.DNS != "" {
			out = append(out, c.DNS)
		}
	}
	for _, h := range p.Hosts {
		out = append(out, h.Gossip, h.Nginx)
	}
	slices.Sort(out)
	return out
}

func mustChoose(t *testing.T, o Options, earlier ports) ports {
	t.Helper()
	p, err := choosePorts(o, earlier)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPortsInUseNameTheProgramAndTheFlag(t *testing.T) {
	first, port := listen(t, "127.0.0.1:0")
	second, port2 := listen(t, "127.0.0.2:0")
	at := func(address string, nginx, coordinators, hosts int) Options {
		o := free(coordinators, hosts)
		o.Address, o.NginxPort = address, nginx
		return o
	}
	for want, o := range map[string]Options{
		"coordinator-1: cannot listen on " + first:  at(first, 0, 1, 1),
		"nginx-1: cannot listen on " + first:        at("127.0.0.1:0", port, 1, 1),
		"coordinator-2: cannot listen on " + second: at(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port2)).String(), 0, 3, 1),
		"nginx-2: cannot listen on " + second:       at("127.0.0.1:0", port2, 1, 3),
	} {
		flag := "--address"
		if strings.HasPrefix(want, "nginx") {
			flag = "--nginx-port"
		}
		_, err := choosePorts(o, ports{})
		if err == nil || !strings.Contains(err.Error(), "cannot start "+want+": another program does; stop it") || !strings.Contains(err.Error(), "with "+flag) {
			t.Errorf("choosePorts = %v, want %q and %s", err, want, flag)
		}
	}
}

// Both flags name the same port: no other program is to be stopped.
func TestNginxPortOfTheAPI(t *testing.T) {
	o := free(1, 1)
	o.NginxPort = 7400
	var c chooser
	defer c.release(0)
	p := ports{Coordinators: []coordinatorPorts{{API: "127.0.0.1:7400"}}, Hosts: make([]hostPorts, 1)}
	err := c.nginx(o, p, ports{})
	if err == nil || !strings.Contains(err.Error(), "cannot use 7400 as --nginx-port: the API of coordinator-1 is at 127.0.0.1:7400") {
		t.Error(err)
	}
}

func TestPortsStayWhereTheyWere(t *testing.T) {
	taken, _ := listen(t, "127.0.0.1:0")
	p := mustChoose(t, free(1, 1), ports{Coordinators: []coordinatorPorts{{Raft: taken}}}) // the one of before is taken: another one
	all := append(p.all(), taken)
	slices.Sort(all)
	if len(slices.Compact(all)) != 6 {
		t.Errorf("ports = %+v, want different ones", p)
	}
	if again := mustChoose(t, free(1, 1), p); !reflect.DeepEqual(again, p) {
		t.Errorf("ports moved from %+v to %+v without need", p, again)
	}
	o := free(1, 1)
	o.Address = p.Coordinators[0].Raft // what is asked for goes before what was
	again := mustChoose(t, o, p)
	if c := again.Coordinators[0]; c.API != o.Address || c.Raft == o.Address || again.Hosts[0].Nginx != p.Hosts[0].Nginx {
		t.Errorf("ports are %+v, want the API at %s", again, o.Address)
	}
}

// The second of each is at the address after that of the first, nginx has one port everywhere, and hosts that come
// later change nothing of those that are there.
func TestPortsOfSeveral(t *testing.T) {
	p := mustChoose(t, free(3, 2), ports{})
	if all := p.all(); len(slices.Compact(all)) != 3*4+2*2 {
		t.Errorf("ports = %+v, want different ones", p)
	}
	for _, address := range p.all() {
		if a := netip.MustParseAddrPort(address); a.Port() >= 32768 {
			t.Errorf("%s may be the end of a connection before it is listened on: ip(7), ip_local_port_range", address)
		}
	}
	for i, c := range p.Coordinators {
		for _, address := range []string{c.API, c.Raft, c.Gossip, c.DNS} {
			if hostOf(address) != hostAddress(i) {
				t.Errorf("%s has %s, want it on %s", coordinatorName(i), address, hostAddress(i))
			}
		}
	}
	for i, h := range p.Hosts {
		if hostOf(h.Nginx) != hostAddress(i) || hostOf(h.Gossip) != hostAddress(i) || portOf(h.Nginx) != portOf(p.Hosts[0].Nginx) {
			t.Errorf("%s has %+v, want %s and one port of nginx: %+v", hostID(i), h, hostAddress(i), p.Hosts)
		}
	}
	if again := mustChoose(t, free(3, 2), p); !reflect.DeepEqual(again, p) {
		t.Errorf("ports moved from %+v to %+v without need", p, again)
	}
	more := mustChoose(t, free(3, 4), p)
	if !reflect.DeepEqual(more.Coordinators, p.Coordinators) || !reflect.DeepEqual(more.Hosts[:2], p.Hosts) || len(more.Hosts) != 4 {
		t.Errorf("with more hosts ports moved from %+v to %+v", p, more)
	}
	listen(t, p.Coordinators[1].Raft)
	if _, err := choosePorts(free(3, 2), p); err == nil || !strings.Contains(err.Error(), "cannot start coordinator-2: cannot listen on "+p.Coordinators[1].Raft+", by which the other coordinators") {
		t.Errorf("with the Raft address of before taken: %v", err)
	}
	o := free(3, 2)
	o.Address = "127.0.0.3:0"
	if moved := mustChoose(t, o, ports{}); hostOf(moved.Coordinators[2].API) != "127.0.0.5" || hostOf(moved.Hosts[0].Nginx) != "127.0.0.1" {
		t.Errorf("ports from %s on are %+v", o.Address, moved)
	}
}

// A port that is free on the first host's address alone is not taken.
func TestNginxPortIsFreeOnAllHosts(t *testing.T) {
	o := free(1, 2)
	p := mustChoose(t, o, ports{})
	listen(t, p.Hosts[1].Nginx)
	again := mustChoose(t, o, p)
	if portOf(again.Hosts[0].Nginx) == portOf(p.Hosts[0].Nginx) || portOf(again.Hosts[0].Nginx) != portOf(again.Hosts[1].Nginx) {
		t.Errorf("nginx is at %+v, was at %+v", again.Hosts, p.Hosts)
	}
}

func TestPortsOfEarlierVersionsAreRead(t *testing.T) {
	var p ports
	if err := json.Unmarshal([]byte(`{"api":"127.0.0.1:1","raft":"127.0.0.1:2","gossip":"127.0.0.1:3","member":"127.0.0.1:4","nginx":"127.0.0.1:5"}`), &p); err != nil {
		t.Fatal(err)
	}
	want := ports{
		Coordinators: []coordinatorPorts{{API: "127.0.0.1:1", Raft: "127.0.0.1:2", Gossip: "127.0.0.1:3"}},
		Hosts:        []hostPorts{{Gossip: "127.0.0.1:4", Nginx: "127.0.0.1:5"}},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("read %+v, want %+v", p, want)
	}
	b, err := json.Marshal(mustChoose(t, free(3, 2), ports{}))
	if err != nil {
		t.Fatal(err)
	}
	var back ports
	if err := json.Unmarshal(b, &back); err != nil || len(back.Coordinators) != 3 || len(back.Hosts) != 2 {
		t.Errorf("%s is read as %+v, %v", b, back, err)
	}
}

// TestPortsThatAreNone: what says how many there are is not passed over, and nothing leads off loopback.
func TestPortsThatAreNone(t *testing.T) {
	h := &home{dir: t.TempDir()}
	if p, err := h.earlierPorts(); err != nil || len(p.Hosts) != 0 {
		t.Errorf("a first run has %+v, %v", p, err)
	}
	for _, text := range []string{
		"", "{}", `{"coordinators":[{},{}],"hosts":[{}]}`, `{"coordinators":[{}]}`, `{"coordinators":[{"raft":":7401"}],"hosts":[{}]}`,
		`{"coordinators":[{"gossip":"192.0.2.1:7402"}],"hosts":[{}]}`, `{"coordinators":[{}],"hosts":[{"nginx":"0.0.0.0:80"}]}`, `{"coordinators":[{"dns":"127.0.0.1:0"}],"hosts":[{}]}`,
	} {
		if err := os.WriteFile(h.portsFile(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := h.earlierPorts(); err == nil || !strings.Contains(err.Error(), h.portsFile()) || !strings.Contains(err.Error(), "; remove it") {
			t.Errorf("%s: %+v, %v", text, p, err)
		}
	}
}

// Hosts may come to a data directory, and nothing may go from it.
func TestSizeFollowsTheDataDirectory(t *testing.T) {
	have := func(coordinators, hosts int) ports {
		return ports{Coordinators: make([]coordinatorPorts, coordinators), Hosts: make([]hostPorts, hosts)}
	}
	for name, c := range map[string]struct {
		coordinators, hosts         int // asked for
		earlier                     ports
		wantCoordinators, wantHosts int
		refusal                     string
	}{
		"new, nothing said":   {0, 0, ports{}, 1, 1, ""},
		"new":                 {3, 2, ports{}, 3, 2, ""},
		"as it was":           {0, 0, have(3, 2), 3, 2, ""},
		"the same":            {3, 2, have(3, 2), 3, 2, ""},
		"more hosts":          {0, 4, have(3, 2), 3, 4, ""},
		"fewer hosts":         {0, 1, have(3, 2), 0, 0, "cannot run 1 host on /d: it has 2, and organizations may be on any of them; leave --hosts out or give 2 or more, or choose a new directory with --data-dir"},
		"more coordinators":   {3, 0, have(1, 1), 0, 0, "cannot run 3 coordinators on /d: what it holds was begun by 1, and only those can go on with it; leave --coordinators out or give 1, or choose a new directory with --data-dir"},
		"fewer coordinators":  {1, 0, have(3, 1), 0, 0, "cannot run 1 coordinator on /d: what it holds was begun by 3"},
		"no address for them": {0, 0, have(5, 1), 0, 0, "there are not so many from this one on"},
	} {
		o := valid()
		o.Coordinators, o.Hosts = c.coordinators, c.hosts
		if name == "no address for them" {
			o.Address = "[::1]:0"
		}
		got, err := o.sized("/d", c.earlier)
		if c.refusal != "" {
			if err == nil || !strings.Contains(err.Error(), c.refusal) {
				t.Errorf("%s: %v, want %q", name, err, c.refusal)
			}
			continue
		}
		if err != nil || got.Coordinators != c.wantCoordinators || got.Hosts != c.wantHosts {
			t.Errorf("%s: %d coordinators and %d hosts, %v; want %d and %d", name, got.Coordinators, got.Hosts, err, c.wantCoordinators, c.wantHosts)
		}
	}
}
