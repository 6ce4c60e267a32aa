package lease_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/lease"
	"github.com/demiurge-platform/demiurge/shared/fsx"
)

const length = 8 * time.Second

// machine is a machine with a clock that a test sets.
type machine struct {
	t    *testing.T
	fs   fsx.FS
	dir  string
	boot string
	now  lease.Instant
}

func newMachine(t *testing.T) *machine {
	dir := t.TempDir()
	files, err := fsx.NewOS(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	return &machine{t: t, fs: files, dir: dir, boot: "b1", now: lease.Instant(time.Hour)}
}

func (m *machine) open() *lease.Lease {
	m.t.Helper()
	l, err := lease.Open(lease.Options{FS: m.fs, Dir: m.dir, Boot: m.boot, Clock: func() lease.Instant { return m.now }, Logger: hclog.NewNullLogger()})
	if err != nil {
		m.t.Fatal(err)
	}
	return l
}

func (m *machine) pass(d time.Duration) { m.now += lease.Instant(d) }

func (m *machine) want(l *lease.Lease, held bool, when string) {
	m.t.Helper()
	if got := l.Held(length); got != held {
		m.t.Errorf("%s: held is %t", when, got)
	}
}

// The lease counts from the sending of the word, however long its answer took.
func TestItCountsFromTheSending(t *testing.T) {
	m := newMachine(t)
	l := m.open()
	m.want(l, false, "before anything was acknowledged")
	sent := l.Now()
	m.pass(5 * time.Second)
	l.Renewed(sent, 10, length)
	m.want(l, false, "before an assignment that is as new")
	l.Assigned(9)
	m.want(l, false, "with an older assignment")
	l.Assigned(10)
	m.want(l, true, "renewed")
	m.pass(3*time.Second - 1)
	m.want(l, true, "right before its end")
	m.pass(1)
	m.want(l, false, "at its end")
	if !l.Held(2 * length) {
		t.Error("a longer lease has ended too")
	}
}

// Renewals in time need no new assignment. After a lapse somebody else may serve: what was wanted before it
// does not count any more. A machine that slept through the lapse is no exception.
func TestAfterALapseTheAssignmentMustBeNew(t *testing.T) {
	m := newMachine(t)
	l := m.open()
	l.Renewed(l.Now(), 10, length)
	l.Assigned(10)
	for range 10 {
		m.pass(length - 1)
		m.want(l, true, "renewed in time")
		l.Renewed(l.Now(), 50, length)
	}
	m.pass(length) // unseen by anybody
	l.Renewed(l.Now(), 60, length)
	m.want(l, false, "after a lapse, with an assignment of before")
	l.Assigned(59)
	m.want(l, false, "with one that is not new enough")
	l.Assigned(61)
	m.want(l, true, "with a newer one")
}

// Answers may overtake each other; an older one says nothing new.
func TestAnOldAnswerDoesNotCount(t *testing.T) {
	m := newMachine(t)
	l := m.open()
	first := l.Now()
	m.pass(4 * time.Second)
	second := l.Now()
	l.Renewed(second, 10, length)
	l.Assigned(10)
	l.Renewed(first, 10, length)
	m.pass(length - 1)
	m.want(l, true, "counted from the second")
}

// A restarted agent goes on with the lease; a restarted machine has none.
func TestALeaseOutlivesTheAgentAndNotTheMachine(t *testing.T) {
	m := newMachine(t)
	l := m.open()
	l.Renewed(l.Now(), 10, length)
	l.Assigned(10)
	m.pass(4 * time.Second)
	m.want(m.open(), true, "the next run of the agent")
	m.pass(4 * time.Second)
	m.want(m.open(), false, "the next run, too late")
	l.Renewed(l.Now(), 11, length)
	m.boot = "b2"
	m.want(m.open(), false, "another start of the machine")
	m.boot = "b1"
	m.now = lease.Instant(time.Minute) // a clock that cannot be
	m.want(m.open(), false, "a word from the future")
	if err := os.WriteFile(filepath.Join(m.dir, "lease.json"), []byte(`{"bo`), 0o600); err != nil {
		t.Fatal(err)
	}
	m.want(m.open(), false, "a damaged record")
}

// The clock counts from the start of the machine, and an agent is started soon after that: a machine that is younger than
// a lease is long has none before the first word is acknowledged, nor before it was told what to serve since.
func TestAMachineThatHasJustStartedHasNoLease(t *testing.T) {
	m := newMachine(t)
	m.now = lease.Instant(time.Second)
	l := m.open()
	m.want(l, false, "before anything was acknowledged")
	l.Assigned(9)
	m.want(l, false, "with an assignment, before anything was acknowledged")
	l.Renewed(l.Now(), 10, length)
	m.want(l, false, "with an assignment of before")
	l.Assigned(10)
	m.want(l, true, "with one that is as new")
}

// While no lease counts, a renewal asks for no newer assignment: nobody makes one, for nothing was given to another.
func TestWithoutALeaseThatCountsAssignmentsDoNotAge(t *testing.T) {
	m := newMachine(t)
	l := m.open()
	l.Renewed(l.Now(), 10, 0)
	l.Assigned(10)
	m.pass(time.Hour)
	l.Renewed(l.Now(), 50, 0)
	m.want(l, true, "with the assignment of before")
}

// The system's own clock and name of the start are there.
func TestTheSystemHasWhatItTakes(t *testing.T) {
	m := newMachine(t)
	l, err := lease.Open(lease.Options{FS: m.fs, Dir: m.dir, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	before := l.Now()
	l.Renewed(before, 0, time.Hour)
	if l.Now() < before || !l.Held(time.Hour) {
		t.Error("a lease of an hour has ended at once")
	}
	again, err := lease.Open(lease.Options{FS: m.fs, Dir: m.dir, Logger: hclog.NewNullLogger()})
	if err != nil || !again.Held(time.Hour) {
		t.Errorf("the next run does not have it: %v", err)
	}
}

// FuzzOpen: whatever the file of the lease holds, it is a lease of this start of the machine that was renewed before now,
// and no lease goes on for longer than it is.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	files, err := fsx.NewOS(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = files.Close() })
	const now, length = lease.Instant(time.Hour), time.Minute
	f.Add([]byte(`{"boot":"b","sent":3599000000000}`))
	f.Add([]byte(`{"boot":"a","sent":3599000000000}`))
	f.Add([]byte(`{"boot":"b","sent":3600000000001}`))
	f.Add([]byte(`{"boot":"b","sent":-9223372036854775808}`))
	f.Add([]byte(`{"boot":"b","sent":9223372036854775808}`))
	f.Add([]byte(`{"boot":"b","sent":3599000000000`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, "lease.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		at := now
		l, err := lease.Open(lease.Options{FS: files, Dir: dir, Boot: "b", Clock: func() lease.Instant { return at }, Logger: hclog.NewNullLogger()})
		if err != nil {
			t.Fatalf("an agent does not start: %v", err)
		}
		if l.Held(length) && !bytes.Contains(data, []byte("b")) {
			t.Fatalf("%q is a lease of this start", data)
		}
		at += lease.Instant(length)
		if l.Held(length) {
			t.Fatalf("%q goes on after its end", data)
		}
	})
}
