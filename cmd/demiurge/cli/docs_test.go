package cli

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const docsFile = "../../../docs/cli.md"

var update = flag.Bool("update", false, "write docs/cli.md")

// TestDocsAreTheHelp compares docs/cli.md with the help texts; with -update it writes the file.
func TestDocsAreTheHelp(t *testing.T) {
	var want strings.Builder
	want.WriteString("# The command line\n\n" +
		"Every command of `demiurge` with its help, written by `go test ./cmd/demiurge/cli -run TestDocs -update`.\n")
	root := (&app{}).root()
	eachCommand(root, func(c *cobra.Command) { document(&want, c) })
	if *update {
		if err := os.MkdirAll(filepath.Dir(docsFile), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(docsFile, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	got, wanted := strings.Split(string(have), "\n"), strings.Split(want.String(), "\n")
	for i := range max(len(got), len(wanted)) {
		if i >= len(got) || i >= len(wanted) || got[i] != wanted[i] {
			t.Fatalf("docs/cli.md and the help differ from line %d on: run go test ./cmd/demiurge/cli -run TestDocs -update", i+1)
		}
	}
}

// Every command helps: what it is for, an example that calls it, a text for every flag.
func TestEveryCommandHelps(t *testing.T) {
	n := 0
	eachCommand((&app{}).root(), func(c *cobra.Command) {
		n++
		path := c.CommandPath()
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s has no description or no example", path)
		}
		if !c.HasAvailableSubCommands() && !strings.Contains(c.Example, path) {
			t.Errorf("the example of %s does not call it: %q", path, c.Example)
		}
		for _, line := range strings.Split(c.LocalFlags().FlagUsages(), "\n") {
			if f := strings.Fields(line); len(f) == 1 {
				t.Errorf("a flag of %s has no text: %s", path, line)
			}
		}
	})
	if n < 30 {
		t.Errorf("looked at %d commands only", n)
	}
}

func eachCommand(c *cobra.Command, do func(*cobra.Command)) {
	c.InitDefaultHelpFlag()
	do(c)
	for _, child := range c.Commands() {
		if !child.Hidden {
			eachCommand(child, do)
		}
	}
}

func document(w *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(w, "\n## %s\n\n", c.CommandPath())
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	help, _, _ := strings.Cut(c.UsageString(), "\n\nGlobal Flags:") // they stand once, with the program
	fmt.Fprintf(w, "%s\n\n```\n%s\n```\n", text, strings.TrimSpace(help))
}
