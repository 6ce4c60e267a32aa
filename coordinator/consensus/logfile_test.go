package consensus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	wal "github.com/hashicorp/raft-wal"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/segment"
)

// preparing is a log in a directory whose next files are made ready.
type preparing struct {
	*wal.WAL
	t     *testing.T
	dir   string
	spare *spare
	low   chan bool // what the disk has next to no room for; holds one value
}

// openPreparing opens the log as a node does. It is closed when the test ends.
func openPreparing(t *testing.T, dir string) *preparing {
	t.Helper()
	p := &preparing{t: t, dir: dir, low: make(chan bool, 1)}
	p.low <- false
	low := func() bool {
		now := <-p.low
		p.low <- now
		return now
	}
	p.spare = newSpare(filepath.Join(dir, spareFile), testSegment, low, hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // ends below
		defer close(ended)
		p.spare.run(ctx)
	}()
	files := segment.NewFiler(dir, &logFiles{FS: walfs.New(), spare: p.spare, syncs: realSyncs})
	w, err := wal.Open(dir, wal.WithSegmentSize(testSegment), wal.WithSegmentFiler(files), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		t.Fatal(err)
	}
	p.WAL = w
	t.Cleanup(func() {
		cancel()
		<-ended
		if err := w.Close(); err != nil && !errors.Is(err, wal.ErrClosed) {
			t.Error(err)
		}
		if _, err := os.Stat(p.spare.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a log file that was made ready is left: %v", err)
		}
	})
	return p
}

// until waits for something that the other goroutine does.
func (p *preparing) until(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			p.t.Fatalf("not within 30 s: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func (p *preparing) ready() bool {
	p.spare.mu.Lock()
	defer p.spare.mu.Unlock()
	return p.spare.ready
}

// logs are the log files in the order of their entries.
func logs(t *testing.T, dir string) []string {
	t.Helper()
	out, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// half is so many entries that half of a log file is written, and little more.
const half = testSegment / 2 / 900

// TestNextLogFileIsMadeReady: the file that follows is the one that was written before, in full, and a log of few
// entries makes none.
func TestNextLogFileIsMadeReady(t *testing.T) {
	t.Parallel()
	p := openPreparing(t, t.TempDir())
	store(t, p.WAL, 1, 10)
	if _, err := os.Stat(p.spare.path); err == nil {
		t.Error("a log of ten entries has made the next file ready already")
	}
	last := uint64(10)
	for range 3 {
		store(t, p.WAL, last+1, last+half)
		last += half
		p.until("the next log file is ready", p.ready)
		if at := firstHole(t, p.spare.path); at != testSegment {
			t.Errorf("the next log file is not written from byte %d", at)
		}
		content, err := os.ReadFile(p.spare.path)
		if err != nil || !bytes.Equal(content, make([]byte, testSegment)) {
			t.Fatalf("the next log file has %d bytes, not all zero or not as many as a log file: %v", len(content), err)
		}
		made, err := os.Stat(p.spare.path)
		if err != nil {
			t.Fatal(err)
		}
		for before := len(logs(t, p.dir)); len(logs(t, p.dir)) == before; last++ {
			store(t, p.WAL, last+1, last+1)
		}
		files := logs(t, p.dir)
		if took, err := os.Stat(files[len(files)-1]); err != nil || !os.SameFile(made, took) {
			t.Errorf("%s is not the file that was made ready: %v", files[len(files)-1], err)
		}
	}
	expectEntries(t, p.WAL, 1, last)
}

// firstHole is the first byte of a file that was not written, where the file system tells; else its end. What was read
// since counts as written.
func firstHole(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const seekHole = 4 // of lseek
	at, err := f.Seek(0, seekHole)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestLogFilesAreThoseOfTheLibrary: byte for byte, so whatever holds of torn writes and interrupted changes of files
// holds of these too, and a program that knows nothing of files made ready reads them, goes on, and is read.
func TestLogFilesAreThoseOfTheLibrary(t *testing.T) {
	t.Parallel()
	p, dir := openPreparing(t, t.TempDir()), t.TempDir()
	plain := openWAL(t, dir)
	const last = 7 * half
	for i := uint64(1); i <= last; i += half {
		store(t, p.WAL, i, i+half-1)
		p.until("the next log file is ready", func() bool { return p.ready() || i > 1 })
		store(t, plain, i, i+half-1)
	}
	// A change of files may still be under way: whoever reads waits for none, whoever deletes does.
	for _, w := range []*wal.WAL{p.WAL, plain} {
		if err := w.DeleteRange(last+1, last+1); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	ours, theirs := logs(t, p.dir), logs(t, dir)
	if len(ours) != len(theirs) || len(ours) < 3 {
		t.Fatalf("%d files, and of the library %d", len(ours), len(theirs))
	}
	for i := range ours {
		a, err := os.ReadFile(ours[i])
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(theirs[i])
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(ours[i]) != filepath.Base(theirs[i]) || !bytes.Equal(a, b) {
			t.Errorf("%s differs from %s of the library", ours[i], theirs[i])
		}
	}
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(p.dir)); err != nil {
		t.Fatal(err)
	}
	before := openWAL(t, copied)
	expectEntries(t, before, 1, last)
	store(t, before, last+1, last+3*half)
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := finishRotation(copied); err != nil {
		t.Fatal(err)
	}
	again := openPreparing(t, copied)
	store(t, again.WAL, last+3*half+1, last+6*half)
	expectEntries(t, again.WAL, 1, last+6*half)
}

// TestWithoutSpareFile: whatever keeps the next file from being made ready, the log takes another.
func TestWithoutSpareFile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, ready func(t *testing.T, p *preparing)
	}{
		"the disk is short of space": {before: func(_ *testing.T, p *preparing) {
			<-p.low
			p.low <- true
		}},
		"it cannot be made": {before: func(t *testing.T, p *preparing) {
			if err := os.MkdirAll(filepath.Join(p.spare.path, "in the way"), 0o700); err != nil {
				t.Fatal(err)
			}
			p.t.Cleanup(func() { _ = os.RemoveAll(p.spare.path) }) // before what openPreparing looks at
		}},
		"it was removed": {ready: func(t *testing.T, p *preparing) {
			if err := os.Remove(p.spare.path); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := openPreparing(t, t.TempDir())
			if c.before != nil {
				c.before(t, p)
			}
			store(t, p.WAL, 1, half)
			if c.ready != nil {
				p.until("the next log file is ready", p.ready)
				c.ready(t, p)
			}
			for i := uint64(half + 1); i <= 10*half; i++ {
				store(t, p.WAL, i, i)
				if c.before != nil && p.ready() {
					t.Fatal("a log file is ready all the same")
				}
			}
			expectEntries(t, p.WAL, 1, 10*half)
			if len(logs(t, p.dir)) < 4 {
				t.Errorf("the log has only %q", logs(t, p.dir))
			}
		})
	}
}

// TestSpareFileGivesSpaceBack: what is written of it is removed when the disk becomes short of space.
func TestSpareFileGivesSpaceBack(t *testing.T) {
	t.Parallel()
	low := false
	s := newSpare(filepath.Join(t.TempDir(), spareFile), 4*spareBytes, func() bool { return low }, hclog.NewNullLogger())
	for range 2 {
		s.wrote(spareBytes)
		if !s.wanted() {
			t.Fatal("half a piece of the log makes no piece of the file due")
		}
		if err := s.extend(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(s.path); err != nil || s.done != 2*spareBytes {
		t.Fatalf("%d bytes are written: %v", s.done, err)
	}
	low = true
	if s.wanted() {
		t.Error("more is to be written to a disk without room")
	}
	if _, err := os.Stat(s.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

// TestLogFileIsMadeDurable: the first sync has the file and its name, each later one the data, and a failed one is
// told and done in full again.
func TestLogFileIsMadeDurable(t *testing.T) {
	t.Parallel()
	var did []string
	broken := map[string]error{}
	note := func(what string) error {
		did = append(did, what)
		return broken[what]
	}
	dir := t.TempDir()
	files := &logFiles{
		FS: walfs.New(), spare: newSpare(filepath.Join(dir, spareFile), testSegment, nil, hclog.NewNullLogger()),
		syncs: syncs{
			file: func(*os.File) error { return note("file") },
			data: func(*os.File) error { return note("data") },
			dir:  func(string) error { return note("dir") },
		},
	}
	open := func(f interface {
		io.Closer
		Sync() error
	}, err error,
	) func(want ...string) error {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return func(want ...string) error {
			t.Helper()
			did = nil
			err := f.Sync()
			if !slices.Equal(did, want) {
				t.Errorf("Sync did %q, want %q", did, want)
			}
			return err
		}
	}
	made := open(files.Create(dir, "a.wal", testSegment))
	disk := errors.New("the disk is gone")
	for _, part := range [][]string{{"file"}, {"file", "dir"}} {
		broken[part[len(part)-1]] = disk
		if err := made(part...); !errors.Is(err, disk) {
			t.Errorf("a failed sync of %s gave %v", part, err)
		}
		clear(broken)
	}
	found := open(files.OpenWriter(dir, "a.wal"))
	for _, sync := range []func(want ...string) error{made, found} {
		if err := errors.Join(sync("file", "dir"), sync("data"), sync("data")); err != nil {
			t.Fatal(err)
		}
		broken["data"] = disk
		if err := sync("data"); !errors.Is(err, disk) {
			t.Errorf("a failed sync gave %v", err)
		}
		clear(broken)
	}
}

// TestSyncsReachTheDisk: the real ones find a file that is gone, which a call that does nothing would not.
func TestSyncsReachTheDisk(t *testing.T) {
	t.Parallel()
	f, err := allocated(filepath.Join(t.TempDir(), "a"), testSegment)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(realSyncs.file(f), realSyncs.data(f), realSyncs.dir(filepath.Dir(f.Name()))); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"file": realSyncs.file(f), "data": realSyncs.data(f), "dir": realSyncs.dir(f.Name() + "/b")} {
		if err == nil {
			t.Errorf("a sync of a %s that is not open succeeded", name)
		}
	}
}
