package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

func (a *app) eventsCommand() *cobra.Command {
	var q client.EventQuery
	var follow bool
	c := &cobra.Command{
		Use:   "events",
		Short: "Print what happened, and follow what happens",
		Long: `Print the events that are kept, the oldest first. With --follow it goes on with new ones until it is
interrupted, and survives a restart of the coordinator without a gap. With -o json --follow prints one
event a line.`,
		Example: "  demiurge events --topic allocation\n  demiurge events -f --topic pool --topic host",
		Args:    cobra.NoArgs,
	}
	flags := c.Flags()
	flags.BoolVarP(&follow, "follow", "f", false, "go on with new events")
	flags.StringSliceVar(&q.Topics, "topic", nil, "only this topic: agent, allocation, coordinator, gateway, host, join_token, organization, pool, snapshot, token or trust; repeatable")
	flags.StringVar(&q.After, "after", "", "only events after this id")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
		if follow {
			return a.follow(ctx, coord, q)
		}
		items, err := coord.ListEvents(ctx, q)
		if err != nil {
			return err
		}
		return a.print(listBody(items), func(w io.Writer) error {
			for _, e := range items {
				if err := printEvent(w, e); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return c
}

// follow ends with the interrupt that is the only way to end it: that is no failure.
func (a *app) follow(ctx context.Context, coord *client.Client, q client.EventQuery) error {
	lines := json.NewEncoder(a.Stdout)
	q.Dropped = func() {
		fmt.Fprintln(a.Stderr, "events are missing here: they are no longer kept")
	}
	for e, err := range coord.Follow(ctx, q) {
		if err != nil {
			return err
		}
		if a.output == "json" {
			err = lines.Encode(e)
		} else {
			err = printEvent(a.Stdout, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// printEvent is one line: columns of known width, because a stream cannot be aligned afterwards.
func printEvent(w io.Writer, e api.Event) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s  %-24s", e.At.UTC().Format("2006-01-02T15:04:05.000Z"), e.Type)
	if e.Before != "" || e.After != "" {
		fmt.Fprintf(&text, "  %s→%s", e.Before, e.After)
	}
	for _, part := range [][2]string{
		{"organization", e.OrganizationID},
		{"allocation", e.AllocationID},
		{"gateway", e.GatewayID},
		{"host", e.HostID},
		{"pool", e.Pool},
		{"code", e.Code},
		{"actor", e.Actor},
		{"reason", e.Reason},
	} {
		if part[1] != "" {
			fmt.Fprintf(&text, "  %s=%s", part[0], part[1])
		}
	}
	fmt.Fprintf(&text, "  (%s)", e.ID)
	_, err := fmt.Fprintln(w, clean(text.String()))
	return err
}
