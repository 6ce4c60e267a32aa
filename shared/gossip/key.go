package gossip

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/hashicorp/memberlist"

	"github.com/demiurge-platform/demiurge/shared/fsx"
)

// Key encrypts the gossip (AES-256-GCM). It prints as its fingerprint, never as itself.
type Key struct{ bytes string }

// Fingerprint names a key without giving it away: eight hexadecimal digits of its SHA-256.
type Fingerprint string

const keySize = 32

// NewKey makes a random key.
func NewKey() Key {
	var b [keySize]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
	return Key{string(b[:])}
}

// ParseKey reads a key in base64, as Text gives it.
func ParseKey(s string) (Key, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != keySize { // the text itself may be a secret with a typing error: not repeated
		return Key{}, fmt.Errorf("cannot read a gossip key: it is not %d bytes in base64", keySize)
	}
	return Key{string(b)}, nil
}

// IsZero reports whether there is no key.
func (k Key) IsZero() bool { return k.bytes == "" }

// Text is the key itself in base64, for files and for the one answer that hands it out.
func (k Key) Text() string { return base64.StdEncoding.EncodeToString([]byte(k.bytes)) }

// Fingerprint names the key.
func (k Key) Fingerprint() Fingerprint { return fingerprint([]byte(k.bytes)) }

func (k Key) String() string { return "gossip key " + string(k.Fingerprint()) }

// GoString keeps %#v from printing the key.
func (k Key) GoString() string { return k.String() }

// MarshalText refuses: a key gets into a document only by Text, on purpose.
func (k Key) MarshalText() ([]byte, error) {
	return nil, errors.New("cannot write a gossip key into a document")
}

func fingerprint(key []byte) Fingerprint {
	sum := sha256.Sum256(key)
	return Fingerprint(hex.EncodeToString(sum[:4]))
}

// maxKeys is how many keys a ring holds: the one in use and the next, or the one before. One more and the
// library's removal would move keys under the feet of its own decryption.
const maxKeys = 2

const keyringFile = "gossip-keyring.json"

// ring is the keys of this node, in memory for the library and on disk for the next start.
type ring struct {
	live  *memberlist.Keyring
	fs    fsx.FS // nil: nothing on disk
	path  string
	saved []Fingerprint // what is on disk, the one in use first; touched by one goroutine
}

// openRing reads the keyring of a directory, or begins one with the first key. No key at all gives nil.
func openRing(files fsx.FS, dir string, first Key) (*ring, error) {
	r := &ring{fs: files, path: filepath.Join(dir, keyringFile)}
	var keys []Key
	if files != nil {
		var err error
		if keys, err = readRing(files, r.path); err != nil {
			return nil, err
		}
	}
	if len(keys) == 0 && !first.IsZero() {
		keys = []Key{first}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	var raw [][]byte
	for _, k := range keys {
		raw = append(raw, []byte(k.bytes))
	}
	live, err := memberlist.NewKeyring(raw, raw[0])
	if err != nil {
		return nil, err
	}
	r.live = live
	return r, r.save()
}

func readRing(files fsx.FS, path string) ([]Key, error) {
	data, err := files.ReadFile("gossip.keyring.read", path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the gossip keys: %w", err)
	}
	var texts []string
	if err := json.Unmarshal(data, &texts); err != nil || len(texts) == 0 || len(texts) > maxKeys {
		return nil, fmt.Errorf("cannot use the gossip keys of %s: it is not a list of one or two keys; restore the file from another member of the pool", path)
	}
	keys := make([]Key, len(texts))
	for i, text := range texts {
		if keys[i], err = ParseKey(text); err != nil {
			return nil, fmt.Errorf("cannot use the gossip keys of %s: %w", path, err)
		}
	}
	return keys, nil
}

// save makes the keys in memory durable, if they differ from those on disk.
func (r *ring) save() error {
	keys := r.live.GetKeys()
	var prints []Fingerprint
	var texts []string
	for _, k := range keys {
		prints = append(prints, fingerprint(k))
		texts = append(texts, base64.StdEncoding.EncodeToString(k))
	}
	if slices.Equal(prints, r.saved) {
		return nil
	}
	if r.fs != nil {
		data, err := json.Marshal(texts)
		if err != nil {
			return err
		}
		if err := fsx.WriteAtomic(r.fs, "gossip.keyring", r.path, append(data, '\n'), 0o600); err != nil {
			return fmt.Errorf("cannot keep the gossip keys: %w", err)
		}
	}
	r.saved = prints
	return nil
}

// find gives the key of a fingerprint.
func (r *ring) find(p Fingerprint) (Key, bool) {
	for _, k := range r.live.GetKeys() {
		if fingerprint(k) == p {
			return Key{string(k)}, true
		}
	}
	return Key{}, false
}
