package coordinator

import (
	"context"
	"os"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/daemon"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// Run reads the configuration and runs a coordinator until ctx ends. A value on hup, or a change of the
// file, reloads what can be reloaded and says what needs a restart.
func Run(ctx context.Context, path string, environ []string, hup <-chan os.Signal) error {
	return daemon.Run(ctx, daemon.Options[*Config]{
		Name: "coordinator", Path: path, Environ: environ, Hup: hup, Default: DefaultConfig,
		Log: func(c *Config) *logging.Config { return &c.Log },
		Start: func(cfg *Config, log hclog.Logger) (daemon.Program, error) {
			c, err := New(Options{Config: cfg, Logger: log})
			if err != nil {
				return nil, err
			}
			c.Start()
			log.Info("serving", "api", c.Addr().String(), "data_dir", cfg.DataDir)
			return c, nil
		},
	})
}
