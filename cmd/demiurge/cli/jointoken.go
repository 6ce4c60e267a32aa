package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

func (a *app) hostJoinToken() *cobra.Command {
	body := api.CreateJoinToken{}
	var ttl time.Duration
	var coordinator bool
	c := &cobra.Command{
		Use:   "join-token",
		Short: "Make a token with which one program joins the cluster; it is shown this once",
		Long: "Makes a token with which one host joins the cluster, once (`demiurge-agent join`). With --host it is good for that host\n" +
			"alone; where the host has joined before, its old certificate ends with the joining.",
		Example: `  demiurge host join-token --host host-2
  demiurge host join-token --coordinator --host coordinator-4 --ttl 10m`,
		Args: cobra.NoArgs,
	}
	flags := c.Flags()
	flags.StringVar(&body.Name, "host", "", "host (or node id of the coordinator) that it is for (default any that is not taken)")
	flags.DurationVar(&ttl, "ttl", 0, "expires after this time, at most 24h (default 1h)")
	flags.BoolVar(&coordinator, "coordinator", false, "for a coordinator (demiurge-coordinator join); takes an admin")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
		body.Role, body.TTL = string(pki.RoleAgent), optionalDuration(ttl)
		if coordinator {
			body.Role = string(pki.RoleCoordinator)
		}
		x, err := coord.CreateJoinToken(ctx, body)
		if err != nil {
			return err
		}
		return a.print(x, func(w io.Writer) error {
			if err := fields(w, "Join token", x.JoinTokenID, "Role", x.Role, "Name", x.Name, "Expires", stamp(&x.ExpiresAt), "Secret", x.Secret); err != nil {
				return err
			}
			fmt.Fprintf(a.Stderr, "The token is not shown again. On the new machine: demiurge-%s join --token TOKEN --address HOST:PORT\n", x.Role)
			return nil
		})
	})
	return c
}
