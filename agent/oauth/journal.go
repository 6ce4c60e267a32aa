package oauth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/records"
)

// journal is what of a store is on disk: a base, which is a whole store, and the logs of changes since.
//
//	base-7   everything, or an older state of it; written aside and renamed, so it is whole
//	log-7    begun before base-7 was written, so what base-7 lacks is in it
//	log-8    begun when base-8 was to be written, which has not happened yet
//
// Changes are gathered in a batch, written with one write and made durable with one fsync by whoever waits
// for them first; meanwhile the next batch fills.
type journal struct {
	fs     fsx.FS
	dir    string
	logger hclog.Logger

	// compacting is held while a base is written; taken before turn.
	compacting sync.Mutex

	// turn is held by who writes to the log or replaces it. It guards file and number, and is taken
	// before mu.
	turn   chan struct{}
	file   *os.File // nil after close
	number uint64

	mu      sync.Mutex // guards what follows; never held during a write
	filling *batch     // what is to be written next; empty: nothing
	writing *batch     // what is being written, or nil
	size    int64      // of the logs since the base
	limit   int64      // the size at which a new base is worth its price
	failed  error      // a write or fsync failed: the log is not trusted, only a new base mends it
	closed  bool
}

// batch is a number of changes that become durable together.
type batch struct {
	form []byte
	done chan struct{} // closed when err is set
	err  error
}

const (
	logHeader  = "demiurge oauth log 1\n"
	baseHeader = "demiurge oauth base 1\n"

	// largestFrame bounds what is read as one change; what is written is well below.
	largestFrame = 1 << 20
	// compactAbove is the size of logs below which no new base is written.
	compactAbove = 4 << 20
)

// ErrStorage says that the host's disk does not take changes. Nothing new is given out meanwhile.
var ErrStorage = errors.New("the host's disk does not take changes")

func storageError(what string, err error) error {
	return fmt.Errorf("cannot %s the OAuth journal: %w: %w", what, ErrStorage, err)
}

func newJournal(fs fsx.FS, dir string, logger hclog.Logger) *journal {
	return &journal{fs: fs, dir: dir, logger: logger, turn: make(chan struct{}, 1), filling: newBatch(), limit: compactAbove}
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

func (j *journal) path(kind string, n uint64) string {
	return filepath.Join(j.dir, partName(kind, n))
}

// trouble is why no change can be made durable now.
func (j *journal) trouble() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return storageError("use", os.ErrClosed)
	}
	return j.failed
}

// append adds a change and returns what to wait for. An empty one stands for all before it. The order of
// calls is the order in the log, so the store's mu is held.
func (j *journal) append(form []byte) *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || j.failed != nil {
		// Whatever the change is, it is in memory, and a new base takes it from there.
		b := newBatch()
		if b.err = j.failed; b.err == nil {
			b.err = storageError("use", os.ErrClosed)
		}
		close(b.done)
		return b
	}
	if len(form) > 0 {
		before := len(j.filling.form)
		j.filling.form = records.Append(j.filling.form, form)
		j.size += int64(len(j.filling.form) - before)
		return j.filling
	}
	if len(j.filling.form) > 0 {
		return j.filling
	}
	return j.writing
}

// wait returns when a batch is on disk, and brings it there when nobody else does.
func (j *journal) wait(ctx context.Context, b *batch) error {
	if b == nil {
		return nil
	}
	for {
		select {
		case <-b.done:
			return b.err
		default:
		}
		select {
		case <-b.done:
			return b.err
		case <-ctx.Done():
			return ctx.Err()
		case j.turn <- struct{}{}:
			j.commit()
			<-j.turn
		}
	}
}

// commit writes what has gathered. The turn is held.
func (j *journal) commit() {
	j.mu.Lock()
	b := j.filling
	if len(b.form) == 0 {
		j.mu.Unlock()
		return
	}
	j.filling, j.writing = newBatch(), b
	b.err = j.failed
	j.mu.Unlock()
	if b.err == nil {
		b.err = j.write(b.form)
	}
	j.mu.Lock()
	j.writing = nil
	if b.err != nil && j.failed == nil {
		// A part may be in the file, and after a failed fsync nobody knows which: never again this file.
		j.failed = b.err
		j.logger.Error("the OAuth journal cannot be written", "error", b.err)
	}
	j.mu.Unlock()
	close(b.done)
}

func (j *journal) write(form []byte) error {
	if j.file == nil {
		return storageError("write", os.ErrClosed)
	}
	if err := j.fs.Step("oauth.log.append"); err != nil {
		return storageError("write", err)
	}
	if _, err := j.file.Write(form); err != nil {
		return storageError("write", err)
	}
	if err := j.fs.Step("oauth.log.sync"); err != nil {
		return storageError("sync", err)
	}
	if err := j.file.Sync(); err != nil {
		return storageError("sync", err)
	}
	return nil
}

// wantsBase reports whether a new base should be written: the logs have grown, or cannot be trusted.
func (j *journal) wantsBase() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.closed && (j.failed != nil || j.size > j.limit)
}

func (j *journal) isClosed() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.closed
}

// compact writes a new base and forgets what is older. walk gives the whole store in pieces; changes go on
// meanwhile, into a log that was begun before, unless the old log is not trusted: then they wait.
func (j *journal) compact(ctx context.Context, walk func(sink func(form []byte) error) error) error {
	j.compacting.Lock()
	defer j.compacting.Unlock()
	select {
	case j.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	turn := true
	release := func() {
		if turn {
			turn = false
			<-j.turn
		}
	}
	defer release()
	if j.file == nil {
		return storageError("use", os.ErrClosed)
	}
	if err := j.beginLog(j.number + 1); err != nil {
		j.postpone()
		return err
	}
	j.mu.Lock()
	mending := j.failed
	j.failed = nil // from here on changes gather again; the turn keeps them from the log until the base is there
	j.mu.Unlock()
	if mending == nil {
		release()
	}
	number := j.number
	size, err := j.writeBase(number, walk)
	if err != nil {
		j.postpone()
		if mending != nil {
			j.mu.Lock()
			j.failed = mending
			j.mu.Unlock()
			j.commit() // fails what has gathered
		}
		return err
	}
	j.mu.Lock()
	j.size, j.limit = 0, max(compactAbove, size)
	j.mu.Unlock()
	j.tidy(number)
	return nil
}

// postpone keeps a disk that refuses from being asked again at every change.
func (j *journal) postpone() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.limit = j.size + compactAbove
}

// beginLog makes a log and turns to it. The turn is held, or nobody else has the journal yet.
func (j *journal) beginLog(n uint64) error {
	path := j.path(logKind, n)
	if err := fsx.WriteAtomic(j.fs, "oauth.log.create", path, []byte(logHeader), 0o600); err != nil {
		return storageError("begin a part of", err)
	}
	file, err := records.OpenAppend(path)
	if err != nil {
		return storageError("open", err)
	}
	if j.file != nil {
		if err := j.file.Close(); err != nil {
			j.logger.Warn("an old OAuth journal did not close", "error", err)
		}
	}
	j.file, j.number = file, n
	return nil
}

// writeBase writes a base aside and puts it in its place when it is whole on disk.
func (j *journal) writeBase(n uint64, walk func(sink func(form []byte) error) error) (size int64, err error) {
	path := j.path(baseKind, n)
	temp := fsx.TempName(path)
	defer func() {
		if err != nil {
			_ = j.fs.Remove("oauth.base.clean", temp)
			err = storageError("write anew", err)
		}
	}()
	if err := j.fs.Write("oauth.base.begin", temp, []byte(baseHeader), 0o600); err != nil {
		return 0, err
	}
	file, err := records.OpenAppend(temp)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var frame []byte
	err = walk(func(form []byte) error {
		if j.isClosed() {
			return os.ErrClosed
		}
		if err := j.fs.Step("oauth.base.append"); err != nil {
			return err
		}
		frame = records.Append(frame[:0], form)
		size += int64(len(frame))
		_, err := file.Write(frame)
		return err
	})
	if err != nil {
		return 0, err
	}
	if err := j.fs.Step("oauth.base.sync"); err != nil {
		return 0, err
	}
	if err := file.Sync(); err != nil {
		return 0, err
	}
	if err := j.fs.Rename("oauth.base.rename", temp, path); err != nil {
		return 0, err
	}
	return size, j.fs.SyncDir("oauth.base.dir", j.dir)
}

// tidy removes what is older than a base. What it leaves does no harm and goes the next time.
func (j *journal) tidy(base uint64) {
	files, err := j.files()
	if err == nil {
		for _, list := range []map[uint64]string{files.bases, files.logs} {
			for n, path := range list {
				if n < base {
					err = errors.Join(err, j.fs.Remove("oauth.tidy", path))
				}
			}
		}
		for _, path := range files.temporary {
			err = errors.Join(err, j.fs.Remove("oauth.tidy", path))
		}
	}
	if err != nil {
		j.logger.Warn("old parts of the OAuth journal could not be removed", "error", err)
	}
}

// close makes what has gathered durable and ends the journal.
func (j *journal) close() error {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.compacting.Lock() // the base that is being written is given up
	defer j.compacting.Unlock()
	j.turn <- struct{}{}
	defer func() { <-j.turn }()
	j.commit()
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}
