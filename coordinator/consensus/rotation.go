package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// finishRotation completes the change to a new log file that a crash, or a close, interrupted.
//
// raft-wal fills a log file, writes its index behind the last entries in the same sync, acknowledges
// them, and only then notes in its list of files that this one is full and which one is next. When the
// process ends in between, the library opens the full file as the one to append to and refuses every
// write from then on, at each start again. The list is mended here before the library sees it. The
// entries themselves are not touched: what was acknowledged is in the old file or copied from it.
//
// It reports what it did, empty when there was nothing to do.
func finishRotation(dir string) (did string, err error) {
	if _, err := os.Stat(filepath.Join(dir, metadb.FileName)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return "", nil // a new log
		}
		return "", err
	}
	meta := &metadb.BoltMetaDB{}
	files, err := meta.Load(dir)
	if err != nil {
		return "", errors.Join(err, meta.Close())
	}
	r := rotation{meta: meta, files: files, filer: segment.NewFiler(dir, fs.New())}
	did, err = r.finish()
	return did, errors.Join(err, meta.Close())
}

// rotation is a list of log files whose last one may be full.
type rotation struct {
	meta  *metadb.BoltMetaDB
	files types.PersistentState
	filer *segment.Filer
}

func (r *rotation) finish() (did string, err error) {
	if len(r.files.Segments) == 0 {
		return "", nil
	}
	tail := r.files.Segments[len(r.files.Segments)-1]
	if !tail.SealTime.IsZero() {
		return "", nil
	}
	whole := tail
	whole.MinIndex = tail.BaseIndex // entries that a snapshot made needless are still in the file
	w, err := r.filer.RecoverTail(whole)
	if err != nil {
		return "", nil // not there yet, or damaged: the library makes it, or says what is wrong
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	full, index, err := w.Sealed()
	if err != nil || !full {
		return "", err
	}
	entries, err := entriesOf(w, tail.BaseIndex)
	if err != nil {
		return "", err
	}
	tail.SealTime, tail.IndexStart, tail.MaxIndex = time.Now(), index, w.LastIndex()
	if len(entries) > 0 && r.readable(tail, entries) {
		return fmt.Sprintf("log file %s was full: the next one follows", segment.FileName(tail)), r.begin(tail)
	}
	// The index behind the entries is not whole, and the last write with it was never acknowledged.
	return fmt.Sprintf("log file %s ended in a torn write: its entries are copied", segment.FileName(tail)), r.replace(whole, entries)
}

func entriesOf(w types.SegmentWriter, first uint64) ([]types.LogEntry, error) {
	var out []types.LogEntry
	for i := first; i <= w.LastIndex(); i++ {
		buf, err := w.GetLog(i)
		if err != nil {
			return nil, fmt.Errorf("cannot read log entry %d: %w", i, err)
		}
		out = append(out, types.LogEntry{Index: i, Data: bytes.Clone(buf.Bs)})
		_ = buf.Close() // back to its pool
	}
	return out, nil
}

// readable reports whether the file's index leads to each of the entries.
func (r *rotation) readable(full types.SegmentInfo, entries []types.LogEntry) bool {
	full.MinIndex = full.BaseIndex
	f, err := r.filer.Open(full)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // only read
	for _, e := range entries {
		buf, err := f.GetLog(e.Index)
		if err != nil {
			return false
		}
		same := bytes.Equal(buf.Bs, e.Data)
		_ = buf.Close() // back to its pool
		if !same {
			return false
		}
	}
	return true
}

// begin notes the file as full and a new one behind it, which the library makes when it finds none.
func (r *rotation) begin(full types.SegmentInfo) error {
	next := r.newFile(full, full.MaxIndex+1)
	r.files.Segments[len(r.files.Segments)-1] = full
	r.files.Segments = append(r.files.Segments, next)
	return r.meta.CommitState(r.files)
}

// replace puts a new file with the same entries in the place of the last one, which the library deletes
// as one that is not in the list.
func (r *rotation) replace(old types.SegmentInfo, entries []types.LogEntry) error {
	last := &r.files.Segments[len(r.files.Segments)-1]
	next := r.newFile(old, old.BaseIndex)
	if err := r.filer.Delete(next.BaseIndex, next.ID); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // left by a crash in here
	}
	w, err := r.filer.Create(next)
	if err != nil {
		return err
	}
	err = w.Append(entries)
	if full, _, sealErr := w.Sealed(); full || sealErr != nil {
		err = errors.Join(err, sealErr, errors.New("the copy of a log file is full though the file was not"))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	next.MinIndex = last.MinIndex
	*last = next
	return r.meta.CommitState(r.files)
}

func (r *rotation) newFile(like types.SegmentInfo, first uint64) types.SegmentInfo {
	next := types.SegmentInfo{
		ID: r.files.NextSegmentID, BaseIndex: first, MinIndex: first,
		Codec: like.Codec, SizeLimit: like.SizeLimit, CreateTime: time.Now(),
	}
	r.files.NextSegmentID++
	return next
}
