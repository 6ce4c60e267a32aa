package consensus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// A saved snapshot is
//
//	magic     8 bytes
//	format    4 bytes, little endian
//	length    4 bytes, little endian: of the header
//	header    JSON
//	payload   what the FSM wrote, header.Size bytes
//	digest    32 bytes: SHA-256 of everything before it
//
// and nothing after that.
const (
	snapshotMagic  = "DMRGSNAP"
	snapshotFormat = 1
	maxHeader      = 64 << 10
	restoreFile    = "restore.tmp"
	// restoreLeap is how far indexes leap when a snapshot is restored. The cluster that saved it may have gone on for
	// long, and this one may be new: hosts and records in the DNS then know indexes as epochs that this cluster has
	// never reached, and a new epoch must be above them all. No log grows by so much between a snapshot and its loss.
	restoreLeap = 1 << 32
)

// snapshotHeader says where a saved snapshot comes from.
type snapshotHeader struct {
	NodeID  string    `json:"node_id"` // that saved it
	Members []Peer    `json:"members"` // of the cluster then; a restore keeps its own
	Index   uint64    `json:"index"`
	Term    uint64    `json:"term"`
	Size    int64     `json:"size"`
	SavedAt time.Time `json:"saved_at"`
}

// SaveSnapshot writes the state this node has applied to w, as one file that RestoreSnapshot takes.
func (n *Node) SaveSnapshot(ctx context.Context, w io.Writer) error {
	if err := n.Snapshot(ctx); err != nil {
		return fmt.Errorf("cannot take a snapshot: %w", err)
	}
	snaps, err := n.snaps.List()
	if err != nil {
		return fmt.Errorf("cannot list the snapshots: %w", err)
	}
	if len(snaps) == 0 {
		return fault.New(fault.Conflict, "cannot save a snapshot: nothing has been written yet")
	}
	meta, payload, err := n.snaps.Open(snaps[0].ID)
	if err != nil {
		return fmt.Errorf("cannot open snapshot %s: %w", snaps[0].ID, err)
	}
	header := snapshotHeader{
		NodeID: n.opts.NodeID, Members: n.peers(),
		Index: meta.Index, Term: meta.Term, Size: meta.Size, SavedAt: time.Now().UTC(),
	}
	return errors.Join(writeEnvelope(ctx, w, header, payload), payload.Close())
}

func writeEnvelope(ctx context.Context, w io.Writer, header snapshotHeader, payload io.Reader) error {
	raw, err := json.Marshal(header)
	if err != nil {
		return fmt.Errorf("cannot encode the snapshot's header: %w", err)
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	head := append([]byte(snapshotMagic), 0, 0, 0, 0, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(head[8:], snapshotFormat)
	binary.LittleEndian.PutUint32(head[12:], uint32(len(raw)))
	if _, err := out.Write(append(head, raw...)); err != nil {
		return fmt.Errorf("cannot write the snapshot: %w", err)
	}
	copied, err := io.Copy(out, readerUntil{ctx, payload})
	if err != nil {
		return fmt.Errorf("cannot write the snapshot: %w", err)
	}
	if copied != header.Size {
		return fmt.Errorf("cannot write the snapshot: it has %d bytes and should have %d", copied, header.Size)
	}
	if _, err := w.Write(sum.Sum(nil)); err != nil {
		return fmt.Errorf("cannot write the snapshot: %w", err)
	}
	return nil
}

// readEnvelope checks a saved snapshot to its end while it copies the payload to out. Nothing in out may
// be used before it returns without an error.
func readEnvelope(r io.Reader, out io.Writer) (snapshotHeader, error) {
	var header snapshotHeader
	sum := sha256.New()
	in := io.TeeReader(r, sum)
	head := make([]byte, 16)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:8]) != snapshotMagic {
		return header, badSnapshot(err, "it is not a snapshot of a coordinator")
	}
	if format := binary.LittleEndian.Uint32(head[8:]); format != snapshotFormat {
		return header, badSnapshot(nil, fmt.Sprintf("it has format %d and this program reads format %d; use the program version that saved it", format, snapshotFormat))
	}
	length := binary.LittleEndian.Uint32(head[12:])
	if length > maxHeader {
		return header, badSnapshot(nil, "its header is damaged")
	}
	raw := make([]byte, length)
	if _, err := io.ReadFull(in, raw); err != nil {
		return header, badSnapshot(err, "it ends early")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&header); err != nil || header.Size < 0 {
		return header, badSnapshot(err, "its header is damaged")
	}
	if _, err := io.CopyN(out, in, header.Size); err != nil {
		if errors.Is(err, io.EOF) {
			return header, badSnapshot(err, "it ends early")
		}
		return header, fmt.Errorf("cannot copy the snapshot: %w", err)
	}
	want := sum.Sum(nil)
	rest, err := io.ReadAll(io.LimitReader(r, sha256.Size+1))
	if err != nil {
		return header, fmt.Errorf("cannot read the snapshot: %w", err)
	}
	if !bytes.Equal(rest, want) {
		return header, badSnapshot(nil, "its checksum does not match, so it is damaged or not whole")
	}
	return header, nil
}

func badSnapshot(err error, why string) error {
	return fault.Wrap(fault.InvalidRequest, err, "cannot restore this snapshot: %s", why)
}

// RestoreSnapshot replaces the state of the whole cluster by a saved one. Only the leader can. The file is
// checked to its end before anything changes. Commands in flight are answered with ErrUnknown. The
// members stay as they are, and indexes go on far above both the cluster's and the snapshot's.
func (n *Node) RestoreSnapshot(ctx context.Context, r io.Reader) error {
	if !n.IsLeader() {
		return n.noLeader(nil, "this coordinator does not lead")
	}
	f, err := n.scratch()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	header, err := readEnvelope(readerUntil{ctx, r}, &paced{to: f, sync: f.Sync})
	if err != nil {
		return err
	}
	if n.opts.CheckSnapshot != nil {
		if err := n.opts.CheckSnapshot(io.NewSectionReader(f, 0, header.Size)); err != nil {
			return badSnapshot(err, "this program cannot read its content; use the program version that saved it")
		}
	}
	content := f
	if n.opts.ConvertSnapshot != nil {
		converted, err := n.scratch()
		if err != nil {
			return err
		}
		defer func() { _ = converted.Close() }()
		if err := n.opts.ConvertSnapshot(io.NewSectionReader(f, 0, header.Size), &paced{to: converted, sync: converted.Sync}); err != nil {
			return badSnapshot(err, "its content does not fit: "+err.Error())
		}
		if header.Size, err = converted.Seek(0, io.SeekCurrent); err != nil {
			return n.dir.refused("cannot copy the snapshot to", err)
		}
		content = converted
	}
	meta := &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: filepath.Base(content.Name()),
		Index: max(header.Index, n.raft.LastIndex()) + restoreLeap, Term: header.Term, Size: header.Size,
	}
	n.log.Warn("restoring a snapshot over the present state", "saved_by", header.NodeID, "saved_at", header.SavedAt, "index", header.Index)
	// The library reads content until it answers, so this is waited for whatever ctx says, and for as long as it takes: its
	// own time limit is for the whole, and would call a restore that took longer one that was never begun.
	return n.asLeader(context.WithoutCancel(ctx), "restore the snapshot", func() error {
		return n.raft.Restore(meta, io.NewSectionReader(content, 0, header.Size), 0)
	})
}

// scratch makes a file without a name, so that nothing is left over and two restores do not meet.
func (n *Node) scratch() (*os.File, error) {
	f, err := os.CreateTemp(n.dir.path, restoreFile)
	if err != nil {
		return nil, n.dir.refused("cannot copy the snapshot to", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(n.dir.refused("cannot copy the snapshot to", err), f.Close())
	}
	return f, nil
}

// readerUntil is a reader that fails once ctx has ended.
type readerUntil struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (r readerUntil) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
