package oauth

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/records"
)

// openStore reads the journal of a store, or begins one with the section.
func openStore(o storeOptions) (*Store, error) {
	s := newStore(o)
	found, err := s.recover()
	if err != nil {
		return nil, err
	}
	if found {
		return s, nil
	}
	s = newStore(o) // nothing of an unfinished beginning stays
	if len(o.section) > 0 {
		if err := s.read(o.section); err != nil {
			return nil, fmt.Errorf("cannot restore the OAuth state of organization %s: %w", o.organization, err)
		}
	}
	if err := s.journal.begin(s.walkAll); err != nil {
		return nil, err
	}
	return s, nil
}

func newStore(o storeOptions) *Store {
	return &Store{
		opts: o, journal: newJournal(o.fs, o.dir, o.logger),
		clients: make(map[ClientID]*client), requests: make(map[digest]request), users: make(map[id.User]*holder), announced: math.MaxInt64,
	}
}

// parts are the files of a journal by number.
type parts struct {
	bases, logs map[uint64]string
	temporary   []string
}

func (j *journal) files() (parts, error) {
	p := parts{bases: map[uint64]string{}, logs: map[uint64]string{}}
	entries, err := j.fs.ReadDir("oauth.list", j.dir)
	if err != nil {
		return p, fmt.Errorf("cannot list the OAuth journal: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(j.dir, e.Name())
		kind, n, ok := parsePart(e.Name())
		switch {
		case fsx.IsTemp(e.Name()):
			p.temporary = append(p.temporary, path)
		case !ok:
			return p, fmt.Errorf("cannot use %s: %q is no part of an OAuth journal; move it away", j.dir, e.Name())
		case kind == baseKind:
			p.bases[n] = path
		case kind == logKind:
			p.logs[n] = path
		}
	}
	return p, nil
}

// The kinds of parts.
const (
	baseKind = "base"
	logKind  = "log"
)

// partName is the name of a part's file. Parts are counted from 1.
func partName(kind string, n uint64) string { return fmt.Sprintf("%s-%016d", kind, n) }

// parsePart is the inverse of partName; anything else is no part.
func parsePart(name string) (kind string, n uint64, ok bool) {
	kind, number, _ := strings.Cut(name, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	// The last number is left to a part that comes after it.
	return kind, n, err == nil && n > 0 && n < math.MaxUint64 && (kind == baseKind || kind == logKind) && name == partName(kind, n)
}

// begin makes the first log and base of a journal that has none.
func (j *journal) begin(walk func(sink func(form []byte) error) error) error {
	if err := j.beginLog(1); err != nil {
		return err
	}
	_, err := j.writeBase(1, walk)
	if err != nil {
		return errors.Join(err, j.file.Close())
	}
	j.tidy(1)
	return nil
}

// recover reads the newest base and the logs since. Only the end of what was written last may be torn: that
// was never answered for. Anything else that is not whole is damage, and a store that has forgotten which
// codes were used is worse than none.
func (s *Store) recover() (found bool, err error) {
	files, err := s.journal.files()
	if err != nil {
		return false, err
	}
	if len(files.bases) == 0 {
		// The first log without a base: the crash came while that was written. A later one had a base.
		for n := range files.logs {
			if n > 1 {
				return false, fmt.Errorf("cannot use the OAuth journal %s: its base is missing; restore it, or move the directory away", s.opts.dir)
			}
		}
		return false, nil
	}
	s.restoring = make(map[uint64]*grant)
	newest := slices.Max(slices.Collect(maps.Keys(files.bases)))
	size, err := s.readBase(files.bases[newest])
	if err != nil {
		return false, err
	}
	numbers := slices.Sorted(maps.Keys(files.logs))
	numbers = slices.DeleteFunc(numbers, func(n uint64) bool { return n < newest })
	for i, n := range numbers {
		if n != newest+uint64(i) {
			return false, fmt.Errorf("cannot use the OAuth journal %s: part %d is missing; restore it, or move the directory away", s.opts.dir, newest+uint64(i))
		}
	}
	if len(numbers) == 0 {
		return false, fmt.Errorf("cannot use the OAuth journal %s: part %d is missing; restore it, or move the directory away", s.opts.dir, newest)
	}
	if err := s.readLogs(files.logs, numbers); err != nil {
		return false, err
	}
	s.settle()
	s.journal.limit = max(compactAbove, size)
	s.journal.number = numbers[len(numbers)-1]
	if s.journal.file, err = records.OpenAppend(files.logs[s.journal.number]); err != nil {
		return false, fmt.Errorf("cannot open the OAuth journal: %w", err)
	}
	s.journal.tidy(newest)
	return true, nil
}

func (s *Store) readBase(path string) (int64, error) {
	data, err := s.opts.fs.ReadFile("oauth.base.read", path)
	if err != nil {
		return 0, fmt.Errorf("cannot read the OAuth journal: %w", err)
	}
	whole, err := s.readFrames(data, baseHeader)
	if err == nil && whole != len(data) {
		err = fmt.Errorf("byte %d of %d is damaged", whole, len(data))
	}
	if err != nil {
		return 0, fmt.Errorf("cannot use %s: %w; move its directory away to start from the last section", path, err)
	}
	return int64(len(data)), nil
}

// readLogs applies the logs in order and cuts a torn end.
func (s *Store) readLogs(paths map[uint64]string, numbers []uint64) error {
	torn, cut := "", int64(0)
	for _, n := range numbers {
		data, err := s.opts.fs.ReadFile("oauth.log.read", paths[n])
		if err != nil {
			return fmt.Errorf("cannot read the OAuth journal: %w", err)
		}
		whole, err := s.readFrames(data, logHeader)
		if err == nil && whole == 0 {
			err = records.ErrFormat // logs are made whole, with their header
		}
		if err == nil && torn != "" && whole > len(logHeader) {
			err = fmt.Errorf("it goes on after the damaged end of %s", torn)
		}
		if err != nil {
			return fmt.Errorf("cannot use %s: %w; move its directory away to start from the last section", paths[n], err)
		}
		s.journal.size += int64(whole)
		if whole < len(data) {
			torn, cut = paths[n], int64(whole)
		}
	}
	if torn == "" {
		return nil
	}
	s.opts.logger.Warn("the end of the OAuth journal was torn and is cut", "path", torn)
	if err := s.opts.fs.Step("oauth.log.cut"); err != nil {
		return fmt.Errorf("cannot cut the OAuth journal's torn end: %w", err)
	}
	if err := cutFile(torn, cut); err != nil {
		return fmt.Errorf("cannot cut the OAuth journal's torn end: %w", err)
	}
	return nil
}

func cutFile(path string, size int64) error {
	f, err := records.OpenAppend(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

// readFrames applies every whole change in a file. A change that is whole but cannot be understood is an
// error: it was written by another version.
func (s *Store) readFrames(data []byte, header string) (int, error) {
	var wrong error
	whole, err := records.Scan(data, header, largestFrame, func(payload []byte) bool {
		for len(payload) > 0 {
			var r record
			if r, payload, wrong = decodeRecord(payload); wrong != nil {
				return false
			}
			s.apply(&r)
		}
		return true
	})
	return whole, errors.Join(err, wrong)
}

// close ends the store: nothing in it is good and nothing can be changed from then on, and what was answered
// for is on disk. Section still writes it.
func (s *Store) close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	if err := s.journal.close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("cannot close the OAuth journal: %w", err)
	}
	return nil
}
