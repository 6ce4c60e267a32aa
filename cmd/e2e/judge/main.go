// Command judge checks stored histories of runs once more, without a cluster: go run ./cmd/e2e/judge FILE...
package main

import (
	"fmt"
	"os"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: judge FILE...: names the first broken invariant of each history")
		os.Exit(2)
	}
	code := 0
	for _, path := range os.Args[1:] {
		run, err := check.Read(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		if check.Judge(os.Stdout, path, run) == check.Green {
			continue
		}
		code = 1
	}
	os.Exit(code)
}
