package agent

import (
	"context"
	"os"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/daemon"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// Run reads the configuration and runs an agent until ctx ends; gateways and routes stay. A value on hup, or
// a change of the file, reloads what can be reloaded and says what needs a restart.
func Run(ctx context.Context, path string, environ []string, hup <-chan os.Signal) error {
	return daemon.Run(ctx, daemon.Options[*Config]{
		Name: "agent", Path: path, Environ: environ, Hup: hup, Default: DefaultConfig,
		Log: func(c *Config) *logging.Config { return &c.Log },
		Start: func(cfg *Config, log hclog.Logger) (daemon.Program, error) {
			a, err := New(Options{Config: cfg, Logger: log})
			if err != nil {
				return nil, err
			}
			a.Start()
			log.Info("running", "host", cfg.HostID, "data_dir", cfg.DataDir, "metrics", a.MetricsAddr())
			return a, nil
		},
	})
}
