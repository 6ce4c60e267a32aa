// Package program is what the command lines of the programs share: how groups of commands behave, and the commands run
// and validate of the long-running ones.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Options describe a program.
type Options struct {
	Name     string // such as demiurge-agent
	Short    string // what it does, in a line
	RunShort string // what its run command does, in a line
	Config   string // default path of its configuration file
	// Run runs the program until ctx ends; hup reloads.
	Run func(ctx context.Context, path string, environ []string, hup <-chan os.Signal) error
	// Validate checks a configuration file and the environment.
	Validate func(path string, environ []string) error
}

// Exit codes, those of demiurge.
const (
	exitDone   = 0
	exitFailed = 1 // refused or failed
	exitUsage  = 2 // the command line is wrong
)

// Main runs the command line until it is done, SIGINT or SIGTERM, and ends the process.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := execute(ctx, root, os.Stderr)
	stop()
	os.Exit(code)
}

// execute runs the command line and returns the exit code. What fails before a command's own work is a wrong command line.
func execute(ctx context.Context, root *cobra.Command, stderr io.Writer) int {
	root.SetErr(stderr)
	running := false
	var watch func(*cobra.Command)
	watch = func(c *cobra.Command) {
		if work := c.RunE; work != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				running = true
				return work(c, args)
			}
		}
		for _, sub := range c.Commands() {
			watch(sub)
		}
	}
	watch(root)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(stderr, root.Name()+": "+err.Error())
	if wrong := (*UsageError)(nil); running && !errors.As(err, &wrong) {
		return exitFailed
	}
	fmt.Fprintf(stderr, "Run '%s --help' for usage.\n", command.CommandPath())
	return exitUsage
}

// Command makes the command line, to which a program may add commands made with WithConfig.
func Command(o Options) *cobra.Command {
	return Root(&cobra.Command{Use: o.Name, Short: o.Short}, WithConfig(o.Config, &cobra.Command{
		Use:     "run",
		Short:   o.RunShort,
		Example: "  " + o.Name + " run --config " + o.Config,
	}, func(c *cobra.Command, path string) error {
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
		return o.Run(c.Context(), path, os.Environ(), hup)
	}), WithConfig(o.Config, &cobra.Command{
		Use:     "validate",
		Short:   "Check a configuration file and the environment, without starting anything",
		Example: "  " + o.Name + " validate --config " + o.Config,
	}, func(c *cobra.Command, path string) error {
		if err := o.Validate(path, os.Environ()); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.OutOrStdout(), "%s is valid\n", path)
		return err
	}))
}

// JoinToken is the value of a flag --token; for - it is read from standard input, where no list of processes
// shows it.
func JoinToken(c *cobra.Command, flag string) (string, error) {
	if flag != "-" {
		return flag, nil
	}
	text, err := io.ReadAll(io.LimitReader(c.InOrStdin(), 4096))
	if err != nil {
		return "", fmt.Errorf("cannot read the token from standard input: %w", err)
	}
	return string(text), nil
}

// WithConfig gives a command the flag --config and nothing else.
func WithConfig(def string, c *cobra.Command, run func(c *cobra.Command, path string) error) *cobra.Command {
	var path string
	c.Args = cobra.NoArgs
	c.Flags().StringVarP(&path, "config", "c", def, "configuration file")
	c.RunE = func(c *cobra.Command, _ []string) error { return run(c, path) }
	return c
}
