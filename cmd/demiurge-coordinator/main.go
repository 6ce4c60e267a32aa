// Command demiurge-coordinator keeps the pool and allocation state of a Demiurge cluster and serves its
// HTTP API.
package main

import (
	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/shared/config"
)

func main() {
	root := program.Command(program.Options{
		Name:     "demiurge-coordinator",
		Short:    "Keeps the pool and allocation state of a Demiurge cluster",
		RunShort: "Run the coordinator until SIGINT or SIGTERM; SIGHUP or a changed file reloads what can be reloaded",
		Config:   "/etc/demiurge/coordinator.yaml",
		Run:      coordinator.Run,
		Validate: func(path string, environ []string) error {
			_, err := config.Load(path, coordinator.DefaultConfig(), environ)
			return err
		},
	})
	root.AddCommand(recoverCommand())
	program.Main(root)
}
