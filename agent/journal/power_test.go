package journal

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// unsafeFile knows how much of a file a machine that loses its power still has.
type unsafeFile struct {
	file
	path    string
	durable int64
}

func (f *unsafeFile) Sync() error {
	if err := f.file.Sync(); err != nil {
		return err
	}
	info, err := os.Stat(f.path)
	if err == nil {
		f.durable = info.Size()
	}
	return err
}

// TestWhatWasSyncedSurvivesThePower: after the power went, the file has what was synced and nothing else, and that
// is everything for which Sync or Close had returned.
func TestWhatWasSyncedSurvivesThePower(t *testing.T) {
	for name, settle := range map[string]func(*Journal) error{
		"sync":  func(j *Journal) error { return j.Sync(context.Background()) },
		"close": func(j *Journal) error { return j.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "journal")
			fs, err := fsx.NewOS(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer fs.Close()
			var last *unsafeFile
			open := func(path string) (file, error) {
				f, err := openFile(path)
				if err != nil {
					return nil, err
				}
				info, err := os.Stat(path) // what is opened was written atomically, and synced
				if err != nil {
					return nil, err
				}
				last = &unsafeFile{file: f, path: path, durable: info.Size()}
				return last, nil
			}
			l, err := openLog(fs, hclog.NewNullLogger(), path, open)
			if err != nil {
				t.Fatal(err)
			}
			j := &Journal{log: l}
			gateways := map[id.Gateway]bool{}
			for range 5 {
				g := id.NewGateway()
				gateways[g] = true
				if err := j.Put(&Gateway{Gateway: g, Incarnation: 1}); err != nil {
					t.Fatal(err)
				}
			}
			if err := settle(j); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, last.durable); err != nil {
				t.Fatal(err)
			}
			again, err := Open(Options{Path: path, FS: fs, Logger: hclog.NewNullLogger()})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			entries, err := again.Entries()
			if err != nil {
				t.Fatal(err)
			}
			got := map[id.Gateway]bool{}
			for _, e := range entries {
				got[e.Gateway.Gateway] = true
			}
			if fmt.Sprint(got) != fmt.Sprint(gateways) {
				t.Errorf("the power took some of %v: %v", gateways, got)
			}
		})
	}
}
