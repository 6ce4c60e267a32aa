package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

func (a *app) operatorCommand() *cobra.Command {
	peers, save, rotate, keys := a.raftPeers(), a.snapshotSave(), a.caRotate(), a.gossipKeys()
	return program.Group(&cobra.Command{
		Use:     "operator",
		Short:   "Care for the coordinators",
		Example: peers.Example + "\n" + save.Example,
	}, program.Group(&cobra.Command{
		Use:     "raft",
		Short:   "Look at the coordinators and choose who leads",
		Example: peers.Example,
	}, peers, a.raftTransfer(), a.raftRemove()), program.Group(&cobra.Command{
		Use:     "snapshot",
		Short:   "Save and restore the whole state",
		Example: save.Example,
	}, save, a.snapshotRestore()), program.Group(&cobra.Command{
		Use:     "ca",
		Short:   "Care for the CA that all programs trust",
		Example: rotate.Example,
	}, rotate), program.Group(&cobra.Command{
		Use:     "gossip",
		Short:   "Care for the key that encrypts the gossip",
		Example: keys.Example,
	}, keys, a.gossipRotate()))
}

// stale is the flag of commands that can ask one coordinator alone.
func stale(c *cobra.Command) *bool {
	return c.Flags().Bool("stale", false, "answered by the coordinator that is asked, not by the leader")
}

func consistency(stale bool) []client.CallOption {
	if stale {
		return []client.CallOption{client.Consistency("stale")}
	}
	return nil
}

func (a *app) raftPeers() *cobra.Command {
	c := &cobra.Command{
		Use:     "list-peers",
		Short:   "List the coordinators that keep the log, with what each has",
		Example: "  demiurge operator raft list-peers",
		Args:    cobra.NoArgs,
	}
	own := stale(c)
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
		items, err := coord.RaftPeers(ctx, consistency(*own)...)
		if err != nil {
			return err
		}
		return a.print(listBody(items), func(w io.Writer) error {
			g := newGrid("ID", "ADDRESS", "LEADER", "VOTER", "STATUS", "LAST INDEX", "VERSION")
			for _, p := range items {
				g.add(p.ID, p.Address, yes(p.Leader), yes(p.Voter), p.Status, number(p.LastIndex), p.Version)
			}
			return g.draw(w)
		})
	})
	return c
}

func (a *app) raftTransfer() *cobra.Command {
	return &cobra.Command{
		Use:               "transfer-leadership [ID]",
		Short:             "Make another coordinator lead: the given one, or the one that is most up to date",
		Example:           "  demiurge operator raft transfer-leadership\n  demiurge operator raft transfer-leadership coordinator-2",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completePeers,
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			x, err := coord.TransferLeadership(ctx, strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.print(x, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s leads\n", clean(x.Leader))
				return err
			})
		}),
	}
}

func (a *app) raftRemove() *cobra.Command {
	c := &cobra.Command{
		Use:   "remove-peer ID",
		Short: "Take a coordinator that is gone for good out of the cluster",
		Long: `remove-peer takes a coordinator that is gone for good out of the cluster. Stop it first: one that is alive
would be brought in again. It is refused when of those that are left the living ones would be no majority.`,
		Example:           "  demiurge operator raft remove-peer coordinator-3",
		ValidArgsFunction: a.completePeers,
	}
	force := c.Flags().Bool("force", false, "also one that is alive, or without which there may be no majority")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		if err := coord.RemovePeer(ctx, args[0], *force); err != nil {
			return err
		}
		return a.done("id", args[0], "took coordinator "+args[0]+" out")
	})
	return c
}

// completePeers completes the id of a coordinator, as far as one answers quickly.
func (a *app) completePeers(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	coord, err := client.New(a.clientOptions(-1))
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(c.Context(), 2*time.Second)
	defer cancel()
	peers, err := coord.RaftPeers(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	out := make([]string, len(peers))
	for i, p := range peers {
		out[i] = p.ID
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) caRotate() *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new CA; every program renews its certificate by itself",
		Long: `rotate makes a new CA. Certificates of the old one are accepted until the overlap ends; every program that
runs renews its own in the first half of it. A program that was stopped all that time has to join again.`,
		Example: "  demiurge operator ca rotate --overlap 168h",
		Args:    cobra.NoArgs,
	}
	overlap := c.Flags().Duration("overlap", 0, "how long certificates of the old CA are accepted (default 72h)")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
		x, err := coord.RotateCA(ctx, api.RotateCA{Overlap: optionalDuration(*overlap)})
		if err != nil {
			return err
		}
		return a.print(x, func(w io.Writer) error {
			return fields(w, "CA", x.Pin, "Previous", x.Previous, "Good until", stamp(&x.Until))
		})
	})
	return c
}

func (a *app) gossipKeys() *cobra.Command {
	return &cobra.Command{
		Use:     "keys",
		Short:   "List which member has which gossip key, by fingerprint; the first is in use",
		Example: "  demiurge operator gossip keys",
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
			x, err := coord.GossipKeys(ctx)
			if err != nil {
				return err
			}
			return a.print(x, func(w io.Writer) error {
				g := newGrid("MEMBER", "STATUS", "KEYS", "CURRENT")
				for _, m := range x.Members {
					g.add(m.Member, m.Status, strings.Join(m.Keys, " "), yes(len(m.Keys) > 0 && m.Keys[0] == x.InUse))
				}
				return g.draw(w)
			})
		}),
	}
}

func (a *app) gossipRotate() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Encrypt the gossip with a new key and drop the old one",
		Long: `rotate gives a new key to all members of the gossip, has them use it and drops the old one. Nobody who is
there is cut off at any moment. Members that are away are named; they learn the new key when they are back.`,
		Example: "  demiurge operator gossip rotate",
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
			p := a.wait("waiting until all members have the new key")
			x, err := coord.RotateGossip(ctx)
			p.stop()
			if err != nil {
				return err
			}
			return a.print(x, func(w io.Writer) error {
				return fields(w, "Key", x.Key, "Previous", x.Previous, "Away", strings.Join(x.Without, ", "))
			})
		}),
	}
}
