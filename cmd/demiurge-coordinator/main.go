// Command demiurge-coordinator keeps the pool and allocation state of a Demiurge cluster and serves its
// HTTP API.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demiurge-coordinator: "+err.Error())
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "demiurge-coordinator",
		Short:         "Keeps the pool and allocation state of a Demiurge cluster",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var path string
	flags := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVarP(&path, "config", "c", "/etc/demiurge/coordinator.yaml", "configuration file")
		return c
	}
	root.AddCommand(flags(&cobra.Command{
		Use:     "run",
		Short:   "Run the coordinator until SIGINT or SIGTERM; SIGHUP or a changed file reloads what can be reloaded",
		Example: "  demiurge-coordinator run --config /etc/demiurge/coordinator.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			return coordinator.Run(c.Context(), path, os.Environ(), hup)
		},
	}), flags(&cobra.Command{
		Use:     "validate",
		Short:   "Check a configuration file and the environment, without starting anything",
		Example: "  demiurge-coordinator validate --config /etc/demiurge/coordinator.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := config.Load(path, coordinator.DefaultConfig(), os.Environ()); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s is valid\n", path)
			return err
		},
	}))
	return root
}
