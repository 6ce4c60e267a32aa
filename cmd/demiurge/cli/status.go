package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show the state of the whole system, what is wrong first",
		Example: "  demiurge status\n  demiurge status -o json",
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
			s, err := coord.Status(ctx)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) error { return drawStatus(w, s) })
		}),
	}
}

func drawStatus(w io.Writer, s api.Status) error {
	drawProblems(w, s)
	leader := s.Leader
	if leader == "" {
		leader = "none"
	}
	if err := fields(w, "Leader", fmt.Sprintf("%s (of %d, term %d, index %d, applied %d)", leader, len(s.Peers), s.Term, s.Index, s.Applied),
		"Domain", s.Domain, "Version", s.Version, "Cluster", s.ClusterID, "Utilization", percent(s.Utilization)+" of the gateways that can serve",
		"Allocations", allocationCounts(s.Allocations), "Since it leads", rates(s.Rates)); err != nil {
		return err
	}
	if len(s.Pools) > 0 {
		fmt.Fprintln(w)
		if err := drawPools(w, s.Pools); err != nil {
			return err
		}
	}
	if len(s.Hosts) > 0 {
		fmt.Fprintln(w)
		return drawHosts(w, s.Hosts)
	}
	return nil
}

// drawProblems comes first: whoever looks at a status looks for what is wrong.
func drawProblems(w io.Writer, s api.Status) {
	switch {
	case len(s.Problems) > 0:
		fmt.Fprintf(w, "%d wrong:\n", len(s.Problems))
	case s.Healthy:
		fmt.Fprintln(w, "Healthy: nothing is wrong.")
	default:
		fmt.Fprintln(w, "Not healthy.")
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "  %s  %s: %s\n", strings.ToUpper(clean(p.Severity)), clean(p.Subject), clean(p.Message))
		if p.Remedy != "" {
			fmt.Fprintf(w, "    → %s\n", clean(p.Remedy))
		}
	}
	fmt.Fprintln(w)
}

func allocationCounts(counts map[string]int) string {
	states := make([]string, 0, len(counts))
	for state, n := range counts {
		if n > 0 {
			states = append(states, fmt.Sprintf("%s %d", state, n))
		}
	}
	if len(states) == 0 {
		return "none"
	}
	slices.Sort(states)
	return strings.Join(states, ", ")
}

// rates counts refusals apart: an empty pool is not a failed allocation.
func rates(r api.Rate) string {
	ended := r.Succeeded + r.Failed
	if ended == 0 {
		return fmt.Sprintf("no allocation finished, %d refused", r.Refused)
	}
	return fmt.Sprintf("%d succeeded (%.1f%%), %d failed (%.1f%%), %d refused; p50 %s ms, p99 %s ms",
		r.Succeeded, 100*ratio(r.Succeeded, ended), r.Failed, 100*ratio(r.Failed, ended), r.Refused, millis(r.P50), millis(r.P99))
}
