package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/demiurge/dev"
	"github.com/demiurge-platform/demiurge/cmd/program"
)

func (a *app) devCommand() *cobra.Command {
	var opts dev.Options
	var hosts, coordinators int
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole system on this machine",
		Long: `Run a whole system on this machine: coordinator, agent, nginx and a pool of gateways, as processes of their
own, with one sample organization. It needs no root and no configuration, only nginx and the other programs
beside this one.

When everything is ready it prints the commands to try next and 'ready' on its own line, and writes
<data-dir>/dev.json with address, token and processes. A program that dies is started again. An interrupt
stops everything. Without --data-dir everything is in a new temporary directory that is removed at the
end; a given one is kept and can be started again.

With several coordinators and hosts you can try what happens when one of them fails. The second of each is at
the loopback address after that of the first (127.0.0.2), with the same ports. An organization is served by the
host that 'demiurge alloc start' names; the coordinators answer for its name in DNS (port 7453). A data
directory keeps its coordinators; hosts may join it at a later start.`,
		Example: `  demiurge dev
  demiurge dev --data-dir ./data --nginx-port 8080 --gateways 5
  demiurge dev --coordinators 3 --hosts 2`,
		Args: cobra.NoArgs,
	}
	flags := c.Flags()
	flags.StringVar(&opts.DataDir, "data-dir", "", "directory for everything; kept (default: a temporary one, removed at the end)")
	flags.StringVar(&opts.Address, "address", "127.0.0.1:7400", "address of the first coordinator's API; port 0: any free one")
	flags.IntVar(&opts.NginxPort, "nginx-port", 7480, "port of nginx on 127.0.0.1 (host-2: 127.0.0.2); 0: any free one")
	flags.IntVar(&opts.Gateways, "gateways", 3, "gateways to keep ready")
	flags.IntVar(&hosts, "hosts", 1, "hosts, each with an agent and an nginx of its own")
	flags.IntVar(&coordinators, "coordinators", 1, "coordinators: 1, 3 or 5")
	flags.StringVar(&opts.Domain, "domain", "dev.localhost", "organizations are served as org-<id>.<domain>")
	c.RunE = a.run(func(ctx context.Context, _ []string) error {
		opts.Executable, opts.Environ = a.Executable, a.Environ
		opts.Stdout, opts.Stderr, opts.Hurry = a.Stdout, a.Stderr, a.Hurry
		if hosts < 1 || coordinators < 1 { // 0 is not for the command line
			return program.Usage("cannot use %d as --hosts and %d as --coordinators: want 1 or more", hosts, coordinators)
		}
		if flags.Changed("hosts") || opts.DataDir == "" { // else as many as the data directory has
			opts.Hosts = hosts
		}
		if flags.Changed("coordinators") || opts.DataDir == "" {
			opts.Coordinators = coordinators
		}
		if err := opts.Check(); err != nil {
			return program.Usage("%s", err)
		}
		return dev.Run(ctx, opts)
	})
	return c
}
