package program

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestExitCodesTellAWrongCommandLineFromAFailure(t *testing.T) {
	tests := []struct {
		name   string
		args   []string
		code   int
		stderr string
	}{
		{"done", []string{"run"}, 0, ""},
		{"help", []string{"run", "--help"}, 0, ""},
		{"help first", []string{"help", "run"}, 0, ""},
		{"help of nothing", []string{"help", "walk"}, 2, "unknown command \"walk\" for \"demiurge-thing\"\n"},
		{"no command", nil, 2, "\"demiurge-thing\" needs a command\nRun 'demiurge-thing --help' for usage.\n"},
		{"no command, and what there is", nil, 2, "  validate    Check a configuration file"},
		{"a group alone", []string{"key"}, 2, "\"demiurge-thing key\" needs a command\n"},
		{"unknown command of a group", []string{"key", "mak"}, 2, "unknown command \"mak\" for \"demiurge-thing key\"; did you mean make?\n"},
		{"completion is not for a service", []string{"completion"}, 2, "unknown command"},
		{"wrong for a command's own code", []string{"key", "make"}, 2, "cannot use it\nRun 'demiurge-thing key make --help' for usage.\n"},
		{"failed", []string{"validate"}, 1, "demiurge-thing: cannot read the file\n"},
		{"unknown flag", []string{"run", "--colour"}, 2, "unknown flag: --colour\nRun 'demiurge-thing run --help' for usage.\n"},
		{"unknown command", []string{"walk"}, 2, "unknown command \"walk\""},
		{"an argument too many", []string{"run", "fast"}, 2, "Run 'demiurge-thing run --help' for usage.\n"},
		{"a required flag is missing", []string{"join"}, 2, "required flag(s) \"token\" not set\nRun 'demiurge-thing join --help' for usage.\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := Command(Options{
				Name: "demiurge-thing", Config: "/etc/thing.yaml",
				Run:      func(context.Context, string, []string, <-chan os.Signal) error { return nil },
				Validate: func(string, []string) error { return errors.New("cannot read the file") },
			})
			join := WithConfig("/etc/thing.yaml", &cobra.Command{Use: "join"}, func(*cobra.Command, string) error { return nil })
			join.Flags().String("token", "", "a token")
			if err := join.MarkFlagRequired("token"); err != nil {
				t.Fatal(err)
			}
			root.AddCommand(join, Group(&cobra.Command{Use: "key", Short: "Keys"}, WithConfig("/etc/thing.yaml", &cobra.Command{Use: "make"}, func(*cobra.Command, string) error {
				return Usage("cannot use it")
			})))
			root.SetArgs(append([]string{}, tt.args...)) // nil would be those of the test
			root.SetOut(io.Discard)
			var stderr bytes.Buffer
			if code := execute(t.Context(), root, &stderr); code != tt.code {
				t.Errorf("it ended with %d, want %d", code, tt.code)
			}
			if got := stderr.String(); !strings.Contains(got, tt.stderr) || (tt.stderr == "") != (got == "") {
				t.Errorf("it said %q, want %q", got, tt.stderr)
			}
		})
	}
}
