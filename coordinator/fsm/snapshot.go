package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/state"
)

// A snapshot is magic, one byte of version, the saved state, and the SHA-256 of all that.
const (
	magic           = "DEMIURGE-STATE"
	snapshotVersion = 1
)

// Snapshot captures the state without copying a record; applying goes on while it is written.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	return &snapshot{f.store.Checkpoint()}, nil
}

type snapshot struct {
	checkpoint state.Checkpoint
}

// Persist implements raft.FSMSnapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(fmt.Errorf("cannot write the snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) write(w io.Writer) error {
	digest := sha256.New()
	both := io.MultiWriter(w, digest)
	if _, err := both.Write(append([]byte(magic), snapshotVersion)); err != nil {
		return err
	}
	if err := s.checkpoint.Save(both); err != nil {
		return err
	}
	_, err := w.Write(digest.Sum(nil))
	return err
}

// Release implements raft.FSMSnapshot.
func (s *snapshot) Release() {}

// Restore replaces the state by a snapshot's. When it fails, nothing has changed.
func (f *FSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	loaded, err := load(r)
	if err != nil {
		f.log.Error("cannot restore the snapshot, the state stays as it was", "error", err)
		return err
	}
	f.store.Replace(loaded)
	f.log.Info("state restored from a snapshot", "index", f.store.View().Index())
	return nil
}

// Check reads a snapshot to its end and tells why it cannot be restored.
func Check(r io.Reader) error {
	_, err := load(r)
	return err
}

// Convert reads a snapshot to its end like Check and writes what is to be restored in its place: the same
// with the certificates and gossip keys that keep gives for the saved ones (nil: there are none), and with
// gateways that are prepared for hosts which know more than the snapshot (outrun). An error of keep is
// returned as it is.
func Convert(r io.Reader, w io.Writer, at time.Time, keep func(clusterID string, saved *state.Trust) (*state.Trust, error)) error {
	store, err := load(r)
	if err != nil {
		return err
	}
	v := store.View()
	trust, err := keep(v.Cluster(), v.Trust(nil))
	if err != nil {
		return err
	}
	rewrite := func(change func(*state.Txn)) {
		txn := store.Begin()
		txn.Entry(state.Origin{Index: txn.Index() + 1, At: at}) // no entry has this index: they leap far above it at a restore
		change(txn)
		txn.Commit()
	}
	rewrite(func(t *state.Txn) {
		if trust != nil {
			t.PutTrust(*trust)
		}
	})
	outrun(rewrite)
	return (&snapshot{store.Checkpoint()}).write(w)
}

func load(r io.Reader) (*state.Store, error) {
	in := &digesting{in: bufio.NewReaderSize(r, 1<<16), digest: sha256.New()}
	head := make([]byte, len(magic)+1)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:len(magic)]) != magic {
		return nil, errors.New("cannot restore the snapshot: it is not one of this program")
	}
	if v := head[len(magic)]; v != snapshotVersion {
		return nil, fmt.Errorf("cannot restore the snapshot: its version is %d and this program reads %d; install the version that wrote it", v, snapshotVersion)
	}
	store, err := state.Load(in)
	if err != nil {
		return nil, fmt.Errorf("cannot restore the snapshot: %w", err)
	}
	sum := make([]byte, sha256.Size)
	if _, err := io.ReadFull(in.in, sum); err != nil {
		return nil, errors.New("cannot restore the snapshot: it ends before its checksum")
	}
	if !bytes.Equal(sum, in.digest.Sum(nil)) {
		return nil, errors.New("cannot restore the snapshot: its checksum is wrong, it is damaged; use another one")
	}
	if _, err := in.in.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, errors.New("cannot restore the snapshot: there is more after its end")
	}
	return store, nil
}

// digesting computes the digest of what is read through it.
type digesting struct {
	in     *bufio.Reader
	digest hash.Hash
	one    [1]byte
}

// Read implements io.Reader.
func (d *digesting) Read(p []byte) (int, error) {
	n, err := d.in.Read(p)
	d.digest.Write(p[:n])
	return n, err
}

// ReadByte implements io.ByteReader.
func (d *digesting) ReadByte() (byte, error) {
	b, err := d.in.ReadByte()
	if err == nil {
		d.one[0] = b
		d.digest.Write(d.one[:])
	}
	return b, err
}
