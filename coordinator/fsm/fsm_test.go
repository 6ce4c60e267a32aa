package fsm_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
)

// goldenOrder is an order in which the golden commands fit together, so that they do something.
var goldenOrder = []string{
	"init_cluster", "put_pool", "put_organization", "edit_organization", "observe_host", "create_gateways", "reserve",
	"confirm", "relocate", "place", "fail", "release", "quarantine_gateway", "recycle_gateway", "renew_gateways", "note_pool", "set_host_schedulable",
	"drain_host", "note_drain", "set_host_status", "lose_host", "put_token", "delete_token", "record_events", "delete_organization", "retire_gateways", "delete_pool",
	"put_trust", "put_join_token", "delete_join_token", "enroll", "delete_enrolment", "delete_host", "collect",
}

// TestGoldenCommandsApply applies the bytes of every version ever written.
func TestGoldenCommandsApply(t *testing.T) {
	files, err := filepath.Glob("../command/testdata/*.golden")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	m := newMachine(t)
	applied := map[string]bool{}
	apply := func(path string) {
		applied[path] = true
		m.index++
		answer := m.fsm.Apply(&raft.Log{Index: m.index, Type: raft.LogCommand, Data: readFile(t, path)})
		if _, ok := answer.(command.Result); !ok {
			t.Errorf("%s: answered %T", path, answer)
		}
		if err := m.store.Check(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, name := range goldenOrder {
		versions, _ := filepath.Glob("../command/testdata/" + name + ".v*.golden")
		for _, path := range versions {
			apply(path)
		}
	}
	for _, path := range files {
		if !applied[path] {
			t.Errorf("%s is not in the order of this test", path)
		}
	}
	if v := m.store.View(); v.Index() != uint64(len(files)) || v.Cluster() != "c1" {
		t.Fatalf("index %d, cluster %q", v.Index(), v.Cluster())
	}
}

func TestUnknownCommandStops(t *testing.T) {
	for name, data := range map[string]string{
		"unknown type": "\x63\x01{}", "unknown version": "\x02\x09{}", "damaged": "\x02\x01{", "empty": "",
	} {
		t.Run(name, func(t *testing.T) {
			m := small(t, 1)
			before := m.store.Checkpoint().Hash()
			good := m.entry(m.reserveOf(1, 1))
			bad := &raft.Log{Index: good.Index + 1, Type: raft.LogCommand, Data: []byte(data)}
			defer func() {
				if r := recover(); r == nil || !strings.Contains(r.(string), "cannot apply entry") {
					t.Fatalf("recovered %v", r)
				}
				if m.store.Checkpoint().Hash() != before {
					t.Fatal("a part of the batch took effect")
				}
			}()
			m.fsm.ApplyBatch([]*raft.Log{good, bad})
		})
	}
}

func TestSkippableCommandIsPassedOver(t *testing.T) {
	m := small(t, 1)
	before := m.records()
	r := m.fsm.Apply(&raft.Log{Index: m.index + 1, Type: raft.LogCommand, Data: []byte{byte(command.Skippable | 99), 7, 0xff}})
	if r.(command.Result).Err != nil || m.records() != before || m.store.View().Index() != m.index+1 {
		t.Fatalf("%+v", r)
	}
}

// TestBatch: entries see what earlier ones of the batch did, entries of other kinds are answered nil, and a
// batch without a command leaves the index.
func TestBatch(t *testing.T) {
	m := small(t, 1)
	index := m.store.View().Index()
	m.fsm.ApplyBatch([]*raft.Log{{Index: m.index + 1, Type: raft.LogConfiguration}})
	if got := m.store.View().Index(); got != index {
		t.Fatalf("index %d after a configuration entry, was %d", got, index)
	}
	answers := m.fsm.ApplyBatch([]*raft.Log{
		m.entry(m.reserveOf(1, 1)),
		{Index: m.index, Type: raft.LogConfiguration},
		m.entry(m.reserveOf(1, 2)),
		m.entry(m.reserveOf(2, 3)),
	})
	if answers[1] != nil {
		t.Fatalf("a configuration entry was answered %v", answers[1])
	}
	first, again, other := answers[0].(command.Result).Reserved[0], answers[2].(command.Result).Reserved[0], answers[3].(command.Result).Reserved[0]
	if first.Err != nil || !again.Existing || again.Allocation != alID(1) || other.Err == nil {
		t.Fatalf("%+v, %+v, %+v", first, again, other)
	}
	if err := m.store.Check(); err != nil {
		t.Fatal(err)
	}
}

// TestFixtureOfVersion1: a snapshot and the log behind it, as version 1 wrote them, still give the state
// that they gave then.
func TestFixtureOfVersion1(t *testing.T) {
	const dir = "testdata/v1"
	if _, err := os.Stat(dir); *update && errors.Is(err, os.ErrNotExist) {
		writeFixture(t, dir)
	}
	m := newMachine(t)
	restore(t, m.fsm, string(readFile(t, dir, "state.snap")))
	lines := strings.Split(strings.TrimSpace(string(readFile(t, dir, "log.hex"))), "\n")
	for _, line := range lines {
		m.fsm.Apply(fromLine(t, line))
		if err := m.store.Check(); err != nil {
			t.Fatal(err)
		}
	}
	var got strings.Builder
	got.WriteString(records(m.store.View()))
	events, _, _ := m.store.Events(state.EventID{}, state.KeptEvents)
	for _, e := range events {
		got.WriteString(e.Type + "\n")
	}
	if want := string(readFile(t, dir, "records.txt")); got.String() != want {
		t.Fatalf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestRestoreRefusesAndKeeps(t *testing.T) {
	m := small(t, 2)
	m.active(1, 1)
	saved := m.snapshot()
	if err := fsm.Check(strings.NewReader(saved)); err != nil {
		t.Fatal(err)
	}
	change := func(at int, by byte) string {
		b := []byte(saved)
		b[at] ^= by
		return string(b)
	}
	target := small(t, 1)
	before, restored := target.store.Checkpoint().Hash(), target.store.Restored()
	refuse := func(what, data, text string) {
		t.Helper()
		for _, err := range []error{target.fsm.Restore(closer{strings.NewReader(data)}), fsm.Check(strings.NewReader(data))} {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Fatalf("%s: %v, want %q", what, err, text)
			}
		}
		if target.store.Checkpoint().Hash() != before {
			t.Fatalf("%s: a refused snapshot changed the state", what)
		}
	}
	refuse("empty", "", "not one of this program")
	refuse("another file", strings.Repeat("x", 100), "not one of this program")
	refuse("a newer version", change(14, 3), "its version is 2 and this program reads 1")
	refuse("more behind", saved+"x", "more after its end")
	refuse("without checksum", saved[:len(saved)-32], "ends before its checksum")
	for n := 0; n < len(saved); n += 43 {
		refuse("cut", saved[:n], "cannot restore the snapshot")
		refuse("a flipped bit", change(n, 1<<(n%8)), "cannot restore the snapshot")
	}
	select {
	case <-restored:
		t.Fatal("watchers were told of a restore that was refused")
	default:
	}
	restore(t, target.fsm, saved)
	<-restored
	if target.store.Checkpoint().Hash() != m.store.Checkpoint().Hash() {
		t.Fatal("the restored state is another one")
	}
	if err := target.store.Check(); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotIsOfOneMoment: what is applied while a snapshot is written is not in it.
func TestSnapshotIsOfOneMoment(t *testing.T) {
	m := small(t, 2)
	want := m.store.Checkpoint().Hash()
	s, err := m.fsm.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release()
	m.active(1, 1)
	var sink memorySink
	if err := s.Persist(&sink); err != nil {
		t.Fatal(err)
	}
	other := newMachine(t)
	restore(t, other.fsm, sink.String())
	if got := other.store.Checkpoint().Hash(); got != want {
		t.Fatal("the snapshot has later changes")
	}
}

type brokenSink struct{ memorySink }

func (*brokenSink) Write([]byte) (int, error) { return 0, os.ErrInvalid }

func TestSnapshotThatCannotBeWrittenIsCanceled(t *testing.T) {
	m := small(t, 1)
	s, err := m.fsm.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var sink brokenSink
	if err := s.Persist(&sink); err == nil || !sink.canceled {
		t.Fatalf("%v, canceled: %v", err, sink.canceled)
	}
}
