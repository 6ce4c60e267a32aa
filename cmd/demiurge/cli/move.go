package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func (a *app) allocMigrate() *cobra.Command {
	var body api.MigrateAllocation
	var drain time.Duration
	c := &cobra.Command{
		Use:   "migrate ID|ORG",
		Short: "Bring an organization to a gateway of another host",
		Long: `Bring an organization to a gateway of another host, and wait until that one serves it. The old gateway
serves it until then. When the new one does not come to serve, the organization stays where it is.`,
		Example: `  demiurge alloc migrate al-abcdefghijklmnop
  demiurge alloc migrate al-abcdefghijklmnop --host host-2 --drain 30s`,
	}
	c.Flags().StringVar(&body.HostID, "host", "", "the host to go to (default the one that a start would choose)")
	c.Flags().DurationVar(&drain, "drain", 0, "let open connections of the old gateway go on this long")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		return a.change(ctx, coord, args[0], "moving", "move", func(allocation string) (api.Allocation, error) {
			return coord.Migrate(ctx, allocation, body, drain)
		})
	})
	return c
}

func (a *app) hostDrain() *cobra.Command {
	var how client.Drain
	var detach bool
	c := &cobra.Command{
		Use:   "drain HOST",
		Short: "Bring everything that a host serves to other hosts, and show how far it is",
		Long: `Cordon a host and bring every organization that it serves to another one, a few at a time. Each is served
by its old gateway until the new one does. The command shows how far it is and returns when nothing is left. An
interrupt ends the command and not the drain: 'demiurge host uncordon' ends that.`,
		Example: `  demiurge host drain host-1
  demiurge host drain host-1 --drain 30s --deadline 10m
  demiurge host drain host-1 --deadline 5m --force`,
	}
	flags := c.Flags()
	flags.DurationVar(&how.Connections, "drain", 0, "let open connections of each gateway go on this long")
	flags.DurationVar(&how.Deadline, "deadline", 0, "after this time, fail and tell what is left (default never)")
	flags.BoolVar(&how.Force, "force", false, "at the deadline, take what is left off the host, also where no other gateway is ready")
	flags.BoolVar(&detach, "detach", false, "begin and return at once")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		host, err := id.ParseHost(args[0])
		if err != nil {
			return program.Usage("%s", err)
		}
		if how.Force && how.Deadline <= 0 {
			return program.Usage("--force needs a --deadline")
		}
		x, err := coord.DrainHost(ctx, string(host), how)
		if err != nil {
			return err
		}
		if !detach {
			if x, err = a.watchDrain(ctx, coord, x); err != nil {
				return err
			}
		}
		return a.printHost(x)
	})
	return c
}

// watchDrain shows how far the draining of a host is until nothing is left there.
func (a *app) watchDrain(ctx context.Context, coord *client.Client, x api.Host) (api.Host, error) {
	p := a.wait("draining host " + x.HostID)
	defer p.stop()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		switch {
		case x.Drain == nil:
			return x, fmt.Errorf("the drain of host %s was ended by 'host uncordon'", x.HostID)
		case x.Drain.State == api.DrainDrained:
			return x, nil
		case x.Drain.State == api.DrainOverdue:
			return x, fmt.Errorf("host %s is not empty at the deadline: %s; the drain goes on, 'demiurge alloc list --host %s' shows what is left, 'demiurge host uncordon %s' ends it", x.HostID, drainText(x.Drain), x.HostID, x.HostID)
		}
		p.say("host " + x.HostID + ": " + drainText(x.Drain))
		select {
		case <-ctx.Done():
			return x, fmt.Errorf("interrupted: the drain of host %s goes on; 'demiurge host show %s' shows it, 'demiurge host uncordon %s' ends it", x.HostID, x.HostID, x.HostID)
		case <-ticker.C:
		}
		next, err := coord.Host(ctx, x.HostID)
		switch {
		case ctx.Err() != nil: // said above
		case err != nil:
			return x, fmt.Errorf("cannot look at host %s: %w; its drain goes on", x.HostID, err)
		default:
			x = next
		}
	}
}

// drainText says how far a drain is; empty without one.
func drainText(d *api.HostDrain) string {
	if d == nil {
		return ""
	}
	text := fmt.Sprintf("%s, %d of %d left", d.State, d.Left, d.Total)
	if d.Moving > 0 {
		text += fmt.Sprintf(", %d moving", d.Moving)
	}
	if d.Closing > 0 {
		text += fmt.Sprintf(", %d closing", d.Closing)
	}
	if d.Waiting != "" {
		text += ": " + d.Waiting
	}
	return text
}

// movingText says where an allocation is on its way to; empty when it is not.
func movingText(m *api.Relocation) string {
	if m == nil {
		return ""
	}
	parts := []string{m.Cause + " since " + stamp(&m.Since)}
	switch {
	case m.HeldBy == "lease":
		parts = append(parts, "waits until its host cannot serve it any more, at "+stamp(m.HeldUntil))
	case m.HeldBy != "":
		parts = append(parts, "the next try is at "+stamp(m.HeldUntil))
	case m.Waiting:
		parts = append(parts, "waits for a gateway")
	default:
		parts = append(parts, "to gateway "+m.ToGateway+" of host "+m.ToHost)
	}
	if m.Failure != nil {
		parts = append(parts, fmt.Sprintf("%d tries failed, the last with %s", m.Attempts, failureText(m.Failure.Code, m.Failure.Message)))
	}
	return strings.Join(parts, "; ")
}

// movedText says how the latest move ended; empty when there was none.
func movedText(moves []api.Moved) string {
	if len(moves) == 0 {
		return ""
	}
	m := moves[len(moves)-1]
	text := fmt.Sprintf("%s at %s, from host %s to host %s", m.Cause, stamp(&m.EndedAt), m.FromHost, m.ToHost)
	if m.Failure != nil {
		text = fmt.Sprintf("%s at %s, stayed on host %s: %s", m.Cause, stamp(&m.EndedAt), m.FromHost, failureText(m.Failure.Code, m.Failure.Message))
	}
	return text
}
