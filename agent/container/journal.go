package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/records"
)

// journal is what of a registry is on disk: one file of entries, of which the last one of a key counts. It
// is written and synced before a change is seen, so whoever owns it holds Registry.writing.
//
// After a write or sync that failed nobody knows what is in the file: it is never appended to again, and the
// next change writes it anew as a whole.
type journal struct {
	fs     fsx.FS
	path   string
	logger hclog.Logger
	file   *os.File
	values map[string]json.RawMessage
	size   int64 // of the file
	live   int64 // of the values in it
	broken bool
}

// line is one entry: the value that a key has from then on, or none.
type line struct {
	Key   string          `json:"k"`
	Value json.RawMessage `json:"v,omitempty"`
}

const (
	journalHeader = "demiurge container journal 1\n"

	// largestLine bounds one entry; a container with all that it may have takes some 50 KiB.
	largestLine = 1 << 20
	// compactAbove is the size below which the file is never written anew.
	compactAbove = 256 << 10
)

// ErrStorage says that the host's disk does not take changes.
var ErrStorage = errors.New("the host's disk does not take changes")

// readJournal reads the file at a path. found is false when there is none: then nothing is made yet.
func readJournal(fsys fsx.FS, path string, logger hclog.Logger) (j *journal, found bool, err error) {
	j = &journal{fs: fsys, path: path, logger: logger, values: map[string]json.RawMessage{}}
	data, err := fsys.ReadFile("container.journal.read", path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("cannot read the journal of containers: %w", err)
	}
	whole, err := records.Scan(data, journalHeader, largestLine, func(payload []byte) bool {
		var l line
		if json.Unmarshal(payload, &l) != nil || l.Key == "" {
			return false
		}
		j.set(l)
		return true
	})
	if err == nil && whole == 0 {
		err = records.ErrFormat // it is made whole, with its header
	}
	if err != nil {
		return nil, false, fmt.Errorf("cannot use %s: %w; move it away to start from the last section", path, err)
	}
	if whole < len(data) {
		logger.Warn("the end of the journal of containers was torn and is cut", "path", path, "bytes", len(data)-whole)
		if err := j.cut(int64(whole)); err != nil {
			return nil, false, fmt.Errorf("cannot cut the torn end of the journal of containers: %w", err)
		}
	}
	if j.file, err = records.OpenAppend(path); err != nil {
		return nil, false, fmt.Errorf("cannot open the journal of containers: %w", err)
	}
	j.size = int64(whole)
	return j, true, nil
}

func (j *journal) cut(size int64) error {
	if err := j.fs.Step("container.journal.cut"); err != nil {
		return err
	}
	f, err := records.OpenAppend(j.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

func (j *journal) set(l line) {
	if old, ok := j.values[l.Key]; ok {
		j.live -= cost(l.Key, old)
		delete(j.values, l.Key)
	}
	if len(l.Value) > 0 {
		j.values[l.Key] = slices.Clone(l.Value)
		j.live += cost(l.Key, l.Value)
	}
}

func cost(key string, value json.RawMessage) int64 {
	return int64(len(key) + len(value) + records.PrefixSize + 16)
}

// put makes a value durable; nil forgets the key. What cannot be written is remembered all the same when keep
// is set: it is in the file with the next change that can.
func (j *journal) put(key string, value any, keep bool) error {
	l := line{Key: key}
	if value != nil {
		var err error
		if l.Value, err = json.Marshal(value); err != nil {
			return fmt.Errorf("cannot encode %s for the journal of containers: %w", key, err)
		}
	}
	before, had := j.values[key]
	j.set(l)
	err := j.write(l)
	if err == nil {
		return nil
	}
	j.broken = true
	if !keep {
		if !had {
			before = nil
		}
		j.set(line{Key: key, Value: before})
	}
	j.logger.Error("the journal of containers cannot be written", "error", err)
	return fmt.Errorf("cannot write the journal of containers: %w: %w", ErrStorage, err)
}

func (j *journal) write(l line) error {
	if j.file == nil || j.broken || j.size > compactAbove && j.size > 4*j.live {
		return j.rewrite()
	}
	form, err := appendLine(nil, l)
	if err != nil {
		return err
	}
	if err := j.fs.Step("container.journal.append"); err != nil {
		return err
	}
	if _, err := j.file.Write(form); err != nil {
		return err
	}
	if err := j.fs.Step("container.journal.sync"); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.size += int64(len(form))
	return nil
}

// rewrite puts a file with the present values in the place of the journal. The old one stays until the new
// one is whole on disk.
func (j *journal) rewrite() error {
	form := []byte(journalHeader)
	for _, key := range slices.Sorted(maps.Keys(j.values)) {
		var err error
		if form, err = appendLine(form, line{key, j.values[key]}); err != nil {
			return err
		}
	}
	j.broken = true // until the end
	if err := fsx.WriteAtomic(j.fs, "container.journal.rewrite", j.path, form, 0o600); err != nil {
		return err
	}
	file, err := records.OpenAppend(j.path)
	if err != nil {
		return err
	}
	if j.file != nil {
		if err := j.file.Close(); err != nil {
			j.logger.Warn("the old journal of containers did not close", "error", err)
		}
	}
	j.file, j.size, j.broken = file, int64(len(form)), false
	return nil
}

func appendLine(buf []byte, l line) ([]byte, error) {
	payload, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return records.Append(buf, payload), nil
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}
