// Command mutants proves that the tests can fail: each patch beside it plants one bug into a copy of the tree, and
// the tests that it names must catch it. Without arguments it takes all of them, else those that are named, by a
// pattern of the shell's if there are several.
//
//	go run ./cmd/e2e/mutants [NAME...]
//
// A patch begins with two lines, What and Caught by, of which the latter is the command that must fail. Together
// they are the list of what catches what.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// limit bounds the tests of one mutant. A mutant that hangs them is caught too: they have a time limit of their own.
const limit = 10 * time.Minute

// tested is how the command of a mutant begins in truth. `make check` is what vets.
const tested = "go test -count=1 -timeout 5m -vet=off "

// mutant is one planted bug.
type mutant struct{ name, file, what, caughtBy string }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string) error {
	root, err := output(ctx, ".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	root = strings.TrimSpace(root)
	all, err := mutants(filepath.Join(root, "cmd/e2e/mutants"))
	if err != nil {
		return err
	}
	if all, err = chosen(all, names); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return fmt.Errorf("cannot make a copy of the tree: %w", err)
	}
	defer os.RemoveAll(dir)
	if _, err := output(ctx, root, "sh", "-c", `git ls-files -z | tar --null -T - -c | tar -x -C "$1"`, "sh", dir); err != nil {
		return err
	}
	var wrong []error
	for _, m := range all {
		begun := time.Now()
		by, err := m.try(ctx, dir)
		verdict := "caught"
		if err != nil {
			verdict, wrong = "ALIVE", append(wrong, err)
		}
		fmt.Printf("%-8s %-32s %4.0fs  %s%s\n", verdict, m.name, time.Since(begun).Seconds(), m.caughtBy, by)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(wrong...)
}

// chosen are the mutants that some name is for; no names are for all. A name that is for none is an error: a run that
// tries nothing must not look like one that found nothing.
func chosen(all []mutant, names []string) ([]mutant, error) {
	if len(names) == 0 {
		return all, nil
	}
	taken := map[string]bool{}
	for _, name := range names {
		some := false
		for _, m := range all {
			fits, err := path.Match(name, m.name)
			if err != nil {
				return nil, fmt.Errorf("cannot use the name %q: %w", name, err)
			}
			if fits {
				some, taken[m.name] = true, true
			}
		}
		if !some {
			return nil, fmt.Errorf("no mutant is called %q; they are the patches in cmd/e2e/mutants", name)
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(m mutant) bool { return !taken[m.name] }), nil
}

// mutants reads all patches of a directory.
func mutants(dir string) ([]mutant, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	var out []mutant
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read a patch: %w", err)
		}
		m := mutant{name: strings.TrimSuffix(filepath.Base(file), ".patch"), file: file}
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "What: "); ok {
				m.what = strings.TrimSpace(rest)
			}
			if rest, ok := strings.CutPrefix(line, "Caught by: "); ok {
				m.caughtBy = strings.TrimSpace(rest)
			}
		}
		if m.what == "" || !strings.HasPrefix(m.caughtBy, "go test ") {
			return nil, fmt.Errorf("cannot use %s: it has to begin with the lines What: and Caught by: go test …", file)
		}
		out = append(out, m)
	}
	return out, nil
}

// try plants the bug into a copy of the tree, runs the tests, and takes it out again. It returns what failed, which is
// what the bug is caught by; that nothing did is an error too.
func (m mutant) try(ctx context.Context, dir string) (by string, err error) {
	if _, err := output(ctx, dir, "git", "apply", m.file); err != nil {
		return "", err
	}
	defer func() {
		_, back := output(context.WithoutCancel(ctx), dir, "git", "apply", "--reverse", m.file)
		err = errors.Join(err, back)
	}()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	text, err := output(ctx, dir, "sh", "-c", strings.Replace(m.caughtBy, "go test ", tested, 1))
	failed := failure.FindStringSubmatch(text)
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("mutant %s: %w", m.name, context.Cause(ctx))
	case err == nil:
		return "", fmt.Errorf("nothing caught %s", m.name)
	case strings.Contains(text, "[build failed]"), strings.Contains(text, "[setup failed]"):
		return "", fmt.Errorf("mutant %s does not build: %w", m.name, err)
	case failed == nil:
		return "", fmt.Errorf("mutant %s: the tests did not run: %w", m.name, err)
	}
	return ": " + cmp.Or(failed[1], failed[2]), nil
}

// failure is how a test says that it failed, or a program that it ended badly.
var failure = regexp.MustCompile(`(?m)^\s*(?:--- FAIL: (\S+)|(panic: .*))`)

// output runs a command to its end and returns what it printed.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	// What is built is of no directory, so that one copy of the tree takes from the cache what another one has built.
	cmd.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -buildvcs=false -trimpath"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("cannot run %s %s: %w\n%.4000s", name, strings.Join(args, " "), err, out.Bytes())
	}
	return out.String(), nil
}
