package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/shared/client"
)

func (a *app) membersCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "members",
		Short:   "List coordinators and agents as the gossip knows them",
		Example: "  demiurge members\n  demiurge members --status failed",
		Args:    cobra.NoArgs,
	}
	var f client.MemberFilter
	own := stale(c)
	c.Flags().StringVar(&f.Role, "role", "", "only coordinator or agent")
	c.Flags().StringVar(&f.Status, "status", "", "only alive, failed or left")
	_ = c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"coordinator", "agent"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("status", cobra.FixedCompletions([]string{"alive", "failed", "left"}, cobra.ShellCompDirectiveNoFileComp))
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
		items, err := coord.Members(ctx, f, consistency(*own)...)
		if err != nil {
			return err
		}
		return a.print(listBody(items), func(w io.Writer) error {
			g := newGrid("ROLE", "NAME", "ADDRESS", "STATUS", "SINCE", "FLAPS", "VERSION")
			for _, m := range items {
				g.add(m.Role, m.Name, m.Address, m.Status, stamp(&m.Since), m.Flaps, m.Version)
			}
			return g.draw(w)
		})
	})
	return c
}
