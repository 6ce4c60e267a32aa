package consensus_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

func TestSaveAndRestore(t *testing.T) {
	t.Parallel()
	old := open(t, options(t.TempDir(), &ledger{}))
	leads(t, old)
	var file bytes.Buffer
	if err := old.SaveSnapshot(within(t), &file); err == nil && file.Len() == 0 {
		t.Error("saving an empty node gave neither a file nor an error")
	}
	want := proposeMany(t, old, "kept", 20)
	index := propose(t, old, "last")
	want = append(want, "last")
	file.Reset()
	if err := old.SaveSnapshot(within(t), &file); err != nil {
		t.Fatal(err)
	}

	dir, state := t.TempDir(), &ledger{}
	opts := options(dir, state)
	n := open(t, opts)
	leads(t, n)
	proposeMany(t, n, "gone", 3)
	if err := n.RestoreSnapshot(within(t), bytes.NewReader(file.Bytes())); err != nil {
		t.Fatal(err)
	}
	same(t, state.all(), want)
	// Whatever the other one wrote after the snapshot, and nobody knows any more, had lower indexes.
	if next := propose(t, n, "next"); next < index+1<<32 {
		t.Errorf("index %d after the restore is not far above the snapshot's %d", next, index)
	}
	want = append(want, "next")
	shut(t, n)

	again := &ledger{}
	opts.FSM = again
	leads(t, open(t, opts))
	same(t, again.all(), want)
}

func TestRestoreRefusesWhatItCannotRead(t *testing.T) {
	t.Parallel()
	state := &ledger{}
	opts := options(t.TempDir(), state)
	opts.CheckSnapshot = func(r io.Reader) error {
		lines, err := readLines(r)
		if len(lines) > 2 {
			return errors.New("too many lines for this version")
		}
		return err
	}
	n := open(t, opts)
	leads(t, n)
	proposeMany(t, n, "a", 3)
	var file bytes.Buffer
	if err := n.SaveSnapshot(within(t), &file); err != nil {
		t.Fatal(err)
	}
	propose(t, n, "b")
	before := state.all()

	damaged := bytes.Clone(file.Bytes())
	damaged[len(damaged)/2] ^= 1
	newer := bytes.Clone(file.Bytes())
	newer[8]++
	for want, file := range map[string][]byte{
		"cannot read its content": file.Bytes(),
		"damaged":                 damaged,
		"has format 2":            newer,
		"not a snapshot":          []byte("#!/bin/sh, and more than sixteen bytes"),
		"not whole":               file.Bytes()[:file.Len()-1],
	} {
		err := n.RestoreSnapshot(within(t), bytes.NewReader(file))
		if !fault.Is(err, fault.InvalidRequest) || !strings.Contains(err.Error(), want) {
			t.Errorf("want a refusal with %q, got %v", want, err)
		}
		same(t, state.all(), before)
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := n.RestoreSnapshot(gone, bytes.NewReader(file.Bytes())); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that is gone: %v", err)
	}
	propose(t, n, "still works")
}

// A restore copies the file twice, and keeps neither: they are as large as the state, and have no name to be found by.
func TestRestoreKeepsNoCopies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := options(dir, &ledger{})
	opts.ConvertSnapshot = func(in io.Reader, out io.Writer) error {
		_, err := io.Copy(out, in)
		return err
	}
	n := open(t, opts)
	leads(t, n)
	propose(t, n, "a")
	var file bytes.Buffer
	if err := n.SaveSnapshot(within(t), &file); err != nil {
		t.Fatal(err)
	}
	if err := n.RestoreSnapshot(within(t), bytes.NewReader(file.Bytes())); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.Contains(to, dir) && strings.Contains(to, "restore.tmp") {
			t.Errorf("%s is still open", to)
		}
	}
}
