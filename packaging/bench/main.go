// Command bench runs the benchmarks of this tree and prints one table of what they measured.
//
//	go run ./packaging/bench [-bench PATTERN] [-count N] [-timeout D] [PACKAGE...]
//
// The time of a small synchronous write is printed beside the table, because every durable figure hangs on it
// and it differs a hundredfold between machines and between moments.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures and prints. The table goes to out; what go test says meanwhile goes to progress.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	pattern := flags.String("bench", ".", "benchmarks to run")
	count := flags.Int("count", 1, "runs of each benchmark; the table keeps the median")
	timeout := flags.Duration("timeout", 30*time.Minute, "limit for one package")
	if err := flags.Parse(args); err != nil {
		return err
	}
	packages := flags.Args()
	if len(packages) == 0 {
		packages = []string{"./..."}
	}

	before, err := fsyncP50()
	if err != nil {
		return err
	}
	goTest := append([]string{
		"test", "-p", "1", "-run", "^$", "-bench", *pattern,
		"-count", fmt.Sprint(*count), "-timeout", timeout.String(),
	}, packages...)
	command := exec.CommandContext(ctx, "go", goTest...)
	command.Stderr = progress
	stdout, err := command.StdoutPipe()
	if err != nil {
		return fmt.Errorf("cannot read what go test prints: %w", err)
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("cannot start go test: %w; is Go on the PATH?", err)
	}
	rows, readErr := parse(bufio.NewScanner(io.TeeReader(stdout, progress)))
	failed := command.Wait()
	after, err := fsyncP50()
	if err := errors.Join(readErr, err); err != nil {
		return err
	}

	fmt.Fprintf(out, "\n%d CPUs, %s, %s/%s; fsync p50 %.2f ms before, %.2f ms after\n\n",
		runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH, milliseconds(before), milliseconds(after))
	printTable(out, rows)
	if failed != nil {
		return fmt.Errorf("a benchmark failed: %w; its words are above", failed)
	}
	return nil
}

// fsyncP50 is the median time of an append of one page with fsync, where temporary files are.
func fsyncP50() (time.Duration, error) {
	file, err := os.CreateTemp("", "bench-fsync-")
	if err != nil {
		return 0, fmt.Errorf("cannot measure fsync: %w", err)
	}
	defer func() { _ = os.Remove(file.Name()) }()
	defer file.Close()
	page := make([]byte, 4096)
	times := make([]time.Duration, 101)
	for i := range times {
		start := time.Now()
		if _, err := file.Write(page); err != nil {
			return 0, fmt.Errorf("cannot measure fsync: %w", err)
		}
		if err := file.Sync(); err != nil {
			return 0, fmt.Errorf("cannot measure fsync: %w", err)
		}
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
