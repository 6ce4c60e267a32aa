package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func (a *app) allocCommand() *cobra.Command {
	return program.Group(&cobra.Command{
		Use:     "alloc",
		Short:   "Give organizations their gateways and take them back",
		Example: "  demiurge alloc start 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11\n  demiurge alloc list",
	}, a.allocStart(), a.allocStop(), a.allocList(), a.allocShow(), a.allocSteps(), a.allocExplain(), a.allocMigrate())
}

func (a *app) allocStart() *cobra.Command {
	var (
		body      api.StartAllocation
		wait, ttl time.Duration
		metadata  []string
	)
	c := &cobra.Command{
		Use:   "start ORG",
		Short: "Start the gateway of an organization and wait until it is served",
		Long: `Start the gateway of an organization and wait until it is served through nginx. An organization that
has its gateway gets the same answer again. What fails is undone before the command returns.`,
		Example: `  demiurge alloc start 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11
  demiurge alloc start 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11 --pool default --wait 30s`,
	}
	flags := c.Flags()
	flags.StringVar(&body.Pool, "pool", "", "pool to take the gateway from (default \"default\")")
	flags.DurationVar(&wait, "wait", 0, "wait in line this long when the pool is empty")
	flags.StringVar(&body.WaitFor, "wait-for", "", "answer when the organization is \"routable\" or as soon as the gateway is \"reserved\" (default \"routable\")")
	flags.DurationVar(&ttl, "ttl", 0, "release by itself after this time (default never)")
	flags.StringArrayVar(&metadata, "metadata", nil, "key=value kept with the allocation; repeatable")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		org, err := organization(args[0])
		if err != nil {
			return err
		}
		body.OrganizationID = string(org)
		body.Wait, body.TTL = optionalDuration(wait), optionalDuration(ttl)
		if body.Metadata, err = pairs("--metadata", metadata); err != nil {
			return err
		}
		allocation, err := a.start(ctx, coord, body)
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: a place in line is given up, and an activation that was begun goes on; 'demiurge alloc show %[1]s' shows it, 'demiurge alloc stop %[1]s' ends it", org)
		}
		if err != nil {
			return withJournal(err, org)
		}
		return a.printAllocation(allocation)
	})
	return c
}

// withJournal adds to the failure of an allocation that was begun where its journal is.
func withJournal(err error, org id.Organization) error {
	var f *fault.Error
	begun := []fault.Code{fault.ActivationTimeout, fault.RouteApplyFailed, fault.VerifyFailed, fault.DNSFailed, fault.HostLost}
	if !errors.As(err, &f) || !slices.Contains(begun, f.Code) {
		return err
	}
	more := *f
	more.Message += fmt.Sprintf("; 'demiurge alloc steps %s' shows its steps", org)
	return &more
}

// start asks for an allocation and shows meanwhile how far it is.
func (a *app) start(ctx context.Context, coord *client.Client, body api.StartAllocation) (api.Allocation, error) {
	p := a.wait("starting the gateway of organization " + body.OrganizationID)
	defer p.stop()
	watchCtx, stop := context.WithCancel(ctx)
	watching := make(chan struct{})
	go func() { // waited for below
		defer close(watching)
		watchStart(watchCtx, coord, p, body.OrganizationID)
	}()
	allocation, _, err := coord.Start(ctx, body)
	stop()
	<-watching
	return allocation, err
}

// watchStart says what a start that takes long is doing. It only looks: what it cannot learn is not shown.
func watchStart(ctx context.Context, coord *client.Client, p *progress, org string) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		allocation, err := coord.OrganizationAllocation(ctx, org)
		if err != nil {
			continue
		}
		text := fmt.Sprintf("allocation %s is %s", allocation.AllocationID, allocation.State)
		if allocation.Position > 0 {
			text += fmt.Sprintf(", place %d in line", allocation.Position)
		}
		p.say(text)
	}
}

func (a *app) allocStop() *cobra.Command {
	var drain time.Duration
	c := &cobra.Command{
		Use:   "stop ORG|ID",
		Short: "Release an organization's gateway and wait until that is done",
		Example: `  demiurge alloc stop 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11
  demiurge alloc stop al-abcdefghijklmnop --drain 30s`,
	}
	c.Flags().DurationVar(&drain, "drain", 0, "let open connections go on this long")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		return a.change(ctx, coord, args[0], "releasing", "release", func(allocation string) (api.Allocation, error) {
			return coord.Release(ctx, allocation, drain)
		})
	})
	return c
}

// change asks for a change of the allocation that an argument names, waits for its end and prints the allocation. An
// interrupt ends the waiting and not the change.
func (a *app) change(ctx context.Context, coord *client.Client, arg, doing, name string, ask func(allocation string) (api.Allocation, error)) error {
	allocation, err := allocationOf(ctx, coord, arg)
	if err != nil {
		return err
	}
	p := a.wait(doing + " allocation " + allocation)
	defer p.stop()
	changed, err := ask(allocation)
	p.stop()
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: the %s goes on; 'demiurge alloc show %s' shows it", name, allocation)
	}
	if err != nil {
		return err
	}
	return a.printAllocation(changed)
}

// allocationOf accepts an allocation's id or the organization that holds one.
func allocationOf(ctx context.Context, coord *client.Client, arg string) (string, error) {
	if strings.HasPrefix(arg, "al-") {
		allocation, err := id.ParseAllocation(arg)
		if err != nil {
			return "", program.Usage("%s", err)
		}
		return string(allocation), nil
	}
	org, err := id.ParseOrganization(arg)
	if err != nil {
		return "", program.Usage("cannot use %q: want the id of an allocation (al- and 16 characters) or of an organization (8-4-4-4-12 hexadecimal digits)", arg)
	}
	allocation, err := coord.OrganizationAllocation(ctx, string(org))
	if err != nil {
		return "", err
	}
	return allocation.AllocationID, nil
}

// latestOf is allocationOf for those who only look: without a live allocation it is the organization's last one,
// which may have ended in the failure that they look into.
func latestOf(ctx context.Context, coord *client.Client, arg string) (string, error) {
	which, err := allocationOf(ctx, coord, arg)
	if !fault.Is(err, fault.NotFound) {
		return which, err
	}
	ended, listErr := coord.ListAllocations(ctx, client.AllocationFilter{OrganizationID: arg})
	if listErr != nil || len(ended) == 0 {
		return "", err
	}
	// One ends before the next begins; the clocks of the coordinators that noted when may differ.
	last := slices.MaxFunc(ended, func(a, b api.Allocation) int { return cmp.Compare(a.Index, b.Index) })
	return last.AllocationID, nil
}

func (a *app) allocList() *cobra.Command {
	var filter client.AllocationFilter
	var ended bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List allocations that have not ended",
		Example: "  demiurge alloc list\n  demiurge alloc list --state active --pool default -o json\n  demiurge alloc list --all",
		Args:    cobra.NoArgs,
	}
	flags := c.Flags()
	flags.BoolVar(&ended, "all", false, "also allocations that have ended")
	flags.StringVar(&filter.State, "state", "", "only allocations in this state, ended or not")
	flags.StringVar(&filter.Pool, "pool", "", "only allocations of this pool")
	flags.StringVar(&filter.OrganizationID, "organization", "", "only allocations of this organization")
	flags.StringVar(&filter.HostID, "host", "", "only allocations on this host")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
		filter.Live = !ended && filter.State == ""
		items, err := coord.ListAllocations(ctx, filter)
		if err != nil {
			return err
		}
		return a.print(listBody(items), func(w io.Writer) error {
			g := newGrid("ALLOCATION", "ORGANIZATION", "STATE", "POOL", "GATEWAY", "HOST", "EPOCH", "TOTAL MS", "CREATED")
			for _, x := range items {
				g.add(x.AllocationID, x.OrganizationID, x.State, x.Pool, x.GatewayID, x.HostID, number(x.Epoch), millis(x.Timings.Total), stamp(&x.CreatedAt))
			}
			return g.draw(w)
		})
	})
	return c
}

func (a *app) allocShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID|ORG",
		Short:   "Show one allocation",
		Example: "  demiurge alloc show al-abcdefghijklmnop",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			which, err := latestOf(ctx, coord, args[0])
			if err != nil {
				return err
			}
			allocation, err := coord.Allocation(ctx, which)
			if err != nil {
				return err
			}
			return a.printAllocation(allocation)
		}),
	}
}

func (a *app) printAllocation(x api.Allocation) error {
	return a.print(x, func(w io.Writer) error {
		failure := ""
		if x.Failure != nil {
			failure = x.Failure.Code + ": " + x.Failure.Message
		}
		t := x.Timings
		timings := ""
		if t != (api.Timings{}) {
			timings = fmt.Sprintf("queue %s, reserve %s, activate %s, route %s, dns %s, verify %s, confirm %s, total %s ms", millis(t.Queue), millis(t.Reserve),
				millis(t.Activate), millis(t.Route), millis(t.DNS), millis(t.Verify), millis(t.Confirm), millis(t.Total))
		}
		return fields(w,
			"Allocation", x.AllocationID, "Organization", x.OrganizationID, "State", x.State, "Failure", failure,
			"Place in line", number(x.Position), "Pool", x.Pool, "Gateway", x.GatewayID, "Host", hostText(x), "Epoch", number(x.Epoch),
			"Host name", x.Hostname, "URL", x.URL, "Warm", yes(x.Warm), "Created", stamp(&x.CreatedAt), "Active", stamp(x.ActiveAt),
			"Ended", stamp(x.EndedAt), "Expires", stamp(x.ExpiresAt), "Timings", timings, "Metadata", joined(x.Metadata),
			"Moving", movingText(x.Relocation), "Last move", movedText(x.Moves))
	})
}

// hostText is an allocation's host and where that is: without a DNS server nothing else tells where to ask for it.
func hostText(x api.Allocation) string {
	if x.HostAddress == "" {
		return x.HostID
	}
	return x.HostID + " at " + x.HostAddress
}

func (a *app) allocSteps() *cobra.Command {
	return &cobra.Command{
		Use:     "steps ID|ORG",
		Short:   "Show the journal of an allocation: every step, its result and its undo",
		Example: "  demiurge alloc steps al-abcdefghijklmnop",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			which, err := latestOf(ctx, coord, args[0])
			if err != nil {
				return err
			}
			steps, err := coord.Steps(ctx, which)
			if err != nil {
				return err
			}
			return a.print(listBody(steps), func(w io.Writer) error {
				g := newGrid("STEP", "STATE", "STARTED", "MS", "UNDO", "ERROR")
				for _, s := range steps {
					undo := ""
					if s.Undo != nil {
						undo = strings.TrimSpace(s.Undo.Step + " " + s.Undo.State + " " + s.Undo.Error)
					}
					g.add(s.Step, s.State, s.StartedAt.UTC().Format("2006-01-02T15:04:05.000Z"), took(s.StartedAt, s.EndedAt), undo, failureText(s.Code, s.Error))
				}
				return g.draw(w)
			})
		}),
	}
}

func (a *app) allocExplain() *cobra.Command {
	return &cobra.Command{
		Use:     "explain ID|ORG",
		Short:   "Tell why this gateway was chosen",
		Example: "  demiurge alloc explain al-abcdefghijklmnop",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			which, err := latestOf(ctx, coord, args[0])
			if err != nil {
				return err
			}
			x, err := coord.Explain(ctx, which)
			if err != nil {
				return err
			}
			return a.print(x, func(w io.Writer) error {
				if err := fields(w, "Allocation", x.AllocationID, "Gateway", x.GatewayID, "Host", x.HostID,
					"Index", number(x.Index), "Rule", x.Rule, "Reason", x.Reason); err != nil {
					return err
				}
				fmt.Fprintln(w)
				g := newGrid("CANDIDATE", "ELIGIBLE", "READY", "LOAD", "REASON")
				for _, c := range x.Candidates {
					g.add(c.HostID, yes(c.Eligible), c.Ready, percent(c.Load), c.Reason)
				}
				return g.draw(w)
			})
		}),
	}
}

// took is how many milliseconds a step took; one that has not ended has none.
func took(start time.Time, end *time.Time) string {
	if end == nil {
		return ""
	}
	if end.Equal(start) {
		return "0.00"
	}
	return millis(float64(end.Sub(start)) / float64(time.Millisecond))
}

func failureText(code, message string) string {
	if code == "" || message == "" {
		return code + message
	}
	return code + ": " + message
}

// organization checks an organization id before anything is asked.
func organization(arg string) (id.Organization, error) {
	org, err := id.ParseOrganization(arg)
	if err != nil {
		return "", program.Usage("%s", err)
	}
	return org, nil
}

func optionalDuration(d time.Duration) *api.Duration {
	if d == 0 {
		return nil
	}
	v := api.Duration(d)
	return &v
}
