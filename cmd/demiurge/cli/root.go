// Package cli is the operator's command line: one file per command family, over shared/client. It holds
// no decisions of its own; what it prints is what a coordinator answered.
package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// Exit codes of every command.
const (
	exitDone   = 0
	exitFailed = 1 // refused or failed
	exitUsage  = 2 // the command line is wrong
)

const defaultAddress = "http://127.0.0.1:7400"

// Options is what one run of the command line gets from its surroundings.
type Options struct {
	Args       []string  // without the program's name
	Stdin      io.Reader // nil: nobody can be asked
	Stdout     io.Writer
	Stderr     io.Writer
	Environ    []string        // "NAME=value", the last of a name counts
	Terminal   bool            // Stderr is a terminal: waiting is drawn as a spinner
	Executable string          // this program; `dev` finds the others beside it
	Hurry      <-chan struct{} // closed by a second interrupt; nil: never
}

// app is one run: the surroundings and the global flags.
type app struct {
	Options
	address string
	token   string
	caCert  string
	output  string
	running bool // a command's own code has begun: an error is no longer one of usage
}

// Run executes one command line and returns the exit code. A cancelled context is an interrupt.
func Run(ctx context.Context, opts Options) int {
	a := &app{Options: opts}
	root := a.root()
	root.SetArgs(opts.Args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	return a.fail(command, err)
}

// fail prints an error as its kind wants it and chooses the exit code.
func (a *app) fail(command *cobra.Command, err error) int {
	var wrong *program.UsageError
	if !a.running || errors.As(err, &wrong) {
		fmt.Fprintf(a.Stderr, "Error: %s\n", err)
		fmt.Fprintf(a.Stderr, "Run '%s --help' for usage.\n", command.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(a.Stderr, "Error: %s%s\n", describe(err), remedy(err))
	var f *fault.Error
	if errors.As(err, &f) {
		for _, l := range f.Locations {
			if line := l.Location + ": " + l.Message; !strings.HasSuffix(f.Message, line) { // a single one is in the detail already
				fmt.Fprintf(a.Stderr, "  %s\n", line)
			}
		}
		if f.RetryAfter > 0 {
			fmt.Fprintf(a.Stderr, "  try again in %s\n", f.RetryAfter.Round(time.Second/10))
		}
	}
	return exitFailed
}

// describe is an error for a person: code and detail of a problem without what was wrong beneath it, or
// all of an error that says where a problem came from.
func describe(err error) string {
	if f, ok := err.(*fault.Error); ok && f.Message != "" {
		return fmt.Sprintf("%s: %s", f.Code, f.Message)
	}
	var call *url.Error
	if errors.As(err, &call) && errors.Is(err, context.Canceled) {
		return "interrupted before the coordinator had answered"
	}
	return err.Error()
}

// remedy is what to do about a coordinator that no command reaches.
func remedy(err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return "; give the cluster's CA with --ca-cert or DEMIURGE_CACERT: it is ca.pem in a coordinator's data directory"
	case errors.As(err, &name):
		return "; use a name that the certificate has, or add this one to api.hosts of the coordinator"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "; is the coordinator running, and is this its address (--address or DEMIURGE_ADDR)?"
	}
	return ""
}

func (a *app) root() *cobra.Command {
	root := program.Root(&cobra.Command{
		Use:   "demiurge",
		Short: "Operate Demiurge: an own gateway for every organization",
		Long: `demiurge operates a Demiurge system over a coordinator's HTTP API.

It exits with 0 when the job is done, 1 when it was refused or failed (code and detail are on standard
error), and 2 when the command line is wrong.`,
		Example: `  demiurge dev
  demiurge status
  demiurge alloc start 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11`,
	},
		a.devCommand(), a.statusCommand(), a.allocCommand(), a.orgCommand(), a.poolCommand(), a.gatewayCommand(),
		a.hostCommand(), a.eventsCommand(), a.tokenCommand(), a.membersCommand(), a.operatorCommand(), a.benchCommand(),
		a.completionCommand(), a.versionCommand())
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	flags := root.PersistentFlags()
	flags.StringVar(&a.address, "address", "", "URL of a coordinator, or of several with commas between (environment DEMIURGE_ADDR, default "+defaultAddress+")")
	flags.StringVar(&a.token, "token", "", "API token, or the token of a platform user (environment DEMIURGE_TOKEN)")
	flags.StringVar(&a.caCert, "ca-cert", "", "file with the CA certificates to trust (environment DEMIURGE_CACERT)")
	flags.StringVarP(&a.output, "output", "o", "table", "output: table or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	polish(root)
	return root
}

// polish goes through all commands and takes from their usage lines what the library does not: it counts
// arguments without naming them, and completes the names of files wherever nothing else is said.
func polish(c *cobra.Command) {
	for _, child := range c.Commands() {
		polish(child)
	}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if _, said := c.GetFlagCompletionFunc(f.Name); !said && f.Name != "ca-cert" && f.Name != "data-dir" {
			_ = c.RegisterFlagCompletionFunc(f.Name, cobra.NoFileCompletions) // it fails only for what was said
		}
	})
	names := argumentsOf(c)
	if len(names) > 0 {
		c.Args = cobra.MatchAll(named(names), cobra.OnlyValidArgs)
	}
	if c.ValidArgsFunction == nil && len(c.ValidArgs) == 0 && !slices.Contains(names, "FILE") {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
}

// argumentsOf are the arguments that a command must have, as its usage line names them.
func argumentsOf(c *cobra.Command) []string {
	names := strings.Fields(c.Use)[1:]
	if i := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, "-") || strings.HasPrefix(n, "[") }); i >= 0 {
		names = names[:i]
	}
	return names
}

// named wants exactly the arguments of these names.
func named(names []string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return program.Usage("%q needs %s", c.CommandPath(), strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			return program.Usage("%q takes %s and nothing more: %q is too much", c.CommandPath(), strings.Join(names, " and "), args[len(names)])
		}
		return nil
	}
}

// run wraps a command's own code, so that what fails in it is told from a wrong command line.
func (a *app) run(fn func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		if a.output != "table" && a.output != "json" {
			return program.Usage("cannot use %q as output: want table or json", a.output)
		}
		a.running = true
		return fn(c.Context(), args)
	}
}

// call is run for commands that need a coordinator.
func (a *app) call(fn func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.run(func(ctx context.Context, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return fn(ctx, c, args)
	})
}

// setting is a global flag's value: the flag, else the environment, else the default.
func (a *app) setting(flag, variable, fallback string) string {
	if flag != "" {
		return flag
	}
	for _, v := range a.Environ {
		if name, value, _ := strings.Cut(v, "="); name == variable && value != "" {
			fallback = value
		}
	}
	return fallback
}

// client makes the client of the addressed coordinator.
func (a *app) client() (*client.Client, error) { return client.New(a.clientOptions(0)) }

// clientOptions reads the global flags. patience is how long a missing leader is waited for: 0 is the
// client's default, negative not at all.
func (a *app) clientOptions(patience time.Duration) client.Options {
	var addresses []string
	for address := range strings.SplitSeq(a.setting(a.address, "DEMIURGE_ADDR", defaultAddress), ",") {
		addresses = append(addresses, strings.TrimSpace(address))
	}
	return client.Options{
		Addresses: addresses,
		Token:     a.setting(a.token, "DEMIURGE_TOKEN", ""),
		CACert:    a.setting(a.caCert, "DEMIURGE_CACERT", ""),
		RetryFor:  patience,
		Probe:     2 * time.Second,
	}
}
