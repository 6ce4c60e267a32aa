package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/client"
)

func (a *app) snapshotSave() *cobra.Command {
	return &cobra.Command{
		Use:   "save FILE",
		Short: "Save the whole state into a file, for a backup",
		Long: `save writes the whole state into a file that only its owner can read; a file of that name is replaced once
the new one is whole. Keep cluster.key of a coordinator beside it: without that key it cannot be restored.`,
		Example: "  demiurge operator snapshot save demiurge.snap",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			size, err := a.save(ctx, coord, args[0])
			if err != nil {
				return err
			}
			return a.print(map[string]any{"file": args[0], "bytes": size}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "saved %s (%d bytes)\n", clean(args[0]), size)
				return err
			})
		}),
	}
}

// save writes the file so that under its name there is the old one or the whole new one.
func (a *app) save(ctx context.Context, coord *client.Client, path string) (size int64, err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return 0, fmt.Errorf("cannot save a snapshot: %s is no file; name one, as in %s", path, filepath.Join(path, "demiurge.snap"))
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp") // mode 0600
	if err != nil {
		return 0, fmt.Errorf("cannot save a snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
		}
	}()
	bar := a.transfer("saving "+path, -1)
	err = coord.SaveSnapshot(ctx, io.MultiWriter(f, bar))
	bar.end()
	if err = errors.Join(err, f.Sync()); err != nil {
		return 0, errors.Join(err, f.Close())
	}
	if size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return 0, errors.Join(err, f.Close())
	}
	if err = f.Close(); err != nil {
		return 0, fmt.Errorf("cannot save a snapshot: %w", err)
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return 0, fmt.Errorf("cannot save a snapshot: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return 0, fmt.Errorf("cannot save a snapshot: %w", err)
	}
	return size, errors.Join(d.Sync(), d.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has its name already
	}
	return err
}

func (a *app) snapshotRestore() *cobra.Command {
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Replace the whole state by a saved one",
		Long: `restore replaces the whole state of the cluster by a saved one: what came after the snapshot is gone, also
tokens and allocations. The file is checked to its end before anything changes. Certificates and gossip keys
stay as they are.`,
		Example: "  demiurge operator snapshot restore demiurge.snap",
	}
	sure := c.Flags().Bool("yes", false, "do not ask")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		info, err := os.Stat(args[0])
		if err != nil {
			return fmt.Errorf("cannot restore: %w", err)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("cannot restore: %s is no file; name one that `demiurge operator snapshot save` wrote", args[0])
		}
		if !*sure {
			if err := a.confirm(fmt.Sprintf("Replace the whole state by %s of %s?", clean(args[0]), info.ModTime().UTC().Format(time.RFC3339))); err != nil {
				return err
			}
		}
		bar := a.transfer("restoring "+args[0], info.Size())
		x, err := coord.RestoreSnapshot(ctx, func() (io.ReadCloser, error) {
			f, err := os.Open(args[0])
			if err != nil {
				return nil, fmt.Errorf("cannot restore: %w", err)
			}
			bar.again()
			return struct {
				io.Reader
				io.Closer
			}{io.TeeReader(f, bar), f}, nil
		})
		bar.end()
		if err != nil {
			return err
		}
		return a.print(x, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "restored %s; the state is at index %d\n", clean(args[0]), x.Index)
			return err
		})
	})
	return c
}

// confirm asks on a terminal. Elsewhere nobody could answer.
func (a *app) confirm(question string) error {
	if !a.Terminal || a.Stdin == nil {
		return program.Usage("this replaces everything: give --yes to do it without being asked")
	}
	fmt.Fprintf(a.Stderr, "%s Type yes to go on: ", question)
	line, err := bufio.NewReader(a.Stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot read the answer: %w", err)
	}
	if strings.TrimSpace(line) != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

// transfer shows how far a file is: a bar on a terminal, one line elsewhere.
func (a *app) transfer(text string, size int64) *bar {
	if !a.Terminal {
		fmt.Fprintln(a.Stderr, clean(text))
		return &bar{}
	}
	return &bar{progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(a.Stderr), progressbar.OptionSetDescription(clean(text)),
		progressbar.OptionShowBytes(true), progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetSpinnerChangeInterval(0), progressbar.OptionClearOnFinish(),
	)}
}

// bar counts bytes that are written to it.
type bar struct{ drawn *progressbar.ProgressBar }

// Write implements io.Writer.
func (b *bar) Write(p []byte) (int, error) {
	if b.drawn != nil {
		_ = b.drawn.Add(len(p)) // a bar that cannot be drawn stops nothing
	}
	return len(p), nil
}

func (b *bar) again() {
	if b.drawn != nil {
		b.drawn.Reset()
	}
}

func (b *bar) end() {
	if b.drawn != nil {
		_ = b.drawn.Finish()
	}
}
