// Command demiurge-agent runs the gateways of one host, applies its nginx configuration and reports to
// the coordinators.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

const defaultConfig = "/etc/demiurge/agent.yaml"

func main() {
	root := program.Command(program.Options{
		Name:     "demiurge-agent",
		Short:    "Runs the gateways of one host and applies its nginx configuration",
		RunShort: "Run the agent until SIGINT or SIGTERM; gateways outlive it. SIGHUP or a changed file reloads what can be reloaded",
		Config:   defaultConfig,
		Run:      agent.Run,
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
	program.Main(root)
}

func load(path string, environ []string) (*agent.Config, error) {
	cfg := agent.DefaultConfig()
	_, err := config.Load(path, cfg, environ)
	return cfg, err
}
