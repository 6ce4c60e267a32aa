package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/shared/version"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  demiurge version",
		Args:    cobra.NoArgs,
		RunE: a.run(func(context.Context, []string) error {
			info := version.Get()
			body := struct {
				Version  string `json:"version"`
				Revision string `json:"revision,omitempty"`
				Modified bool   `json:"modified,omitempty"`
				Go       string `json:"go"`
			}{info.Version, info.Revision, info.Modified, info.Go}
			return a.print(body, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "demiurge", info)
				return err
			})
		}),
	}
}
