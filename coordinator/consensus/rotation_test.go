package consensus

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

const testSegment = 64 << 10

func openWAL(t *testing.T, dir string) *wal.WAL {
	t.Helper()
	w, err := wal.Open(dir, wal.WithSegmentSize(testSegment), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func entry(index uint64) *raft.Log {
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(index)}, 900)}
}

func store(t *testing.T, w *wal.WAL, first, last uint64) {
	t.Helper()
	for i := first; i <= last; i++ {
		if err := w.StoreLogs([]*raft.Log{entry(i)}); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
}

func expectEntries(t *testing.T, w *wal.WAL, first, last uint64) {
	t.Helper()
	if got, _ := w.FirstIndex(); got != first {
		t.Errorf("the first entry is %d, want %d", got, first)
	}
	if got, _ := w.LastIndex(); got != last {
		t.Errorf("the last entry is %d, want %d", got, last)
	}
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := w.GetLog(i, &l); err != nil || !bytes.Equal(l.Data, entry(i).Data) {
			t.Fatalf("entry %d reads %d bytes, %v", i, len(l.Data), err)
		}
	}
}

// fullLog makes a log whose newest file is full while the list of files does not know it, as a crash
// right after the write that filled it leaves it. The last write holds the entries after before.
func fullLog(t *testing.T, dir string, fill func(types.SegmentWriter, uint64)) (file string, before, last uint64) {
	t.Helper()
	w := openWAL(t, dir)
	store(t, w, 1, 100) // the second file is in use
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	meta := &metadb.BoltMetaDB{}
	state, err := meta.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := meta.Close(); err != nil {
		t.Fatal(err)
	}
	tail := state.Segments[len(state.Segments)-1]
	if len(state.Segments) != 2 || !tail.SealTime.IsZero() {
		t.Fatalf("the log is not as the test needs it: %+v", state)
	}
	sw, err := segment.NewFiler(dir, fs.New()).RecoverTail(tail)
	if err != nil {
		t.Fatal(err)
	}
	before = sw.LastIndex()
	fill(sw, before)
	last = sw.LastIndex()
	if full, _, err := sw.Sealed(); !full || err != nil {
		t.Fatalf("the file is not full: %v", err)
	}
	if err := sw.Close(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, segment.FileName(tail)), before, last
}

// lastWrite appends one batch that fills the file.
func lastWrite(t *testing.T) func(types.SegmentWriter, uint64) {
	return func(w types.SegmentWriter, last uint64) {
		var batch []types.LogEntry
		codec := &wal.BinaryCodec{}
		for i := last + 1; i <= last+80; i++ {
			var b bytes.Buffer
			if err := codec.Encode(entry(i), &b); err != nil {
				t.Fatal(err)
			}
			batch = append(batch, types.LogEntry{Index: i, Data: b.Bytes()})
		}
		if err := w.Append(batch); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInterruptedRotation: a process that ends between the write that fills a log file and the note of it
// leaves a log that the library alone can never write to again.
func TestInterruptedRotation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, _, last := fullLog(t, dir, lastWrite(t))

	alone := openWAL(t, dir)
	if err := alone.StoreLogs([]*raft.Log{entry(last + 1)}); err == nil {
		t.Error("the library mends this by itself now: finishRotation can go")
	}
	if err := alone.Close(); err != nil {
		t.Fatal(err)
	}

	if did, err := finishRotation(dir); did == "" || err != nil {
		t.Fatalf("finishRotation: %q, %v", did, err)
	}
	for range 2 { // once mended, nothing is left to do
		w := openWAL(t, dir)
		expectEntries(t, w, 1, last)
		store(t, w, last+1, last+150)
		last += 150
		expectEntries(t, w, 1, last)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		// Close does not wait for a change of files that is under way, so there may be one to finish.
		if _, err := finishRotation(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRotationAfterTruncation: entries dropped from the front of the full file stay dropped.
func TestRotationAfterTruncation(t *testing.T) {
	t.Parallel()
	for _, torn := range []bool{false, true} {
		t.Run(fmt.Sprintf("torn=%t", torn), func(t *testing.T) {
			dir := t.TempDir()
			w := openWAL(t, dir)
			store(t, w, 1, 100)
			if err := w.DeleteRange(1, 90); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			meta := &metadb.BoltMetaDB{}
			state, err := meta.Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			_ = meta.Close()
			tail := state.Segments[len(state.Segments)-1]
			sw, err := segment.NewFiler(dir, fs.New()).RecoverTail(tail)
			if err != nil {
				t.Fatal(err)
			}
			index, err := sw.ForceSeal()
			if err != nil {
				t.Fatal(err)
			}
			_ = sw.Close()
			if torn {
				spoil(t, filepath.Join(dir, segment.FileName(tail)), int64(index))
			}
			if did, err := finishRotation(dir); did == "" || err != nil {
				t.Fatalf("finishRotation: %q, %v", did, err)
			}
			w = openWAL(t, dir)
			defer func() { _ = w.Close() }()
			expectEntries(t, w, 91, 100)
			store(t, w, 101, 200)
			expectEntries(t, w, 91, 200)
		})
	}
}

// spoil zeroes eight bytes.
func spoil(t *testing.T, file string, at int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 8), at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTornLastWriteOfAFile loses each part of the write that fills a file, as a loss of power can, when
// the parts of one write reach the disk in any order. What was acknowledged before it must be there,
// nothing may be there in part, and the log must take entries again.
func TestTornLastWriteOfAFile(t *testing.T) {
	t.Parallel()
	origin := t.TempDir()
	file, before, last := fullLog(t, origin, lastWrite(t))
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(whole, "\x00"))
	start := bytes.Index(whole, entry(before + 1).Data[:64])
	if start < 0 {
		t.Fatal("the last write is not in the file")
	}
	const part = 512
	kept := map[bool]int{}
	for at := start - start%part; at < end; at += part * 7 {
		for _, rest := range []bool{false, true} { // one sector is lost, or it and all that follow
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
				t.Fatal(err)
			}
			image := bytes.Clone(whole)
			upTo := min(at+part, len(image))
			if rest {
				upTo = len(image)
			}
			clear(image[max(at, start):upTo])
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), image, 0o600); err != nil {
				t.Fatal(err)
			}
			did, err := finishRotation(dir)
			if err != nil {
				t.Fatalf("lost from byte %d: %v", at, err)
			}
			kept[did != ""]++
			w := openWAL(t, dir)
			got, err := w.LastIndex()
			if err != nil || got != before && got != last {
				t.Fatalf("lost from byte %d: the log ends at %d, want %d or %d; %v", at, got, before, last, err)
			}
			expectEntries(t, w, 1, got)
			store(t, w, got+1, got+100)
			expectEntries(t, w, 1, got+100)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if kept[true] == 0 || kept[false] == 0 {
		t.Errorf("the test does not reach both kinds of files: %v", kept)
	}
}
