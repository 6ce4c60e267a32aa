// Command demiurge-agent runs the gateways of one host, applies its nginx configuration and reports to
// the coordinators.
package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/processors"
)

const defaultConfig = "/etc/demiurge/agent.yaml"

func main() {
	root := program.Command(program.Options{
		Name:     "demiurge-agent",
		Short:    "Runs the gateways of one host and applies its nginx configuration",
		RunShort: "Run the agent until SIGINT or SIGTERM; gateways outlive it. SIGHUP or a changed file reloads what can be reloaded",
		Config:   defaultConfig,
		Run:      run,
		Validate: func(path string, environ []string) error {
			_, err := load(path, environ)
			return err
		},
	})
	root.AddCommand(program.WithConfig(defaultConfig, &cobra.Command{
		Use:     "nginx-prepare",
		Short:   "Make the nginx directory ready for a start of nginx, without agent or coordinator",
		Long:    "Puts the configuration back to the last proven generation and clears what a dead nginx left. For ExecStartPre of the nginx unit.",
		Example: "  demiurge-agent nginx-prepare --config " + defaultConfig,
	}, func(c *cobra.Command, path string) error {
		cfg, err := load(path, os.Environ())
		if err != nil {
			return err
		}
		log, err := logging.New(logging.Options{Name: "agent", Level: cfg.Log.Level, Format: cfg.Log.Format})
		if err != nil {
			return err
		}
		return agent.PrepareNginx(c.Context(), cfg, log)
	}))
	root.AddCommand(joinCommand(), program.WithConfig(defaultConfig, &cobra.Command{
		Use:   "leave",
		Short: "Note that this machine is being switched off: when the agent ends, what the host serves moves at once",
		Long: "For the shutdown of the machine, which demiurge-leave.service notices. The agent that ends after this takes leave of the\n" +
			"coordinators, and they bring its organizations to other hosts without waiting for it. The next start of the agent takes it\n" +
			"back. Without it the end of an agent moves nothing: it may come back within a second.",
		Example: "  demiurge-agent leave --config " + defaultConfig,
	}, func(_ *cobra.Command, path string) error {
		cfg, err := load(path, os.Environ())
		if err != nil {
			return err
		}
		return agent.Leave(cfg)
	}))
	program.Main(root)
}

// run runs the agent. The host's processors are there for the gateways: one is enough for it, until it has much to do.
func run(ctx context.Context, path string, environ []string, hup <-chan os.Signal) error {
	return processors.Govern(processors.Options{Much: 0.6, Little: 0.45}, func() error { return agent.Run(ctx, path, environ, hup) })
}

// joinCommand lets this host into a cluster.
func joinCommand() *cobra.Command {
	var token string
	var addresses []string
	var again bool
	c := program.WithConfig(defaultConfig, &cobra.Command{
		Use:   "join --token TOKEN [--address HOST:PORT]",
		Short: "Join the cluster with a join token, and get the certificate of this host",
		Long: "The token comes from `demiurge host join-token` and is good once. It is sent only to a coordinator whose CA is the one that the\n" +
			"token names. Where the host has joined already, nothing is done. The agent must not run meanwhile.",
		Example: "  demiurge-agent join --token dmj1.jt-abcdefghij.… --address coordinator-1:7400",
	}, func(c *cobra.Command, path string) error {
		token, err := program.JoinToken(c, token)
		if err != nil {
			return err
		}
		cfg, err := load(path, os.Environ())
		if err != nil {
			return err
		}
		return agent.Join(c.Context(), agent.JoinOptions{Config: cfg, Token: token, Address: addresses, Again: again, Out: c.OutOrStdout()})
	})
	c.Flags().StringVar(&token, "token", "", "join token; - reads it from standard input")
	c.Flags().StringSliceVar(&addresses, "address", nil, "addresses of coordinators (default: those of the configuration)")
	c.Flags().BoolVar(&again, "again", false, "replace the certificate that this host has, such as after it was deleted")
	_ = c.MarkFlagRequired("token")
	return c
}

func load(path string, environ []string) (*agent.Config, error) {
	cfg := agent.DefaultConfig()
	_, err := config.Load(path, cfg, environ)
	return cfg, err
}
