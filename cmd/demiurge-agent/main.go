// Command demiurge-agent runs the gateways of one host, applies its nginx configuration and reports to
// the coordinators.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demiurge-agent: "+err.Error())
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "demiurge-agent",
		Short:         "Runs the gateways of one host and applies its nginx configuration",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var path string
	flags := func(c *cobra.Command) *cobra.Command {
		c.Args = cobra.NoArgs
		c.Flags().StringVarP(&path, "config", "c", "/etc/demiurge/agent.yaml", "configuration file")
		return c
	}
	root.AddCommand(flags(&cobra.Command{
		Use:     "run",
		Short:   "Run the agent until SIGINT or SIGTERM; gateways outlive it. SIGHUP or a changed file reloads what can be reloaded",
		Example: "  demiurge-agent run --config /etc/demiurge/agent.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			return agent.Run(c.Context(), path, os.Environ(), hup)
		},
	}), flags(&cobra.Command{
		Use:     "validate",
		Short:   "Check a configuration file and the environment, without starting anything",
		Example: "  demiurge-agent validate --config /etc/demiurge/agent.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := load(path); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s is valid\n", path)
			return err
		},
	}), flags(&cobra.Command{
		Use:     "nginx-prepare",
		Short:   "Make the nginx directory ready for a start of nginx, without agent or coordinator",
		Long:    "Puts the configuration back to the last proven generation and clears what a dead nginx left. For ExecStartPre of the nginx unit.",
		Example: "  demiurge-agent nginx-prepare --config /etc/demiurge/agent.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := load(path)
			if err != nil {
				return err
			}
			log, err := logging.New(logging.Options{Name: "agent", Level: cfg.Log.Level, Format: cfg.Log.Format})
			if err != nil {
				return err
			}
			return agent.PrepareNginx(c.Context(), cfg, log)
		},
	}))
	return root
}

func load(path string) (*agent.Config, error) {
	cfg := agent.DefaultConfig()
	_, err := config.Load(path, cfg, os.Environ())
	return cfg, err
}
