package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func (a *app) hostCommand() *cobra.Command {
	return program.Group(&cobra.Command{
		Use:     "host",
		Short:   "Look at hosts and take them out of the choice",
		Example: "  demiurge host list\n  demiurge host cordon host-1",
	}, a.hostList(),
		a.hostAction("show", "Show one host", (*client.Client).Host),
		a.hostAction("cordon", "Give no more gateways of this host to organizations", (*client.Client).CordonHost),
		a.hostAction("uncordon", "Give gateways of this host to organizations again", (*client.Client).UncordonHost),
		a.hostDrain(), a.hostDelete(), a.hostJoinToken())
}

func (a *app) hostList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List hosts",
		Example: "  demiurge host list",
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
			items, err := coord.ListHosts(ctx)
			if err != nil {
				return err
			}
			return a.print(listBody(items), func(w io.Writer) error { return drawHosts(w, items) })
		}),
	}
}

// drawHosts is the table of hosts, also of status. A generation that is not live yet is shown as
// live→wanted.
func drawHosts(w io.Writer, items []api.Host) error {
	g := newGrid("HOST", "STATE", "SCHEDULABLE", "ADDRESS", "GATEWAYS", "ALLOCATED", "CAPACITY", "NGINX", "GENERATION", "ROUTES", "LAST SEEN")
	for _, h := range items {
		generation := fmt.Sprint(h.Nginx.LiveGeneration)
		if h.Nginx.DesiredGeneration != h.Nginx.LiveGeneration {
			generation += fmt.Sprintf("→%d", h.Nginx.DesiredGeneration)
		}
		g.add(h.HostID, h.State, yes(h.Schedulable), h.Address, h.Gateways, h.Allocated, h.Capacity, h.Nginx.State, generation, h.Nginx.Routes, stamp(h.LastSeen))
	}
	return g.draw(w)
}

// hostAction is a command on one host that answers with the host.
func (a *app) hostAction(verb, short string, act func(*client.Client, context.Context, string, ...client.CallOption) (api.Host, error)) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " HOST",
		Short:   short,
		Example: "  demiurge host " + verb + " host-1",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			host, err := id.ParseHost(args[0])
			if err != nil {
				return program.Usage("%s", err)
			}
			x, err := act(coord, ctx, string(host))
			if err != nil {
				return err
			}
			return a.printHost(x)
		}),
	}
}

func (a *app) hostDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete HOST",
		Short:   "Forget a host that serves nobody, and its gateways",
		Example: "  demiurge host delete host-1",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			host, err := id.ParseHost(args[0])
			if err != nil {
				return program.Usage("%s", err)
			}
			if err := coord.DeleteHost(ctx, string(host)); err != nil {
				return err
			}
			return a.done("host_id", string(host), "deleted host "+string(host))
		}),
	}
}

func (a *app) printHost(x api.Host) error {
	return a.print(x, func(w io.Writer) error {
		n := x.Nginx
		pairs := []any{
			"Host", x.HostID, "State", x.State, "Because", x.Reason, "Schedulable", yes(x.Schedulable), "Address", x.Address, "Capacity", x.Capacity,
			"Gateways", x.Gateways, "Allocated", x.Allocated, "Agent", x.Version, "Last seen", stamp(x.LastSeen), "Created", stamp(&x.CreatedAt),
			"Nginx", n.State, "Generation", fmt.Sprintf("%d live, %d wanted", n.LiveGeneration, n.DesiredGeneration), "Routes", n.Routes,
			"Draining workers", n.DrainingWorkers, "Last error", n.LastError, "Drain", drainText(x.Drain),
		}
		if m := x.Member; m != nil {
			gateways, load, disk, wrong := digest(m.Digest)
			pairs = append(pairs, "Gossip", fmt.Sprintf("%s at %s since %s", m.Status, m.Address, stamp(&m.Since)), "Load", load, "Disk free", disk,
				"Gateways there", gateways, "Wrong there", wrong)
		}
		if err := fields(w, pairs...); err != nil || len(n.Quarantined) == 0 {
			return err
		}
		fmt.Fprintln(w)
		g := newGrid("QUARANTINED", "SINCE", "MESSAGE")
		for _, q := range n.Quarantined {
			g.add(q.Part, stamp(&q.Since), q.Message)
		}
		return g.draw(w)
	})
}
