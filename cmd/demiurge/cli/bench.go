package cli

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/client"
)

func (a *app) benchCommand() *cobra.Command {
	return program.Group(&cobra.Command{
		Use:     "bench",
		Short:   "Measure a running system",
		Example: "  demiurge bench allocate --organizations 20 --rate 10 --duration 10s",
	}, a.benchAllocate())
}

func (a *app) benchAllocate() *cobra.Command {
	var plan benchPlan
	c := &cobra.Command{
		Use:   "allocate --organizations N --rate R --duration D",
		Short: "Start and stop gateways at a fixed rate and print how long that takes",
		Long: `Start and stop the gateways of made-up organizations in turn, at a rate that does not slow down when the
system does (open loop): starts have a schedule, and a latency counts from the start that was planned. The
organizations are put before and removed after; an interrupt prints what was measured and removes them too.

With --http every start is followed by a request to the organization's host name, whose answer has to carry
that organization, gateway and epoch. "commit to first byte" leaves out waiting, queue and reservation.`,
		Example: `  demiurge bench allocate --organizations 20 --rate 10 --duration 10s
  demiurge bench allocate --organizations 100 --rate 100 --duration 1m --http http://127.0.0.1:7480 -o json`,
		Args: cobra.NoArgs,
	}
	flags := c.Flags()
	flags.IntVar(&plan.organizations, "organizations", 10, "how many organizations take turns")
	flags.Float64Var(&plan.rate, "rate", 10, "starts per second")
	flags.DurationVar(&plan.duration, "duration", 10*time.Second, "how long to go on")
	flags.DurationVar(&plan.hold, "hold", 0, "how long an organization keeps its gateway before it is stopped")
	flags.StringVar(&plan.pool, "pool", "", "pool to take gateways from (default \"default\")")
	flags.StringVar(&plan.http, "http", "", "URL of nginx, to measure the first byte through it")
	c.RunE = a.run(func(ctx context.Context, _ []string) error {
		if err := plan.check(); err != nil {
			return err
		}
		// The measuring client never asks again by itself: a refusal is a result.
		measuring, err := client.New(a.clientOptions(-1))
		if err != nil {
			return err
		}
		tidying, err := a.client()
		if err != nil {
			return err
		}
		b := newBench(a, plan, measuring, tidying)
		return b.run(ctx)
	})
	return c
}

// benchPlan is what is to be measured.
type benchPlan struct {
	organizations int
	rate          float64
	duration      time.Duration
	hold          time.Duration
	pool          string
	http          string
}

func (p *benchPlan) check() error {
	switch {
	case p.organizations < 1 || p.organizations > 10000:
		return program.Usage("cannot use %d as --organizations: want 1 to 10000", p.organizations)
	case !(p.rate > 0 && p.rate <= 100000):
		return program.Usage("cannot use %v as --rate: want more than 0 and at most 100000 a second", p.rate)
	case p.duration <= 0:
		return program.Usage("cannot use %s as --duration: want more than 0", p.duration)
	case p.rate*p.duration.Seconds() > 10e6:
		return program.Usage("cannot measure %.0f starts: want at most 10 million; lower --rate or --duration", p.rate*p.duration.Seconds())
	}
	if p.http != "" {
		u, err := url.Parse(p.http)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return program.Usage("cannot use %q as --http: want a URL such as http://127.0.0.1:7480", p.http)
		}
		p.http = strings.TrimSuffix(p.http, "/")
	}
	return nil
}

// name is what an organization of a run is called, so that leftovers of a killed run can be told.
func (p *benchPlan) name(n int) string { return fmt.Sprintf("demiurge bench %d", n) }
