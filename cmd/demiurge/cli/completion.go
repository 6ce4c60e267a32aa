package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func (a *app) completionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script of a shell",
		Example: `  source <(demiurge completion bash)
  demiurge completion zsh >"${fpath[1]}/_demiurge"
  demiurge completion fish >~/.config/fish/completions/demiurge.fish`,
		ValidArgs: []string{"bash", "zsh", "fish"},
	}
	c.RunE = a.run(func(_ context.Context, args []string) error {
		root := c.Root()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(a.Stdout, true)
		case "zsh":
			return root.GenZshCompletion(a.Stdout)
		default:
			return root.GenFishCompletion(a.Stdout, true)
		}
	})
	return c
}
