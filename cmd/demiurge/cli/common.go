package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// listBody is a list as the API would have answered it on one page.
func listBody[T any](items []T) api.List[T] {
	if items == nil {
		items = []T{}
	}
	return api.List[T]{Items: items}
}

// done reports a job whose result is only that it is done.
func (a *app) done(key, value, text string) error {
	return a.print(map[string]string{key: value}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, text)
		return err
	})
}

// pairs parses the values of a repeatable key=value flag.
func pairs(flag string, args []string) (map[string]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(args))
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || key == "" {
			return nil, program.Usage("cannot use %q as %s: want key=value", arg, flag)
		}
		out[key] = value
	}
	return out, nil
}

func joined(m map[string]string) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
