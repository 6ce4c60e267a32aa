//go:build e2e

package booted

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// user is a user who has the organization's page open all the time.
type user struct {
	w      *world
	m      *machine
	socket *socket
	get    func() (served, error) // over a connection that is kept
	by     served
}

// user opens the organization's page.
func (w *world) user() *user {
	w.t.Helper()
	m := w.at()
	browser := w.browser(true)
	u := &user{w: w, m: m, by: w.serves(m), socket: w.open(m), get: func() (served, error) { return w.get(browser, m) }}
	u.undisturbed("at first")
	return u
}

// leave closes the page.
func (u *user) leave() {
	_ = u.socket.conn.CloseNow()
	<-u.socket.closed
}

// disconnected reports whether the user's page is closed. On a busy machine this process may learn of that later than of
// what came after it, so where it is not known to be closed the page asks: an answer comes from who still serves it, and
// after none, its end must have been heard.
func (u *user) disconnected() bool {
	select {
	case <-u.socket.closed:
		return true
	default:
	}
	if u.socket.echo(u.w.ctx, "is anybody there?") == nil {
		return false
	}
	select {
	case <-u.socket.closed:
		return true
	case <-time.After(patience): // a write was refused, and no read is
		return false
	}
}

// undisturbed wants the user to have noticed nothing.
func (u *user) undisturbed(when string) {
	u.w.t.Helper()
	if now, err := u.get(); err != nil || now != u.by {
		u.w.t.Errorf("%s: served by %v and was by %v: %v", when, now, u.by, err)
	}
	if err := u.socket.echo(u.w.ctx, when); err != nil {
		u.w.t.Errorf("%s: the WebSocket is over: %v", when, err)
	}
}

// gateways are the processes of the machine's gateways.
func (m *machine) gateways() []int {
	m.w.t.Helper()
	pids, err := m.Processes("demiurge-gateway")
	m.w.must(err)
	slices.Sort(pids)
	return pids
}

// restartAgent restarts the agent: its gateways go on, and no user notices.
func (w *world) restartAgent() {
	u := w.user()
	defer u.leave()
	var before []int
	w.await("all gateways", func() error {
		if before = u.m.gateways(); len(before) < 2 {
			return fmt.Errorf("there are only %d", len(before))
		}
		return nil
	})
	old := u.m.main(agent)
	u.m.do("systemctl restart " + agent)
	u.undisturbed("right after the restart of the agent")
	w.healthy()
	if now := u.m.main(agent); now == old {
		w.t.Errorf("the agent is still process %d", now)
	}
	for _, pid := range before {
		if !slices.Contains(u.m.gateways(), pid) {
			w.t.Errorf("gateway process %d did not outlive the agent", pid)
		}
	}
	u.undisturbed("when the agent is back")
}

// workers are the processes of the machine's nginx beside its master.
func (m *machine) workers() []int {
	m.w.t.Helper()
	pids, err := m.Processes("nginx")
	m.w.must(err)
	return slices.DeleteFunc(pids, func(pid int) bool {
		title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone meanwhile: no worker
		return !strings.HasPrefix(string(title), "nginx: worker")
	})
}

// reload has nginx take a new generation: the old workers go with their last connection, which nobody closes for them.
func (w *world) reload() {
	u := w.user()
	master, old := u.m.main(nginx), u.m.workers()
	generation := ask[api.Host](w, "host show "+u.m.host).Nginx.LiveGeneration
	w.operator("pool set default --min-ready 8")
	w.await("a new generation", func() error {
		is, err := asked[api.Host](w, "host show "+u.m.host)
		if now := is.Nginx; err == nil && now.LiveGeneration <= generation {
			err = fmt.Errorf("generation %d is live and %d is wanted: %s", now.LiveGeneration, now.DesiredGeneration, now.LastError)
		}
		return err
	})
	if err := u.socket.echo(w.ctx, "after the reload"); err != nil {
		w.t.Errorf("the reload has closed a WebSocket: %v", err)
	}
	w.serves(u.m)
	left := func(most int) error {
		var still []int
		for _, pid := range u.m.workers() {
			if slices.Contains(old, pid) {
				still = append(still, pid)
			}
		}
		if len(still) != most {
			return fmt.Errorf("of the workers %v there are %v", old, still)
		}
		return nil
	}
	w.await("the old workers without connections to end", func() error { return left(1) })
	u.leave()
	w.await("the last old worker to end", func() error { return left(0) })
	if now := u.m.main(nginx); now != master {
		w.t.Errorf("the master of nginx was process %d and is %d", master, now)
	}
}

// killAll kills the main process of each unit, and a gateway: all start again, and the organization is served as before.
func (w *world) killAll() {
	u := w.user()
	for _, victim := range []struct {
		unit string
		on   *machine
	}{{coordinator, w.machines[0]}, {agent, u.m}, {nginx, u.m}} {
		old := victim.on.main(victim.unit)
		victim.on.do(fmt.Sprint("kill -KILL ", old))
		victim.on.awaitRestart(victim.unit, old)
		if victim.unit == nginx {
			if now := w.serves(u.m); now != u.by {
				w.t.Errorf("after the end of nginx the organization is served by %v, and was by %v", now, u.by)
			}
			continue
		}
		u.undisturbed("after the end of " + victim.unit)
	}
	u.leave()
	u = w.user()
	defer u.leave()
	pid := u.m.gateway(u.by.gateway)
	w.must(syscall.Kill(pid, syscall.SIGKILL))
	w.await("another process of the gateway", func() error {
		if now, err := u.m.find(u.by.gateway); err != nil || now == pid {
			return fmt.Errorf("process %d, %w", now, err)
		}
		return nil
	})
	if now := w.serves(u.m); now != u.by {
		w.t.Errorf("after the end of its gateway the organization is served by %v, and was by %v", now, u.by)
	}
	w.healthy()
}

// awaitRestart waits until a unit runs with another main process.
func (m *machine) awaitRestart(unit string, old int) {
	m.w.t.Helper()
	m.w.await(unit+" to run again", func() error {
		if now := m.main(unit); now == old || now == 0 {
			return fmt.Errorf("its main process is %d, and was %d", now, old)
		}
		return m.active(unit)
	})
}

// find finds the process of a gateway, by its number on the machine that this runs on.
func (m *machine) find(gateway string) (int, error) {
	for _, pid := range m.gateways() {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && strings.Contains(string(env), "DEMIURGE_GATEWAY_ID="+gateway) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process is gateway %s", gateway)
}

func (m *machine) gateway(gateway string) int {
	m.w.t.Helper()
	pid, err := m.find(gateway)
	m.w.must(err)
	return pid
}

// hang stops programs that have a watchdog: systemd ends and starts them. Here it is told to be less patient.
func (w *world) hang() {
	u := w.user()
	defer u.leave()
	type victim struct {
		unit string
		on   *machine
		old  int
	}
	var victims []victim
	for _, v := range []victim{{unit: coordinator, on: w.machines[0]}, {unit: agent, on: u.m}} {
		if said := v.on.property(v.unit, "WatchdogUSec"); said != "30s" {
			w.t.Errorf("the watchdog of %s bites after %s", v.unit, said)
		}
		dropIn := "/run/systemd/system/" + v.unit + ".service.d"
		v.on.do("mkdir -p " + dropIn + " && printf '[Service]\\nWatchdogSec=3s\\n' >" + dropIn + "/impatient.conf && systemctl daemon-reload && systemctl restart " + v.unit)
		v.old = v.on.main(v.unit)
		v.on.do("kill -STOP " + strconv.Itoa(v.old))
		victims = append(victims, v)
	}
	for _, v := range victims {
		v.on.awaitRestart(v.unit, v.old)
		v.on.do("rm -r /run/systemd/system/" + v.unit + ".service.d && systemctl daemon-reload && systemctl restart " + v.unit)
	}
	u.undisturbed("after programs hung")
	w.healthy()
}

// restartNginx restarts nginx while a WebSocket is open.
func (w *world) restartNginx() {
	u := w.user()
	defer u.leave()
	u.m.do("systemctl restart " + nginx)
	if now := w.serves(u.m); now != u.by {
		w.t.Errorf("served by %v, and was by %v", now, u.by)
	}
	w.healthy()
}
