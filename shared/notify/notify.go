// Package notify tells systemd how a program is: ready, reloading, stopping, alive. Where there is no
// systemd (no NOTIFY_SOCKET) every call does nothing.
package notify

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// Notifier speaks to the service manager that started this program.
type Notifier struct {
	log hclog.Logger
}

// New makes a Notifier. A message that cannot be delivered is logged and never an error of the program.
func New(log hclog.Logger) *Notifier { return &Notifier{log: log.Named("notify")} }

// Ready says that start-up, or a reload, is finished.
func (n *Notifier) Ready() { n.send(daemon.SdNotifyReady) }

// Reloading says that the configuration is being read again; Ready must follow. The monotonic time is
// what units of Type=notify-reload ask for.
func (n *Notifier) Reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		n.log.Warn("cannot read the monotonic clock", "error", err)
	}
	n.send(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
}

// Stopping says that the program has begun to stop.
func (n *Notifier) Stopping() { n.send(daemon.SdNotifyStopping) }

// Watchdog reports life at half of the time that the unit's WatchdogSec allows, as long as healthy says
// yes; when it says no nothing is sent, and systemd restarts the program. It blocks until ctx is done and
// returns at once where no watchdog is asked for.
func (n *Notifier) Watchdog(ctx context.Context, healthy func() bool) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("cannot use the watchdog that systemd asks for", "error", err)
	}
	if limit <= 0 {
		return
	}
	tick := time.NewTicker(limit / 2)
	defer tick.Stop()
	well := true
	for {
		before := well
		if well = healthy(); well {
			n.send(daemon.SdNotifyWatchdog)
		} else if before {
			n.log.Error("not healthy: systemd is no longer told that this program is alive", "limit", limit)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// send delivers one message; without systemd it does nothing.
func (n *Notifier) send(message string) {
	if _, err := daemon.SdNotify(false, message); err != nil {
		n.log.Warn("cannot tell systemd", "message", message, "error", err)
	}
}
