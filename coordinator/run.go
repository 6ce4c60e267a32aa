package coordinator

import (
	"context"
	"os"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/daemon"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/processors"
)

// muchWritten is how many entries of the log a second are much to do: those of seven hundred allocations.
const muchWritten = 1500

// Run reads the configuration and runs a coordinator until ctx ends, as the only thing that its process does. A value on
// hup, or a change of the file, reloads what can be reloaded and says what needs a restart.
//
// With little to do it has one of Go's processors, because with several every step of a piece of work wakes a thread on
// another of them. That one waits for the disk with each log write, until the runtime notices. So it has all of them long
// before one would not do, and while much is written: one that only follows has little load then, and those who ask the
// leader wait for its log.
func Run(ctx context.Context, path string, environ []string, hup <-chan os.Signal) error {
	var running atomic.Pointer[Coordinator]
	written := func() uint64 {
		if c := running.Load(); c != nil {
			return c.store.View().Index()
		}
		return 0
	}
	few := processors.Options{Much: 0.35, Little: 0.25, Work: written, MuchWork: muchWritten, Least: LeastProcessors}
	return processors.Govern(few, func() error { return serve(ctx, path, environ, hup, running.Store) })
}

func serve(ctx context.Context, path string, environ []string, hup <-chan os.Signal, started func(*Coordinator)) error {
	return daemon.Run(ctx, daemon.Options[*Config]{
		Name: "coordinator", Path: path, Environ: environ, Hup: hup, Default: DefaultConfig,
		Log: func(c *Config) *logging.Config { return &c.Log },
		Start: func(cfg *Config, log hclog.Logger) (daemon.Program, error) {
			c, err := New(Options{Config: cfg, Logger: log})
			if err != nil {
				return nil, err
			}
			c.Start()
			started(c)
			log.Info("serving", "api", c.Addr().String(), "data_dir", cfg.DataDir)
			return c, nil
		},
	})
}
