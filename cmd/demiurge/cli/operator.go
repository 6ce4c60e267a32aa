package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/shared/client"
)

func (a *app) operatorCommand() *cobra.Command {
	peers := &cobra.Command{
		Use:     "list-peers",
		Short:   "List the coordinators that keep the log",
		Example: "  demiurge operator raft list-peers",
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
			s, err := coord.Status(ctx)
			if err != nil {
				return err
			}
			return a.print(listBody(s.Peers), func(w io.Writer) error {
				g := newGrid("ID", "ADDRESS", "LEADER", "VOTER")
				for _, p := range s.Peers {
					g.add(p.ID, p.Address, yes(p.Leader), yes(p.Voter))
				}
				return g.draw(w)
			})
		}),
	}
	raft := a.group(&cobra.Command{
		Use:     "raft",
		Short:   "Look at the replicated log",
		Example: peers.Example,
	}, peers)
	return a.group(&cobra.Command{
		Use:     "operator",
		Short:   "Care for the coordinators",
		Example: peers.Example,
	}, raft)
}
