package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// Recovery is what Recover did.
type Recovery struct {
	Index   uint64 // of the newest entry that was kept
	Term    uint64 // of it
	Members []Peer // of the cluster as this node knew it before
}

// Recoverable reports whether a directory can be recovered by this node: it holds a log or a snapshot of it,
// and no process runs on it. Nothing is changed.
func Recoverable(dir, nodeID string) error {
	if _, err := os.Stat(filepath.Join(dir, versionFile)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot recover from %s: it is not a data directory of a coordinator; name the configuration of one that has run", dir)
		}
		return fmt.Errorf("cannot recover from %s: %w", dir, err)
	}
	d := &dataDir{path: dir}
	if err := d.acquire(); err != nil {
		return err
	}
	_, err := d.version(nodeID)
	return errors.Join(err, d.release())
}

// Recover makes the node of a directory the only member of its cluster, for the case that so many members
// are lost for good that no majority is left. The directory is copied to backup first, which must not
// exist. Everything in the log is kept, also entries that no majority had: nobody can tell them apart any
// more. What only the lost members had is not known, so the node goes on as after the restore of a snapshot: with what
// ConvertSnapshot makes of its state, and with indexes far above. The node must not run; opened afterwards, it leads. The
// lost members must never run again with their old directories. Of the ways to be reached only Advertise is needed:
// nothing is sent.
//
// It can be run again when it was interrupted: until a snapshot of everything is there the old log is whole.
func Recover(opts Options, backup string) (Recovery, error) {
	if opts.Advertise == "" {
		return Recovery{}, errors.New("cannot recover: the node has no address at which others will reach it")
	}
	opts.Listen, opts.Listener, opts.Stream = "", nil, nil
	_, opts.Transport = raft.NewInmemTransport(raft.ServerAddress(opts.Advertise))
	if err := opts.normalize(); err != nil {
		return Recovery{}, err
	}
	if err := Recoverable(opts.Dir, opts.NodeID); err != nil {
		return Recovery{}, err
	}
	n := &Node{opts: opts, log: opts.Logger.Named("recovery"), lead: newLeadership()}
	did, err := n.recover(backup)
	return did, errors.Join(err, n.stack.Stop(context.Background()))
}

func (n *Node) recover(backup string) (did Recovery, err error) {
	if n.dir, err = openDir(n.opts.Dir, n.opts.NodeID, 2*uint64(n.opts.SegmentSize), n.opts.WriteTimeout); err != nil {
		return did, err
	}
	n.stack.PushClose("data directory", n.releaseDir)
	if err := copyDir(n.dir.path, backup); err != nil {
		return did, fmt.Errorf("cannot copy %s to %s before anything is changed: %w", n.dir.path, backup, err)
	}
	if err := n.openTransport(); err != nil {
		return did, err
	}
	if err := n.openStore(); err != nil {
		return did, err
	}
	if did.Members, err = n.lastMembers(); err != nil {
		return did, err
	}
	conf, err := n.config(make(chan bool, notifications))
	if err != nil {
		return did, err
	}
	alone := raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: raft.ServerID(n.opts.NodeID), Address: raft.ServerAddress(n.Address())},
	}}
	logs := recoveryLog{n.guard}
	if err := raft.RecoverCluster(conf, n.opts.FSM, logs, &stable{guard: n.guard}, n.snaps, n.transport, alone); err != nil {
		return did, fmt.Errorf("cannot recover from %s: %w; what it was is in %s", n.dir.path, err, backup)
	}
	snaps, err := n.snaps.List()
	if err != nil || len(snaps) == 0 {
		return did, fmt.Errorf("cannot find the snapshot that was just written: %w", errors.Join(err, errors.New("there is none")))
	}
	did.Index, did.Term = snaps[0].Index, snaps[0].Term
	if err := n.leapOver(snaps[0]); err != nil {
		return did, err
	}
	return did, n.setMark()
}

// leapOver puts a snapshot of the same in the place of the one that was just written, converted as one that is restored
// and far above it: what only the lost members had may be known elsewhere, and must not be given twice.
func (n *Node) leapOver(last *raft.SnapshotMeta) error {
	_, payload, err := n.snaps.Open(last.ID)
	if err != nil {
		return fmt.Errorf("cannot read the snapshot that was just written: %w", err)
	}
	defer func() { _ = payload.Close() }() // only read
	sink, err := n.snaps.Create(raft.SnapshotVersionMax, last.Index+restoreLeap, last.Term, last.Configuration, last.ConfigurationIndex, n.transport)
	if err != nil {
		return n.dir.refused("cannot write a snapshot to", err)
	}
	if n.opts.ConvertSnapshot != nil {
		err = n.opts.ConvertSnapshot(payload, sink)
	} else {
		_, err = io.Copy(sink, payload)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot convert the snapshot that was just written: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// lastMembers finds the members as this node knows them: in its newest snapshot, or in a later entry of
// its log.
func (n *Node) lastMembers() ([]Peer, error) {
	var known raft.Configuration
	var after uint64
	snaps, err := n.snaps.List()
	if err != nil {
		return nil, fmt.Errorf("cannot list the snapshots: %w", err)
	}
	if len(snaps) > 0 {
		known, after = snaps[0].Configuration, snaps[0].Index
	}
	first, err := n.guard.FirstIndex()
	if err != nil {
		return nil, fmt.Errorf("cannot read the log: %w", err)
	}
	last, err := n.guard.LastIndex()
	if err != nil {
		return nil, fmt.Errorf("cannot read the log: %w", err)
	}
	for i := max(first, after+1); first > 0 && i <= last; i++ {
		var entry raft.Log
		if err := n.guard.GetLog(i, &entry); err != nil {
			return nil, err
		}
		if entry.Type == raft.LogConfiguration {
			known = raft.DecodeConfiguration(entry.Data)
		}
	}
	var out []Peer
	for _, s := range known.Servers {
		out = append(out, Peer{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out, nil
}

// recoveryLog lets a log that is empty already be emptied.
type recoveryLog struct{ *guard }

// DeleteRange implements raft.LogStore.
func (l recoveryLog) DeleteRange(low, high uint64) error {
	if low == 0 {
		return nil
	}
	return l.guard.DeleteRange(low, high)
}

// copyDir copies a directory to a place where nothing is, durably. The lock is not copied: it belongs to
// the place. A copy that fails is left behind, so that nobody takes half of one for whole without a look.
func copyDir(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == from {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || rel == lockFile {
			return err
		}
		if entry.IsDir() {
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		}
		return copyFile(path, filepath.Join(to, rel))
	})
	return errors.Join(err, syncTree(to))
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // only read
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// syncTree makes the names in a directory and below it durable, and its own.
func syncTree(dir string) error {
	sync := func(path string) error {
		d, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(d.Sync(), d.Close())
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		return sync(path)
	})
	return errors.Join(err, sync(filepath.Dir(dir)))
}
