// Command demiurge is the operator's program: it talks to a coordinator's HTTP API, and `demiurge dev` runs
// a whole system on this machine.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/demiurge-platform/demiurge/cmd/demiurge/cli"
	"github.com/demiurge-platform/demiurge/shared/processors"
)

func main() {
	os.Exit(run())
}

// run translates: the first interrupt cancels the context, the second closes hurry, which tells what is
// still cleaning up to stop being polite.
func run() int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hurry := make(chan struct{})
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup stays nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() { // ends with the process
		<-signals
		cancel()
		<-signals
		close(hurry)
	}()
	executable, err := os.Executable()
	if err != nil {
		executable = os.Args[0]
	}
	// Most commands wait for an answer. A bench that asks a system on the same machine should cost it as little as it can.
	return processors.Govern(processors.Options{Much: 0.6, Little: 0.45}, func() int {
		return cli.Run(ctx, cli.Options{
			Args:       os.Args[1:],
			Stdin:      os.Stdin,
			Stdout:     os.Stdout,
			Stderr:     os.Stderr,
			Environ:    os.Environ(),
			Terminal:   term.IsTerminal(int(os.Stderr.Fd())),
			Executable: executable,
			Hurry:      hurry,
		})
	})
}
