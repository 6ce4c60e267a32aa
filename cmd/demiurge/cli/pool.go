package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func (a *app) poolCommand() *cobra.Command {
	return program.Group(&cobra.Command{
		Use:     "pool",
		Short:   "Shape the pools of warm gateways",
		Example: "  demiurge pool list\n  demiurge pool set default --min-ready 5 --max 100",
	}, a.poolList(), a.poolShow(), a.poolSet(), a.poolDelete())
}

func (a *app) poolList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List pools with what their gateways do",
		Example: "  demiurge pool list",
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
			items, err := coord.ListPools(ctx)
			if err != nil {
				return err
			}
			return a.print(listBody(items), func(w io.Writer) error { return drawPools(w, items) })
		}),
	}
}

// drawPools is the table of pools, also of status. USED is what serves or is about to, as a part of all
// that could.
func drawPools(w io.Writer, items []api.Pool) error {
	g := newGrid("POOL", "USED", "READY", "ALLOCATED", "COMING", "BAD", "TOTAL", "MIN READY", "MAX", "QUEUED", "BREAKER", "LIMITED BY")
	for _, p := range items {
		c := p.Counts
		busy := c.Reserved + c.Allocated + c.Draining
		coming := c.Pending + c.Starting + c.Recycling
		bad := c.Unhealthy + c.Lost + c.Reconciling + c.Failed + c.Quarantined
		g.add(p.Name, percent(ratio(busy, busy+c.Ready)), c.Ready, c.Reserved+c.Allocated, coming, bad, c.Total, p.MinReady, p.Max, p.Queued, p.Breaker, p.Limited)
	}
	return g.draw(w)
}

func (a *app) poolShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show POOL",
		Short:   "Show one pool",
		Example: "  demiurge pool show default",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			name, err := poolName(args[0])
			if err != nil {
				return err
			}
			x, err := coord.Pool(ctx, name)
			if err != nil {
				return err
			}
			return a.printPool(x)
		}),
	}
}

func (a *app) printPool(x api.Pool) error {
	return a.print(x, func(w io.Writer) error {
		err := fields(w, "Pool", x.Name, "Min ready", x.MinReady, "Step", x.Step, "Max", x.Max, "Max in flight", x.MaxInFlight,
			"Release", x.Release, "Limits", limits(x.Limits), "Isolation", x.Isolation, "Activation timeout", x.ActivationTimeout,
			"Queued", x.Queued, "Breaker", x.Breaker, "Breaker says", x.BreakerReason, "Limited by", x.Limited)
		if err != nil {
			return err
		}
		fmt.Fprintln(w)
		return drawPools(w, []api.Pool{x})
	})
}

func limits(l api.Limits) string {
	var out string
	add := func(name string, n int64, unit string) {
		if n == 0 {
			return
		}
		if out != "" {
			out += ", "
		}
		out += fmt.Sprintf("%s %d%s", name, n, unit)
	}
	add("memory", l.MemoryBytes, " bytes")
	add("cpu", int64(l.CPUPercent), "%")
	add("tasks", int64(l.Tasks), "")
	add("body", l.BodyBytes, " bytes")
	if out == "" {
		return "none"
	}
	return out
}

func (a *app) poolSet() *cobra.Command {
	var v struct {
		minReady, step, max, inFlight, cpu, tasks int
		memory, body                              int64
		release, isolation                        string
		activation                                time.Duration
	}
	c := &cobra.Command{
		Use:   "set POOL [flags]",
		Short: "Create a pool or change what is named",
		Long: `Create a pool or change what is named; the rest keeps its value, or its default in a new pool.
The four limits belong together: naming one sets the others to none.`,
		Example: "  demiurge pool set default --min-ready 5 --step 3 --max 100",
	}
	flags := c.Flags()
	flags.IntVar(&v.minReady, "min-ready", 0, "refill below this many ready, pending and starting gateways")
	flags.IntVar(&v.step, "step", 0, "create at least this many at a time")
	flags.IntVar(&v.max, "max", 0, "never more gateways than this")
	flags.IntVar(&v.inFlight, "max-in-flight", 0, "most gateways that may be starting at once")
	flags.StringVar(&v.release, "release", "", "version of the gateway program")
	flags.StringVar(&v.isolation, "isolation", "", "what a cut-off host does: serve or stop")
	flags.DurationVar(&v.activation, "activation-timeout", 0, "undo an allocation that is not served after this time")
	flags.Int64Var(&v.memory, "memory-bytes", 0, "limit of a gateway's memory, at least 1 MiB")
	flags.IntVar(&v.cpu, "cpu-percent", 0, "limit of a gateway's processor time, 100 is one core")
	flags.IntVar(&v.tasks, "tasks", 0, "limit of a gateway's tasks")
	flags.Int64Var(&v.body, "body-bytes", 0, "largest request body that nginx lets through")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		name, err := poolName(args[0])
		if err != nil {
			return err
		}
		body := api.PutPool{
			MinReady: changed(flags, "min-ready", v.minReady), Step: changed(flags, "step", v.step), Max: changed(flags, "max", v.max),
			MaxInFlight: changed(flags, "max-in-flight", v.inFlight), Release: changed(flags, "release", v.release),
			Isolation: changed(flags, "isolation", v.isolation), ActivationTimeout: changed(flags, "activation-timeout", api.Duration(v.activation)),
		}
		for _, flag := range []string{"memory-bytes", "cpu-percent", "tasks", "body-bytes"} {
			if flags.Changed(flag) {
				body.Limits = &api.Limits{MemoryBytes: v.memory, CPUPercent: v.cpu, Tasks: v.tasks, BodyBytes: v.body}
			}
		}
		x, err := coord.PutPool(ctx, name, body)
		if err != nil {
			return err
		}
		return a.printPool(x)
	})
	return c
}

// changed is a flag's value when the flag was given, else nil: what is absent keeps its value.
func changed[T any](flags *pflag.FlagSet, name string, value T) *T {
	if !flags.Changed(name) {
		return nil
	}
	return &value
}

func (a *app) poolDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete POOL",
		Short:   "Delete a pool that serves nobody",
		Example: "  demiurge pool delete batch",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			name, err := poolName(args[0])
			if err != nil {
				return err
			}
			if err := coord.DeletePool(ctx, name); err != nil {
				return err
			}
			return a.done("name", name, "deleted pool "+name)
		}),
	}
}

func poolName(arg string) (string, error) {
	name, err := id.ParsePool(arg)
	if err != nil {
		return "", program.Usage("%s", err)
	}
	return string(name), nil
}
