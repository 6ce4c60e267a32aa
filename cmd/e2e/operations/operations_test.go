//go:build e2e

package operations

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	hosts = 10
	data  = "/var/lib/demiurge/coordinator"
)

var (
	secret  = regexp.MustCompile(`Secret +(\S+)`)
	tokenID = regexp.MustCompile(`tk-[a-z0-9]+`)
)

// site is what the document describes.
type site struct {
	*world
	coordinators []*machine // the n-th is coordinator-n+1
	hosts        []*machine
	operator     *machine
	key          string
	orgs         []string
}

// An operator who does what docs/operations.md says has what it promises.
func TestOperationsAsDocumented(t *testing.T) {
	s := &site{world: newWorld(t)}
	for _, part := range []struct {
		name string
		do   func(*site)
	}{
		{"install", (*site).install},
		{"a name server", (*site).bringNames},
		{"three coordinators", (*site).begin},
		{"callers", (*site).call},
		{"ten hosts", (*site).bringHosts},
		{"a pool", (*site).pool},
		{"tokens", (*site).tokens},
		{"look", (*site).look},
		{"move", (*site).move},
		{"hosts that must not serve alone", (*site).fence},
		{"a host is lost", (*site).loseHost},
		{"a host is taken out", (*site).takeOut},
		{"keys", (*site).rotate},
		{"backup", (*site).backUp},
		{"all coordinators are lost", (*site).loseAll},
		{"another coordinator", (*site).replaceCoordinator},
		{"upgrade", (*site).upgrade},
		{"a majority is lost", (*site).loseMajority},
		{"an agent is ended", (*site).endAgent},
	} {
		begun := time.Now()
		part.do(s)
		done := time.Now()
		s.named()
		t.Logf("%s: %s, and its names %s later", part.name, done.Sub(begun).Round(10*time.Millisecond), time.Since(done).Round(10*time.Millisecond))
		if t.Failed() {
			return
		}
	}
	for _, command := range s.doc.commands {
		if !s.ran[command] {
			t.Errorf("docs/operations.md has a command that nothing here runs: %s", command)
		}
	}
}

// install installs the programs as a package would.
func (s *site) install() {
	root, err := filepath.Abs("../../..")
	s.must(err)
	m := s.machine("image", "192.0.2.200", root)
	m.prefix = "cd '" + root + "'\n"
	s.run(m, "make build")
	s.run(m, "sudo make install PREFIX=/usr")
	s.run(m, "sudo systemd-sysusers && sudo systemd-tmpfiles --create")
	s.run(m, "apt-get install --no-install-recommends nginx-light")
	s.run(m, "systemctl disable --now nginx")
	s.must(m.Keep(s.ctx, s.image))
}

// addCoordinator makes the machine of the next coordinator.
func (s *site) addCoordinator() *machine {
	n := len(s.coordinators) + 1
	address := fmt.Sprint("192.0.2.", n)
	c := s.machine(fmt.Sprint("coordinator-", n), address)
	s.coordinators = append(s.coordinators, c)
	expect := "3"
	if n > 3 {
		expect = "0"
	}
	s.configure(c, "/etc/demiurge/coordinator.yaml", "node_id", fill{"node_id: coordinator-1", "node_id: " + c.Name}, fill{`listen: "192.0.2.1:`, `listen: "` + address + ":"},
		fill{`hosts: [coordinator-1.example.org, "192.0.2.1"]`, fmt.Sprintf(`hosts: [%s.example.org, "%s"]`, c.Name, address)}, fill{"bootstrap_expect: 3", "bootstrap_expect: " + expect})
	s.do(c, "cat >>/etc/demiurge/coordinator.yaml <<<\"$DNS\" && echo "+nameKey+" >"+keyFile+" && chown demiurge: "+keyFile+" && chmod 0600 "+keyFile, "DNS="+withNames)
	return c
}

// begin begins a cluster of three.
func (s *site) begin() {
	for range 3 {
		c := s.addCoordinator()
		if s.key == "" {
			s.run(c, "demiurge-coordinator keygen | sudo tee /var/lib/demiurge/coordinator/cluster.key >/dev/null")
			s.key = s.do(c, "cat "+data+"/cluster.key")
		} else {
			s.do(c, "cat >"+data+"/cluster.key <<<\"$KEY\"", "KEY="+strings.TrimSpace(s.key))
		}
		s.run(c, "sudo chown demiurge: /var/lib/demiurge/coordinator/cluster.key && sudo chmod 0600 /var/lib/demiurge/coordinator/cluster.key")
	}
	for _, c := range s.coordinators {
		s.run(c, "sudo systemctl enable --now demiurge-coordinator")
	}
}

// firstToken waits for the token that the first leader writes.
func (s *site) firstToken() (token string) {
	s.await("the first admin token", func() error {
		for _, c := range s.coordinators {
			if said, err := s.try(c, "cat "+data+"/admin.token"); err == nil && strings.TrimSpace(said) != "" {
				token = strings.TrimSpace(said)
				return nil
			}
		}
		return errors.New("no coordinator has it")
	})
	return token
}

// call gives the operator what callers need.
func (s *site) call() {
	token := s.firstToken()
	s.operator = s.machine("operator", "192.0.2.100")
	s.do(s.operator, "cat >ca.pem <<<\"$CA\"", "CA="+s.do(s.coordinators[0], "cat "+data+"/ca.pem"))
	export := "export DEMIURGE_ADDR=https://coordinator-1.example.org:7400 DEMIURGE_CACERT=ca.pem DEMIURGE_TOKEN=…"
	s.run(s.operator, export, fill{"…", token})
	s.operator.prefix += strings.Replace(export, "…", token, 1) + "\n"
	s.until(s.operator, "demiurge operator raft list-peers", "coordinator-1", "coordinator-2", "coordinator-3")
	s.says(s.run(s.operator, "demiurge operator raft list-peers"), "coordinator-1", "coordinator-2", "coordinator-3")
	s.says(s.run(s.operator, "demiurge members"), "coordinator-1", "coordinator-2", "coordinator-3")
}

// bringHosts lets the hosts in.
func (s *site) bringHosts() {
	for n := range hosts {
		name, address := fmt.Sprint("host-", n+1), fmt.Sprint("192.0.2.", 11+n)
		h := s.machine(name, address)
		s.hosts = append(s.hosts, h)
		s.configure(h, "/etc/demiurge/agent.yaml", "host_id", fill{"host_id: host-1", "host_id: " + name}, fill{"address: 192.0.2.11", "address: " + address})
		s.join(h)
		s.run(h, "sudo systemctl enable --now demiurge-nginx demiurge-agent demiurge-leave")
	}
	s.await("all hosts", func() error {
		got, err := asked[api.List[api.Host]](s.world, s.operator, "demiurge host list -o json")
		if n := len(got.Items); err == nil && n != hosts {
			err = fmt.Errorf("there are %d", n)
		}
		return err
	})
	s.says(s.run(s.operator, "demiurge host list"), "host-1", fmt.Sprint("host-", hosts))
}

// join lets a host join.
func (s *site) join(h *machine) {
	made := secret.FindStringSubmatch(s.run(s.operator, "demiurge host join-token --host host-1", fill{"host-1", h.Name}))
	if made == nil {
		s.t.Fatal("no secret is shown")
	}
	s.run(h, "sudo -u demiurge demiurge-agent join --token - --address coordinator-1.example.org:7400", fill{input, made[1]})
}

// start makes an organization and gives it a gateway.
func (s *site) start(flags ...string) {
	org := string(id.NewOrganization())
	s.orgs = append(s.orgs, org)
	s.do(s.operator, "demiurge org put "+org+" --name caller && demiurge alloc start "+strings.Join(append(flags, org), " "))
}

// active waits until every organization is served, by hosts that live.
func (s *site) active() []api.Allocation {
	s.t.Helper()
	var got api.List[api.Allocation]
	s.await("all organizations", func() (err error) {
		got, err = asked[api.List[api.Allocation]](s.world, s.operator, "demiurge alloc list --state active -o json")
		if err == nil && len(got.Items) != len(s.orgs) {
			err = fmt.Errorf("%d of %d are active", len(got.Items), len(s.orgs))
		}
		return err
	})
	return got.Items
}

// pool makes a pool and uses it.
func (s *site) pool() {
	s.run(s.operator, "demiurge pool set default --min-ready 5 --step 3 --max 100 --memory-bytes 536870912")
	s.until(s.operator, "demiurge gateway list --state ready", "gw-")
	for range 3 {
		s.start(wiped) // the first gateway may be the only one yet
	}
	s.active()
	s.run(s.operator, "demiurge status")
	s.run(s.operator, "demiurge pool show default")
}

// tokens makes, lists and revokes tokens.
func (s *site) tokens() {
	out := s.run(s.operator, "demiurge token create --role platform --name billing --ttl 8760h")
	token := tokenID.FindString(out)
	s.says(s.run(s.operator, "demiurge token list"), token, "billing")
	s.do(s.operator, "DEMIURGE_TOKEN="+secret.FindStringSubmatch(out)[1]+" demiurge alloc list")
	s.run(s.operator, "demiurge token revoke tk-abcdefghijkl", fill{"tk-abcdefghijkl", token})
	if said, err := s.try(s.operator, "DEMIURGE_TOKEN="+secret.FindStringSubmatch(out)[1]+" demiurge alloc list"); err == nil {
		s.t.Errorf("a revoked token is good: %s", said)
	}
	s.says(s.run(s.operator, "demiurge events --topic token"), token)
}

// look looks at what there is.
func (s *site) look() {
	s.says(s.run(s.operator, "demiurge alloc list"), s.orgs...)
	s.run(s.operator, "demiurge gateway list --state failed")
	s.says(s.run(s.operator, "demiurge alloc steps ORG", fill{"ORG", s.orgs[0]}), "verify")
	s.says(s.run(s.operator, "demiurge events --topic allocation"), s.orgs[0])
	s.says(s.run(s.coordinators[0], "journalctl -u demiurge-coordinator"), "leader")
}

// move moves an allocation, and what a host serves.
func (s *site) move() {
	followed := s.follow(s.operator, "demiurge events --follow", "host-1")
	first := s.active()[0]
	s.run(s.operator, "demiurge alloc migrate al-abcdefghijklmnop", fill{"al-abcdefghijklmnop", first.AllocationID})
	if now := ask[api.Allocation](s.world, s.operator, "demiurge alloc show "+first.AllocationID+" -o json"); now.Epoch <= first.Epoch || now.HostID == first.HostID {
		s.t.Errorf("migrated from %s, epoch %d, to %s, epoch %d", first.HostID, first.Epoch, now.HostID, now.Epoch)
	}
	from := fill{"host-1", s.active()[0].HostID}
	s.run(s.operator, "demiurge host cordon host-1", from)
	s.run(s.operator, "demiurge host drain host-1", from)
	for _, a := range s.active() {
		if a.HostID == from.is {
			s.t.Errorf("%s is still on %s", a.AllocationID, a.HostID)
		}
	}
	s.run(s.operator, "demiurge host uncordon host-1", from)
	var ready string
	s.await("a ready gateway", func() error {
		got, err := asked[api.List[api.Gateway]](s.world, s.operator, "demiurge gateway list --state ready -o json")
		if err == nil && len(got.Items) == 0 {
			err = errors.New("there is none")
		}
		if err == nil {
			ready = got.Items[0].GatewayID
		}
		return err
	})
	s.run(s.operator, "demiurge gateway quarantine gw-abcdefghij", fill{"gw-abcdefghij", ready})
	s.run(s.operator, "demiurge gateway recycle gw-abcdefghij", fill{"gw-abcdefghij", ready})
	followed()
}

// victim is the machine of a host that serves something.
func (s *site) victim() *machine { return s.machines[s.active()[0].HostID] }

// loseHost lets a host lose power, and come back.
func (s *site) loseHost() {
	followed := s.follow(s.operator, "demiurge events --topic allocation --follow", "relocating", "placed", "active")
	h := s.victim()
	s.must(h.PowerOff())
	s.run(s.operator, "demiurge alloc list --state relocating")
	s.await("the organizations on other hosts", func() error {
		for _, a := range s.active() {
			if a.HostID == h.Name {
				return errors.New(a.AllocationID + " is there")
			}
		}
		return nil
	})
	followed()
}

// takeOut takes a host out, and forgets the one that was lost.
func (s *site) takeOut() {
	h := s.victim()
	s.run(s.operator, "demiurge host drain host-1 --drain 30s --deadline 10m", fill{"host-1", h.Name})
	s.says(s.run(s.operator, "demiurge host show host-1", fill{"host-1", h.Name}), "drained")
	s.do(h, "systemctl stop demiurge-agent demiurge-nginx")
	s.run(s.operator, "demiurge host delete host-1", fill{"host-1", h.Name})
	s.active()
}

// rotate changes the keys.
func (s *site) rotate() {
	s.run(s.operator, "demiurge operator gossip rotate")
	s.says(s.run(s.operator, "demiurge operator gossip keys"), "coordinator-1")
	s.run(s.operator, "demiurge operator ca rotate --overlap 168h")
	s.start()
	s.active()
}

// backUp saves a snapshot and goes back to it.
func (s *site) backUp() {
	s.run(s.operator, "demiurge operator snapshot save demiurge.snap")
	late := string(id.NewOrganization())
	s.do(s.operator, "demiurge org put "+late+" --name late")
	s.run(s.operator, "demiurge operator snapshot restore demiurge.snap --yes")
	if out, err := s.try(s.operator, "demiurge org show "+late); err == nil {
		s.t.Errorf("what came after the snapshot is there: %s", out)
	}
	s.active()
	s.start(wiped)
}

// wiped lets a start wait until there is a free gateway: after a restore and a recovery all are begun anew.
const wiped = "--wait 60s"

// loseAll loses all coordinators with their data, and goes back to a snapshot with new ones. What is served is served
// all the time; hosts and callers need not do anything.
func (s *site) loseAll() {
	s.run(s.operator, "demiurge operator snapshot save demiurge.snap")
	before := s.active()
	released, moved, late := before[0].AllocationID, before[1].AllocationID, string(id.NewOrganization()) // after the snapshot, so it does not know
	s.do(s.operator, "demiurge alloc stop "+released+" && demiurge alloc migrate "+moved)
	s.do(s.operator, "demiurge org put "+late+" --name late && demiurge alloc start "+late)
	alive := func() (names []string, err error) {
		all, err := asked[api.List[api.Host]](s.world, s.operator, "demiurge host list -o json")
		for _, h := range all.Items {
			if h.State == api.HostAlive {
				names = append(names, h.HostID)
			}
		}
		return names, err
	}
	hosts, err := alive()
	s.must(err)
	for _, c := range s.coordinators {
		s.must(c.PowerOff())
	}
	s.coordinators = nil
	s.begin()
	usual := s.operator.prefix
	s.do(s.operator, "cat >new.pem <<<\"$CA\"", "CA="+s.do(s.coordinators[0], "cat "+data+"/ca.pem"))
	s.operator.prefix += "export DEMIURGE_CACERT=new.pem DEMIURGE_TOKEN=" + s.firstToken() + "\n"
	s.until(s.operator, "demiurge operator raft list-peers", "coordinator-1", "coordinator-2", "coordinator-3")
	s.run(s.operator, "demiurge operator snapshot restore demiurge.snap --yes")
	s.operator.prefix = usual
	s.await("the hosts", func() error {
		back, err := alive()
		if err == nil && slices.ContainsFunc(hosts, func(h string) bool { return !slices.Contains(back, h) }) {
			err = fmt.Errorf("%v are alive, and there were %v", back, hosts)
		}
		return err
	})
	s.start(wiped)
	now := map[string]api.Allocation{}
	s.await("what was released or moved meanwhile to be served once more", func() error {
		for _, a := range s.active() {
			now[a.AllocationID] = a
		}
		for _, was := range before[:2] {
			if is := now[was.AllocationID].Epoch; is <= was.Epoch {
				return fmt.Errorf("the epoch of %s is %d and was %d", was.AllocationID, is, was.Epoch)
			}
		}
		return nil
	})
	for _, was := range before[2:] {
		if is := now[was.AllocationID]; is.HostID != was.HostID || is.Epoch != was.Epoch {
			s.t.Errorf("allocation %s was on %s with epoch %d, and is on %s with epoch %d", was.AllocationID, was.HostID, was.Epoch, is.HostID, is.Epoch)
		}
	}
}

// joinCoordinator lets a coordinator into the cluster.
func (s *site) joinCoordinator(c *machine) {
	made := secret.FindStringSubmatch(s.run(s.operator, "demiurge host join-token --coordinator --host coordinator-4", fill{"coordinator-4", c.Name}))
	if made == nil {
		s.t.Fatal("no secret is shown")
	}
	s.run(c, "sudo -u demiurge demiurge-coordinator join --token - --address coordinator-1.example.org:7400", fill{input, made[1]})
	s.run(c, "sudo systemctl enable --now demiurge-coordinator")
	s.await(c.Name+" to vote", func() error {
		peers, err := asked[api.List[api.RaftPeer]](s.world, s.operator, "demiurge operator raft list-peers -o json")
		if err == nil && !slices.ContainsFunc(peers.Items, func(p api.RaftPeer) bool { return p.ID == c.Name && p.Voter }) {
			err = errors.New("it does not")
		}
		return err
	})
}

// replaceCoordinator brings a fourth coordinator and takes the third one out.
func (s *site) replaceCoordinator() {
	s.run(s.operator, "demiurge operator raft transfer-leadership")
	s.joinCoordinator(s.addCoordinator())
	s.run(s.coordinators[2], "sudo systemctl stop demiurge-coordinator")
	s.await("coordinator-3 to be taken out", func() error { // as soon as it is known to be gone
		_, err := s.attempt(s.operator, "demiurge operator raft remove-peer coordinator-3")
		return err
	})
	if out := s.run(s.operator, "demiurge operator raft list-peers"); strings.Contains(out, "coordinator-3") {
		s.t.Errorf("coordinator-3 is still there: %s", out)
	}
	s.active()
}

// upgrade restarts everything that an upgrade restarts.
func (s *site) upgrade() {
	for _, n := range []int{0, 1, 3} {
		s.run(s.coordinators[n], "sudo systemctl restart demiurge-coordinator")
	}
	h := s.victim()
	s.run(h, "sudo systemctl restart demiurge-agent")
	s.run(h, "systemctl daemon-reload")
	s.run(h, "systemctl restart demiurge-nginx")
	s.start()
	s.active()
}

// loseMajority loses two of three coordinators for good.
func (s *site) loseMajority() {
	for _, n := range []int{1, 3} {
		s.must(s.coordinators[n].PowerOff())
	}
	rest := s.coordinators[0]
	s.says(s.run(s.operator, "demiurge operator raft list-peers --stale"), rest.Name)
	s.run(rest, "sudo systemctl stop demiurge-coordinator")
	if said, err := s.attempt(rest, "sudo -u demiurge demiurge-coordinator recover --config /etc/demiurge/coordinator.yaml"); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		s.t.Errorf("without --yes: %v, %s", err, said)
	}
	s.run(rest, "sudo -u demiurge demiurge-coordinator recover --config /etc/demiurge/coordinator.yaml --yes")
	s.run(rest, "sudo systemctl start demiurge-coordinator")
	s.until(s.operator, "demiurge operator raft list-peers", rest.Name)
	s.active()
	s.start(wiped)
	s.joinCoordinator(s.addCoordinator())
}

// endAgent ends an agent for good, with its gateways.
func (s *site) endAgent() {
	h := s.victim()
	s.run(h, "demiurge-agent leave")
	s.do(h, "systemctl stop demiurge-agent")
	s.run(h, "systemctl kill --signal=KILL demiurge-agent")
	s.active()
}
