package program

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/shared/version"
)

// UsageError is a wrong command line that only a command's own code could see.
type UsageError struct{ message string }

func (e *UsageError) Error() string { return e.message }

// Usage makes a UsageError.
func Usage(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }

// Root makes the command that a program's name alone stands for: a group, and what all programs have in common.
func Root(c *cobra.Command, children ...*cobra.Command) *cobra.Command {
	c.SilenceErrors, c.SilenceUsage = true, true
	c.Version = version.Get().String()
	c.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	c.CompletionOptions.DisableDefaultCmd = true
	c.SetHelpCommand(helpCommand())
	c.SetUsageTemplate(strings.NewReplacer(
		// A group is runnable only to refuse: its usage is that of its commands.
		"{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}",
		`(or .IsAvailableCommand (eq .Name "help"))`, ".IsAvailableCommand", // the last line says how to get help
	).Replace(c.UsageTemplate()))
	return Group(c, children...)
}

// Group makes a command that only holds others: called by itself or with an unknown name it is a wrong
// command line, and says what there is.
func Group(c *cobra.Command, children ...*cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknown(c, args[0])
		}
		c.SetOut(c.ErrOrStderr())
		_ = c.Help()
		return Usage("%q needs a command", c.CommandPath())
	}
	c.AddCommand(children...)
	return c
}

// helpCommand is for who types help before the name of a command instead of --help behind it.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]...", Short: "Show what a command does", Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			target, rest, err := c.Root().Find(args)
			if err != nil {
				return Usage("%v", err)
			}
			if len(rest) > 0 {
				return unknown(target, rest[0])
			}
			target.InitDefaultHelpFlag() // these name the flags, as --help does
			target.InitDefaultVersionFlag()
			return target.Help()
		},
	}
}

func unknown(c *cobra.Command, typed string) error {
	c.SuggestionsMinimumDistance = 2
	near := c.SuggestionsFor(typed)
	if len(near) == 0 {
		return Usage("unknown command %q for %q", typed, c.CommandPath())
	}
	return Usage("unknown command %q for %q; did you mean %s?", typed, c.CommandPath(), strings.Join(near, " or "))
}
