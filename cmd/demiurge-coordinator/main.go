// Command demiurge-coordinator keeps the pool and allocation state of a Demiurge cluster and serves its
// HTTP API.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/shared/config"
)

const defaultConfig = "/etc/demiurge/coordinator.yaml"

func main() {
	root := program.Command(program.Options{
		Name:     "demiurge-coordinator",
		Short:    "Keeps the pool and allocation state of a Demiurge cluster",
		RunShort: "Run the coordinator until SIGINT or SIGTERM; SIGHUP or a changed file reloads what can be reloaded",
		Config:   defaultConfig,
		Run:      coordinator.Run,
		Validate: func(path string, environ []string) error {
			_, err := load(path, environ)
			return err
		},
	})
	root.AddCommand(keygenCommand(), joinCommand(), recoverCommand())
	program.Main(root)
}

// keygenCommand makes the key of a new cluster.
func keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen",
		Short: "Print a key for a new cluster",
		Long: "Every coordinator of a cluster needs the same key, in cluster.key of its data directory or in cluster.key_file, mode 0600. A\n" +
			"coordinator that begins a cluster alone makes its own. Who has the key can be any program of the cluster: keep it secret.",
		Example: "  demiurge-coordinator keygen",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), coordinator.Keygen())
			return err
		},
	}
}

// joinCommand gets the secrets of a cluster for a new coordinator.
func joinCommand() *cobra.Command {
	var token string
	var addresses []string
	var again bool
	c := program.WithConfig(defaultConfig, &cobra.Command{
		Use:   "join --token TOKEN --address HOST:PORT",
		Short: "Get the cluster key for a new coordinator of a cluster, with a join token",
		Long: "The token comes from `demiurge host join-token --coordinator` and is good once. It is sent only to a coordinator whose CA is the\n" +
			"one that the token names. Writes cluster.key and trust.json into the data directory; where there is a key, nothing is done.\n" +
			"With --again a coordinator that has the key gets the certificates of now, and keeps its data: one that was stopped for the whole\n" +
			"overlap of a rotation of the CA needs that.",
		Example: "  demiurge-coordinator join --token dmj1.jt-abcdefghij.… --address coordinator-1:7400",
	}, func(c *cobra.Command, path string) error {
		token, err := program.JoinToken(c, token)
		if err != nil {
			return err
		}
		cfg, err := load(path, os.Environ())
		if err != nil {
			return err
		}
		return coordinator.Join(c.Context(), coordinator.JoinOptions{Config: cfg, Token: token, Address: addresses, Again: again, Out: c.OutOrStdout()})
	})
	c.Flags().StringVar(&token, "token", "", "join token; - reads it from standard input")
	c.Flags().StringSliceVar(&addresses, "address", nil, "addresses of coordinators' APIs")
	c.Flags().BoolVar(&again, "again", false, "get the certificates anew, for one that was stopped for the whole overlap of a rotation")
	_ = c.MarkFlagRequired("token")
	_ = c.MarkFlagRequired("address")
	return c
}

func load(path string, environ []string) (*coordinator.Config, error) {
	cfg := coordinator.DefaultConfig()
	_, err := config.Load(path, cfg, environ)
	return cfg, err
}
