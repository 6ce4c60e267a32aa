package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/records"
)

// log is the file of records and the latest value of each key.
//
// mu guards everything. A sync runs outside mu so that others append meanwhile; the file is replaced
// only while no sync runs, because a sync of a file that is not the journal any more proves nothing.
type log struct {
	fs     fsx.FS
	logger hclog.Logger
	path   string
	open   func(path string) (file, error) // for appending

	mu      sync.Mutex
	idle    *sync.Cond // signalled when a sync has ended
	file    file
	values  map[string]json.RawMessage
	live    int64  // bytes that a compacted file would have, about
	size    int64  // of the file's whole records
	written uint64 // appends so far
	synced  uint64 // appends known to be on disk
	syncing bool
	broken  bool // a write or sync failed: the file must be written anew before it is trusted
}

// file is the open file of a journal.
type file interface {
	Write(b []byte) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

func openFile(path string) (file, error) {
	f, err := records.OpenAppend(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// compactAbove is the size below which a file is never rewritten.
const compactAbove = 1 << 20

func openLog(fsys fsx.FS, logger hclog.Logger, path string, open func(string) (file, error)) (*log, error) {
	l := &log{fs: fsys, logger: logger, path: path, open: open}
	l.idle = sync.NewCond(&l.mu)
	data, err := fsys.ReadFile("journal.read", path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot read the journal: %w", err)
	}
	values, whole, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w; move it away to start with an empty one", path, err)
	}
	l.values = values
	for k, v := range values {
		l.live += cost(k, v)
	}
	if tail := len(data) - whole; tail > 0 && whole > 0 {
		logger.Warn("the end of the journal was torn and is cut", "path", path, "bytes", tail)
	}
	if whole == 0 {
		if err := l.rewrite(); err != nil {
			return nil, err
		}
		return l, nil
	}
	if l.file, err = l.open(path); err != nil {
		return nil, fmt.Errorf("cannot open the journal: %w", err)
	}
	l.size = int64(whole)
	if whole < len(data) {
		if err := l.file.Truncate(l.size); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot cut the journal's torn end: %w", err), l.file.Close())
		}
	}
	return l, nil
}

// append writes records in one piece. When it returns without an error a crash of this program does not lose
// them, and a crash of the machine leaves the first of them or none; sync makes them survive that too.
func (l *log) append(entries ...record) error {
	buf, err := encode(nil, entries...)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil && !l.broken {
		return errClosed
	}
	before := make([]record, len(entries))
	for i, r := range entries {
		before[i] = record{Key: r.Key, Value: l.values[r.Key]}
		l.set(r)
	}
	if l.broken || l.size > compactAbove && l.size > 4*l.live {
		err = l.rewriteLocked()
	} else if err = l.write(buf); err == nil {
		l.size += int64(len(buf))
		l.written++
	} else {
		// Part of a record may be in the file, and a whole one behind it would be cut with it.
		l.broken = true
		err = fmt.Errorf("cannot append to the journal: %w", err)
	}
	if err != nil { // what is not written is not remembered either
		for _, r := range before {
			l.set(r)
		}
	}
	return err
}

// write appends bytes to the file. mu is held.
func (l *log) write(buf []byte) error {
	if err := l.fs.Step("journal.append"); err != nil {
		return err
	}
	_, err := l.file.Write(buf)
	return err
}

func (l *log) set(r record) {
	if old, ok := l.values[r.Key]; ok {
		l.live -= cost(r.Key, old)
	}
	if len(r.Value) == 0 {
		delete(l.values, r.Key)
		return
	}
	l.values[r.Key] = r.Value
	l.live += cost(r.Key, r.Value)
}

// sync returns when every append before it is on disk. Callers at the same time share one fsync.
func (l *log) sync(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := l.written
	for l.synced < want {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case l.syncing:
			l.idle.Wait()
		case l.broken:
			if err := l.rewriteLocked(); err != nil {
				return err
			}
		case l.file == nil:
			return errClosed
		default:
			if err := l.syncOnce(); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncOnce runs one fsync with mu released. A failed fsync leaves it open which pages are on disk, and
// the next one may succeed without having written them: the file is not trusted any more.
func (l *log) syncOnce() error {
	upTo, f := l.written, l.file
	l.syncing = true
	l.mu.Unlock()
	err := l.fs.Step("journal.sync")
	if err == nil {
		err = f.Sync()
	}
	l.mu.Lock()
	l.syncing = false
	l.idle.Broadcast()
	if err != nil {
		l.broken = true
		return fmt.Errorf("cannot sync the journal: %w", err)
	}
	l.synced = max(l.synced, upTo)
	return nil
}

func (l *log) rewrite() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rewriteLocked()
}

// rewriteLocked puts a file with the latest values alone in the place of the journal. The old file stays
// until the new one is whole on disk. mu is held.
func (l *log) rewriteLocked() error {
	for l.syncing {
		l.idle.Wait()
	}
	l.broken = true // until the end
	keys := make([]string, 0, len(l.values))
	for k := range l.values {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	buf := []byte(header)
	for _, k := range keys {
		var err error
		if buf, err = encode(buf, record{Key: k, Value: l.values[k]}); err != nil {
			return err
		}
	}
	if err := fsx.WriteAtomic(l.fs, "journal.rewrite", l.path, buf, 0o600); err != nil {
		return fmt.Errorf("cannot write the journal anew: %w", err)
	}
	f, err := l.open(l.path)
	if err != nil {
		return fmt.Errorf("cannot open the new journal: %w", err)
	}
	if l.file != nil {
		if err := l.file.Close(); err != nil {
			l.logger.Warn("the old journal did not close", "error", err)
		}
	}
	l.file, l.size, l.broken = f, int64(len(buf)), false
	l.written++ // the record that called for this, when there was one, is in the file
	l.synced = l.written
	return nil
}

func (l *log) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.syncing {
		l.idle.Wait()
	}
	if l.file == nil {
		return nil
	}
	err := errors.Join(l.file.Sync(), l.file.Close())
	l.file, l.broken = nil, false
	return err
}

// cost is about what a record takes in the file.
func cost(key string, value json.RawMessage) int64 {
	return int64(len(key)+len(value)) + records.PrefixSize + 16
}

var errClosed = fmt.Errorf("cannot use the journal: %w", os.ErrClosed)
