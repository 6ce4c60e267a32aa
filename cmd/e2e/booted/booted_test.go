//go:build e2e

package booted

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

const (
	coordinator = "demiurge-coordinator"
	agent       = "demiurge-agent"
	nginx       = "demiurge-nginx"
	leave       = "demiurge-leave"
)

// The units do under a real systemd what they are for.
func TestUnitsUnderSystemd(t *testing.T) {
	w := newWorld(t)
	for _, part := range []struct {
		name string
		do   func(*world)
	}{
		{"machines are booted", (*world).bootAll},
		{"a coordinator", (*world).begin},
		{"hosts", (*world).bringHosts},
		{"an organization", (*world).serve},
		{"an agent is restarted", (*world).restartAgent},
		{"generations of nginx", (*world).reload},
		{"sandboxes", (*world).sandboxes},
		{"nothing is wrong in the journal", (*world).quiet},
		{"programs are killed", (*world).killAll},
		{"programs hang", (*world).hang},
		{"nginx is restarted", (*world).restartNginx},
		{"units are stopped", (*world).stopAll},
		{"a machine is switched off", (*world).switchOff},
		{"a machine is switched off that must not go on serving", (*world).switchOffLeased},
	} {
		begun := time.Now()
		part.do(w)
		t.Logf("%s: %s", part.name, time.Since(begun).Round(10*time.Millisecond))
		if t.Failed() {
			return
		}
	}
}

// bootAll installs everything on machines that have just been booted.
func (w *world) bootAll() {
	image := w.install()
	for n := range 2 {
		m := w.boot(image, fmt.Sprint("machine-", n+1), fmt.Sprint("192.0.2.", n+1))
		m.host = fmt.Sprint("host-", n+1)
		m.do("systemd-sysusers && systemd-tmpfiles --create demiurge.conf")
	}
}

// begin begins a cluster of one coordinator.
func (w *world) begin() {
	m := w.machines[0]
	m.write("/etc/demiurge/coordinator.yaml", `node_id: coordinator-1
domain: `+domain+`
api: {listen: "192.0.2.1:7400", hosts: ["192.0.2.1"]}
raft: {listen: "192.0.2.1:7401"}
gossip: {listen: "192.0.2.1:7402"}
log: {format: json}
`)
	m.do("systemctl enable --now " + coordinator)
	w.must(m.active(coordinator))
	w.await("the first admin token", func() error {
		said, err := m.try("cat " + data + "/admin.token")
		if w.token = strings.TrimSpace(said); err == nil && w.token == "" {
			err = errors.New("it is empty")
		}
		return err
	})
}

// bringHosts lets both hosts in.
func (w *world) bringHosts() {
	for _, m := range w.machines {
		m.write("/etc/demiurge/agent.yaml", `host_id: `+m.host+`
coordinators: ["192.0.2.1:7400"]
domain: `+domain+`
address: `+m.address+`
capacity: 20
nginx: {data_dir: /var/lib/demiurge/nginx, listen: ["0.0.0.0:80"]}
gossip: {listen: "`+m.address+`:7403"}
log: {format: json}
`)
		made := secret.FindStringSubmatch(w.operator("host join-token --host " + m.host))
		if made == nil {
			w.t.Fatal("no secret is shown")
		}
		m.do("setpriv --reuid=demiurge --regid=demiurge --init-groups -- demiurge-agent join --token - --address 192.0.2.1:7400 <<<$TOKEN", "TOKEN="+made[1])
		m.do("systemctl enable --now " + nginx + " " + agent + " " + leave)
		w.must(m.active(nginx, agent, leave))
	}
}

// serve starts an organization.
func (w *world) serve() {
	w.operator("pool set default --min-ready 4 --step 2 --max 20 --memory-bytes 536870912")
	w.operator("org put " + w.org + " --name caller")
	w.operator("alloc start --wait 60s " + w.org)
	w.serves(w.at())
}

// healthy waits until the operator sees nothing wrong.
func (w *world) healthy() {
	w.t.Helper()
	w.await("all to be healthy", func() error {
		hosts, err := asked[api.List[api.Host]](w, "host list")
		for _, h := range hosts.Items {
			if h.State != api.HostAlive || h.Nginx.State != api.NginxServing || h.Nginx.LiveGeneration != h.Nginx.DesiredGeneration {
				err = fmt.Errorf("%s is %s, its nginx %+v", h.HostID, h.State, h.Nginx)
			}
		}
		return err
	})
}

// allocation is the organization's.
func (w *world) allocation() api.Allocation {
	w.t.Helper()
	got := ask[api.List[api.Allocation]](w, "alloc list").Items
	if len(got) != 1 {
		w.t.Fatalf("the allocations are %+v", got)
	}
	return got[0]
}

// at is the machine that the organization is on.
func (w *world) at() *machine {
	w.t.Helper()
	a := w.allocation()
	for _, m := range w.machines {
		if m.host == a.HostID {
			return m
		}
	}
	w.t.Fatalf("the organization is on no machine: %+v", a)
	return nil
}
