package consensus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

func smallEnvelope(t *testing.T) []byte {
	t.Helper()
	payload := "the state of a small cluster"
	var out bytes.Buffer
	err := writeEnvelope(context.Background(), &out, snapshotHeader{
		NodeID: "c1", Members: []Peer{{ID: "c1", Address: "h:1", Voter: true}},
		Index: 7, Term: 2, Size: int64(len(payload)), SavedAt: time.Unix(1700000000, 0).UTC(),
	}, bytes.NewReader([]byte(payload)))
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestEnvelopeDetectsEveryFlip(t *testing.T) {
	t.Parallel()
	good := smallEnvelope(t)
	var payload bytes.Buffer
	if h, err := readEnvelope(bytes.NewReader(good), &payload); err != nil || h.Index != 7 || payload.String() != "the state of a small cluster" {
		t.Fatalf("the file itself: %+v, %q, %v", h, payload.String(), err)
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if _, err := readEnvelope(bytes.NewReader(bad), io.Discard); err == nil {
				t.Fatalf("bit %d of byte %d of %d turned and nobody noticed", bit, i, len(good))
			}
		}
		if _, err := readEnvelope(bytes.NewReader(good[:i]), io.Discard); err == nil {
			t.Fatalf("cut after %d of %d bytes and nobody noticed", i, len(good))
		}
	}
	if _, err := readEnvelope(bytes.NewReader(append(bytes.Clone(good), 0)), io.Discard); err == nil {
		t.Fatal("a byte too many and nobody noticed")
	}
}

// FuzzReadEnvelope: what is taken for a saved snapshot has as much payload as its header says, also when its checksum is
// right, and is written and read as the same.
func FuzzReadEnvelope(f *testing.F) {
	f.Add([]byte(snapshotMagic))
	f.Add([]byte(snapshotMagic + "\x01\x00\x00\x00\x02\x00\x00\x00{}"))
	f.Add([]byte(snapshotMagic + "\x01\x00\x00\x00\x1e\x00\x00\x00" + `{"size":9223372036854775807   }`))
	f.Fuzz(func(t *testing.T, data []byte) {
		sum := sha256.Sum256(data)
		for _, whole := range [][]byte{data, append(bytes.Clone(data), sum[:]...)} {
			var out bytes.Buffer
			h, err := readEnvelope(bytes.NewReader(whole), &out)
			if err != nil {
				if fault.CodeOf(err) != fault.InvalidRequest || !strings.Contains(err.Error(), "cannot restore this snapshot") {
					t.Fatalf("refused with %v", err)
				}
				continue
			}
			if int64(out.Len()) != h.Size {
				t.Fatalf("%d bytes of payload passed for %d", out.Len(), h.Size)
			}
			var again, payload bytes.Buffer
			if err := writeEnvelope(context.Background(), &again, h, bytes.NewReader(out.Bytes())); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			if _, err := readEnvelope(&again, &payload); err != nil || payload.String() != out.String() {
				t.Fatalf("%q is read, and then %q, %v", out.String(), payload.String(), err)
			}
		}
	})
}
