//go:build e2e

package booted

import (
	"errors"
	"fmt"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// stopAll stops each unit, and starts it again.
func (w *world) stopAll() {
	u := w.user()
	defer u.leave()
	running := func() []string {
		return strings.Fields(u.m.do("for p in /proc/[0-9]*; do readlink $p/exe | grep -e demiurge -e nginx || true; done | sort | uniq"))
	}
	gateways := u.m.gateways()
	u.m.do("systemctl stop " + agent)
	u.undisturbed("without an agent")
	if len(u.m.gateways()) != len(gateways) {
		w.t.Errorf("the end of the agent has ended gateways: %v are %v", gateways, u.m.gateways())
	}
	u.m.do("systemctl stop " + nginx)
	u.m.do("systemctl kill --signal=KILL " + agent)
	if u.m == w.machines[0] {
		u.m.do("systemctl stop " + coordinator)
	}
	w.await("all to be over", func() error {
		if left := running(); len(left) > 0 {
			return fmt.Errorf("there are still %v", left)
		}
		return nil
	})
	for _, unit := range []string{agent, nginx} {
		if state := u.m.property(unit, "ActiveState"); state != "inactive" {
			w.t.Errorf("%s is %s after its stop", unit, state)
		}
	}
	if u.m == w.machines[0] {
		u.m.do("systemctl start " + coordinator)
	}
	u.m.do("systemctl start " + nginx + " " + agent)
	w.healthy()
	w.serves(w.at())
}

// switchOff switches the machine off that is not the coordinator's: what it serves moves to the other one at once. When
// it is switched on again, all comes back by itself.
func (w *world) switchOff() {
	second := w.machines[1]
	if w.at() != second {
		w.operator("alloc migrate --host " + second.host + " " + w.allocation().AllocationID)
	}
	// Agent and coordinator of the first machine have both just been started: the new leader holds the host's place for the
	// run before for a moment (coordinator/agentlink/copies.go), and until the agent is heard its nginx has the route that it had.
	browser := w.browser(false)
	w.await("the first machine to have no route", func() error {
		if by, err := w.get(browser, w.machines[0]); err == nil {
			return fmt.Errorf("it serves at epoch %s", by.epoch)
		}
		return nil
	})
	before := w.serves(second)
	w.must(second.Shutdown(w.ctx))
	w.await("the organization on the other machine", func() error {
		got, err := asked[api.List[api.Allocation]](w, "alloc list")
		for _, a := range got.Items {
			if a.HostID == second.host {
				err = fmt.Errorf("it is %s on %s", a.State, a.HostID)
			}
		}
		return err
	})
	now := w.serves(w.machines[0])
	is, err := id.ParseEpoch(now.epoch)
	was, err2 := id.ParseEpoch(before.epoch)
	if err := errors.Join(err, err2); err != nil || is <= was {
		w.t.Errorf("served at epoch %s, and was at %s, %v", now.epoch, before.epoch, err)
	}
	w.must(second.Start(w.ctx))
	w.await("its units to be active", func() error { return second.active(nginx, agent, leave) })
	w.healthy()
	w.operator("alloc migrate --host " + second.host + " " + w.allocation().AllocationID)
	w.serves(second)
}

// switchOffLeased switches a machine off whose organization must not be served in two places, while a user has its page
// open: that page is closed before the organization is served elsewhere.
func (w *world) switchOffLeased() {
	w.operator("pool set default --isolation stop")
	w.healthy()
	first, second := w.machines[0], w.machines[1]
	u := w.user()
	off := make(chan error, 1)
	go func() { off <- second.Shutdown(w.ctx) }() // waited for below
	now := w.serves(first)
	if !u.disconnected() {
		w.t.Errorf("served on %s at epoch %s while a user is still connected to %s at epoch %s", first.Name, now.epoch, second.Name, u.by.epoch)
	}
	w.must(<-off)
}
