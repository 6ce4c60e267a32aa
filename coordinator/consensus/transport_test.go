package consensus

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// nothing is a state machine that does nothing.
type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("nothing to save") }
func (nothing) Restore(io.ReadCloser) error         { return nil }

// listening records the heartbeat handlers it is given and the calls that reach it.
type listening struct {
	*raft.InmemTransport
	handlers int
	calls    int
}

func (l *listening) SetHeartbeatHandler(func(raft.RPC)) { l.handlers++ }

func (l *listening) AppendEntries(raft.ServerID, raft.ServerAddress, *raft.AppendEntriesRequest, *raft.AppendEntriesResponse) error {
	l.calls++
	return nil
}

func (l *listening) RequestVote(raft.ServerID, raft.ServerAddress, *raft.RequestVoteRequest, *raft.RequestVoteResponse) error {
	l.calls++
	return nil
}

func (l *listening) RequestPreVote(raft.ServerID, raft.ServerAddress, *raft.RequestPreVoteRequest, *raft.RequestPreVoteResponse) error {
	l.calls++
	return nil
}

func (l *listening) TimeoutNow(raft.ServerID, raft.ServerAddress, *raft.TimeoutNowRequest, *raft.TimeoutNowResponse) error {
	l.calls++
	return nil
}

func (l *listening) InstallSnapshot(raft.ServerID, raft.ServerAddress, *raft.InstallSnapshotRequest, *raft.InstallSnapshotResponse, io.Reader) error {
	l.calls++
	return nil
}

func newListening() *listening {
	_, mem := raft.NewInmemTransport("here")
	return &listening{InmemTransport: mem}
}

func openNothing(t *testing.T, change func(*Options)) *Node {
	t.Helper()
	opts := Options{NodeID: "c1", Dir: t.TempDir(), FSM: nothing{}, SegmentSize: minSegmentSize}
	change(&opts)
	n, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// TestHeartbeatsStayInOrder fails when the library is given a transport that passes its heartbeat handler
// on: hashicorp/raft #695. The handler may come back only when a release of the library fixes it.
func TestHeartbeatsStayInOrder(t *testing.T) {
	t.Parallel()
	fake := newListening()
	openNothing(t, func(o *Options) { o.Transport = fake })
	if fake.handlers != 0 {
		t.Errorf("the library set its heartbeat handler %d times on the transport", fake.handlers)
	}
	// The network transports go the same way.
	n := openNothing(t, func(o *Options) { o.Listen = "127.0.0.1:0" })
	var given raft.Transport = n.transport
	if _, ok := given.(*ordered); !ok {
		t.Errorf("the library was given a %T", given)
	}
	if _, ok := given.(raft.WithPreVote); !ok {
		t.Error("pre-vote is off")
	}
}

func TestClosedTransportSendsNothing(t *testing.T) {
	t.Parallel()
	fake := newListening()
	o, err := newOrdered(fake, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]func() error{
		"AppendEntries":         func() error { return o.AppendEntries("", "", nil, nil) },
		"RequestVote":           func() error { return o.RequestVote("", "", nil, nil) },
		"RequestPreVote":        func() error { return o.RequestPreVote("", "", nil, nil) },
		"TimeoutNow":            func() error { return o.TimeoutNow("", "", nil, nil) },
		"InstallSnapshot":       func() error { return o.InstallSnapshot("", "", nil, nil, nil) },
		"AppendEntriesPipeline": func() error { _, err := o.AppendEntriesPipeline("", "here"); return err },
	}
	fake.Connect("here", fake.InmemTransport)
	open, err := o.AppendEntriesPipeline("", "here")
	if err != nil {
		t.Fatal(err)
	}
	for name, call := range all {
		if name != "AppendEntriesPipeline" && call() != nil {
			t.Errorf("%s does not reach the transport below", name)
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	before := fake.calls
	for name, call := range all {
		if err := call(); !errors.Is(err, raft.ErrTransportShutdown) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if _, err := open.AppendEntries(nil, nil); !errors.Is(err, raft.ErrPipelineShutdown) {
		t.Errorf("an open pipeline after Close: %v", err)
	}
	if before != 5 || fake.calls != before {
		t.Errorf("%d calls before and %d after Close", before, fake.calls)
	}
}

// bare is a transport without pre-vote.
type bare struct{ raft.Transport }

func TestTransportNeedsPreVote(t *testing.T) {
	t.Parallel()
	_, err := Open(Options{NodeID: "c1", Dir: t.TempDir(), FSM: nothing{}, Transport: bare{newListening()}})
	if err == nil {
		t.Fatal("a transport without pre-vote was taken")
	}
}

func TestUnreachedMembersAreThoseThatTakeNothingForAWhile(t *testing.T) {
	t.Parallel()
	var u unreached
	first, latest := errors.New("refused"), errors.New("no route")
	at := func(s int) time.Time { return time.Unix(1000+int64(s), 0) }
	u.note("c2", nil, at(0))
	u.note("c3", first, at(0))
	u.note("c4", first, at(0))
	u.note("c4", nil, at(1))
	u.note("c4", first, at(2))
	u.note("c3", latest, at(3))
	for _, c := range []struct {
		now  int
		want []string
	}{{3, nil}, {4, []string{"c3"}}, {6, []string{"c3", "c4"}}} {
		got := u.longer(3*time.Second, at(c.now))
		if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, c.want) {
			t.Errorf("after %d s: %v, want %v", c.now, names, c.want)
		}
		if e := got["c3"]; e != nil && !errors.Is(e, latest) {
			t.Errorf("the cause is %v, want that of the latest try", e)
		}
	}
	u.note("c3", nil, at(7))
	if got := u.longer(0, at(9)); len(got) != 1 || got["c4"] == nil {
		t.Errorf("after c3 took something: %v", got)
	}
}

func TestTooManySnapshots(t *testing.T) {
	t.Parallel()
	o, err := newOrdered(newListening(), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	for i, want := range []bool{false, false, false, true, true} {
		if got := o.tooMany("c2", now.Add(time.Duration(i)*time.Second)); got != want {
			t.Errorf("snapshot %d to c2: alarm %v", i+1, got)
		}
		if o.tooMany("c3", now.Add(time.Duration(i)*snapshotWindow)) {
			t.Errorf("snapshot %d to c3, a minute after the last: alarm", i+1)
		}
	}
	if got := o.snapshots(); got["c2"] != 5 || got["c3"] != 5 || len(got) != 2 {
		t.Errorf("counted %v", got)
	}
}
