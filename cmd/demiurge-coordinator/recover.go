package main

import (
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/coordinator"
)

// recoverCommand makes a cluster of one out of a coordinator that lost too many others.
func recoverCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "recover",
		Short: "Make this stopped coordinator a cluster of its own, after a majority was lost for good",
		Long: `recover makes this coordinator a cluster of its own with the data it has, for the case that so many
coordinators are lost for good that no majority is left. The coordinator must not run. Without --yes it says
what it would do and changes nothing. It keeps a copy of what was before.`,
		Example: "  demiurge-coordinator recover --config /etc/demiurge/coordinator.yaml --yes",
	}
	c.Flags().BoolVar(&yes, "yes", false, "do it; without this only say what would be done")
	return program.WithConfig("/etc/demiurge/coordinator.yaml", c, func(c *cobra.Command, path string) error {
		return coordinator.Recover(coordinator.RecoverOptions{
			Path: path, Environ: os.Environ(), Yes: yes, Out: c.OutOrStdout(),
			Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr}),
		})
	})
}
