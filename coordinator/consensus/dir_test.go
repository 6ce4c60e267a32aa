package consensus_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// used gives a directory that a node has used, with some lines in it.
func used(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	n := open(t, options(dir, &ledger{}))
	leads(t, n)
	proposeMany(t, n, "x", 3)
	if err := n.Snapshot(within(t)); err != nil {
		t.Fatal(err)
	}
	shut(t, n)
	return dir
}

func TestDirectoriesThatAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"garbage version":   {func(t *testing.T, dir string) { write(t, dir+"/VERSION", "\x00\x01") }, "its VERSION file is damaged"},
		"empty version":     {func(t *testing.T, dir string) { write(t, dir+"/VERSION", "") }, "its VERSION file is damaged"},
		"newer format":      {func(t *testing.T, dir string) { write(t, dir+"/VERSION", `{"format":2,"node_id":"c1"}`) }, "has format 2 and this program reads format 1"},
		"newer, and unlike": {func(t *testing.T, dir string) { write(t, dir+"/VERSION", `{"format":2,"node":{"id":"c1"}}`) }, "run the program version that wrote it"},
		"half a version":    {func(t *testing.T, dir string) { write(t, dir+"/VERSION", `{"format":1,"node_id":"c1"}}`) }, "its VERSION file is damaged"},
		"another node":      {func(t *testing.T, dir string) { write(t, dir+"/VERSION", `{"format":1,"node_id":"c7"}`) }, `belongs to node "c7" and this is node "c1"`},
		"no version":        {func(t *testing.T, dir string) { remove(t, dir+"/VERSION") }, "but no VERSION file"},
		"garbage log index": {func(t *testing.T, dir string) { write(t, dir+"/wal/wal-meta.db", strings.Repeat("junk", 4096)) }, "cannot open the log"},
		"stray log file":    {func(t *testing.T, dir string) { write(t, dir+"/wal/stray.wal", "junk") }, "cannot open the log"},
		"garbage mark":      {func(t *testing.T, dir string) { write(t, dir+"/CLOSED", "junk") }, "if the rest of the directory is sound, remove this file"},
		"mark of nothing":   {func(t *testing.T, dir string) { write(t, dir+"/CLOSED", `{}`) }, "if the rest of the directory is sound, remove this file"},
		"log cut short":     {func(t *testing.T, dir string) { write(t, dir+"/CLOSED", `{"last_index":1000}`) }, "ended with entry 1000 when the node was closed"},
		"garbage snapshots": {func(t *testing.T, dir string) { spoilAll(t, dir+"/snapshots/*/state.bin") }, "cannot start the Raft node"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := used(t)
			c.spoil(t, dir)
			_, err := consensus.Open(options(dir, &ledger{}))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want a refusal with %q, got %v", c.want, err)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func spoilAll(t *testing.T, pattern string) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("nothing to spoil at %s: %v", pattern, err)
	}
	for _, path := range paths {
		write(t, path, "[\"something else\"]")
	}
}

func TestForeignDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/notes.txt", "mine")
	if _, err := consensus.Open(options(dir, &ledger{})); err == nil || !strings.Contains(err.Error(), "it holds notes.txt but no VERSION file") {
		t.Errorf("a directory of somebody else: %v", err)
	}
	below := t.TempDir() + "/file"
	write(t, below, "")
	if _, err := consensus.Open(options(below+"/data", &ledger{})); err == nil || !strings.Contains(err.Error(), "cannot make the data directory") {
		t.Errorf("a directory below a file: %v", err)
	}
}

func TestDirectoryInUseIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, options(dir, &ledger{}))
	if _, err := consensus.Open(options(dir, &ledger{})); err == nil || !strings.Contains(err.Error(), "another running process holds it") {
		t.Errorf("a directory in use: %v", err)
	}
	leads(t, n)
	shut(t, n)
	leads(t, open(t, options(dir, &ledger{})))
}

func TestFullDiskIsRefused(t *testing.T) {
	t.Parallel()
	opts := options(t.TempDir(), &ledger{})
	opts.SegmentSize = math.MaxInt >> 2
	if _, err := consensus.Open(opts); err == nil || !strings.Contains(err.Error(), "its disk is full") {
		t.Errorf("a disk with too little room: %v", err)
	}
}

// TestLeftoversOfACrash: a first start cut short, and a restore cut short.
func TestLeftoversOfACrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/LOCK", "")
	write(t, dir+"/VERSION.tmp", `{"for`)
	write(t, dir+"/probe.tmp", "")
	n := open(t, options(dir, &ledger{}))
	leads(t, n)
	shut(t, n)
	write(t, dir+"/restore.tmp123", "half")
	leads(t, open(t, options(dir, &ledger{})))
	if _, err := os.Stat(dir + "/restore.tmp123"); !os.IsNotExist(err) {
		t.Errorf("the leftover of a restore is still there: %v", err)
	}
}

// copyDir is what a crash leaves: the files as they are at this moment.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestCrashCopyKeepsWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, options(dir, &ledger{}))
	leads(t, n)
	want := proposeMany(t, n, "acked", 20)
	crashed := copyDir(t, dir)
	torn := copyDir(t, dir)
	proposeMany(t, n, "later", 5)

	state := &ledger{}
	leads(t, open(t, options(crashed, state)))
	same(t, state.all(), want)

	// The write after the copy was cut short by a power loss: part of it is on the disk.
	tail := lastSegment(t, torn)
	raw, err := os.ReadFile(tail)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(lastSegment(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	begin := 0
	for begin < len(raw) && raw[begin] == whole[begin] {
		begin++ // the first byte of the first later entry
	}
	if begin == len(raw) {
		t.Fatal("the later entries are not in the last log file")
	}
	copy(raw[begin:], whole[begin:begin+20])
	write(t, tail, string(raw))
	state = &ledger{}
	again := open(t, options(torn, state))
	leads(t, again)
	same(t, state.all(), want)
	propose(t, again, "and on")
	same(t, state.all(), append(want, "and on"))
}

// TestEveryFlipInTheLogIsNoticed turns bytes all over the used part of a log that was closed in good order:
// the node refuses it, or nothing of its content has changed.
func TestEveryFlipInTheLogIsNoticed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, options(dir, &ledger{}))
	leads(t, n)
	want := proposeMany(t, n, "acked", 12)
	shut(t, n)
	raw, err := os.ReadFile(lastSegment(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(raw, "\x00"))
	refused := 0
	const step = 53 // coprime to the 8 bytes of a frame's header, so that every part of one is met
	for i := 0; i < end; i += step {
		spoiled := copyDir(t, dir)
		bad := bytes.Clone(raw)
		bad[i] ^= 1 << (i % 8)
		write(t, lastSegment(t, spoiled), string(bad))
		state := &ledger{}
		again, err := consensus.Open(options(spoiled, state))
		if err != nil {
			refused++
			continue
		}
		leads(t, again)
		same(t, state.all(), want)
		shut(t, again)
	}
	if total := (end + step - 1) / step; refused < total/4 {
		t.Errorf("%d of %d damaged logs were refused", refused, total)
	} else {
		t.Logf("%d of %d damaged logs were refused, the others had all their content", refused, total)
	}
}

func lastSegment(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(dir + "/wal/*.wal")
	if err != nil || len(files) == 0 {
		t.Fatalf("no log files in %s: %v", dir, err)
	}
	return files[len(files)-1]
}

var _ raft.BatchingFSM = (*ledger)(nil)

// TestLogFileLeftHalfReadyIsRemoved: a crash leaves the next log file as far as it was written; whoever opens the
// directory afterwards begins another, and a close leaves none.
func TestLogFileLeftHalfReadyIsRemoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, options(dir, &ledger{}))
	leads(t, n)
	want := proposeMany(t, n, "before", 3)
	shut(t, n)
	left := filepath.Join(dir, "wal", "next")
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a close leaves the next log file: %v", err)
	}
	if err := os.WriteFile(left, []byte("of a crash"), 0o600); err != nil {
		t.Fatal(err)
	}
	state := &ledger{}
	n = open(t, options(dir, state))
	leads(t, n)
	same(t, state.all(), want)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a crash left is still there: %v", err)
	}
}

// forgetful is a store in which the record of the last vote is damaged.
type forgetful struct{ consensus.Store }

func (s forgetful) Get(key []byte) ([]byte, error) {
	if strings.HasSuffix(string(key), "Vote") {
		return []byte("short"), nil
	}
	return s.Store.Get(key)
}

// TestDamagedVoteIsRefused: the library would say so in its log alone, and the node would never vote.
func TestDamagedVoteIsRefused(t *testing.T) {
	t.Parallel()
	opts := options(used(t), &ledger{})
	opts.WrapStore = func(s consensus.Store) consensus.Store { return forgetful{s} }
	if _, err := consensus.Open(opts); err == nil || !strings.Contains(err.Error(), "cannot read the last vote") || !strings.Contains(err.Error(), "let the node join again") {
		t.Errorf("with a damaged vote: %v", err)
	}
}
