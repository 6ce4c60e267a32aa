package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func (a *app) gatewayCommand() *cobra.Command {
	return program.Group(&cobra.Command{
		Use:     "gateway",
		Short:   "Look at gateways and take them out",
		Example: "  demiurge gateway list --state ready\n  demiurge gateway recycle gw-abcdefghij",
	}, a.gatewayList(),
		a.gatewayAction("show", "Show one gateway", (*client.Client).Gateway),
		a.gatewayAction("recycle", "Stop a gateway that serves nobody, wipe its state and start it afresh", (*client.Client).RecycleGateway),
		a.gatewayAction("quarantine", "Take a gateway out: it gets no organization until it is recycled", (*client.Client).QuarantineGateway))
}

func (a *app) gatewayList() *cobra.Command {
	var filter client.GatewayFilter
	c := &cobra.Command{
		Use:     "list",
		Short:   "List gateways",
		Example: "  demiurge gateway list\n  demiurge gateway list --state ready --pool default",
		Args:    cobra.NoArgs,
	}
	flags := c.Flags()
	flags.StringVar(&filter.State, "state", "", "only gateways in this state")
	flags.StringVar(&filter.Pool, "pool", "", "only gateways of this pool")
	flags.StringVar(&filter.HostID, "host", "", "only gateways on this host")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
		items, err := coord.ListGateways(ctx, filter)
		if err != nil {
			return err
		}
		return a.print(listBody(items), func(w io.Writer) error {
			g := newGrid("GATEWAY", "STATE", "POOL", "HOST", "ORGANIZATION", "EPOCH", "PID", "RESTARTS", "MESSAGE")
			for _, x := range items {
				g.add(x.GatewayID, x.State, x.Pool, x.HostID, x.OrganizationID, number(x.Epoch), number(x.PID), x.Restarts, x.Message)
			}
			return g.draw(w)
		})
	})
	return c
}

// gatewayAction is a command on one gateway that answers with the gateway.
func (a *app) gatewayAction(verb, short string, act func(*client.Client, context.Context, string, ...client.CallOption) (api.Gateway, error)) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " ID",
		Short:   short,
		Example: "  demiurge gateway " + verb + " gw-abcdefghij",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			gateway, err := id.ParseGateway(args[0])
			if err != nil {
				return program.Usage("%s", err)
			}
			x, err := act(coord, ctx, string(gateway))
			if err != nil {
				return err
			}
			return a.print(x, func(w io.Writer) error {
				return fields(w, "Gateway", x.GatewayID, "State", x.State, "Message", x.Message, "Pool", x.Pool, "Host", x.HostID,
					"Organization", x.OrganizationID, "Allocation", x.AllocationID, "Epoch", number(x.Epoch), "Incarnation", number(x.Incarnation),
					"Release", x.Release, "PID", number(x.PID), "Boot", x.BootID, "Restarts", x.Restarts, "Ready", stamp(x.ReadyAt), "Created", stamp(&x.CreatedAt))
			})
		}),
	}
}
