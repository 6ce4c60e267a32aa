package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/shared/api"
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
			g := newGrid("ROLE", "NAME", "ADDRESS", "STATUS", "SINCE", "FLAPS", "VERSION", "GATEWAYS", "LOAD", "DISK FREE", "WRONG")
			for _, m := range items {
				gateways, load, disk, wrong := digest(m.Digest)
				g.add(m.Role, m.Name, m.Address, m.Status, stamp(&m.Since), m.Flaps, m.Version, gateways, load, disk, wrong)
			}
			return g.draw(w)
		})
	})
	return c
}

// digest is the health of a host in words; empty for what has none.
func digest(d *api.MemberDigest) (gateways, load, disk, wrong string) {
	if d == nil {
		return "", "", "", ""
	}
	var counts []string
	for _, state := range slices.Sorted(maps.Keys(d.Gateways)) {
		counts = append(counts, fmt.Sprintf("%s %d", state, d.Gateways[state]))
	}
	return strings.Join(counts, ", "), fmt.Sprintf("%d%%", d.LoadPercent), fmt.Sprintf("%d MiB", d.DiskFreeMiB), strings.Join(d.Problems, ", ")
}
